"""LightningDataModules for medical visual question answering: one per imaging modality, one per question type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_modules.classes import (
        CT,
        MRI,
        OCT,
        AnatomyIdentification,
        Dermoscopy,
        DiseaseDiagnosis,
        Fundus,
        LesionGrading,
        MedicalVQADataModule,
        Microscopy,
        ModalityRecognition,
        OtherBiologicalAttributes,
        Ultrasound,
        XRay,
    )

__all__ = [
    "CT",
    "MRI",
    "OCT",
    "AnatomyIdentification",
    "Dermoscopy",
    "DiseaseDiagnosis",
    "Fundus",
    "LesionGrading",
    "MedicalVQADataModule",
    "Microscopy",
    "ModalityRecognition",
    "OtherBiologicalAttributes",
    "Ultrasound",
    "XRay",
]


def __getattr__(name: str) -> Any:
    """A class, when it is asked for: ``medgrpo grade`` and ``medgrpo data`` need none, and Lightning takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from data_modules import classes

    return getattr(classes, name)
