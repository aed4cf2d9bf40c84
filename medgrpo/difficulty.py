"""``medgrpo data difficulty``: how many of k sampled answers to each question are right; and answers without images.

    medgrpo data difficulty --out FILE.jsonl --config CONFIG.yaml --data.predict QUESTIONS

takes every option of ``medgrpo predict``; ``model.num_generations`` is k. A run that died goes on when it is started
again. What is reproducible: the answers to a batch are drawn from ``model.seed`` and the ids of its records, so on one
device a run that died between two batches ends with the file that an uninterrupted one writes. A run that died inside
of writing a batch, or goes on with another ``data.eval_batch_size`` or number of devices, cuts the rest into other
batches: other draws from the same distribution, still one row per record.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from data_modules.base import MedicalVQADataModule
from data_modules.collate import Collate
from data_modules.curriculum import check_same_questions, question_hash, read_pass_counts
from medgrpo.answers import verdict
from medgrpo.blind import Share
from medgrpo.callbacks import PredictionWriter
from medgrpo.module import GRPOModule
from medgrpo.policy import Policy
from medgrpo.policy_module import PolicyModule
from medgrpo.prefix import encode, prepare
from medgrpo.trainer_cli import NOISE, MedGRPOCLI
from medgrpo.types import DataError, PromptBatch, Record, SettingsError

USAGE = "medgrpo data difficulty --out FILE.jsonl --config CONFIG.yaml --data.predict QUESTIONS [options]"

DESCRIPTION = (
    "Draw model.num_generations answers of a model to each question of data.predict and count the right ones, for "
    "data.difficulty of medgrpo fit. The options are those of medgrpo predict, and --out; a run that was stopped goes "
    "on when it is started again."
)

PLACEHOLDER = re.compile(r" ?<image[ _]?\d*>")
"""Where a question says that an image stands."""


class DifficultyModule(GRPOModule):
    """Draws ``num_generations`` answers per question, as training would, and counts the right ones."""

    @torch.no_grad()
    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> list[dict]:
        """One row per question; see ``count_passes``."""
        network = self.policy.network
        prompts = prepare(network, prompts, self.device, self.policy.freeze_vision)
        completions = self.sample(encode(network, prompts), _generator(self.seed, prompts.records))
        texts, finished = self.decode(completions), completions.finished.tolist()
        k = self.num_generations
        groups = [slice(p * k, (p + 1) * k) for p in range(len(prompts))]
        return [count_passes(r, texts[g], finished[g]) for r, g in zip(prompts.records, groups, strict=True)]


def _generator(seed: int, records: Sequence[Record]) -> torch.Generator:
    """From the records, not from their place in the run: what is left after a restart stands elsewhere."""
    digest = hashlib.sha256(json.dumps([seed, *(record.id for record in records)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def count_passes(record: Record, completions: Sequence[str], finished: Sequence[bool]) -> dict:
    """Judges the answers to one question.

    Args:
        record: The question.
        completions: [k] decoded texts.
        finished: [k] False where a completion was cut off.

    Returns:
        JSON values: ``id``, ``pass_count``, ``num_samples`` (k), ``unparsed``, ``truncated``, and ``question``, a hash.
    """
    verdicts = Counter(verdict(record, completion) for completion in completions)
    return {
        "id": record.id,
        "pass_count": verdicts["right"],
        "num_samples": len(completions),
        "unparsed": verdicts["unparsed"],
        "truncated": len(finished) - sum(finished),
        "question": question_hash(record),
    }


class PassCountWriter(BasePredictionWriter):
    """Appends the rows of each batch to a file, and leaves out the questions that have a row in it.

    Args:
        out: the JSONL file. Ranks after the first write beside it, with ``-rankR`` in the name; ``read_pass_counts``
            reads them together. ``NAME.settings.json`` beside it says how the answers were drawn.
        ckpt_path: the checkpoint whose weights answer, if any.
    """

    def __init__(self, out: str, ckpt_path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.out = Path(out)
        self.ckpt_path = ckpt_path
        self.file = self.out

    def setup(self, trainer: Trainer, pl_module: GRPOModule, stage: str) -> None:
        """Leave out what is done. Records are read by now, and the loader is not made yet.

        Raises:
            SettingsError: the file was made with other settings.
            DataError: it is malformed or of other questions, or nothing says how its rows were made.
        """
        if self.out.is_dir():
            raise SettingsError(f"out: expected a file, or a path to make one at, got the folder {self.out}")
        data: MedicalVQADataModule = trainer.datamodule
        if trainer.global_rank > 0:
            self.file = self.out.with_stem(f"{self.out.stem}-rank{trainer.global_rank}")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        done = read_pass_counts(self.out)
        self._check(settings_of(pl_module, data, self.ckpt_path), bool(done), trainer.is_global_zero)
        records = data.records["predict"]
        check_same_questions(records, done)
        left = [record for record in records if record.id not in done]
        if len(left) < len(records) and trainer.is_global_zero:
            print(f"difficulty: {len(left)} of {len(records)} records have no row in {self.out} yet")
        data.records["predict"] = left
        if not left:
            trainer.limit_predict_batches = 0  # a data module refuses to load nothing
        with self.file.open("rb+") as file:  # what a run that died was writing
            file.truncate(file.read().rfind(b"\n") + 1)

    def _check(self, settings: dict[str, Any], has_rows: bool, writes: bool) -> None:
        path = self.out.with_suffix(".settings.json")
        if not has_rows:
            if writes:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
                partial.replace(path)
            return
        if not path.is_file():
            raise DataError(f"{self.out} has rows, but {path} is missing, which says how they were made: set a new out")
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{n} was {before.get(n)}, is {settings[n]}" for n in settings if before.get(n) != settings[n]]
        if changed:
            raise SettingsError(
                f"{self.out} was made with other settings: {'; '.join(changed)}. Go on with those settings, or set a "
                "new out"
            )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict],
        batch_indices: Sequence[int] | None,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of one batch."""
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prediction)
        with self.file.open("ab") as file:
            file.write(rows.encode())

    def on_predict_end(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        """Say what was found, once all ranks are done."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            counts = read_pass_counts(self.out).values()
            always, never = sum(c.share == 1 for c in counts), sum(c.share == 0 for c in counts)
            print(
                f"difficulty: {self.out}: {len(counts)} records, of {pl_module.num_generations} answers each: none "
                f"right {never}, some {len(counts) - never - always}, all {always}"
            )


def settings_of(module: GRPOModule, data: MedicalVQADataModule, ckpt_path: str | None) -> dict[str, Any]:
    """What the answers depend on, as JSON values by the name of the option."""
    policy = module.policy
    names = ("num_generations", "temperature", "top_p", "top_k", "min_completion_length", "max_completion_length")
    return {
        "model.policy.model_name_or_path": _real(policy.model_name_or_path),
        "model.policy.adapter": _real(policy.adapter),
        "ckpt_path": _real(ckpt_path),
        **{f"model.policy.{name}": getattr(policy, name) for name in ("load_in_4bit", "min_pixels", "max_pixels")},
        **{f"model.{name}": getattr(module, name) for name in (*names, "seed")},
        "data.prompt": data.prompt,
        **{f"data.{name}": _listed(getattr(data, name)) for name in ("resize", "window", "frames_per_volume")},
    }


def _listed(value: Any) -> Any:
    """As it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def _real(name: str | None) -> str | None:
    """A path without links: ``last.ckpt`` is another checkpoint later on. A Hub id stays as it is."""
    return os.path.realpath(name) if name and os.path.exists(name) else name


class DifficultyCLI(MedGRPOCLI):
    """``medgrpo predict`` with another writer."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only this one."""
        return {"predict": MedGRPOCLI.subcommands()["predict"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--out``, and what ``medgrpo predict`` has, so that its configs fit."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--out", type=str, required=True, help="JSONL file of pass counts; one that is there is gone on with."
        )

    def before_instantiate_classes(self) -> None:
        """Add the writer."""
        super().before_instantiate_classes()
        writer = PassCountWriter(self._get(self.config, "out"), self._get(self.config, "ckpt_path"))
        self.trainer_defaults["callbacks"].append(writer)

    def after_instantiate_classes(self) -> None:
        """There are no predictions to write."""
        self.trainer.callbacks = [c for c in self.trainer.callbacks if not isinstance(c, PredictionWriter)]


def main(args: list[str]) -> None:
    """``medgrpo data difficulty``; ``args`` are what follows these words.

    Raises:
        UserError: bad files, records or options.
    """
    for noise in (*NOISE, "LightningCLI's args parameter is intended to run from within Python"):
        warnings.filterwarnings("ignore", noise)
    DifficultyCLI(
        DifficultyModule,
        MedicalVQADataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,  # NAME.settings.json says what matters
        trainer_defaults={"callbacks": []},
        parser_kwargs={"prog": "medgrpo data difficulty", "predict": {"usage": USAGE, "description": DESCRIPTION}},
        args=["predict", *args],
    )


def text_only_share(
    model_name_or_path: str,
    records: Sequence[Record],
    prompt: str = "nothink",
    batch_size: int = 16,
    max_completion_length: int = 512,
) -> Share:
    """Greedy accuracy of a model that gets the questions without their images.

    Args:
        model_name_or_path: Hub id or folder of a model, or an adapter folder.
        records: the questions; of their images, the marks in the question (``<image>``, ``<image 1>``) go, too.
        prompt: as ``data.prompt``.
        batch_size: questions at once.
        max_completion_length: tokens; longer answers are cut off.

    Returns:
        How many answers are right, and of how many.
    """
    module = PolicyModule(
        Policy(model_name_or_path),
        optimizer=torch.optim.SGD,  # never made: nothing trains
        lr_scheduler=None,
        max_completion_length=max_completion_length,
        max_nonfinite_steps=1,
    )
    module.configure_model()
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    collate = Collate(module.processor, prompt)
    verdicts: Counter[str] = Counter()
    for start in tqdm(range(0, len(records), batch_size), desc="text only", unit="batch", disable=None):
        batch = [without_images(record) for record in records[start : start + batch_size]]
        verdicts.update(row["verdict"] for row in module.answer(collate(batch)))
    if verdicts["unparsed"]:
        print(
            f"{verdicts['unparsed']} of {len(records)} answers without the image named no option and count as wrong: "
            "if these are many, ask with the prompt that the model knows",
            file=sys.stderr,
        )
    return Share(verdicts["right"], len(records))


def without_images(record: Record) -> Record:
    """The question alone. An option that is an image keeps its mark: it would be empty, and like the others."""
    said = {name: PLACEHOLDER.sub("", getattr(record, name)).strip() for name in ("problem", "question")}
    return replace(record, images=(), **said)
