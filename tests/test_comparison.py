"""Two runs on the same questions, worked by hand."""

from dataclasses import replace

import pytest

from medgrpo.comparison import compare
from medgrpo.predictions import Prediction
from medgrpo.types import DataError, Record


def record(index, **more):
    return Record(f"r{index}", "", "What?", ("cyst", "mass"), "A", (f"{index}.png",), **more)


def run(said, **more):
    """A right or wrong answer for each + or -, one prediction per word, one sample per character."""
    return [
        Prediction(record(i), tuple(f"<answer>{'BA'[c == '+']}</answer>" for c in word), (False,) * len(word), **more)
        for i, word in enumerate(said.split())
    ]


def test_hand_worked():
    first = run("+ + + - - - - - - -")
    second = run("+ + - + + + + + - -")
    result = compare(first, second)
    assert (result.both_right, result.only_first, result.only_second, result.neither) == (2, 1, 5, 2)
    assert (result.n, result.missing) == (10, 0)
    assert (result.first, result.second) == (0.3, 0.7)
    assert result.difference == pytest.approx(0.4)
    assert result.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # 2 P(X <= 1), X ~ Binomial(6, 1/2)
    # Differences are 5 times +1, once -1 and 4 times 0: mean 0.4, standard error sqrt((6 / 10 - 0.16) / 10) = 0.21.
    assert result.low == pytest.approx(0.4 - 1.96 * 0.21, abs=0.1)
    assert result.high == pytest.approx(0.4 + 1.96 * 0.21, abs=0.1)


def test_swapping_the_runs_turns_the_signs():
    first, second = run("+ + + - - -"), run("+ - - + - -")
    there, back = compare(first, second), compare(second, first)
    assert (back.difference, back.p_value) == (-there.difference, there.p_value)
    assert (back.only_first, back.only_second) == (there.only_second, there.only_first)
    assert back.low == pytest.approx(-there.high, abs=0.2)


def test_first_samples_are_paired_and_accuracy_is_over_all():
    result = compare(run("+--- -+++"), run("++++ -+++"))
    assert (result.both_right, result.neither, result.only_second) == (1, 1, 0)
    assert (result.first, result.second) == (pytest.approx(0.5), pytest.approx(0.875))


def test_only_common_questions_under_the_image_count():
    first = run("+ - +") + run("- - -", view="blank")
    result = compare(first, run("+ + + + +")[1:])
    assert (result.n, result.missing) == (2, 3)
    assert (result.only_second, result.both_right) == (1, 1)


@pytest.mark.parametrize("change", [{"options": ("mass", "cyst")}, {"answer": "B"}, {"question": "Where?"}])
def test_another_question_under_the_same_id_is_refused(change):
    other = run("+ +")
    other[1] = replace(other[1], record=replace(record(1), **change))
    with pytest.raises(DataError, match=f"'r1'.*another {next(iter(change))}"):
        compare(run("+ +"), other)


def test_a_file_without_the_question_text_can_be_compared():
    bare = [replace(p, record=replace(p.record, question="")) for p in run("+ -")]
    assert compare(bare, run("+ +")).only_second == 1


def test_nothing_in_common_is_refused():
    with pytest.raises(DataError, match=r"without a common id \(e\.g\. 'r0' and e\.g\. 'r1'\)"):
        compare(run("+"), run("+ +")[1:])
    with pytest.raises(DataError, match="none"):
        compare([], run("+"))
