"""Blind baselines: numbers worked by hand, laws, and the figures of the real splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.formats import read_records
from data_modules.options import option_key as key_of_readers
from medgrpo.blind import OptionPrior, Share, chance, majority_letter, option_key, style, style_cue
from medgrpo.types import LETTERS, Record

SHARED = Path(__file__).parents[2] / "shared" / "data" / "med_r1" / "modality"


def record(options: tuple[str, ...], answer: str) -> Record:
    return Record(id="", problem="", question="Q?", options=options, answer=answer)


OPEN = record((), "two lobes")
FIVE = [
    record(("cyst", "mass"), "A"),
    record(("Cyst.", "mass"), "A"),
    record(("mass", "bone", "cyst ", "air"), "C"),
    record(("mass", "air"), "A"),
    OPEN,
]


def test_chance_is_the_mean_of_one_over_the_number_of_options() -> None:
    assert chance(FIVE) == Share(1.75, 4)  # 1/2 + 1/2 + 1/4 + 1/2; the open question does not count
    assert chance(FIVE).percent == 43.75


def test_majority_letter_counts_the_most_frequent_gold_letter() -> None:
    assert majority_letter(FIVE) == Share(3, 4)  # A A C A


def test_without_options_there_is_nothing_to_tell() -> None:
    shares = [chance([OPEN]), majority_letter([OPEN]), OptionPrior(FIVE).share([OPEN]), style([OPEN]).accuracy]
    assert [share.percent for share in shares] == [None] * 4


def test_option_prior_counts_texts_without_case_and_final_period() -> None:
    prior = OptionPrior(FIVE)
    assert prior.right == {"cyst": 3, "mass": 1}
    assert prior.offered == {"cyst": 3, "mass": 4, "bone": 1, "air": 2}


@pytest.mark.parametrize(
    ("options", "picked"),
    [
        (("mass", "CYST."), 1),  # (1 + .25) / 5 against (3 + .25) / 4
        (("mass", "unseen"), 0),  # a tie at 1/4: the first
        (("unseen", "mass"), 0),
        (("bone", "unseen"), 1),  # .25 / 2 against .25 / 1
        (("air", "bone"), 1),  # .25 / 3 against .25 / 2
    ],
)
def test_option_prior_picks_by_hand_worked_scores(options: tuple[str, ...], picked: int) -> None:
    assert OptionPrior(FIVE).pick(options) == picked


def test_option_prior_scores_the_records_it_is_asked() -> None:
    # picks cyst, cyst, cyst, and of mass 1.25/5 and air .25/3 the mass: all four
    assert OptionPrior(FIVE).share(FIVE) == Share(4, 4)
    assert OptionPrior(FIVE).share([record(("cyst", "mass"), "B")]) == Share(0, 1)


@pytest.mark.parametrize(
    ("options", "odd"),
    [
        (("Cyst", "mass", "Bone"), 1),  # one starts in lower case
        (("cyst", "mass", "Bone"), None),  # two do; one in upper case is no rule
        (("Cyst", "Mass.", "Bone"), 1),  # one ends in a period
        (("Cyst.", "Mass.", "Bone"), 2),  # one lacks it
        (("Cyst.", "mass", "Bone"), 1),  # case goes before periods
        (("cyst.", "mass", "Bone"), 0),  # two in lower case, one with a period
        (("Cyst.", "Mass"), 0),  # with two options, the one with the period
        (("Cyst. ", " Mass"), 0),  # space around a text is no style
        (("3 cm", "4 cm"), None),
        ((), None),
    ],
)
def test_style_cue(options: tuple[str, ...], odd: int | None) -> None:
    assert style_cue(options) == odd


def test_style_counts_fires_and_hits() -> None:
    found = style([record(("Cyst", "mass"), "B"), record(("Cyst", "mass"), "A"), record(("Cyst", "Mass"), "A"), OPEN])
    assert (found.n, found.fires, found.right) == (3, 2, 1)
    assert found.fired == Share(2, 3)
    assert found.accuracy.percent == 50


WORDS = st.sampled_from(["cyst", "Cyst.", "mass", "Mass", "bone", "air.", "Air", "fluid"])


@st.composite
def records(draw: st.DrawFn) -> Record:
    options = tuple(draw(st.lists(WORDS, min_size=2, max_size=5)))
    return record(options, draw(st.sampled_from(LETTERS[: len(options)])))


MANY = st.lists(records(), max_size=12)


@given(MANY, MANY, st.randoms())
def test_the_order_of_records_changes_nothing(train: list[Record], test: list[Record], random) -> None:
    others = [random.sample(split, len(split)) for split in (train, test)]
    assert OptionPrior(train).share(test) == OptionPrior(others[0]).share(others[1])
    for baseline in (chance, majority_letter, style):
        assert baseline(test) == baseline(others[1])


@given(st.lists(records(), min_size=1, max_size=12), st.integers(2, 5))
def test_with_one_number_of_options_the_best_letter_is_no_worse_than_chance(train: list[Record], size: int) -> None:
    same = [record(("x",) * size, LETTERS[LETTERS.index(r.answer) % size]) for r in train]
    assert majority_letter(same).right >= chance(same).right - 1e-9


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 5), min_size=1, max_size=4)), min_size=1))
def test_the_lookup_is_never_wrong_where_right_texts_are_never_distractors(rows: list) -> None:
    """A right text scores (p + 1/4) / (p + 1) >= 5/8, a distractor 1/4 / (t + 1) <= 1/8."""
    made = []
    for place, (right, wrong) in enumerate(rows):
        options = [f"wrong {number}" for number in wrong]
        options.insert(place % (len(options) + 1), f"right {right}")
        made.append(record(tuple(options), LETTERS[options.index(f"right {right}")]))
    assert OptionPrior(made).share(made) == Share(len(made), len(made))


@given(MANY, records())
def test_the_lookup_sees_neither_case_nor_period(train: list[Record], asked: Record) -> None:
    plain = [replace(r, options=tuple(option_key(o) for o in r.options)) for r in train]
    assert OptionPrior(train).pick(asked.options) == OptionPrior(plain).pick(tuple(o.upper() for o in asked.options))


@given(records())
def test_there_is_no_cue_in_texts_of_one_style(asked: Record) -> None:
    assert style_cue(tuple(option_key(option) for option in asked.options)) is None


@given(st.text(max_size=12))
def test_keys_are_those_of_the_readers(text: str) -> None:
    assert option_key(text) == key_of_readers(text)


def splits(name: str) -> tuple[list[Record], list[Record]]:
    found = [read_records(path) for split in ("train", "test") for path in SHARED.glob(f"{split}/{name}*.json")]
    if len(found) != 2:
        pytest.skip(f"no {name} splits in {SHARED}")
    return found[0], found[1]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "prior", "letter", "by_chance"),
    [("CT", 99.04, 32.2, 31.43), ("OCT", 100.0, 26.8, 25.94), ("X-Ray", 94.55, 26.7, 25.73)],
)
def test_figures_of_the_real_splits(name: str, prior: float, letter: float, by_chance: float) -> None:
    train, test = splits(name)
    assert OptionPrior(train).share(test).percent == pytest.approx(prior, abs=0.005)
    assert majority_letter(test).percent == pytest.approx(letter, abs=0.05)
    assert chance(test).percent == pytest.approx(by_chance, abs=0.005)


@pytest.mark.shared_data
def test_style_of_the_real_splits() -> None:
    train, test = splits("CT")
    found = style(train + test)
    assert (found.fires, found.right) == (4176, 632)
    mri = [read_records(path) for path in SHARED.glob("test/MR*.json")]
    if not mri:
        pytest.skip(f"no MRI split in {SHARED}")
    found = style(mri[0])
    assert (found.fires, found.right) == (510, 483)
