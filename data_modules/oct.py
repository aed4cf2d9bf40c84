"""Optical coherence tomography."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class OCT(MedicalVQADataModule):
    """Optical coherence tomography; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``OCT`` and ``Optical Coherence Tomography``, published with half a bracket as well.

    Single-channel B-scans become three equal channels; the wide shape is kept.
    """

    modality = "oct"
