"""Magnetic resonance imaging."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class MRI(MedicalVQADataModule):
    """Magnetic resonance imaging; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``MRI``, ``MR``, ``MR (Mag-netic Resonance Imaging)``.

    Grey values have no unit: deeper than 8 bits, they are stretched from the slice's least to its greatest value.
    """

    modality = "mri"
