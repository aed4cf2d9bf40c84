"""Accuracy and what stands beside it, with numbers worked by hand."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.evaluation import LOGGED, Cell, flat, group_names, judge, said, summarize
from medgrpo.predictions import Prediction
from medgrpo.statistics import wilson
from medgrpo.types import DataError, Record

OPTIONS = ("cyst", "mass", "normal")


def record(index, modality="", task="", answer="A", options=OPTIONS, **more):
    images = more.pop("images", (f"{index}.png",))
    return Record(f"r{index}", "", "What?", options, answer, images, modality, task, **more)


def tagged(letter):
    return f"<answer>{letter}</answer>" if letter else "I cannot tell."


def said_to(record, *letters, view="image", **more):
    completions = tuple(tagged(letter) for letter in letters)
    return Prediction(record, completions, tuple(not letter for letter in letters), view=view, **more)


RECORDS = [
    record(0, "ct", "Disease Diagnosis"),
    record(1, "ct", "Lesion Grading"),
    record(2, "mri", "Lesion Grading", "B"),
    record(3, images=("2.png",)),
]
PREDICTIONS = [
    said_to(RECORDS[0], "A", seen=True, option_prior="A"),
    said_to(RECORDS[1], "B", seen=False, option_prior="C"),
    said_to(RECORDS[2], "mass", seen=False, option_prior="B"),
    said_to(RECORDS[3], None, option_prior="B"),
]


def test_judge_tells_unparsed_from_wrong_and_reads_by_both_rules():
    r = RECORDS[2]
    texts = ("<answer>B</answer>", "<answer>A</answer>", "", "<answer>A</answer> no, <answer>mass</answer>")
    judged = judge(Prediction(r, texts, (False,) * 4))
    assert judged.answers == ("B", "A", None, "B")
    assert judged.correct == (True, False, False, True)
    assert judged.strict_correct == (True, False, False, False)
    assert judged.unparsed == (False, False, True, False)
    assert judged.f1 == (1.0, 0.0, 0.0, 1.0)


def test_judge_of_open_and_closed_questions():
    judged = judge(said_to(record(0, answer="left upper lobe", options=()), "Left upper lobe.", "left lobe"))
    assert judged.correct == (True, False)
    assert judged.f1 == pytest.approx((1.0, 0.8))  # 2 of 2 said words are gold, 2 of 3 gold words are said
    assert judge(said_to(record(0, answer="no", options=(), closed=True), "No.", "yes")).correct == (True, False)


def test_answers_are_compared_by_what_they_say():
    assert said(record(0), "C") == "normal"
    assert said(record(0), None) is None
    assert said(record(0, answer="x", options=()), "The Left lobe.") == "left lobe"
    assert said(record(0, answer="yes", options=(), closed=True), "Yes, there is") == "yes"


def test_figures_of_one_run():
    cell = summarize(PREDICTIONS).overall
    assert (cell.n, cell.images, cell.k) == (4, 3, 1)
    assert cell.accuracy == 2 / 4
    assert cell.strict == 2 / 4
    assert (cell.unparsed, cell.truncated) == (1 / 4, 1 / 4)
    # Wilson: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z^2 = 3.8415: (0.98018 -+ 0.68626) / 1.96036
    assert (cell.low, cell.high) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert 0 <= cell.boot_low <= 0.5 <= cell.boot_high <= 1
    assert cell.chance == pytest.approx(1 / 3)
    assert cell.majority == 3 / 4  # A is gold three times
    assert cell.option_prior == 2 / 4
    for name in ("blank", "wrong_image", "shuffled", "blank_changed", "wrong_image_changed", "order_changed"):
        assert getattr(cell, name) is None
    assert (cell.f1, cell.majority_vote, cell.pass_at_k) == (None, None, None)


def test_groups_macro_and_worst():
    summary = summarize(PREDICTIONS)
    assert list(summary.groups) == ["modality", "task", "options", "image"]  # no question names a dataset
    accuracy = {kind: {name: cell.accuracy for name, cell in named.items()} for kind, named in summary.groups.items()}
    assert accuracy == {
        "modality": {"ct": 1 / 2, "mri": 1.0, "unknown": 0.0},
        "task": {"Disease Diagnosis": 1.0, "Lesion Grading": 1 / 2, "unknown": 0.0},
        "options": {"3": 1 / 2},
        "image": {"not seen": 1 / 2, "seen in training": 1.0, "unknown": 0.0},
    }
    assert list(summary.groups["modality"]) == ["ct", "mri", "unknown"]
    assert summary.macro == pytest.approx({"modality": 1 / 2, "task": 1 / 2})
    assert summary.worst == {"modality": "unknown", "task": "unknown"}
    assert summary.groups["modality"]["ct"].majority == 1.0
    assert summarize(PREDICTIONS[:3]).worst == {"modality": "ct", "task": "Lesion Grading"}


def test_of_equally_bad_groups_the_first_by_name_is_the_worst():
    assert summarize([said_to(record(i, name), "B") for i, name in enumerate(("oct", "ct"))]).worst["modality"] == "ct"


def test_groups_by_number_of_options_are_in_order():
    sizes = [record(n, options=tuple("abcdefghij"[:n])) for n in (10, 2)]
    sizes += [record(1, answer="yes", options=(), closed=True), record(0, answer="lung", options=())]
    assert [group_names(said_to(r, "A"))["options"] for r in sizes] == ["10", "2", "closed", "open"]
    assert list(summarize([said_to(r, "A") for r in sizes]).groups["options"]) == ["2", "10", "closed", "open"]


def test_baselines_of_options_are_of_questions_with_options():
    cell = summarize([said_to(record(0), "A"), said_to(record(1, answer="left lung", options=()), "lung")]).overall
    assert (cell.accuracy, cell.majority) == (1 / 2, 1.0)
    assert cell.chance == pytest.approx(1 / 3)
    assert cell.f1 == pytest.approx(2 / 3)  # of the open question alone
    assert cell.option_prior is None


def test_other_views_are_compared_with_the_image_on_the_questions_that_have_them():
    turned = [replace(r, options=OPTIONS[::-1], answer="CBA"["ABC".index(r.answer)]) for r in RECORDS]
    others = [
        said_to(RECORDS[0], "A", view="blank"),  # right, unchanged
        said_to(RECORDS[1], None, view="blank"),  # B -> no answer
        said_to(RECORDS[3], None, view="blank"),  # no answer, still none
        said_to(RECORDS[2], "A", view="wrong_image"),
        said_to(turned[0], "C", view="shuffled"),  # cyst, still
        said_to(turned[1], "B", view="shuffled"),  # mass, still
        said_to(turned[2], "A", view="shuffled"),  # mass -> normal
    ]
    cell = summarize([*others, *PREDICTIONS]).overall
    assert (cell.n, cell.accuracy) == (4, 2 / 4)
    assert cell.blank == pytest.approx(1 / 3)
    assert cell.blank_changed == pytest.approx(1 / 3)
    assert (cell.wrong_image, cell.wrong_image_changed) == (0.0, 1.0)
    assert cell.shuffled == pytest.approx(1 / 3)
    assert cell.order_changed == pytest.approx(1 / 3)
    assert summarize([*others, *PREDICTIONS]).groups["modality"]["ct"].wrong_image is None


def test_what_the_image_adds_is_of_the_questions_asked_both_ways():
    run = [said_to(record(i), "A" if i < 60 else "B") for i in range(200)]
    run += [said_to(record(i), "A" if i < 30 else "B", view="blank") for i in range(60)]
    cell = summarize(run).overall
    assert (cell.accuracy, cell.blank) == (60 / 200, 30 / 60)
    assert 0.3 < cell.blank_gain_low < 0.5 < cell.blank_gain_high < 0.7  # 30 of 60 gained, none lost
    assert summarize(run[:200]).overall.blank_gain_low is None
    lost = [said_to(record(i), "A", view="blank") for i in range(60, 90)]
    cell = summarize([*run[:230], *lost]).overall
    assert cell.blank_gain_low < cell.blank_gain_high < 0  # 30 the same, 30 right with a blank image alone


def test_a_policy_that_answers_by_position_changes_with_the_order():
    r = RECORDS[0]
    turned = replace(r, options=("mass", "cyst", "normal"), answer="B")
    cell = summarize([said_to(r, "A"), said_to(turned, "A", view="shuffled")]).overall
    assert (cell.order_changed, cell.shuffled) == (1.0, 0.0)


def test_several_samples():
    samples = [
        said_to(record(0), "A", "A", "B"),  # 2 of 3 right, vote right
        said_to(record(1), "B", "cyst", "mass"),  # 1 of 3 right, vote wrong
        said_to(record(2), None, None, "A"),  # 1 of 3 right, the only answer wins
        said_to(record(3), None, None, None),  # none
    ]
    cell = summarize(samples).overall
    assert cell.k == 3
    assert (cell.low, cell.high) == (cell.boot_low, cell.boot_high) != wilson(cell.accuracy * cell.n, cell.n)
    assert cell.accuracy == pytest.approx((2 + 1 + 1 + 0) / 12)
    assert cell.unparsed == pytest.approx(5 / 12)
    assert cell.truncated == pytest.approx(5 / 12)
    assert cell.majority_vote == 2 / 4
    assert cell.pass_at_k == 3 / 4
    few = summarize([*samples[:1], said_to(record(1), "B", "A")]).overall
    assert few.k == 2
    assert few.pass_at_k == 1.0  # 1 - C(1, 2) / C(3, 2), and 1 - C(1, 2) / C(2, 2)


def test_reasoning_is_checked_under_the_image_alone():
    thinks = "<think>It is dark.</think><answer>A</answer>"
    blank = Prediction(RECORDS[0], (thinks,), (False,), view="blank")
    assert summarize([*PREDICTIONS, blank]).reasoning is None
    assert summarize([replace(blank, view="image"), blank]).reasoning.n == 1


def test_a_run_without_the_image_view_is_refused():
    with pytest.raises(DataError, match="view 'image'.*got none at all"):
        summarize([])
    with pytest.raises(DataError, match="got only blank, shuffled"):
        summarize([said_to(RECORDS[0], "A", view=view) for view in ("shuffled", "blank")])


def test_a_question_counts_once():
    with pytest.raises(DataError, match="two of 'r0' under 'image'"):
        summarize([PREDICTIONS[0], *PREDICTIONS])


def test_summary_is_json():
    values = json.loads(json.dumps(asdict(summarize(PREDICTIONS))))
    assert values["overall"]["accuracy"] == 0.5
    assert set(values) == {"overall", "groups", "macro", "worst", "reasoning"}


def test_flat_names_what_is_logged():
    blank = said_to(RECORDS[0], "B", view="blank")
    values = flat(summarize([*PREDICTIONS, blank]))
    assert {name: values[name] for name in values if "/" in name} == pytest.approx(
        {
            "macro/modality": 1 / 2,
            "macro/task": 1 / 2,
            "worst/modality": 0.0,
            "worst/task": 0.0,
            "accuracy/modality/ct": 1 / 2,
            "accuracy/modality/mri": 1.0,
            "accuracy/modality/unknown": 0.0,
            "accuracy/task/Disease Diagnosis": 1.0,
            "accuracy/task/Lesion Grading": 1 / 2,
            "accuracy/task/unknown": 0.0,
        }
    )
    assert (values["accuracy"], values["strict_accuracy"], values["blank_accuracy"], values["n"]) == (0.5, 0.5, 0, 4)
    assert not {"shuffled_accuracy", "f1", "pass_at_k"} & set(values)
    assert all(type(value) is float for value in values.values())
    assert set(LOGGED) <= set(Cell.__dataclass_fields__)


def test_rounding_does_not_depend_on_the_order():
    thirds = [said_to(record(i), *said) for i, said in enumerate(("ABB", "AAA", "AAA"))]
    assert summarize(thirds[::-1]) == summarize(thirds)


letters = st.sampled_from(["A", "B", "C", None])


@st.composite
def runs(draw):
    """Predictions under several views, of a few questions that share images."""
    predictions = []
    for i in range(draw(st.integers(1, 6))):
        r = record(
            i, draw(st.sampled_from(["ct", "mri", ""])), answer=draw(st.sampled_from("ABC")), images=(f"{i % 2}",)
        )
        for view in ("image", *draw(st.sets(st.sampled_from(["blank", "shuffled"])))):
            predictions.append(said_to(r, *draw(st.lists(letters, min_size=1, max_size=3)), view=view))
    return predictions


@settings(max_examples=30, deadline=None)
@given(runs(), st.randoms())
def test_order_of_predictions_changes_nothing(run, random):
    assert summarize(random.sample(run, len(run))) == summarize(run)


@settings(max_examples=50, deadline=None)
@given(runs())
def test_figures_are_shares_and_intervals_hold_the_accuracy(run):
    cell = summarize(run).overall
    assert 0 <= cell.low <= cell.accuracy <= cell.high <= 1
    assert cell.strict <= cell.accuracy
    assert cell.accuracy + cell.unparsed <= 1 + 1e-9
    assert cell.k == 1 or cell.accuracy <= cell.pass_at_k + 1e-9
