"""The folder that ``medgrpo test`` and ``predict`` leave: every answer as it comes, and at the end the table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from data_modules.base import MedicalVQADataModule
from data_modules.curriculum import question_hash, rank_files
from data_modules.priors import Training
from medgrpo.evaluation import flat, summarize
from medgrpo.predictions import VIEWS, Prediction, read_predictions, to_row, write_predictions
from medgrpo.results import write_results
from medgrpo.resume import check_settings, mend, read_about, real_path, settings_of, writing
from medgrpo.runs import METRICS, PREDICTIONS, RESULTS, RUN, TrainedOn, trained_on, write_json
from medgrpo.tables import text_table
from medgrpo.types import DataError, Record, SettingsError, View

OPTION = "predictions.dirpath"


class PredictionWriter(Callback):
    """Keeps what is answered, so that a run that was stopped goes on and tables can be made anew without a model.

    At the end of a test it writes ``metrics.json`` and ``results.json`` (``runs.py``), logs ``test/accuracy`` and what
    belongs beside it, and prints the table.

    Args:
        dirpath: folder; None makes one for each setting of a run, ``test-HASH`` or ``predict-HASH`` in the logger's
            folder, so that the same command goes on where it was stopped. One that is there must have been made with
            the same settings.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.ckpt_path: str | None = None
        """Checkpoint whose weights answer, if any; the command line sets it, and so must who calls
        ``trainer.test(..., ckpt_path=...)``, since Lightning tells of it too late."""
        self.folder = Path()
        self.file = Path()
        """Of this rank."""
        self.done: set[tuple[str, str]] = set()
        """(view, id) of what was answered before."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what is done, and leave it out. Records are read by now, and the loaders are not made yet.

        Raises:
            SettingsError: the folder was made with other settings, or cannot be written; or there is no data module.
            DataError: its predictions are malformed, or of other questions.
        """
        if stage not in ("test", "predict"):
            return
        stage = TrainerFn(stage).value
        data: MedicalVQADataModule = trainer.datamodule
        if data is None:
            raise SettingsError(
                f"PredictionWriter must know all questions: give trainer.{stage} a MedicalVQADataModule as datamodule, "
                "in place of dataloaders"
            )
        settings = self._settings(trainer, pl_module, stage)
        self.folder = Path(self.dirpath) if self.dirpath else _default_folder(trainer, stage, settings)
        with writing(self.folder, OPTION):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / PREDICTIONS
        rank = trainer.global_rank
        self.file = path.with_stem(f"{path.stem}-rank{rank}") if rank else path
        about = self.folder / RUN
        has_rows = any(file.stat().st_size for file in rank_files(path))
        before = read_about(about, OPTION) if has_rows else None
        check_settings(path, before.get("settings") if isinstance(before, dict) else None, settings, has_rows, OPTION)
        trainer.strategy.barrier()  # no rank writes before all have looked
        if trainer.is_global_zero:
            with writing(self.folder, OPTION):
                for file in {path, *rank_files(path)}:
                    mend(file)
        trainer.strategy.barrier()  # and none reads what is not mended: all must find the same answers
        answered = [prediction for file in rank_files(path) for prediction in read_predictions(file)]
        asked = _asked(data, stage)
        _check_same_questions(path, answered, asked)
        self.done = {prediction.key for prediction in answered}
        data.done = {view: {id for v, id in self.done if v == view} for view in VIEWS}
        if trainer.is_global_zero:
            if not answered:
                known = self._trained_on(pl_module)
                image_root = str(Path(data.image_root).resolve())
                described = {"image_root": image_root, "trained_on": asdict(known) if known else None}
                write_json(about, {"settings": settings} | described)
            else:
                print(f"{len(asked) - len(self.done & asked.keys())} of {len(asked)} answers are not in {path} yet")
            if not asked.keys() <= self.done:
                (self.folder / METRICS).unlink(missing_ok=True)  # where it is, all is
        pl_module.keeps_answers = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint is known now.

        Raises:
            SettingsError: it is not ``ckpt_path``.
        """
        self._check_checkpoint(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        self._check_checkpoint(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Prediction],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the answers of one batch."""
        training = trainer.datamodule.training
        self._append([to_row(_with_training(prediction, training)) for prediction in outputs])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the answers of one batch."""
        self._append(outputs)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the ranks' files together, in the order of the questions, and tell what came out.

        Here, because a rank for which nothing was left to do gets no hook of the test itself.
        """
        if stage not in ("test", "predict"):
            return
        stage = TrainerFn(stage).value
        pl_module.keeps_answers = False
        self._check_checkpoint(trainer)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            with writing(self.folder, OPTION):
                predictions = self._put_together(trainer.datamodule, stage)
            if stage == "test" and predictions:
                summary = summarize(predictions)
                with writing(self.folder, OPTION):
                    write_results(self.folder / RESULTS, predictions)
                    write_json(self.folder / METRICS, asdict(summary))  # last: where it is, all is
                values = {f"test/{name}": value for name, value in flat(summary).items()}
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=trainer.global_step)
                    logger.save()
                print(text_table(summary))
            print(f"{stage}: {self.folder}")
        trainer.strategy.barrier()

    def _settings(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, Any]:
        names = ["max_completion_length", "num_generations_eval"]
        if module.num_generations_eval > 1:
            names += ["temperature", "top_p", "top_k", "min_completion_length", "seed"]
        data: MedicalVQADataModule = trainer.datamodule
        return settings_of(module, data, self.ckpt_path, names) | {
            "trainer.precision": str(trainer.precision),
            f"data.{stage}": [real_path(path) for path in data.paths[stage]],
            "data.modalities": [data.modality] if data.modality else sorted(data.modalities),
            "data.tasks": [data.task] if data.task else sorted(data.tasks),
            "data.limit_eval_records": data.limit_eval_records,
            "data.seed": data.seed,
        }

    def _check_checkpoint(self, trainer: Trainer) -> None:
        if real_path(trainer.ckpt_path) != real_path(self.ckpt_path):
            raise SettingsError(
                f"the weights are those of ckpt_path={trainer.ckpt_path}, and the answers would be kept as those of "
                f"{self.ckpt_path}: set the attribute ckpt_path of PredictionWriter, too"
            )

    def _trained_on(self, module: LightningModule) -> TrainedOn | None:
        policy = module.policy
        if self.ckpt_path or policy.adapter:
            # Weights of which nothing is known are not those of a base model.
            folder = Path(self.ckpt_path).with_suffix("") if self.ckpt_path else policy.adapter
            return trained_on(folder) or TrainedOn()
        return trained_on(policy.model_name_or_path) or (TrainedOn() if module.num_tokens else None)

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        new = [row for row in rows if (row["view"], row["id"]) not in self.done]  # some of a batch may have been done
        with writing(self.file, OPTION), self.file.open("ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new).encode())

    def _put_together(self, data: MedicalVQADataModule, stage: str) -> list[Prediction]:
        path = self.folder / PREDICTIONS
        files = rank_files(path)
        place = {key: number for number, key in enumerate(_asked(data, stage))}
        predictions = {p.key: p for file in files for p in read_predictions(file)}
        ordered = sorted(predictions.values(), key=lambda prediction: place.get(prediction.key, len(place)))
        write_predictions(path, ordered)
        for file in files:
            if file != path:
                file.unlink()
        return ordered


def _asked(data: MedicalVQADataModule, stage: str) -> dict[tuple[str, str], Record]:
    """By (view, id) every question of a stage, in order."""
    views: dict[View, list[Record]] = data.shown if stage == "test" else {"image": data.records["predict"]}
    return {(view, record.id): record for view, records in views.items() for record in records}


def _check_same_questions(path: Path, answered: Sequence[Prediction], asked: dict[tuple[str, str], Record]) -> None:
    """Many ids are mere positions in a file."""
    for prediction in answered:
        now = asked.get(prediction.key)
        other = now is not None and question_hash(now) != question_hash(prediction.record)
        if other or (now is None and ("image", prediction.record.id) not in asked):
            raise DataError(
                f"{path} has an answer to {prediction.record.id!r}, which "
                f"{'is another question now' if other else 'is not among the questions'}: set a new {OPTION}"
            )


def _with_training(prediction: Prediction, training: Training | None) -> Prediction:
    if training is None:
        return prediction
    record = prediction.record
    return replace(prediction, seen=training.has_seen(record), option_prior=training.guess(record))


def _default_folder(trainer: Trainer, stage: str, settings: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    logger = trainer.logger
    run = Path(logger.save_dir or ".") / str(logger.name or "") if logger else Path(trainer.default_root_dir)
    return run / f"{stage}-{name}"
