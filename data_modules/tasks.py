"""OmniMedVQA's question types, across modalities; each takes the options of `MedicalVQADataModule`."""

from __future__ import annotations

from data_modules.base import MedicalVQADataModule


class AnatomyIdentification(MedicalVQADataModule):
    """Which organ or structure is shown."""

    task = "Anatomy Identification"


class DiseaseDiagnosis(MedicalVQADataModule):
    """Which disease or abnormality is shown, or whether one is."""

    task = "Disease Diagnosis"


class LesionGrading(MedicalVQADataModule):
    """How severe a finding is; also the quality of an image, with three options."""

    task = "Lesion Grading"


class ModalityRecognition(MedicalVQADataModule):
    """Which imaging technique made the image."""

    task = "Modality Recognition"


class OtherBiologicalAttributes(MedicalVQADataModule):
    """Other visible properties: cell shapes, positions, counts."""

    task = "Other Biological Attributes"
