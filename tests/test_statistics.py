"""Intervals and tests: numbers worked by hand, scipy's figures, and laws."""

from __future__ import annotations

import math
import time
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap

from medgrpo.statistics import bootstrap, majority, mcnemar, paired_bootstrap, pass_at_k, wilson

SHARES = st.lists(st.sampled_from((0.0, 0.25, 1.0)), min_size=1, max_size=40)


def test_wilson_worked_by_hand() -> None:
    # z = 1.959964: z^2 = 3.841459. 8 of 10: centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half width 1.959964 * sqrt(0.016 + 0.009604) / 1.384146 = 0.226577.
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 300), (300, 300), (61, 300), (12345, 20000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_scipy(right: int, n: int, confidence: float) -> None:
    expected = binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson(right, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_within_0_and_1_and_shrinks_with_n(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n) | st.floats(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    larger_low, larger_high = wilson(2 * right, 2 * n)
    assert larger_high - larger_low < high - low


@pytest.mark.parametrize(("right", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 95)])
def test_wilson_refuses_what_is_no_share(right: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(right, n, confidence)


def test_mcnemar_worked_by_hand() -> None:
    assert mcnemar(8, 2) == 112 / 1024  # 2 * (1 + 10 + 45) / 2^10
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(0, 0) == mcnemar(3, 3) == mcnemar(1, 0) == 1.0


@pytest.mark.parametrize(("b", "c"), [(8, 2), (1, 12), (40, 60), (5, 6), (900, 1100)])
def test_mcnemar_agrees_with_scipy(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-9)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_symmetric_and_grows_towards_balance(b: int, c: int) -> None:
    assert mcnemar(b, c) == mcnemar(c, b)
    assert 0 < mcnemar(b, c) <= 1
    if b < c:
        assert mcnemar(b, c) <= mcnemar(b + 1, c - 1)


def test_mcnemar_of_huge_counts_is_a_number() -> None:
    assert mcnemar(0, 20_000) == 0.0  # 2^-19999 is less than any float
    assert mcnemar(9_900, 10_100) == pytest.approx(binomtest(9_900, 20_000).pvalue, rel=1e-6)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        mcnemar(-1, 3)


@pytest.mark.parametrize("n", [60, 400])
def test_bootstrap_without_clusters_agrees_with_scipy(n: int) -> None:
    values = np.random.default_rng(3).random(n) ** 2
    expected = scipy_bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap(values, range(n), resamples=20_000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.03 * (expected.high - expected.low))


def test_bootstrap_of_two_clusters_worked_by_hand() -> None:
    # Clusters (1, 1, 1) and (0): of two draws, one in four is 0 of 2, two are 3 of 4, one is 6 of 6.
    assert bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], confidence=0.9) == (0.0, 1.0)
    assert bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], confidence=0.4) == (0.75, 0.75)


def test_bootstrap_keeps_clusters_whole() -> None:
    values = np.repeat(np.arange(50) % 2, 8)
    low, high = bootstrap(values, np.repeat(np.arange(50), 8).tolist())
    apart_low, apart_high = bootstrap(values, range(400))
    # Eight equal values are one observation: the interval is that of 50, sqrt(8) times as wide.
    assert (high - low) / (apart_high - apart_low) == pytest.approx(math.sqrt(8), rel=0.08)


@given(SHARES, st.integers(0, 9), st.randoms())
def test_bootstrap_does_not_depend_on_the_order(values: list[float], seed: int, random) -> None:
    values = [value / 3 for value in values]
    clusters = [random.randrange(8) for _ in values]
    found = bootstrap(values, clusters, resamples=50, seed=seed)
    order = random.sample(range(len(values)), len(values))
    renamed = [f"image {clusters[i]}" for i in order]
    assert bootstrap([values[i] for i in order], renamed, resamples=50, seed=seed) == found
    assert 0 <= found[0] <= found[1] <= 1


def test_rounding_does_not_depend_on_the_order() -> None:
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    clusters = ["a", "a", "a", "b"]
    assert bootstrap([0.1, 0.2, 0.3, 0.5], clusters) == bootstrap([0.3, 0.2, 0.1, 0.5], clusters)


def test_bootstrap_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).random(100)
    assert bootstrap(values, range(100), seed=1) == bootstrap(values, range(100), seed=1)
    assert bootstrap(values, range(100), seed=1) != bootstrap(values, range(100), seed=2)


def test_fewer_than_two_clusters_say_nothing() -> None:
    assert bootstrap([], []) == (0.0, 1.0)
    assert bootstrap([1.0, 0.0], ["one", "one"]) == (0.0, 1.0)
    assert paired_bootstrap([], [], []) == paired_bootstrap([1], [0], ["one"]) == (-1.0, 1.0)


def test_paired_bootstrap_is_of_the_differences() -> None:
    generator = np.random.default_rng(0)
    first = (generator.random(300) < 0.5).astype(float)
    second = np.where(generator.random(300) < 0.1, 1.0, first)
    expected = scipy_bootstrap(
        (second - first,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = paired_bootstrap(first, second, range(300), resamples=20_000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.004)
    assert paired_bootstrap(first, first, range(300)) == (0.0, 0.0)
    low, high = paired_bootstrap(second, first, range(300), resamples=20_000)
    assert (-high, -low) == pytest.approx(found, abs=0.004)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap([1.0], []), "one cluster per value"),
        (lambda: bootstrap([2.0, 1.0], "ab"), "shares from 0 to 1"),
        (lambda: bootstrap([math.nan, 1.0], "ab"), "shares from 0 to 1"),
        (lambda: bootstrap([0.0, 1.0], "ab", resamples=0), "resamples"),
        (lambda: bootstrap([0.0, 1.0], "ab", confidence=95), "confidence"),
        (lambda: paired_bootstrap([0.0, 1.0], [1.0], "ab"), "same questions"),
    ],
)
def test_bootstrap_refuses(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_bootstrap_of_20000_records_is_quick_and_small() -> None:
    values = np.random.default_rng(0).random(20_000)
    start = time.process_time()
    tracemalloc.start()
    bootstrap(values, range(20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 2  # about 0.2 s on an idle core
    assert peak < 64 * 2**20  # all 2,000 draws at once would be 320 MB


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [(5, 2, 3, 0.9), (4, 0, 2, 0.0), (4, 4, 1, 1.0), (10, 3, 1, 0.3), (4, 1, 4, 1.0), (3, 2, 2, 1.0)],
)
def test_pass_at_k_worked_by_hand(n: int, correct: int, k: int, expected: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-15)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_the_draws_with_a_right_one_and_is_monotone(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    if k < n:
        assert pass_at_k(n, correct, k) <= pass_at_k(n, correct, k + 1)
    if correct < n:
        assert pass_at_k(n, correct, k) <= pass_at_k(n, correct + 1, k)


@pytest.mark.parametrize(("n", "correct", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_refuses(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= n"):
        pass_at_k(n, correct, k)


def test_majority_takes_the_most_frequent_and_of_equals_the_first() -> None:
    assert majority(["B", "A", "A"]) == "A"
    assert majority(["B", "A"]) == "B"
    assert majority([None, None, "C"]) == "C"
    assert majority([None]) is None
    assert majority([]) is None


@given(st.lists(st.sampled_from(["A", "B", None])))
def test_majority_is_not_beaten(answers: list[str | None]) -> None:
    winner = majority(answers)
    assume(winner)
    assert all(answers.count(winner) >= answers.count(other) for other in ("A", "B"))
