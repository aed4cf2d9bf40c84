"""Names of modalities and question types, in all their spellings."""

from __future__ import annotations

import re
from pathlib import Path

ALIASES: dict[str, tuple[str, ...]] = {
    "ct": ("CT", "CT(Computed Tomography)", "Computed Tomography", "CT scan", "CAT scan"),
    "mri": (
        "MRI",
        "MR",
        "MR (Mag-netic Resonance Imaging)",
        "Magnetic Resonance Imaging",
        "Magnetic Resonance",
        "MRI scan",
    ),
    "xray": ("X-Ray", "Xray", "CXR", "Chest X-Ray", "Radiograph", "Radiography", "CR", "DX"),
    "ultrasound": ("ultrasound", "US", "Ultrasonography", "Sonography"),
    "fundus": ("Fundus", "Fundus Photography", "CFP", "Color Fundus Photography"),
    "dermoscopy": ("Dermoscopy", "Derm", "Dermatoscopy"),
    "microscopy": ("Microscopy", "Microscopy Images", "Micro", "Microscope"),
    "oct": ("OCT", "OCT (Optical Coherence Tomography", "Optical Coherence Tomography"),
}
"""Names of each modality in files and on the command line; case, spaces and punctuation do not matter.
OmniMedVQA's own strings are among them as published, with its spelling and its missing bracket."""

TASKS = (
    "Anatomy Identification",
    "Disease Diagnosis",
    "Lesion Grading",
    "Modality Recognition",
    "Other Biological Attributes",
)
"""Question types of OmniMedVQA."""


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_MODALITY_KEYS = {_key(alias): name for name, aliases in ALIASES.items() for alias in (name, *aliases)}
_TASK_KEYS = {_key(task): task for task in TASKS}


def modality_of(name: str) -> str:
    """Canonical modality of a name such as ``MR (Mag-netic Resonance Imaging)``; empty when unknown."""
    return _MODALITY_KEYS.get(_key(name), "")


def task_of(name: str) -> str:
    """Question type of a name such as ``lesion_grading``; empty when it is not one of `TASKS`."""
    return _TASK_KEYS.get(_key(name), "")


def labels_of_file(path: Path) -> tuple[str, str]:
    """Modality and task that a file's name tells, as in ``Lesion Grading_train.json``; empty when it tells none."""
    name = re.sub(r"[ _-](train|test|val|valid|validation)$", "", path.stem, flags=re.IGNORECASE)
    return modality_of(name), task_of(name)
