"""Records -> `PromptBatch`: each image opened and processed once; every prompt checked before training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_modules.image_cache import ImageCache, ProcessedImage
from data_modules.image_root import ImageFile, ImageRoot
from data_modules.images import (
    MAX_IMAGE_PIXELS,
    MAX_LISTED,
    find_images,
    image_size,
    image_sizes,
    image_tokens,
    open_rgb,
    prepare,
)
from data_modules.skipped import Skipped
from medgrpo.prompts import messages
from medgrpo.types import DataError, PromptBatch, Record, SettingsError, View

if TYPE_CHECKING:
    from transformers import ProcessorMixin

THUMBNAIL_PIXELS = 224
"""Longest side of the images kept for display."""

GREY = (128, 128, 128)
"""Of a blank image, which has the size of the one that it stands for."""


@dataclass(frozen=True)
class _Prompt:
    """One record, ready to be tokenized."""

    record: Record
    text: str
    expanded: str
    """``text`` with one placeholder per image token."""
    images: list[ProcessedImage]


@dataclass(frozen=True)
class Collate:
    """Makes a `PromptBatch` of some records: opens and processes each image once, then tokenizes all texts.

    It is picklable, so the workers of a `DataLoader` can share a processor that the parent has loaded.
    """

    processor: ProcessorMixin
    """Processor of Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    prompt: str
    """A preset of `medgrpo.prompts`, or a text with ``{Question}``."""
    image_root: str = "."
    """Folder that image paths start from."""
    min_pixels: int | None = None
    """Least area of an image in pixels after resizing; None is the processor's own."""
    max_pixels: int | None = None
    """Greatest area, likewise."""
    max_prompt_length: int | None = None
    """Tokens, image tokens included; longer prompts are an error, never cut. None is no limit."""
    max_image_pixels: int = MAX_IMAGE_PIXELS
    """Pixels of a file; larger files are not decoded."""
    resize: tuple[int, int] | None = None
    """(width, height) that every image is stretched to first, as Med-R1 did with (384, 384); None keeps the shape."""
    window: tuple[float, float] | None = None
    """(center, width) that DICOM and NIfTI values are shown through; None is the file's own."""
    image_cache: str | None = None
    """Folder that keeps processed images between epochs and runs; None keeps none."""
    view: View = "image"
    """What the records are shown as; ``blank`` makes their images grey."""

    def __post_init__(self) -> None:
        least, greatest = self._limits
        if least > greatest:
            raise SettingsError(
                f"min_pixels={least} exceeds max_pixels={greatest} (one of them may be the checkpoint's own); set both"
            )

    def __call__(self, records: Sequence[Record]) -> PromptBatch:
        """P records -> their prompts.

        Raises:
            DataError: an image that cannot be used, or a prompt longer than ``max_prompt_length``.
        """
        return self._batch([self._prompt(record) for record in records])

    def with_spares(self, rows: Sequence[Sequence[Record]]) -> tuple[PromptBatch, tuple[Skipped, ...]]:
        """The batch of the first record of each row that can be used, and the records that cannot.

        Args:
            rows: [P] a record, then those that may take its place, in this order; none is taken twice.

        Raises:
            DataError: a row has no record that can be used.
        """
        prompts: list[_Prompt] = []
        skipped: list[Skipped] = []
        taken = {row[0].id for row in rows}
        for row in rows:
            reasons: dict[str, str] = {}
            prompt = self._first_usable(row, taken, reasons)
            taken.add(prompt.record.id)
            prompts.append(prompt)
            skipped += [Skipped(id, reason, prompt.record.id) for id, reason in reasons.items()]
        return replace(self._batch(prompts), skipped=len(skipped)), tuple(skipped)

    def _first_usable(self, row: Sequence[Record], taken: set[str], reasons: dict[str, str]) -> _Prompt:
        """``reasons`` gets those against the records before it."""
        for record in row:
            if record is row[0] or record.id not in taken:
                try:
                    return self._prompt(record)
                except DataError as error:
                    reasons[record.id] = str(error)
        others = len(reasons) - 1
        raise DataError(
            f"{reasons[row[0].id]}. So this record cannot be used, and of {others} records that could take its place "
            f"none can; is image_root={self.image_root!r} still whole?"
        )

    def _prompt(self, record: Record) -> _Prompt:
        with _naming(record):
            text = self._text(record)
            images = [self._image(path) for path in record.images]
            return _Prompt(record, text, self._expanded(text, images), images)

    def _batch(self, prompts: Sequence[_Prompt]) -> PromptBatch:
        flat = [image for prompt in prompts for image in prompt.images]
        expanded = [prompt.expanded for prompt in prompts]
        inputs = self.processor.tokenizer(expanded, padding=True, padding_side="left", return_tensors="pt")
        attention_mask = inputs["attention_mask"].bool()
        for prompt, length in zip(prompts, attention_mask.sum(1).tolist(), strict=True):
            with _naming(prompt.record):
                self._check_length(length)
        return PromptBatch(
            records=tuple(prompt.record for prompt in prompts),
            texts=tuple(prompt.text for prompt in prompts),
            input_ids=inputs["input_ids"],
            attention_mask=attention_mask,
            mm_token_type_ids=(inputs["input_ids"] == self.processor.image_token_id).long(),
            pixel_values=torch.cat([image.pixel_values for image in flat]) if flat else None,
            image_grid_thw=torch.stack([image.image_grid_thw for image in flat]) if flat else None,
            images_per_prompt=tuple(len(prompt.images) for prompt in prompts),
            thumbnails=tuple(prompt.images[0].thumbnail if prompt.images else None for prompt in prompts),
            view=self.view,
        )

    def check(self, records: Sequence[Record], files: Mapping[str, ImageFile] | None = None) -> list[int]:
        """Find every prompt that `__call__` would refuse, from text and image headers alone.

        Args:
            records: to be used.
            files: of their images, from `images.find_images`, which is called if they are not given.

        Returns:
            For each prompt a number of tokens, image tokens included, that it does not exceed. A token is at least one
            byte of text, so only prompts whose bytes might not fit are tokenized.

        Raises:
            DataError: the records, up to `MAX_LISTED` of them, with their lengths.
        """
        sizes = image_sizes(find_images(records, self._root) if files is None else files, self.max_image_pixels)
        problems, bounds, overheads = [], [], {}
        for record in records:
            try:
                bounds.append(self._check(record, sizes, overheads))
            except DataError as error:
                problems.append(f"record {record.id}: {error}")
        if problems:
            more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
            listed = "\n  ".join(problems[:MAX_LISTED])
            raise DataError(f"{len(problems)} of {len(records)} prompts cannot be used:\n  {listed}{more}")
        return bounds

    def length(self, record: Record) -> int:
        """Tokens of a record's prompt, image tokens included."""
        text = len(self.processor.tokenizer(self._text(record))["input_ids"])
        sizes = [image_size(self._root.find(path), self.max_image_pixels) for path in record.images]
        return text + sum(self._num_tokens(size) - 1 for size in sizes)

    def _check(
        self, record: Record, sizes: Mapping[str, tuple[int, int] | DataError], overheads: dict[int, int]
    ) -> int:
        """What `length` does not exceed; ``overheads`` remembers what the chat template adds, by number of images."""
        self._refuse_special_tokens(record)
        said = _said(record, self.prompt)
        num_images = len(record.images)
        if num_images not in overheads:
            overheads[num_images] = len(self._text(record)) - len(said)
        # Composing characters, as the tokenizers do first, makes at most three bytes of one.
        num_bytes = len(said) if said.isascii() else 3 * len(said.encode())
        bound = overheads[num_images] + num_bytes + sum(self._num_tokens(sizes[path]) for path in record.images)
        if self.max_prompt_length is not None and bound > self.max_prompt_length:
            bound = self.length(record)
            self._check_length(bound)
        return bound

    def _refuse_special_tokens(self, record: Record) -> None:
        """They would end the turn, or ask for an image that is not there."""
        special = self._special.search("\n".join((record.problem, record.question, *record.options)))
        if special:
            raise DataError(f"expected plain text, got the model's special token {special[0]}")

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.processor.tokenizer.all_special_tokens)))

    @cached_property
    def _limits(self) -> tuple[int, int]:
        size = self.processor.image_processor.size  # areas, in spite of the names
        least = size["shortest_edge"] if self.min_pixels is None else self.min_pixels
        greatest = size["longest_edge"] if self.max_pixels is None else self.max_pixels
        return least, greatest

    @cached_property
    def _patch_size(self) -> int:
        return self.processor.image_processor.patch_size

    def _text(self, record: Record) -> str:
        self._refuse_special_tokens(record)
        chat = messages(record, self.prompt)
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        token = self.processor.image_token
        if text.count(token) != len(record.images):
            raise DataError(
                f"expected one {token} per image, {len(record.images)} in all, got {text.count(token)} in the prompt. "
                "Take it out of the option prompt, or use a checkpoint whose chat template places images."
            )
        return text

    def _expanded(self, text: str, images: Sequence[ProcessedImage]) -> str:
        """The text with one placeholder per image token, as the processor makes it of whole images."""
        token, merged = self.processor.image_token, self.processor.image_processor.merge_size**2
        first, *rest = text.split(token)
        counts = [int(image.image_grid_thw.prod()) // merged for image in images]
        return first + "".join(token * count + part for count, part in zip(counts, rest, strict=True))

    def _image(self, path: str) -> ProcessedImage:
        file = self._root.find(path)
        if self.view == "blank":
            return self._processed(Image.new("RGB", image_size(file, self.max_image_pixels), GREY))
        if self._cache is None:
            return self._process(file)
        image_size(file, self.max_image_pixels)  # may have been stored under a greater limit
        return self._cache.get(file, self._process)

    def _process(self, file: ImageFile) -> ProcessedImage:
        return self._processed(open_rgb(file, self.max_image_pixels, self.window))

    def _processed(self, image: Image.Image) -> ProcessedImage:
        if self.resize:
            image = image.resize(self.resize, Image.Resampling.BICUBIC)
        prepared = prepare(image, *self._limits, self._patch_size)
        features = self.processor.image_processor([prepared], do_resize=False, return_tensors="pt")
        return ProcessedImage(features["pixel_values"], features["image_grid_thw"][0], _thumbnail(image))

    @cached_property
    def _root(self) -> ImageRoot:
        return ImageRoot(self.image_root)

    @cached_property
    def _cache(self) -> ImageCache | None:
        if self.image_cache is None:
            return None
        image_processor = self.processor.image_processor
        settings = {
            "limits": self._limits,
            "resize": self.resize,
            "window": self.window,
            "thumbnail": THUMBNAIL_PIXELS,
            "image_processor": str(type(image_processor)),
            "config": image_processor.to_json_string(),  # patch size, mean, deviation and scale among others
        }
        return ImageCache(self.image_cache, settings)

    def _num_tokens(self, size: tuple[int, int] | DataError) -> int:
        if isinstance(size, DataError):
            raise size
        # Not turned upright: a quarter turn changes no area.
        return image_tokens(self.resize or size, *self._limits, self._patch_size)

    def _check_length(self, length: int) -> None:
        if self.max_prompt_length is not None and length > self.max_prompt_length:
            raise DataError(
                f"the prompt has {length} tokens, more than max_prompt_length={self.max_prompt_length}. Raise that "
                f"option, or lower the policy's max_pixels (now {self._limits[1]}) so that images take fewer tokens."
            )


def _said(record: Record, prompt: str) -> str:
    """All text of the prompt that is not the chat template's."""
    parts = [part for turn in messages(record, prompt) for part in turn["content"]]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


@contextmanager
def _naming(record: Record) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"record {record.id}: {error}") from error


def _thumbnail(image: Image.Image) -> Tensor:
    """uint8 (3, h, w)"""
    image = image.copy()
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
