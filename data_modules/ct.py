"""Computed tomography."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class CT(MedicalVQADataModule):
    """Computed tomography; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``CT``, ``CT(Computed Tomography)``, ``Computed Tomography``.

    Slices exported as 8-bit images carry a fixed window. 16-bit slices are stretched from their least to their greatest
    value, so export the window you want to be seen.
    """

    modality = "ct"
