"""Colour fundus photography."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class Fundus(MedicalVQADataModule):
    """Colour fundus photography; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``Fundus Photography``, ``Fundus``, ``CFP``.

    Colour is kept; photographs are turned upright by their EXIF tag.
    """

    modality = "fundus"
