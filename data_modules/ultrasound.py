"""Ultrasonography."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class Ultrasound(MedicalVQADataModule):
    """Ultrasonography; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``ultrasound``, ``US``, ``Sonography``.

    Of files with several frames the first is read.
    """

    modality = "ultrasound"
