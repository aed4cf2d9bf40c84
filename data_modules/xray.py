"""Projection radiography."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class XRay(MedicalVQADataModule):
    """Projection radiography; takes the options of `MedicalVQADataModule`.

    Names in files, among others: ``X-Ray``, ``CXR``, ``Radiograph``.

    Single-channel files become three equal channels; 12 and 16 bits are stretched to 8. Radiographs are large: the
    policy's ``max_pixels`` decides how many tokens one takes; their shape is kept unless ``resize`` is set.
    """

    modality = "xray"
