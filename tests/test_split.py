"""Subsets, groups of records that share an image or a patient, and splits of whole groups."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from data_modules.formats import read_records
from data_modules.split import group_records, sample, sample_splits, split, value_of
from medgrpo.types import Record, SettingsError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def make(index: int, *images: str, modality: str = "ct", answer: str = "A", **metadata: str) -> Record:
    options = ("Cyst.", "mass")
    return Record(f"r-{index}", "Q", "Q", options, answer, images, modality, dataset="d", metadata=metadata)


def make_many(num: int, modality: str = "ct", start: int = 0) -> list[Record]:
    return [make(start + i, f"{modality}/{start + i}.png", modality=modality, answer="AB"[i % 2]) for i in range(num)]


def ids(records: list[Record]) -> set[str]:
    return {record.id for record in records}


# Groups


def test_records_with_a_path_or_a_file_name_in_common_are_together_through_others() -> None:
    records = [make(0, "a/1.png"), make(1, "b/2.png"), make(2, "c/1.png", "b/2.png"), make(3, "c/3.png"), make(4)]
    assert group_records(records) == [0, 0, 0, 1, 2]
    assert group_records(records, names=False) == [0, 1, 1, 2, 3]


def test_same_content_is_together_and_a_missing_hash_joins_nothing() -> None:
    records = [make(i, f"{i}.png") for i in range(4)]
    assert group_records(records, hashes={"0.png": "x", "3.png": "x", "1.png": "y"}) == [0, 1, 2, 0]


def test_near_duplicates_are_together() -> None:
    records = [make(i, f"{i}.png") for i in range(5)]
    assert group_records(records, near=[("0.png", "2.png"), ("4.png", "2.png"), ("1.png", "9.png")]) == [0, 1, 0, 2, 0]


def test_patients_are_together_by_field_and_by_pattern() -> None:
    records = [make(0, "p1/a.png", patient="x"), make(1, "p2/b.png", patient="x"), make(2, "p1/c.png"), make(3)]
    assert group_records(records, group_field="patient") == [0, 0, 1, 2]
    assert group_records(records, group_pattern=r"^p(\d+)/") == [0, 1, 0, 2]
    assert group_records(records, group_field="dataset") == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"group_field": "patient"}, r"group_field: no record says anything under 'patient'.*volume"),
        ({"group_pattern": "p(("}, "group_pattern: expected a regular expression"),
        ({"group_pattern": r"p\d"}, r"group_pattern: expected a group"),
        ({"group_pattern": r"q(\d)"}, r"matches none of the image paths, e.g. 'p1/a.png'"),
    ],
)
def test_bad_group_settings_say_what_to_change(setting: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        group_records([make(0, "p1/a.png", volume="v")], **setting)


# Samples


def test_sample_keeps_the_order_and_does_not_depend_on_it() -> None:
    records = make_many(50)
    chosen = sample(records, 20, seed=1)
    assert len(ids(chosen)) == 20
    assert chosen == [record for record in records if record in chosen]
    assert ids(sample(records[::-1], 20, seed=1)) == ids(chosen)
    assert ids(sample(records, 20, seed=2)) != ids(chosen)


def test_every_record_is_drawn_equally_often() -> None:
    records = make_many(10)
    drawn = Counter(record.id for seed in range(1000) for record in sample(records, 3, seed))
    assert all(abs(drawn[record.id] - 300) < 60 for record in records)  # 4 standard deviations


@pytest.mark.parametrize(
    ("available", "num", "expected"),
    [((9, 9, 9), 7, {2: 2, 3: 1}), ((1, 9, 9), 9, {1: 1, 4: 2}), ((1, 2, 9), 11, {1: 1, 2: 1, 8: 1})],
)
def test_balanced_sample_is_as_equal_as_possible(available: tuple, num: int, expected: dict) -> None:
    numbered = [name for name, count in zip("xyz", available, strict=True) for _ in range(count)]
    records = [make(i, kind=kind) for i, kind in enumerate(numbered)]
    counts = Counter(record.metadata["kind"] for record in sample(records, num, 0, balance="kind"))
    assert Counter(counts.values()) == expected


def test_values_are_read_from_fields_answers_and_metadata() -> None:
    record = make(0, "a.png", patient="7")
    names = ("answer", "letter", "modality", "answer_type", "patient", "volume")
    assert [value_of(record, name) for name in names] == ["cyst", "A", "ct", "choice", "7", ""]
    assert value_of(Record("i", "Q", "Q", (), "Left."), "answer") == "left"


def test_train_and_test_are_drawn_per_value_and_share_no_group() -> None:
    records = [make(i, f"{i // 3}.png", modality=("ct", "mri", "")[i % 3]) for i in range(300)]
    train, test = sample_splits(records, 40, 20, seed=0)
    for part, num in ((train, 40), (test, 20)):
        assert Counter(record.modality for record in part) == {"ct": num, "mri": num}
        assert part == [record for record in records if record in part]
    assert {r.images for r in train}.isdisjoint(r.images for r in test)
    again = sample_splits(random.Random(0).sample(records, 300), 40, 20, seed=0)
    assert [ids(part) for part in again] == [ids(train), ids(test)]


def test_a_file_may_be_used_up_whole() -> None:
    records = make_many(30) + make_many(30, "mri", 100)
    train, test = sample_splits(records, 20, 10, seed=3)
    assert ids(train) | ids(test) == ids(records)
    assert sample_splits(records, 0, 30, seed=3) == ([], records)


def test_samples_are_balanced_within_each_value() -> None:
    records = [make(i, f"{i}.png", answer="A" if i < 150 else "B") for i in range(200)]
    train, test = sample_splits(records, 20, 10, seed=0, by=None, balance="answer")
    assert Counter(r.answer for r in train) == {"A": 10, "B": 10}
    assert Counter(r.answer for r in test) == {"A": 5, "B": 5}


def test_too_few_records_are_counted_per_value() -> None:
    records = make_many(30) + make_many(4, "mri", 100)
    with pytest.raises(SettingsError, match=r"at least 10 \+ 5 records per modality, got ct 30, mri 4"):
        sample_splits(records, 10, 5, seed=0)
    with pytest.raises(SettingsError, match="expected 1 to 34"):
        sample(records, 35, seed=0)
    with pytest.raises(SettingsError, match="by: no record says anything under 'task'"):
        sample_splits(records, 1, 1, seed=0, by="task")
    with pytest.raises(SettingsError, match="0 or more, not both 0"):
        sample_splits(records, 0, 0, seed=0)
    one_large = [0] * 25 + list(range(1, 6))
    with pytest.raises(SettingsError, match="10 test records that share no group with the other set per draw, got all"):
        sample_splits(records[:30], 10, 10, seed=0, by=None, groups=one_large)


# Splits

SPLITS = st.tuples(
    st.lists(st.tuples(st.integers(0, 25), st.sampled_from(["ct", "mri", "xray"])), min_size=10, max_size=80),
    st.sampled_from([{"train": 0.8, "test": 0.2}, {"train": 0.5, "val": 0.2, "test": 0.3}]),
    st.integers(0, 99),
)


@given(SPLITS)
def test_a_split_is_a_fair_partition_of_whole_groups_in_any_order(drawn: tuple) -> None:
    pairs, shares, seed = drawn
    records = [make(i, f"{image}.png", modality=modality) for i, (image, modality) in enumerate(pairs)]
    try:
        parts = split(records, shares, seed)
    except SettingsError:  # few large groups: a set would be empty
        reject()
    assert sorted(record.id for part in parts.values() for record in part) == sorted(ids(records))
    where = Counter(image for part in parts.values() for image in {record.images for record in part})
    assert set(where.values()) == {1}
    largest = max(Counter(image for image, _ in pairs).values())
    assert all(abs(len(parts[name]) - share * len(records)) <= largest for name, share in shares.items())

    order = random.Random(seed).sample(records, len(records))
    assert {name: ids(part) for name, part in split(order, shares, seed).items()} == {
        name: ids(part) for name, part in parts.items()
    }


def test_each_stratum_gets_its_share() -> None:
    records = make_many(500) + make_many(100, "mri", 1000) + make_many(11, "oct", 2000)
    parts = split(records, {"train": 0.8, "test": 0.2}, seed=0, stratify=("modality", "letter"))
    counts = Counter((r.modality, r.answer) for r in parts["test"])
    assert all(
        abs(counts[cell] - num) <= 1 for cell, num in {("ct", "A"): 50, ("ct", "B"): 50, ("mri", "A"): 10}.items()
    )
    assert 1 <= counts["oct", "A"] + counts["oct", "B"] <= 3


def test_large_groups_are_not_all_in_one_set() -> None:
    records = [make(i, f"{i // 5 if i < 500 else i}.png") for i in range(1000)]
    sizes = Counter(record.images for record in records)
    parts = split(records, {"train": 0.5, "test": 0.5}, seed=0)
    assert [sum(sizes[r.images] == 5 for r in part) for part in parts.values()] == [250, 250]


def test_the_seed_changes_the_split() -> None:
    records = make_many(40)
    parts = [split(records, {"a": 0.5, "b": 0.5}, seed)["a"] for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize("shares", [{}, {"train": 0.8}, {"train": 1.2, "test": -0.2}, {"train": 8, "test": 2}])
def test_shares_must_be_positive_and_add_up(shares: dict) -> None:
    with pytest.raises(SettingsError, match="positive numbers that add up to 1"):
        split(make_many(10), shares, seed=0)


def test_a_split_that_leaves_a_set_empty_is_an_error() -> None:
    slake = [make(i, f"xmlab{i}/source.jpg") for i in range(20)]
    with pytest.raises(SettingsError, match="nothing is left for test. 20 records are in 1 groups, the largest of 20"):
        split(slake, {"train": 0.8, "test": 0.2}, seed=0)
    parts = split(slake, {"train": 0.8, "test": 0.2}, seed=0, groups=group_records(slake, names=False))
    assert len(parts["test"]) == 4


def test_many_records_are_split_by_the_shares() -> None:
    records = [make(i, f"{i // 2}.png", modality=("ct", "mri")[i % 2]) for i in range(10_000)]
    parts = split(records, {"train": 0.8, "test": 0.2}, seed=0)
    assert len(parts["test"]) == 2_000


@pytest.mark.shared_data
def test_the_published_x_ray_split_leaks_and_ours_does_not() -> None:
    folder = SHARED / "med_r1" / "modality"
    if not folder.is_dir():
        pytest.skip("the Med-R1 files are not here")
    published = {name: read_records(folder / name / f"X-Ray_{name}.json") for name in ("train", "test")}
    assert _leaks(published) == (526, 891)
    parts = split(published["train"] + published["test"], {"train": 0.8, "test": 0.2}, seed=0)
    assert _leaks(parts) == (0, 0)
    assert [len(parts[name]) for name in ("train", "test")] == [6333, 1583]


def _leaks(parts: dict[str, list[Record]]) -> tuple[int, int]:
    """Test records with a training image, by path and by file name."""
    paths = {path for record in parts["train"] for path in record.images}
    names = {PurePosixPath(path).name for path in paths}
    test = [record.images[0] for record in parts["test"]]
    return sum(path in paths for path in test), sum(PurePosixPath(path).name in names for path in test)
