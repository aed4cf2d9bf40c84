"""All data modules at once, so that a command line knows them by name; the package itself loads them when asked."""

# ruff: noqa: F401

from data_modules.base import MedicalVQADataModule
from data_modules.ct import CT
from data_modules.dermoscopy import Dermoscopy
from data_modules.fundus import Fundus
from data_modules.microscopy import Microscopy
from data_modules.mri import MRI
from data_modules.oct import OCT
from data_modules.tasks import (
    AnatomyIdentification,
    DiseaseDiagnosis,
    LesionGrading,
    ModalityRecognition,
    OtherBiologicalAttributes,
)
from data_modules.ultrasound import Ultrasound
from data_modules.xray import XRay
