"""Two runs on the same questions: who was right where the other was wrong, and whether that can be luck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from medgrpo.evaluation import by_id, judge
from medgrpo.predictions import Prediction
from medgrpo.statistics import mcnemar, paired_bootstrap
from medgrpo.types import DataError, Record


@dataclass(frozen=True)
class Comparison:
    """Accuracy of two runs on the questions that both have, under the lenient rule; shares are 0..1."""

    n: int
    """Questions that both have, view ``image``."""
    both_right: int
    """Counts of questions by the first sample of each run; these four add up to ``n``."""
    only_first: int
    only_second: int
    neither: int
    first: float
    """Accuracy, mean over samples."""
    second: float
    difference: float
    """``second - first``."""
    low: float
    """95 % interval of the difference, bootstrap over images."""
    high: float
    p_value: float
    """McNemar's exact test on ``only_first`` and ``only_second``."""
    missing: int
    """Questions that one run alone has; not compared."""
    samples: int
    """Most samples of a question in either run."""


def compare(first: Iterable[Prediction], second: Iterable[Prediction]) -> Comparison:
    """Pairs the predictions of two runs, view ``image``, by the id of the question.

    Raises:
        DataError: no question in common, or one id that stands for different questions.
    """
    ours, theirs = by_id(first), by_id(second)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise DataError(
            f"expected two runs on the same questions, got {len(ours):,} and {len(theirs):,} without a common id "
            f"({_example(ours)} and {_example(theirs)}): compare runs of one test file"
        )
    for id_ in common:
        _check_same(ours[id_].record, theirs[id_].record)
    pairs = [(judge(ours[id_]).correct, judge(theirs[id_]).correct) for id_ in common]
    counts = Counter((one[0], other[0]) for one, other in pairs)
    before, after = ([sum(correct) / len(correct) for correct in side] for side in zip(*pairs, strict=True))
    accuracy = [sum(shares) / len(shares) for shares in (before, after)]
    low, high = paired_bootstrap(before, after, [ours[id_].image_key for id_ in common])
    return Comparison(
        n=len(common),
        both_right=counts[True, True],
        only_first=counts[True, False],
        only_second=counts[False, True],
        neither=counts[False, False],
        first=accuracy[0],
        second=accuracy[1],
        difference=accuracy[1] - accuracy[0],
        low=low,
        high=high,
        p_value=mcnemar(counts[True, False], counts[False, True]),
        missing=len(ours.keys() ^ theirs.keys()),
        samples=max(len(found[id_].completions) for found in (ours, theirs) for id_ in common),
    )


def _check_same(one: Record, other: Record) -> None:
    """A question's text counts where both files have it; letters mean the same only if the options are in one order."""
    different = [name for name in ("options", "answer") if getattr(one, name) != getattr(other, name)]
    if one.question and other.question and one.question != other.question:
        different.append("question")
    if different:
        name = different[0]
        raise DataError(
            f"expected the same question under the id {one.id!r} in both runs, got another {name}: "
            f"{getattr(one, name)!r} and {getattr(other, name)!r}; compare runs of one test file"
        )


def _example(found: dict[str, Prediction]) -> str:
    return f"e.g. {next(iter(found))!r}" if found else "none"
