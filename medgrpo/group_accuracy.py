"""Accuracy during training, counted batch by batch on every rank: what `summarize` has of a whole run, in brief."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric

from medgrpo.evaluation import judge
from medgrpo.predictions import Prediction
from medgrpo.types import Record


class GroupAccuracy(Metric):
    """Accuracy during training: overall, by modality and question type, with what was unparsed and truncated.

    It counts whole samples, so neither the batches nor the ranks that they come in matter.

    Args:
        records: all records that will be judged, on every rank alike: they name the groups.
    """

    full_state_update = False

    def __init__(self, records: Iterable[Record]) -> None:
        super().__init__()
        groups = sorted({name for record in records for name in _accuracies(record)} - {"accuracy"})
        names = ("accuracy", *groups)
        self.row_of = {name: row for row, name in enumerate(names)}
        """Name of an accuracy -> its row in the counts."""
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(names), 5, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Iterable[Prediction]) -> None:
        """Judge and count these predictions."""
        n, counts = 0, torch.zeros(self.counts.shape, dtype=torch.int64)
        for prediction in predictions:
            judged = judge(prediction)
            kinds = (judged.correct, judged.strict_correct, judged.unparsed, prediction.truncated)
            rows = [self.row_of[name] for name in _accuracies(prediction.record)]
            counts[rows] += torch.tensor([len(judged.correct), *map(sum, kinds)])
            n += 1
        self.n += n
        self.counts += counts.to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy``, ``accuracy/modality/NAME``, ``accuracy/task/NAME``, ``strict_accuracy``, ``unparsed``,
        ``truncated`` and ``n``. Shares are 0..1; groups without a prediction are left out.
        """
        total, *counted = self.counts.unbind(-1)
        accuracy, *rates = (count / total.clamp(min=1) for count in counted)
        values = {name: accuracy[row] for name, row in self.row_of.items() if total[row] > 0}
        overall = zip(("strict_accuracy", "unparsed", "truncated"), rates, strict=True)
        return values | {name: rate[0] for name, rate in overall} | {"n": self.n.float()}


def _accuracies(record: Record) -> tuple[str, ...]:
    """Names of the accuracies that a record counts for."""
    named = (("modality", record.modality), ("task", record.task))
    return ("accuracy", *(f"accuracy/{kind}/{name}" for kind, name in named if name))
