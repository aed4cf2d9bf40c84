"""``medgrpo data difficulty``: how many of k sampled answers to each question are right; and answers without images.

    medgrpo data difficulty --out FILE.jsonl --config CONFIG.yaml --data.predict QUESTIONS

takes every option of ``medgrpo predict``; ``model.num_generations`` is k. A run that died goes on when it is started
again. The answers to a question are drawn from ``model.seed`` and its id, so they depend neither on the batch that it
is in nor on the number of devices, but for rounding.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from data_modules.base import MedicalVQADataModule
from data_modules.collate import Collate
from data_modules.curriculum import check_same_questions, question_hash, rank_files, read_pass_counts
from medgrpo.answers import verdict
from medgrpo.blind import Share
from medgrpo.module import GRPOModule
from medgrpo.policy import Policy
from medgrpo.policy_module import PolicyModule
from medgrpo.prediction_writer import PredictionWriter
from medgrpo.predictions import Prediction
from medgrpo.resume import check_settings, mend, read_about, settings_of, writing
from medgrpo.runs import write_json
from medgrpo.trainer_cli import NOISE, MedGRPOCLI
from medgrpo.types import PromptBatch, Record, SettingsError

USAGE = "medgrpo data difficulty --out FILE.jsonl --config CONFIG.yaml --data.predict QUESTIONS [options]"

DESCRIPTION = (
    "Draw model.num_generations answers of a model to each question of data.predict and count the right ones, for "
    "data.difficulty of medgrpo fit. The options are those of medgrpo predict, and --out; a run that was stopped goes "
    "on when it is started again."
)

DRAWN_WITH = (
    "num_generations",
    "temperature",
    "top_p",
    "top_k",
    "min_completion_length",
    "max_completion_length",
    "seed",
)
"""Options of the module that the draws depend on."""

PLACEHOLDER = re.compile(r" ?<image[ _]?\d*>")
"""Where a question says that an image stands."""


class DifficultyModule(GRPOModule):
    """Draws ``num_generations`` answers per question, as training would, and counts the right ones."""

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> list[dict]:
        """One row per question; see ``count_passes``."""
        return [count_passes(prediction) for prediction in self.answer(prompts, self.num_generations)]


def count_passes(prediction: Prediction) -> dict:
    """Judges the answers to one question.

    Returns:
        JSON values: ``id``, ``pass_count``, ``num_samples`` (k), ``unparsed``, ``truncated``, and ``question``, a hash.
    """
    record = prediction.record
    verdicts = Counter(verdict(record, completion) for completion in prediction.completions)
    return {
        "id": record.id,
        "pass_count": verdicts["right"],
        "num_samples": len(prediction.completions),
        "unparsed": verdicts["unparsed"],
        "truncated": sum(prediction.truncated),
        "question": question_hash(record),
    }


class PassCountWriter(Callback):
    """Appends the rows of each batch to a file, and leaves out the questions that have a row in it.

    Args:
        out: the JSONL file. Ranks after the first write beside it, with ``-rankR`` in the name; ``read_pass_counts``
            reads them together. ``NAME.settings.json`` beside it says how the answers were drawn.
        ckpt_path: the checkpoint whose weights answer, if any.
    """

    def __init__(self, out: str, ckpt_path: str | None = None) -> None:
        self.out = Path(out)
        self.ckpt_path = ckpt_path
        self.file = self.out
        self.done: set[str] = set()

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
        with writing(self.out, "out"):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        done = read_pass_counts(self.out) if rank_files(self.out) else {}
        self._check(settings_of(pl_module, data, self.ckpt_path, DRAWN_WITH), bool(done), trainer.is_global_zero)
        records = data.records["predict"]
        check_same_questions(records, done)
        left = sum(record.id not in done for record in records)
        if left < len(records) and trainer.is_global_zero:
            print(f"difficulty: {left} of {len(records)} records have no row in {self.out} yet")
        self.done = data.done["image"] = set(done)
        trainer.strategy.barrier()  # no rank writes before all have looked
        with writing(self.file, "out"):
            mend(self.file)

    def _check(self, settings: dict[str, Any], has_rows: bool, writes: bool) -> None:
        path = self.out.with_suffix(".settings.json")
        before = read_about(path, "out") if has_rows else None
        check_settings(self.out, before, settings, has_rows, "out")
        if not has_rows and writes:
            with writing(path, "out"):
                write_json(path, settings)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: GRPOModule,
        outputs: list[dict],
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the rows of one batch."""
        new = [row for row in outputs if row["id"] not in self.done]  # a batch of which some are done is done again
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        with writing(self.file, "out"), self.file.open("ab") as file:
            file.write(rows.encode())

    def teardown(self, trainer: Trainer, pl_module: GRPOModule, stage: str) -> None:
        """Say what was found, once all ranks are done; here, because a rank with nothing left gets no other hook."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            counts = read_pass_counts(self.out).values()
            always, never = sum(c.share == 1 for c in counts), sum(c.share == 0 for c in counts)
            print(
                f"difficulty: {self.out}: {len(counts)} records, of {pl_module.num_generations} answers each: none "
                f"right {never}, some {len(counts) - never - always}, all {always}"
            )


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
    module.load_policy(with_reference=False)
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    collate = Collate(module.processor, prompt)
    verdicts: Counter[str] = Counter()
    for start in tqdm(range(0, len(records), batch_size), desc="text only", unit="batch", disable=None):
        batch = [without_images(record) for record in records[start : start + batch_size]]
        answers = module.answer(collate(batch))
        verdicts.update(verdict(said.record, said.completions[0], "lenient") for said in answers)
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
