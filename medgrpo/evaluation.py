"""Accuracy with what belongs beside it: groups, and the rates of unparsed and truncated answers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric

from medgrpo.answers import extract, verdict
from medgrpo.types import Record


def judge(record: Record, completion: str, finished: bool) -> dict:
    """One row of predictions: what was asked, said, read and expected.

    Returns:
        JSON values: ``id, modality, task, completion, answer`` (the extracted letter or text, None when unparsed),
        ``gold, correct, verdict`` (right, wrong or unparsed) and ``truncated``.
    """
    answer = extract(completion, record.options)
    says = verdict(record, completion)
    return {
        "id": record.id,
        "modality": record.modality,
        "task": record.task,
        "completion": completion,
        "answer": answer.choice if record.options else answer.text,
        "gold": record.answer,
        "correct": says == "right",
        "verdict": says,
        "truncated": not finished,
    }


def groups_of(record: Record) -> tuple[str, ...]:
    """Names of the groups that a record is counted in; the empty name is everything."""
    named = (("modality", record.modality), ("task", record.task))
    return ("", *(f"/{kind}/{name}" for kind, name in named if name))


class GroupAccuracy(Metric):
    """Accuracy, overall and by modality and question type, with the rates of unparsed and truncated answers.

    Args:
        records: all records that will be judged, on every rank alike: they name the groups.
    """

    full_state_update = False

    def __init__(self, records: Iterable[Record]) -> None:
        super().__init__()
        self.groups = sorted({group for record in records for group in groups_of(record)} | {""})
        for name in ("total", "correct", "unparsed", "truncated"):
            self.add_state(name, torch.zeros(len(self.groups), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, records: Iterable[Record], rows: Iterable[dict]) -> None:
        """Count judged rows (from ``judge``) of these records."""
        for record, row in zip(records, rows, strict=True):
            index = [self.groups.index(group) for group in groups_of(record)]
            self.total[index] += 1
            self.correct[index] += row["correct"]
            self.unparsed[index] += row["verdict"] == "unparsed"
            self.truncated[index] += row["truncated"]

    def compute(self) -> dict[str, Tensor]:
        """``accuracy``, ``accuracy/modality/NAME``, ``accuracy/task/NAME``, ``unparsed``, ``truncated``, ``n``.

        Rates are shares from 0 to 1; groups without a row are left out.
        """
        accuracy = self.correct / self.total.clamp(min=1)
        values = {f"accuracy{g}": accuracy[i] for i, g in enumerate(self.groups) if self.total[i] > 0}
        overall = self.groups.index("")
        n = self.total[overall]
        values |= {name: getattr(self, name)[overall] / n.clamp(min=1) for name in ("unparsed", "truncated")}
        return values | {"n": n.float()}
