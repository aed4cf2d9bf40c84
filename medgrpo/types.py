"""The data that flows through one GRPO step, and the letters that name its sizes.

    record -> prompt -> prefix -> rollout -> rewards -> advantages -> loss -> metrics

Shapes use the same letters everywhere:

    P   prompts per rollout batch and rank            (``prompts_per_batch``)
    G   completions per prompt, a *group*             (``num_generations``)
    N   completions per rollout batch, P * G; rows of one group are neighbours
    T   prompt length in tokens, image tokens included, left-padded
    C   completion length in tokens, right-padded     (at most ``max_completion_length``)
    A   micro-batches per rollout batch, whole groups (``accumulate_grad_batches``)
    mu  optimizer steps per rollout batch             (``num_iterations``)
    W   world size
    H   hidden size; V vocabulary size
"""

from __future__ import annotations

import string
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MODALITIES = ("ct", "mri", "xray", "ultrasound", "fundus", "dermoscopy", "microscopy", "oct")
"""Canonical names of the eight imaging modalities."""

LETTERS = string.ascii_uppercase[:10]
"""Option letters; items have 2 to 10 options."""


class DataError(ValueError):
    """Bad input from the user: a file, record, image or prompt. The message names it and what to change."""


@dataclass(frozen=True)
class Record:
    """One question with its gold answer."""

    id: str
    """Stable and unique within its file."""
    problem: str
    """Question and options as published, verbatim; the seeds' templates insert this."""
    question: str
    """The stem without the options."""
    options: tuple[str, ...]
    """Option texts in letter order, 2 to 10; empty for an open question."""
    answer: str
    """Gold: the letter when there are options, else the answer text."""
    images: tuple[str, ...] = ()
    """Paths relative to the image root; empty for a text-only question."""
    modality: str = ""
    """One of ``MODALITIES``, or empty when unknown."""
    task: str = ""
    """Question type, e.g. ``Lesion Grading``; empty when unknown."""
    dataset: str = ""

    @property
    def letters(self) -> str:
        """Letters of the options offered, e.g. ``"ABCD"``."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class PromptBatch:
    """P *different* prompts, processed once each: never repeated G times."""

    records: tuple[Record, ...]
    """[P]"""
    texts: tuple[str, ...]
    """[P] prompts after the chat template, before image placeholders are expanded."""
    input_ids: Tensor
    """[P, T] int64, left-padded."""
    attention_mask: Tensor
    """[P, T] bool, True on real tokens."""
    mm_token_type_ids: Tensor
    """[P, T] int64, 1 on image tokens, 0 elsewhere."""
    pixel_values: Tensor | None
    """[patches, patch dim] float32 of all images in order, or None without images."""
    image_grid_thw: Tensor | None
    """[images, 3] int64: time, height, width in patches, or None without images."""
    images_per_prompt: tuple[int, ...]
    """[P] number of images of each prompt."""
    thumbnails: tuple[Tensor | None, ...] = ()
    """[P] first image of each prompt for display, uint8 (3, h, w), or None."""

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: torch.device | str, **kwargs) -> PromptBatch:
        """The same batch with its tensors on ``device``."""
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{n: None if t is None else t.to(device, **kwargs) for n, t in tensors.items()})

    def pin_memory(self) -> PromptBatch:
        """Called by a DataLoader with ``pin_memory=True``."""
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{n: None if t is None else t.pin_memory() for n, t in tensors.items()})
