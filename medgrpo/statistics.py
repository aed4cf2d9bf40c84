"""How far a figure can be trusted: intervals, paired tests, and what to make of several answers to one question.

Pure functions of numbers. Questions about the same image are not independent of each other, so the bootstrap draws
whole clusters of values, one cluster per image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

_DRAWS = 2**20
"""Clusters drawn at once: bounds the memory of a bootstrap to some 30 MB, unless there are more clusters than this."""


def wilson(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, without continuity correction).

    Args:
        right: how many of ``n``; a fraction where each is a mean over samples.
        n: independent questions.
        confidence: between 0 and 1, e.g. 0.95.

    Returns:
        Lower and upper bound, 0..1, with ``right / n`` between them; (0.0, 1.0) when ``n`` is 0: nothing is known.

    Raises:
        ValueError: not 0 <= right <= n, or a confidence that is not between 0 and 1.
    """
    _check_confidence(confidence)
    if not 0 <= right <= n:
        raise ValueError(f"wilson: expected 0 <= right <= n, got right={right}, n={n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # Rounding may put the bounds of 0 and 1 a hair off.
    return min(max((centre - half) / scale, 0.0), share), max(min((centre + half) / scale, 1.0), share)


def bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean of shares, drawing whole clusters with replacement (Efron 1979, 1981).

    The same values and clusters give the same interval in any order. Of values that are all equal it is one point,
    which says too much for few values: `wilson` is the better interval there.

    Args:
        values: [n] each 0..1, e.g. 1.0 for right.
        clusters: [n] what is equal for values that depend on each other, e.g. the image asked about.
        confidence: between 0 and 1.
        resamples: how often as many clusters are drawn as there are.
        seed: of the draws.

    Returns:
        Lower and upper bound; (0.0, 1.0) with fewer than two clusters, which do not tell how much clusters differ.

    Raises:
        ValueError: lengths that differ, values outside 0..1, no resamples, or a confidence not between 0 and 1.
    """
    shares = _shares(values)
    return _interval(shares, clusters, (0.0, 1.0), confidence, resamples, seed)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """As `bootstrap`, of the mean of ``second - first``: both are drawn together, question by question.

    Args:
        first: [n] each 0..1.
        second: [n] on the same questions, in the same order.
        clusters: [n] as in `bootstrap`.
        confidence: between 0 and 1.
        resamples: as in `bootstrap`.
        seed: of the draws.

    Returns:
        Lower and upper bound, -1..1; (-1.0, 1.0) with fewer than two clusters.

    Raises:
        ValueError: as `bootstrap`.
    """
    if len(first) != len(second):
        raise ValueError(f"expected values of the same questions, got {len(first)} and {len(second)}")
    return _interval(_shares(second) - _shares(first), clusters, (-1.0, 1.0), confidence, resamples, seed)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value that two graders of the same questions are equally often right (McNemar 1947, exact binomial).

    Only the questions that one of them got right and the other wrong count; if both are as good, each of these is as
    likely to fall to the one as to the other. The questions are taken to be independent of each other.

    Args:
        only_first: questions that only the first got right.
        only_second: questions that only the second got right.

    Returns:
        2 P(X <= min), X ~ Binomial(only_first + only_second, 1/2), at most 1; 1.0 when there are no such questions.

    Raises:
        ValueError: a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"mcnemar: expected counts of 0 or more, got {only_first} and {only_second}")
    n = only_first + only_second
    ways = total = 1
    for i in range(min(only_first, only_second)):
        ways = ways * (n - i) // (i + 1)  # n choose i + 1, exact
        total += ways
    return 1.0 if 2 * total >= 2**n else 2 * total / 2**n


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of ``k`` samples is right, of ``n`` of which ``correct`` are (Chen et al. 2021, eq. 1).

    Returns:
        1 - C(n - correct, k) / C(n, k), unbiased.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass_at_k: expected 1 <= k <= n and 0 <= correct <= n, got {n=}, {correct=}, {k=}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer said most often, of equals the one said first; None, an answer that was not read, has no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)


def _shares(values: Sequence[float]) -> np.ndarray:
    shares = np.asarray(values, dtype=np.float64)
    if shares.size and not (shares.min() >= 0 and shares.max() <= 1):
        raise ValueError(f"expected shares from 0 to 1, got values from {shares.min()} to {shares.max()}")
    return shares


def _interval(
    values: np.ndarray,
    clusters: Sequence[Hashable],
    whole: tuple[float, float],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` [n]; ``whole`` with fewer than two clusters."""
    _check_confidence(confidence)
    if len(values) != len(clusters):
        raise ValueError(f"expected one cluster per value, got {len(values)} values and {len(clusters)} clusters")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    numbers: dict[Hashable, int] = {}
    index = np.asarray([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    m = len(numbers)
    if m < 2:
        return whole
    # Sorted values and sorted clusters: neither rounding nor the draws depend on the order of the records.
    order = np.argsort(values, kind="stable")
    sums = np.bincount(index[order], weights=values[order], minlength=m)
    counts = np.bincount(index, minlength=m).astype(np.float64)
    order = np.lexsort((sums, counts))
    sums, counts = sums[order], counts[order]
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS // m)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, m, size=(min(rows, resamples - start), m))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, e.g. 0.95, got {confidence}")
