"""`MedicalVQADataModule`: question files and images -> prompt batches for training and evaluation."""

from __future__ import annotations

import atexit
import gc
import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from data_modules.collate import Collate
from data_modules.curriculum import (
    Curriculum,
    closed_to_open,
    easy_to_hard,
    keep_by_passes,
    mix,
    mixed,
    read_pass_counts,
)
from data_modules.formats import Format
from data_modules.image_root import ImageFile, ImageRoot
from data_modules.images import MAX_IMAGE_PIXELS, find_images, spread
from data_modules.labels import modality_of, task_of
from data_modules.loading import PositionSampler, RepeatLoader, evaluation_loader, train_loader
from data_modules.priors import Training
from data_modules.selection import Selection, subset
from data_modules.skipped import SkippedImages
from data_modules.views import shown
from medgrpo.types import MODALITIES, DataError, PromptBatch, Record, SettingsError, View

Split = Literal["train", "val", "test", "predict"]

CANDIDATES = 16
"""Prompts tokenized for each one of `longest_batch`."""

_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class MedicalVQADataModule(LightningDataModule):
    """Reads the records of each split, checks all of them before anything trains, and makes the loaders.

    Args:
        train: question file or files (see ``data_modules.formats``) to train on, or folders of them.
        val: files for validation during training.
        test: files for ``test``.
        predict: files for ``predict``.
        format: of the files; auto looks at the fields of the first rows of each.
        image_root: folder that the image paths of the records start from.
        prompt: a preset of ``medgrpo.prompts``, or a text with ``{Question}``.
        prompts_per_batch: P, prompts per rollout batch and rank; a multiple of ``trainer.accumulate_grad_batches``.
        eval_batch_size: prompts per evaluation batch and rank.
        max_prompt_length: tokens, image tokens included; longer prompts are an error, never cut. None is no limit.
        max_image_pixels: pixels of a file; larger files are an error, before they are decoded.
        resize: (width, height) to stretch every image to before the policy's own resizing, as Med-R1 did with
            (384, 384); None keeps the shape.
        window: (center, width) that DICOM and NIfTI values are shown through, in Hounsfield units for CT; None is the
            window that a DICOM file names, else least to greatest value.
        frames_per_volume: evenly spaced frames or slices of a volume that enter the prompt, each as an image; 1 is the
            middle one. A reference that names a frame, as ``scan.dcm[3]``, is one image.
        image_cache: folder that keeps processed images between epochs and runs; None keeps none.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        shuffle: a new order of the training records in each epoch.
        seed: of that order and of the subsets below.
        limit_train_records: train on a random subset of this size; None is all.
        limit_eval_records: evaluate on a random subset of this size; None is all.
        modalities: keep records of these modalities only; any name in ``labels.ALIASES``.
        tasks: keep records of these question types only, e.g. ``Lesion Grading``.
        difficulty: file of pass counts of the training records, from ``medgrpo data difficulty``.
        pass_count: (lowest, highest): train on records that were answered right so often, e.g. (1, 7) of 8.
        mix: records to draw from each training file, e.g. [600, 490]; None takes all.
        curriculum: order of each epoch: by pass count, by kind of answer (choice, closed, open), or with the training
            files in the same ratio throughout; None is no order.
        eval_views: what ``test`` asks every question once more with: ``blank`` (a grey image), ``wrong_image`` (another
            question's), ``shuffled`` (the options in another order). Each is one more pass.
        on_bad_image: what an image does that turns out broken while a batch is made (all are checked before training,
            but by their headers alone). ``skip`` puts a record from later in the epoch's order in its place, warns, and
            lists it in ``skipped_images.jsonl``; ``error`` stops. In validation, tests and predictions it is always an
            error: figures over fewer questions would not compare. `medgrpo data audit` decodes all images.
    """

    modality: str = ""
    """What a subclass for one modality keeps; a file that names no modality is taken to be of this one."""
    task: str = ""
    """Likewise for a question type."""

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        format: Format = "auto",
        image_root: str = ".",
        prompt: str = "think",
        prompts_per_batch: int = 8,
        eval_batch_size: int = 16,
        max_prompt_length: int | None = 1024,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        resize: tuple[int, int] | None = None,
        window: tuple[float, float] | None = None,
        frames_per_volume: int = 1,
        image_cache: str | None = None,
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 42,
        limit_train_records: int | None = None,
        limit_eval_records: int | None = None,
        modalities: list[str] | None = None,
        tasks: list[str] | None = None,
        difficulty: str | None = None,
        pass_count: tuple[int, int] | None = None,
        mix: list[int] | None = None,
        curriculum: Literal["easy_to_hard", "closed_to_open", "mixed"] | None = None,
        eval_views: list[Literal["blank", "wrong_image", "shuffled"]] | None = None,
        on_bad_image: Literal["skip", "error"] = "skip",
    ) -> None:
        super().__init__()
        # What is left of a test that is gone on with may not reach all ranks.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        problems = [
            f"{name}: expected at least 1, got {value}"
            for name, value in {
                "prompts_per_batch": prompts_per_batch,
                "eval_batch_size": eval_batch_size,
                "max_prompt_length": max_prompt_length,
                "max_image_pixels": max_image_pixels,
                "frames_per_volume": frames_per_volume,
                "limit_train_records": limit_train_records,
                "limit_eval_records": limit_eval_records,
            }.items()
            if value is not None and value < 1
        ]
        if resize is not None and min(resize) < 1:
            problems.append(f"resize: expected a positive width and height, got {resize}")
        if image_cache is not None and Path(image_cache).exists() and not Path(image_cache).is_dir():
            problems.append(f"image_cache: expected a folder, or a path to make one at, got the file {image_cache!r}")
        if window is not None and window[1] < 1:
            problems.append(f"window: expected (center, width) with a width of at least 1, got {window}")
        needs = [("pass_count", pass_count is not None), ("curriculum: easy_to_hard", curriculum == "easy_to_hard")]
        problems += [f"{n} needs data.difficulty, a file of pass counts" for n, on in needs if on and not difficulty]
        negative = {"num_workers": num_workers, "seed": seed}
        problems += [f"{n}: expected at least 0, got {value}" for n, value in negative.items() if value < 0]
        unknown = [name for name in modalities or () if not modality_of(name)]
        if unknown:
            problems.append(f"modalities: expected names of {', '.join(MODALITIES)}, got {unknown}")
        if problems:
            raise SettingsError("\n".join(problems))
        paths = {"train": train, "val": val, "test": test, "predict": predict}
        self.paths: dict[str, list[str]] = {s: [p] if isinstance(p, str) else list(p or ()) for s, p in paths.items()}
        self.format = format
        self.image_root = image_root
        self.prompt = prompt
        self.prompts_per_batch = prompts_per_batch
        self.eval_batch_size = eval_batch_size
        self.max_prompt_length = max_prompt_length
        self.max_image_pixels = max_image_pixels
        self.resize = resize
        self.window = window
        self.frames_per_volume = frames_per_volume
        self.image_cache = image_cache
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.seed = seed
        self.limit_train_records = limit_train_records
        self.limit_eval_records = limit_eval_records
        self.modalities = {modality_of(name) for name in modalities or ()} or set(MODALITIES) | {""}
        self.tasks = {task_of(name) or name for name in tasks or ()}
        self.difficulty = difficulty
        self.pass_count = pass_count
        self.mix = mix
        self.curriculum = curriculum
        self.eval_views: tuple[View, ...] = tuple(dict.fromkeys(eval_views or ()))
        self.on_bad_image = on_bad_image
        self.skipped: SkippedImages | None = None
        """Training records with broken images, under a Trainer that fits."""
        self.records: dict[str, list[Record]] = {}
        """Records by split, after ``setup``."""
        self.bounds: dict[str, list[int]] = {}
        """Tokens that their prompts do not exceed, under a Trainer."""
        self.order: Curriculum | None = None
        """Of the training records."""
        self.shown: dict[View, list[Record]] = {}
        """The test records under each view, after ``setup``."""
        self.done: dict[View, set[str]] = {}
        """Ids that a test or prediction leaves out: emptied by ``setup``, then set by whoever keeps the answers."""
        self.training: Training | None = None
        """What the test compares its records with, when the training files are there."""

    def setup(self, stage: str) -> None:
        """Read and check the splits of a stage, all of their images and all of their prompts.

        Raises:
            DataError: bad files, records or images, prompts that are too long, or nothing left to use.
            SettingsError: a needed file is not set, or batch sizes do not fit the Trainer.
        """
        with _no_collection():
            self._setup(stage)

    def _setup(self, stage: str) -> None:
        self.done = {}
        for split in _SPLITS[stage]:
            if not self.paths[split]:
                if split != "val" or stage == "validate":  # fit goes without validation
                    raise SettingsError(
                        f"{TrainerFn(stage).value} needs data.{split}: set it to a question file or a list of them"
                    )
                self.records[split] = []
                continue
            parts = self._select(self._read(split)) if split == "train" else self._read(split)
            limit = self.limit_train_records if split == "train" else self.limit_eval_records
            self.records[split] = subset(sum(parts, []), limit, self.seed)
            if split == "train":
                self.order = self._curriculum(parts)
            images = ImageRoot(self.image_root)
            files = find_images(self.records[split], images)
            if self.frames_per_volume > 1:
                self.records[split] = self._with_frames(self.records[split], files)
                files = find_images(self.records[split], images)
            if self.trainer is not None:
                self.bounds[split] = self._collate().check(self.records[split], files)
            if split == "test":
                self._show(files)
        if stage == "fit" and self.records["val"]:
            self._warn_of_leaks()
        if stage == "fit" and self.trainer is not None:
            self._check_batches(len(self.records["train"]))
            # On all ranks, as ``log_dir`` is a broadcast.
            folder = self.trainer.log_dir or self.trainer.default_root_dir
            self.skipped = SkippedImages(folder, self.trainer.global_rank)

    def _show(self, files: dict[str, ImageFile]) -> None:
        """The test records under each view, and what they have in common with the training records."""
        records = self.records["test"]
        self.shown = {view: shown(records, view, self.seed) for view in ("image", *self.eval_views)}
        for view in self.eval_views:
            if not self.shown[view]:
                rank_zero_warn(f"data.eval_views: no test record can be asked with {view}; it is left out")
            elif self.trainer is not None and view != "blank":
                self._collate().check(self.shown[view], files)
        missing = [path for path in self.paths["train"] if not Path(path).exists()]
        if missing:
            rank_zero_warn(
                f"data.train: {missing[0]} does not exist, so this test cannot say which images were seen in training "
                "and what a lookup of its options scores"
            )
        elif self.paths["train"]:
            training = sum(self._read("train", may_be_empty=True), [])
            self.training = Training(training) if training else None

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        """Leave the batch where it is: the loader repeats it, and the module moves it once per rollout."""
        return batch

    def train_dataloader(self) -> RepeatLoader:
        """Each batch of P prompts as often as one rollout batch is trained on: A times mu."""
        sampler = PositionSampler(
            len(self.records["train"]),
            self.prompts_per_batch,
            seed=self.seed,
            shuffle=self.shuffle,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            curriculum=self.order,
        )
        repeats = self.trainer.accumulate_grad_batches * self.trainer.lightning_module.num_iterations
        on_skipped = self.skipped.add if self.on_bad_image == "skip" else None
        return train_loader(self.records["train"], self._collate(), sampler, repeats, on_skipped, **self._workers())

    def longest_batch(self) -> PromptBatch:
        """The P training prompts with the most tokens, of those with the most bytes: what a step takes at most."""
        collate, records, bounds = self._collate(), self.records["train"], self.bounds["train"]
        likely = heapq.nlargest(CANDIDATES * self.prompts_per_batch, range(len(bounds)), key=bounds.__getitem__)
        longest = sorted((records[i] for i in likely), key=collate.length, reverse=True)
        first, spares = longest[: self.prompts_per_batch], longest[self.prompts_per_batch :]
        return collate(first) if self.on_bad_image == "error" else collate.with_spares([(r, *spares) for r in first])[0]

    def teardown(self, stage: str) -> None:
        """Say at the end of training how much was left out."""
        if self.skipped is not None and (summary := self.skipped.summary()):
            print(summary)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Every validation record once; nothing without ``val``."""
        return self._evaluation_loader("val") if self.records["val"] else []

    def test_dataloader(self) -> list[DataLoader]:
        """For each view, every test record once."""
        return [self._evaluation_loader("test", records, view) for view, records in self.shown.items() if records]

    def predict_dataloader(self) -> DataLoader:
        """Every record to predict once."""
        return self._evaluation_loader("predict")

    def _read(self, split: str, may_be_empty: bool = False) -> list[list[Record]]:
        """Records of each file or folder of a split, filtered."""
        selection = Selection(self.modality, self.task, frozenset(self.modalities), frozenset(self.tasks))
        return selection.read(self.paths[split], self.format, f"data.{split}", may_be_empty)

    def _select(self, files: list[list[Record]]) -> list[list[Record]]:
        """The training records by pass count, then as many of each file as asked for."""
        if self.pass_count:
            kept = keep_by_passes(sum(files, []), read_pass_counts(self.difficulty), *self.pass_count)
            ids = {record.id for record in kept}
            files = [[record for record in file if record.id in ids] for file in files]
        return mix(files, self.mix, self.seed) if self.mix else files

    def _curriculum(self, files: list[list[Record]]) -> Curriculum | None:
        records = self.records["train"]
        if self.curriculum == "easy_to_hard":
            return easy_to_hard(records, read_pass_counts(self.difficulty))
        if self.curriculum == "closed_to_open":
            return closed_to_open(records)
        if self.curriculum == "mixed":
            file_of = {record.id: number for number, file in enumerate(files) for record in file}
            return mixed([file_of[record.id] for record in records])
        return None

    def _with_frames(self, records: Sequence[Record], files: dict[str, ImageFile]) -> list[Record]:
        """The records with several frames of each volume in place of the volume."""
        count, limit = self.frames_per_volume, self.max_image_pixels
        frames = {image: spread(image, file, count, limit) for image, file in files.items()}
        return [replace(record, images=sum((frames[image] for image in record.images), ())) for record in records]

    def _warn_of_leaks(self) -> None:
        """Before training, not after: how many validation records show a training image."""
        training, val = Training(self.records["train"]), self.records["val"]
        shared = sum(training.has_seen(record) is True for record in val)
        if shared:
            rank_zero_warn(
                f"{shared} of {len(val)} validation records ({100 * shared / len(val):.1f} %) show an image that is "
                "also in training, so their accuracy says little; `medgrpo data audit` tells more, and `medgrpo data "
                "split` makes splits without"
            )

    def _check_batches(self, num_records: int) -> None:
        num_micro, world_size = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if self.prompts_per_batch % num_micro:
            raise SettingsError(
                f"data.prompts_per_batch={self.prompts_per_batch} must be a multiple of "
                f"trainer.accumulate_grad_batches={num_micro}: a rollout batch is cut into that many equal parts"
            )
        if num_records < self.prompts_per_batch * world_size:
            raise DataError(
                f"data.train: {num_records} records do not fill one batch of prompts_per_batch="
                f"{self.prompts_per_batch} on each of {world_size} ranks; lower prompts_per_batch or add records"
            )

    def _collate(self) -> Collate:
        module = self.trainer.lightning_module
        return Collate(
            processor=module.processor,
            prompt=self.prompt,
            image_root=self.image_root,
            min_pixels=module.policy.min_pixels,
            max_pixels=module.policy.max_pixels,
            max_prompt_length=self.max_prompt_length,
            max_image_pixels=self.max_image_pixels,
            resize=self.resize,
            window=self.window,
            image_cache=self.image_cache,
        )

    def _evaluation_loader(
        self, split: Split, records: Sequence[Record] | None = None, view: View = "image"
    ) -> DataLoader:
        world_size = self.trainer.world_size
        records = self.records[split] if records is None else records
        if split == "val" and len(records) < world_size:  # all ranks must come together at its end
            raise DataError(f"data.{split}: {len(records)} records do not reach {world_size} ranks; use fewer devices")
        return evaluation_loader(
            records,
            replace(self._collate(), view=view),
            self.eval_batch_size,
            rank=self.trainer.global_rank,
            world_size=world_size,
            done=self.done.get(view, set()),
            **self._workers(),
        )

    def _workers(self) -> dict[str, Any]:
        """Options of the `DataLoader`: workers live as long as it does, and hand over memory that a GPU copies from."""
        some = self.num_workers > 0
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "persistent_workers": some, "pin_memory": some and on_gpu}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles among many new objects: that would double the time of `setup`.

    Records live as long as the run, so they are left out of later collections, too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or extension modules that are still there complain when Python ends
        if enabled:
            gc.enable()
