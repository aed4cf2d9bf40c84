"""Microscopy and pathology."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class Microscopy(MedicalVQADataModule):
    """Microscopy and pathology; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``Microscopy Images``, ``Microscopy``, ``Micro``.

    Fields of view are read whole, TIFF included. Whole-slide images exceed ``max_image_pixels`` and are refused before
    they are decoded: cut them into fields first.
    """

    modality = "microscopy"
