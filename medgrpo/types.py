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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

MODALITIES = ("ct", "mri", "xray", "ultrasound", "fundus", "dermoscopy", "microscopy", "oct")
"""Canonical names of the eight imaging modalities."""

LETTERS = string.ascii_uppercase[:10]
"""Option letters; items have 2 to 10 options."""


View = Literal["image", "blank", "wrong_image", "shuffled"]
"""How a question is shown: with its image, with a grey one, with another question's image, with its options in another
order."""


class UserError(ValueError):
    """Something that the user can mend: the message says what and how, and the command line prints nothing else."""


class DataError(UserError):
    """A bad file, record, image or prompt."""


class SettingsError(UserError):
    """A bad option, or options that do not go together."""


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
    closed: bool = False
    """True when no options are listed and yet the answer is one of few words: yes or no, left or right."""
    metadata: dict[str, str] = field(default_factory=dict, hash=False)
    """What else the source file says, by name: ``patient``, ``language``, ``explanation``, ``source`` ..."""

    @property
    def answer_type(self) -> Literal["choice", "closed", "open"]:
        """What kind of answer is asked for: one of the options, one of few words, or free text."""
        return "choice" if self.options else "closed" if self.closed else "open"

    @property
    def letters(self) -> str:
        """Letters of the options offered, e.g. ``"ABCD"``."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class VisionFeatures:
    """What the vision tower says about the images of a batch, one row per image token, in prompt order."""

    embeds: Tensor
    """[image tokens, H]"""
    deepstack: tuple[Tensor, ...] = ()
    """Qwen3-VL only: features added to the first decoder layers, each [image tokens, H]."""


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
    """[patches, patch dim] float32 of all images in prompt order, or None without images."""
    image_grid_thw: Tensor | None
    """[images, 3] int64: time, height, width in patches, or None without images."""
    images_per_prompt: tuple[int, ...]
    """[P] number of images of each prompt."""
    thumbnails: tuple[Tensor | None, ...] = ()
    """[P] first image of each prompt for display, uint8 (3, h, w), or None."""
    position_ids: Tensor | None = None
    """[3, P, T] rotary positions (time, height, width), set once per rollout batch by ``prefix.prepare``."""
    vision: VisionFeatures | None = None
    """Features of a frozen vision tower, set once per rollout batch by ``prefix.prepare``."""
    view: View = "image"
    skipped: int = 0
    """Training records that stood here before their images turned out to be broken."""

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: torch.device | str, **kwargs) -> PromptBatch:
        """The same batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> PromptBatch:
        """Called by a DataLoader with ``pin_memory=True``."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> PromptBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(t) for name, t in tensors.items() if isinstance(t, Tensor)})

    def select(self, prompts: Sequence[int]) -> PromptBatch:
        """The batch of these prompts alone, without the padding that only the others needed."""
        rows = torch.as_tensor(prompts, device=self.input_ids.device)
        columns = slice(int(self.attention_mask[rows].any(0).long().argmax()), None)
        image_ends = torch.tensor((0, *self.images_per_prompt)).cumsum(0).tolist()
        images = [i for p in prompts for i in range(image_ends[p], image_ends[p + 1])]
        grid = None if self.image_grid_thw is None or not images else self.image_grid_thw[images]
        pixels, vision = None, None
        if images and self.pixel_values is not None:
            patches = self.image_grid_thw.prod(-1).tolist()
            pixels = torch.cat([self.pixel_values.split(patches)[i] for i in images])
        if images and self.vision is not None:
            tokens = (self.mm_token_type_ids == 1).sum(-1).tolist()
            vision = VisionFeatures(*_select_rows(self.vision, tokens, prompts))
        return PromptBatch(
            records=tuple(self.records[p] for p in prompts),
            texts=tuple(self.texts[p] for p in prompts),
            input_ids=self.input_ids[rows, columns],
            attention_mask=self.attention_mask[rows, columns],
            mm_token_type_ids=self.mm_token_type_ids[rows, columns],
            pixel_values=pixels,
            image_grid_thw=grid,
            images_per_prompt=tuple(self.images_per_prompt[p] for p in prompts),
            thumbnails=tuple(self.thumbnails[p] for p in prompts) if self.thumbnails else (),
            position_ids=None if self.position_ids is None else self.position_ids[:, rows, columns],
            vision=vision,
            view=self.view,
        )


def _select_rows(
    vision: VisionFeatures, tokens: list[int], prompts: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    def select(features: Tensor) -> Tensor:
        parts = features.split(tokens)
        return torch.cat([parts[p] for p in prompts])

    return select(vision.embeds), tuple(select(features) for features in vision.deepstack)


@dataclass
class Prefix:
    """The prompts of a batch, encoded once: what every completion of theirs attends to."""

    keys: list[Tensor]
    """One per decoder layer, [P, key-value heads, T, head dim]."""
    values: list[Tensor]
    """As ``keys``."""
    mask: Tensor
    """[P, T] bool, True on real tokens."""
    next_position: Tensor
    """[P] int64, the rotary position of the first completion token: ``max(prompt position) + 1``."""
    last_hidden: Tensor
    """[P, H] final hidden state of the last prompt token; it scores the first completion token."""

    def select(self, prompts: Sequence[int]) -> Prefix:
        """The prefix of these prompts alone; gradients flow back to this one."""
        if list(prompts) == list(range(len(self.mask))):
            return self
        rows = torch.as_tensor(prompts, device=self.mask.device)
        return Prefix(
            keys=[keys[rows] for keys in self.keys],
            values=[values[rows] for values in self.values],
            mask=self.mask[rows],
            next_position=self.next_position[rows],
            last_hidden=self.last_hidden[rows],
        )

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer."""
        return list(zip(self.keys, self.values, strict=True))

    def tensors(self) -> list[Tensor]:
        """What gradients flow through."""
        return [*self.keys, *self.values, self.last_hidden]

    def detach(self) -> Prefix:
        """The same values as leaves that take gradients."""
        keys, values = ([t.detach().requires_grad_() for t in part] for part in (self.keys, self.values))
        return replace(self, keys=keys, values=values, last_hidden=self.last_hidden.detach().requires_grad_())


@dataclass
class Completions:
    """What the policy said: G rows per prompt, rows of a group are neighbours."""

    ids: Tensor
    """[N, C] int64, right-padded."""
    mask: Tensor
    """[N, C] bool, True up to and including the first stop token."""
    logps: Tensor
    """[N, C] float32 log-probabilities at sampling time, 0 where ``mask`` is False."""
    finished: Tensor
    """[N] bool, True where a stop token was drawn; False where the completion was cut off (truncated)."""

    def widened(self, length: int) -> Completions:
        """With at least ``length`` columns; padding has id 0."""
        missing = max(0, length - self.ids.shape[1])
        ids, mask, logps = (torch.nn.functional.pad(t, (0, missing)) for t in (self.ids, self.mask, self.logps))
        return replace(self, ids=ids, mask=mask, logps=logps)


@dataclass
class Rollouts:
    """One rollout batch, from sampling to the last optimizer step taken on it."""

    prompts: PromptBatch
    """On the policy's device, with positions and (frozen tower) vision features."""
    completions: Completions
    texts: list[str]
    """[N] decoded completions."""
    rewards: Tensor
    """[N, number of rewards] float32, unweighted."""
    advantages: Tensor
    """[N] float32"""
    weights: Tensor
    """[N, C] float32 weight of each token in the loss; 0 outside the loss mask (``loss.token_weights``)."""
    active: list[bool]
    """[P] False for groups that cannot contribute a gradient (equal rewards, ``beta == 0``)."""
    ref_logps: Tensor | None = None
    """[N, C] float32 under the reference policy; None when ``beta == 0``."""
    old_logps: Tensor | None = None
    """[N, C] float32 under the policy before the first of ``mu`` > 1 steps: NaN until the first pass fills them."""
    prefix: Prefix | None = None
    """Encoding of the prompts that the rollout used, with its graph, until the first pass has taken it."""
