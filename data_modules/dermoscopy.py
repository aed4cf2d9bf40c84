"""Dermoscopy of skin lesions."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class Dermoscopy(MedicalVQADataModule):
    """Dermoscopy of skin lesions; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``Dermoscopy``, ``Derm``, ``Dermatoscopy``.

    Colour is kept; photographs are turned upright by their EXIF tag.
    """

    modality = "dermoscopy"
