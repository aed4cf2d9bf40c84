"""Debiasing: each step alone by hand, its laws, and what the option-prior lookup still gets on the real files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.debias import Debiased, debias, guess_task, normalized
from data_modules.fields import with_options
from data_modules.formats import read_records
from data_modules.options import option_key
from data_modules.split import split
from medgrpo.blind import OptionPrior, style_cue
from medgrpo.types import LETTERS, Record

SHARED = Path(__file__).parents[2] / "shared" / "data"
OFF = {"redraw": False, "normalize_style": False, "balance_binary": False, "balance_letters": False, "shuffle": False}
FINDING, TECHNIQUE = "What is seen in this image?", "What imaging technique was used?"


def make(index: int, options: str, answer: str, question: str = FINDING, **fields) -> Record:
    texts = tuple(options.split("|"))
    values = {"images": (f"{index}.png",), "modality": "ct"} | fields
    return Record(f"r-{index}", "as published", question, texts, answer, **values)


def only(records: list[Record], step: str | None = None, seed: int = 0, **settings) -> Debiased:
    return debias(records, **(OFF | ({step: True} if step else {}) | settings), seed=seed)


def gold(record: Record) -> str:
    return record.options[record.letters.index(record.answer)]


# Style


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("liver lesion.", "Liver lesion"),
        ("x_ray.", "X_ray"),
        ("CT", "CT"),
        ("pH 7.4", "pH 7.4"),
        ("mRNA.", "mRNA"),
        ("β-blocker", "β-blocker"),
        ("McArdle disease", "McArdle disease"),
        ("1.5 mm. ", "1.5 mm"),
        ("ödem ..", "Ödem"),
        ("...", "..."),
        ("左侧", "左侧"),
    ],
)
def test_first_letter_and_final_period(published: str, expected: str) -> None:
    assert normalized(published) == expected


def test_style_is_the_only_thing_that_normalizing_changes() -> None:
    result = only([make(0, "cyst.|Mass|CT", "A"), make(1, "Cyst|Mass", "B")], "normalize_style")
    assert [(r.options, r.answer) for r in result.records] == [(("Cyst", "Mass", "CT"), "A"), (("Cyst", "Mass"), "B")]
    assert result.report.restyled == 1


# Redrawing


def recurring(extra: list[Record] | None = None) -> list[Record]:
    """Six findings that are right, each with distractors that never are."""
    names = ["Cyst", "Nodule", "Fracture", "Edema", "Stone", "Hernia"]
    return [make(i, f"{name}|Wrong1|Wrong2|Wrong3", "A") for i, name in enumerate(names)] + (extra or [])


def test_distractors_are_right_answers_of_the_same_modality_and_task() -> None:
    others = [
        make(10, "Polyp|x|y", "A", modality="mri"),
        make(11, "Thorax|x|y", "A", question="Which organ is this?"),
        make(12, "Yes|No", "A"),
    ]
    records = recurring(others)
    result = only(records, "redraw")
    right = {gold(record) for record in records[:6]}
    for new, old in zip(result.records[:6], records[:6], strict=True):
        assert (new.id, new.answer, new.options[0], len(new.options)) == (old.id, "A", gold(old), 4)
        assert set(new.options) <= right
    assert [record.options for record in result.records[7:]] == [record.options for record in others[1:]]
    assert (result.report.redrawn, result.report.small_pool) == (7, 1)  # the MRI finding is redrawn from the CT ones


def test_the_task_of_the_file_counts_more_than_the_guess() -> None:
    records = [replace(record, task="Lesion Grading") for record in recurring()[:3]] + recurring()[3:]
    result = only(records, "redraw")
    assert result.report.small_pool == 6  # three right answers each: too few for three distractors


def test_too_small_a_pool_keeps_the_distractors_or_leaves_the_item_out() -> None:
    techniques = [make(i, "CT|Endoscopy|Fluoroscopy", "A", TECHNIQUE) for i in range(3)]
    kept = only(techniques, "redraw")
    assert [record.options for record in kept.records] == [record.options for record in techniques]
    assert (kept.report.redrawn, kept.report.small_pool) == (0, 3)
    dropped = only(recurring(techniques), "redraw", drop_small_pool=True)
    assert [r.id for r in dropped.records] == [f"r-{i}" for i in range(6)] == [r.id for r in recurring()]


def test_other_modalities_fill_up_a_small_pool() -> None:
    answers = {"ct": "CT", "mri": "MRI", "oct": "OCT"}
    records = [
        make(i, f"{name}|Endoscopy|Fluoroscopy", "A", TECHNIQUE, modality=modality)
        for i, (modality, name) in enumerate(answers.items())
    ]
    result = only(records, "redraw")
    assert all(set(record.options) == set(answers.values()) for record in result.records)


def test_answers_that_are_right_for_the_image_too_are_no_distractors() -> None:
    records = recurring()
    shared = [replace(records[0], images=("s.png",)), replace(records[1], images=("s.png",)), *records[2:]]
    for seed in range(20):
        first, second = only(shared, "redraw", seed=seed).records[:2]
        assert "Nodule" not in first.options
        assert "Cyst" not in second.options


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Pneumonia", "Viral_Pneumonia"),
        ("Lung", "lungs"),
        ("It's normal", "The lungs appear healthy"),
        ("Normal image", "No abnormality detected"),
        ("Abnormality present", "Fracture"),
        ("X-ray", "Radiograph"),
    ],
)
def test_other_names_of_the_right_answer_are_no_distractors(one: str, other: str) -> None:
    records = [*recurring(), make(20, f"{one}|w|v", "A"), make(21, f"{other}|w|v", "A")]
    for seed in range(20):
        first, second = only(records, "redraw", seed=seed).records[-2:]
        assert other not in first.options
        assert one not in second.options


def test_the_modality_of_the_record_is_no_distractor() -> None:
    names = ["Mammography", "Scintigraphy", "Endoscopy", "Chest X-ray"]
    records = [make(i, f"{name}|v|w", "A", TECHNIQUE, modality="xray") for i, name in enumerate(names)]
    for seed in range(10):
        assert all("Chest X-ray" not in record.options for record in only(records, "redraw", seed=seed).records[:3])


def test_options_that_speak_of_each_other_stay() -> None:
    options = ["Cyst|Mass|All of the above", "Cyst|Mass|Both A and B", "Cyst|Mass|(A) or (B)", "x|y|None of these"]
    records = recurring([make(20 + i, text, "C") for i, text in enumerate(options)])
    result = debias(records, seed=0)
    assert ["|".join(record.options) for record in result.records[6:]] == [
        option if option[0] == "C" else "X|Y|None of these" for option in options
    ]
    assert all(record.answer == "C" for record in result.records[6:])
    assert {option for record in result.records[:6] for option in record.options} <= {gold(r) for r in recurring()}
    assert result.report.fixed == 4


def test_frequent_answers_are_frequent_distractors_unless_drawn_uniformly() -> None:
    rare = ["Nodule", "Edema", "Stone", "Hernia", "Ulcer"]
    records = [make(i, f"{name}|v|w", "A") for i, name in enumerate(rare * 60 + ["Cyst"] * 900)]

    def offered(weights: str) -> float:
        return sum("Cyst" in r.options for r in only(records, "redraw", weights=weights).records[:300]) / 300

    # The first of two distractors is "Cyst" with 900 of 1140 (0.79), else the second with 900 of 1080 (0.83): 0.96.
    assert offered("frequency") == pytest.approx(0.96, abs=0.04)
    assert offered("uniform") == pytest.approx(2 / 5, abs=0.12)


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ("What type of imaging technique would be employed to obtain this image?", "Modality Recognition"),
        ("What modality is used to capture this image?", "Modality Recognition"),
        ("By what means was this image obtained?", "Modality Recognition"),
        ("Which joint does the bone in the picture come from?", "Anatomy Identification"),
        ("Which region of the body is depicted in this image?", "Anatomy Identification"),
        ("What is the specific abnormality shown in this OCT image?", "Disease Diagnosis"),
        ("What type of abnormality is present in this image?", "Disease Diagnosis"),
    ],
)
def test_guessed_tasks(question: str, task: str) -> None:
    assert guess_task(question) == task


# Balancing and order


def test_yes_and_no_become_equally_frequent_in_each_modality_and_task() -> None:
    answers = [("ct", "No|Yes", "A")] * 7 + [("ct", "Yes|No, it's normal", "A")] * 2 + [("mri", "No.|Yes.", "A")] * 3
    records = [make(i, options, answer, modality=modality) for i, (modality, options, answer) in enumerate(answers)]
    kept = only([*records, make(20, "Left|Right", "A"), make(21, "No|Yes|Maybe", "A")], "balance_binary")
    assert Counter((r.modality, gold(r)) for r in kept.records) == {
        ("ct", "No"): 3,  # two yes-or-no items, and the one with a third option
        ("ct", "Yes"): 2,
        ("ct", "Left"): 1,
    }
    assert kept.report.balanced_away == 8


def test_letters_are_equally_frequent_per_number_of_options() -> None:
    records = [make(i, "w|x|y|z", "B") for i in range(10)] + [make(20 + i, "Left|Right", "A") for i in range(6)]
    result = only(records, "balance_letters").records
    assert sorted(Counter(r.answer for r in result[:10]).values()) == [2, 2, 3, 3]
    assert Counter(r.answer for r in result[10:]) == {"A": 3, "B": 3}
    assert {gold(r) for r in result} == {"x", "Left"}
    assert all([o for o in r.options if o != "x"] == ["w", "y", "z"] for r in result[:10])


def test_the_order_of_a_record_depends_on_no_other_record() -> None:
    records = [make(i, "v|w|x|y|z", "A") for i in range(40)]
    result = only(records, "shuffle").records
    assert only(records[7:8], "shuffle").records == result[7:8]
    assert len({record.options for record in result}) > 25
    assert set(Counter(record.answer for record in result)) == set("ABCDE")
    assert only(records, "shuffle", seed=1).records != result


def test_all_off_changes_the_layout_of_the_problem_alone() -> None:
    records = recurring([make(20, "Yes|No", "B"), make(21, "pus.|Mass", "A")])
    assert only(records).records == [replace(r, problem=with_options(r.question, r.options)) for r in records]


def test_records_without_options_pass_unchanged() -> None:
    others = [
        Record("o", "Where?", "Where?", (), "in the liver."),
        Record("c", "Is it?", "Is it?", (), "no", closed=True),
    ]
    assert debias(others, seed=0) == Debiased(others, debias([], seed=0).report)


def drawn_for(key: str, records: list[Record]) -> set[str]:
    """Keys of all distractors that records with this right answer get under many seeds."""
    keys = set()
    for seed in range(20):
        for record in debias(records, weights="uniform", seed=seed).records:
            if option_key(gold(record)) == key:
                keys |= {option_key(option) for option in record.options} - {key}
    return keys


def test_answers_that_are_right_together_are_no_distractors_of_each_other() -> None:
    answers = ("chest", "lungs", "knee", "hand", "skull", "foot")
    records = [
        make(i, f"{answer}|w|x|y", "A", "Which organ is this?", images=(f"{i}.png",))
        for i, answer in enumerate(answers)
    ]
    assert "lungs" in drawn_for("chest", records)
    both_right = make(9, "lungs|w|x|y", "A", "Which organ is seen?", images=("0.png",))  # of which "chest" is right
    assert drawn_for("chest", [*records, both_right]) == {"knee", "hand", "skull", "foot"}


def test_distractors_contradict_the_right_answer() -> None:
    answers = ("covid-19 pneumonia", "covid-19 positive", "covid-19 negative", "abnormal lung", "edema", "mass", "clot")
    normal = make(9, "no abnormality|w|x|y", "A", images=("9.png",))
    records = [make(i, f"{answer}|w|x|y", "A", images=(f"{i}.png",)) for i, answer in enumerate(answers)]
    assert drawn_for("covid-19 pneumonia", [*records, normal]) == {"edema", "mass", "clot", "no abnormality"}
    assert "covid-19 negative" not in drawn_for("no abnormality", [*records, normal])
    assert "covid-19 pneumonia" in drawn_for("no abnormality", [*records, normal])


# Laws

ANSWERS = st.sampled_from(["cyst", "Nodule.", "fracture", "Edema", "stone.", "Hernia", "yes", "CT", "no abnormality"])
CHOICES = st.tuples(
    st.lists(ANSWERS, min_size=2, max_size=5, unique_by=option_key),
    st.integers(0, 4),
    st.sampled_from([FINDING, TECHNIQUE, "Which organ is this?"]),
    st.sampled_from(["ct", "mri", ""]),
    st.integers(0, 5),
)


def odd_ones_out(record: Record) -> list[str]:
    """Kinds of writing that exactly one option has, or exactly one lacks."""
    traits = {"case": [o[:1].islower() for o in record.options], "period": [o.endswith(".") for o in record.options]}
    return [name for name, has in traits.items() if sum(has) in (1, len(has) - 1)]


@given(
    st.lists(CHOICES, min_size=1, max_size=30), st.integers(0, 99), st.sampled_from(["uniform", "frequency"]), st.data()
)
def test_laws(drawn: list, seed: int, weights: str, data: st.DataObject) -> None:
    records = [
        make(i, "|".join(options), LETTERS[place % len(options)], question, modality=modality, images=(f"{image}.png",))
        for i, (options, place, question, modality, image) in enumerate(drawn)
    ]
    result = debias(records, weights=weights, seed=seed)
    before = {record.id: record for record in records}
    assert len(result.records) == len(records) - result.report.balanced_away
    assert [r.id for r in result.records] == [r.id for r in records if r in [before[n.id] for n in result.records]]
    for record in result.records:
        old = before[record.id]
        assert option_key(gold(record)) == option_key(gold(old))
        assert len(record.options) == len(old.options)
        assert len({option_key(option) for option in record.options}) == len(record.options)
        assert record.problem == with_options(old.question, record.options)
        assert not odd_ones_out(record)
        assert style_cue(record.options) is None
    for size in range(2, 6):
        letters = [record.answer for record in result.records if len(record.options) == size]
        counts = [letters.count(letter) for letter in LETTERS[:size]]
        assert max(counts) - min(counts) <= 1

    again = debias(data.draw(st.permutations(records)), weights=weights, seed=seed)
    assert {record.id: record for record in again.records} == {record.id: record for record in result.records}
    assert again.report == result.report


def test_many_records_with_different_answers_are_redrawn() -> None:
    records = [make(i, f"answer {i}|b|c|d", "A") for i in range(2_000)]
    assert debias(records, seed=0).report.redrawn == 2_000


# The real files


def option_prior(train: list[Record], test: list[Record]) -> float:
    return OptionPrior(train).share(test).percent


def both(train: list[Record], test: list[Record], **settings) -> float:
    return option_prior(debias(train, **settings, seed=0).records, debias(test, **settings, seed=1).records)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "original", "uniform", "frequency", "everything", "with_drop"),
    [
        ("CT", 99.0, 73, 57, 43, 32),
        ("OCT", 100.0, 43, 39, 36, 29),
        ("X-Ray", 94.6, 64, 56, 55, 40),
        ("MR", 99.3, 66, 38, 38, 30),
    ],
)
def test_the_option_prior_after_debiasing(
    name: str, original: float, uniform: float, frequency: float, everything: float, with_drop: float
) -> None:
    folder = SHARED / "med_r1" / "modality"
    if not folder.is_dir():
        pytest.skip("the Med-R1 files are not here")
    test = read_records(next((folder / "test").glob(f"{name}*")))
    if name == "MR":  # no training file: one half of the test file for the other
        train, test = split(test, {"a": 0.5, "b": 0.5}, seed=0).values()
    else:
        train = read_records(next((folder / "train").glob(f"{name}*")))
    assert round(option_prior(train, test), 1) == original
    redraw = OFF | {"redraw": True}
    assert both(train, test, **redraw, weights="uniform") < uniform
    assert both(train, test, **redraw) < frequency
    assert both(train, test) < everything
    assert both(train, test, drop_small_pool=True) < with_drop
    assert all(style_cue(record.options) is None for record in debias(test, seed=0).records)
