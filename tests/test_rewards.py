"""Rewards on the completions that the seed projects disagree about."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from medgrpo.answers import verdict
from medgrpo.rewards import (
    AccuracyReward,
    FormatReward,
    MedR1Accuracy,
    MedR1Format,
    MedVLMR1Accuracy,
    Reward,
    RewardError,
    failed_rank,
    score_completions,
    weighted_sum,
)
from medgrpo.types import Record

RECORD = Record(id="1", problem="", question="", options=("MRI", "X-ray", "CT", "Ultrasound"), answer="C")
OTHER = Record(id="2", problem="", question="", options=("yes", "no"), answer="A")

THINK = "<think>x</think>"
# completion; ours: verdict, format think / nothink; Med-R1: accuracy, format think / nothink; MedVLM-R1: accuracy
MATRIX = [
    (THINK + "\n<answer> C </answer>", "right", 1, 0, 1, 1, 0, 1),
    (THINK + "<answer>\nC\n</answer>", "right", 1, 0, 0, 1, 0, 1),
    (THINK + "<answer>c</answer>", "right", 1, 0, 0, 1, 0, 1),
    (THINK + "<answer>C)</answer>", "right", 1, 0, 0, 1, 0, 0.5),
    (THINK + "<answer>C.</answer>", "right", 1, 0, 0, 1, 0, 0.5),
    (THINK + "<answer>(C)</answer>", "right", 1, 0, 0, 1, 0, 0.5),
    (THINK + "<answer>C) CT</answer>", "right", 1, 0, 0, 1, 0, 0),
    (THINK + "<answer>CT</answer>", "right", 1, 0, 0, 1, 0, 0.5),
    (THINK + "\n\n<answer>C</answer>", "right", 1, 0, 1, 1, 0, 1),
    (THINK + "<answer>C</answer>\n", "right", 1, 0, 1, 0, 0, 1),
    (THINK + "<answer>C</answer> done", "right", 0, 0, 1, 0, 0, 1),
    ("<think>a</think> junk <think>b</think><answer>C</answer>", "right", 0, 0, 1, 1, 0, 1),
    (THINK + "<answer>C</answer><answer>B</answer>", "unparsed", 0, 0, 1, 1, 0, 1),
    ("<answer>C</answer>", "right", 0, 1, 1, 0, 1, 1),
    ("C", "unparsed", 0, 0, 1, 0, 0, 0),
    ("None\n\n<answer> C </answer>", "right", 0, 0, 1, 0, 0, 1),
    ("<think></think><answer></answer>", "unparsed", 0, 0, 0, 1, 0, 0),
    # beyond the published edge cases
    (THINK + "<answer>X-ray</answer>", "wrong", 1, 0, 0, 1, 0, 0),
    (THINK + "<answer>B or C</answer>", "unparsed", 1, 0, 0, 1, 0, 0),
    ("<think><answer>C</answer></think><answer>A</answer>", "wrong", 0, 0, 1, 1, 0, 1),
    ("<answer>C</answer>" + THINK, "right", 0, 0, 1, 0, 0, 1),
    (THINK + "<answer>C</answer><answer>C</answer>", "unparsed", 0, 0, 1, 1, 0, 1),
    (THINK + "<answer>C</answer><answer>B", "unparsed", 0, 0, 1, 0, 0, 1),
    (THINK + "The answer is C.", "unparsed", 0, 0, 0, 0, 0, 0),
    (r"\boxed{C}", "unparsed", 0, 0, 0, 0, 0, 0),
]


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: repr(row[0]))
def test_edge_matrix(row):
    completion, says, *expected = row
    assert verdict(RECORD, completion) == says
    assert AccuracyReward()([completion], [RECORD]) == [float(says == "right")]
    rewards = [
        FormatReward("think"),
        FormatReward("nothink"),
        MedR1Accuracy(),
        MedR1Format("think"),
        MedR1Format("nothink"),
        MedVLMR1Accuracy(),
    ]
    assert [reward([completion], [RECORD])[0] for reward in rewards] == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>C</answer><think>x</think>", 1),
        (" <answer>C</answer>\n<think>\n</think>\n", 1),
        ("<think>x</think><answer>C</answer>", 0),
        ("<answer>C</answer>", 0),
        ("<answer> </answer><think>x</think>", 0),
        ("<answer>C</answer> so <think>x</think>", 0),
        ("<answer>C</answer><think>x</think><think>y</think>", 0),
        ("<answer>C</answer><think>x <answer>B</answer></think>", 0),
    ],
)
def test_think_after_format(completion, expected):
    assert FormatReward("think_after")([completion], [RECORD]) == [expected]


@pytest.mark.parametrize(
    "completion",
    [
        "<think>x <think>y</think></think><answer>C</answer>",
        "<think>x<answer>B</answer></think><answer>C</answer>",
        "<think>x</think><answer><answer>C</answer></answer>",
        "<think>x</THINK></think><answer>C</answer>",
        "<Think>x</Think><Answer>C</Answer>",
        "<think>x</think><answer>C",
        "x<think>x</think><answer>C</answer>",
        "<think>x</think><answer>\n</answer>",
    ],
)
def test_think_format_is_strict(completion):
    assert FormatReward("think")([completion], [RECORD]) == [0]


def test_unknown_style_is_refused():
    for reward in (FormatReward, MedR1Format):
        with pytest.raises(ValueError, match="style: expected one of think.*got 'cot'"):
            reward("cot")


def test_weighted_sum_by_hand():
    total = weighted_sum(torch.tensor([[1.0, 0.0], [0.5, 1.0]]), [1.0, 0.25])
    assert total.tolist() == [1.0, 0.75]
    assert total.dtype == torch.float32


class HalfReward(Reward):
    name = "half"

    def __call__(self, completions, records):
        return [0.5 for _ in completions]


def test_score_gives_the_sum_and_its_parts():
    completions = ["<answer>C</answer>", "<answer>A</answer>", "C"]
    rewards = [AccuracyReward(), FormatReward("nothink"), HalfReward()]
    total, parts = score_completions(rewards, [2.0, 1.0, 4.0], completions, [RECORD] * 3)
    assert parts.tolist() == [[1, 1, 0.5], [0, 1, 0.5], [0, 0, 0.5]]
    assert total.tolist() == [5.0, 3.0, 2.0]
    assert total.dtype == parts.dtype == torch.float32
    assert score_completions(rewards, None, completions, [RECORD] * 3)[0].tolist() == [2.5, 1.5, 0.5]


def test_each_completion_is_scored_with_its_own_record():
    completions = ["<answer>C</answer>", "<answer>C</answer>", "<answer>A</answer>", "<answer>A</answer>"]
    total, _ = score_completions([AccuracyReward()], None, completions, [RECORD, RECORD, OTHER, OTHER])
    assert total.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_one_weight_per_reward(weights):
    with pytest.raises(ValueError, match=f"reward_weights: expected 2.*got {len(weights)}"):
        score_completions([AccuracyReward(), HalfReward()], weights, ["C"], [RECORD])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "expected a list of 2 values, one per completion, got 1; the first completion is record 1, .* 'first'"),
        (None, "expected a list of 2 values, one per completion, got None; .*record 1"),
        (iter([1.0, 1.0]), "expected a list of 2 values, one per completion, got <list_iterator"),
        ("ab", "expected a list of 2 values, one per completion, got 'ab'; "),
        ({0: 1.0, 1: 1.0}, "expected a list of 2 values, one per completion, got {0: 1.0, 1: 1.0}; "),
        ({1.0, 0.0}, "expected a list of 2 values, one per completion, got {"),
        (torch.tensor(1.0), "expected a list of 2 values, one per completion, got 1.0; "),
        (torch.ones(2, 1), r"expected finite numbers, got \[1.0\] for record 1"),
        (np.array(1.0), "TypeError: iteration over a 0-d array, for 2 completions together"),
        ([1.0, float("nan")], "expected finite numbers, got nan for record 2, completion 'second'"),
        ([1.0, float("inf")], "expected finite numbers, got inf for record 2, completion 'second'"),
        ([1.0, 1e39], r"expected finite numbers, got 1e\+39 for record 2"),  # more than float32 holds
        ([1.0, 10**5000], "expected finite numbers, got an integer beyond float32 for record 2"),
        ([1.0, None], "expected finite numbers, got None for record 2, completion 'second'"),
        ([1.0, torch.tensor(1.0)], r"expected finite numbers, got tensor\(1.\) for record 2"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reward_that_returns_the_wrong_thing_is_named_with_the_sample(values, message, monkeypatch):
    monkeypatch.setattr(HalfReward, "__call__", lambda self, completions, records: values)
    with pytest.raises(RewardError, match=rf"^reward half \(test_rewards\.HalfReward\): {message}"):
        score_completions([HalfReward()], None, ["first", "second"], [RECORD, OTHER])


def test_numbers_of_other_kinds_are_taken(monkeypatch):
    for values in ([True, 0], np.array([1.0, 0.0]), (Fraction(1), np.float32(0)), torch.tensor([1.0, 0.0])):
        monkeypatch.setattr(HalfReward, "__call__", lambda self, completions, records, v=values: v)
        assert score_completions([HalfReward()], None, ["a", "b"], [RECORD] * 2)[0].tolist() == [1, 0]


class Digits(Reward):
    """A user's own, which has not thought of every text."""

    name = "digits"

    def __call__(self, completions, records):
        return [float(int(text)) for text in completions]


class Pairs(Reward):
    name = "pairs"

    def __call__(self, completions, records):
        if len(completions) > 1:
            raise KeyError("pair")
        return [1.0]


def test_what_a_reward_raises_is_told_with_the_sample_that_it_raises_on():
    long = "x" * 5000
    with pytest.raises(RewardError) as caught:
        score_completions([HalfReward(), Digits()], None, ["1", long], [RECORD, OTHER])
    message = str(caught.value)
    assert message.startswith(r"reward digits (test_rewards.Digits): ValueError: invalid literal for int()")
    assert message.endswith(f"for record 2, completion '{'x' * 80}' ...")
    assert isinstance(caught.value.__cause__, ValueError)  # with its own traceback
    with pytest.raises(RewardError, match="KeyError: 'pair', for 2 completions together, for none .*record 1"):
        score_completions([Pairs()], None, ["1", "2"], [RECORD, OTHER])


def test_a_reward_keeps_what_it_does_to_its_arguments_to_itself(monkeypatch):
    def greedy(self, completions, records):
        completions.clear(), records.clear()
        return [0.5, 0.5]

    monkeypatch.setattr(HalfReward, "__call__", greedy)
    texts, records = ["<answer>C</answer>", "<answer>B</answer>"], [RECORD, RECORD]
    _, parts = score_completions([HalfReward(), AccuracyReward()], None, texts, records)
    assert parts[:, 1].sum() == 1
    assert (len(texts), len(records)) == (2, 2)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ValueError("a line\n" * 500), "ValueError: a line a line .{370,400} ..., for record 1"),
        (Unprintable(), "test_rewards.Unprintable: <exception str.. failed>, for record 1"),
        (SystemExit(0), "SystemExit: 0, for record 1"),
    ],
    ids=["long", "unprintable", "exit"],
)
def test_whatever_a_reward_raises_is_one_short_line(raised, told, monkeypatch):
    def fail(self, completions, records):
        raise raised

    monkeypatch.setattr(HalfReward, "__call__", fail)
    with pytest.raises(RewardError, match=told) as caught:
        score_completions([HalfReward()], None, ["1"], [RECORD])
    assert len(str(caught.value).splitlines()) == 1


def test_stopping_a_run_is_no_fault_of_a_reward(monkeypatch):
    def stop(self, completions, records):
        raise KeyboardInterrupt

    monkeypatch.setattr(HalfReward, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        score_completions([HalfReward()], None, ["1"], [RECORD])


def test_weights_that_give_no_finite_sum_are_refused():
    with pytest.raises(RewardError, match=r"reward_weights: expected finite sums, got inf .*\[inf\].* record 1,"):
        score_completions([HalfReward()], [float("inf")], ["1"], [RECORD])
    huge = torch.finfo(torch.float32).max
    with pytest.raises(RewardError, match="reward_weights: expected finite sums, got "):
        score_completions([HalfReward(), AccuracyReward()], [huge * 4, 0.0], ["1"], [RECORD])


def test_the_rank_without_rewards_is_found():
    assert failed_rank(torch.tensor([1.0, 0.0, 2.0, 3.0]), 2) is None
    assert failed_rank(torch.tensor([1.0, 0.0, 2.0, 3.0] + [torch.nan] * 4), 2) == 1
    assert failed_rank(torch.full((4,), torch.nan), 2) == 0


def test_a_reward_must_be_callable():
    class Silent(Reward):
        name = "silent"

    with pytest.raises(TypeError, match="abstract"):
        Silent()
