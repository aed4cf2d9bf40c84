"""Pass counts from disk, what they keep, and the orders of an epoch: by difficulty, by kind of answer, by file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.curriculum import (
    Curriculum,
    PassCount,
    closed_to_open,
    easy_to_hard,
    keep_by_passes,
    mix,
    mixed,
    question_hash,
    read_pass_counts,
)
from medgrpo.types import DataError, Record, SettingsError


def record(name, *, options=("a", "b"), closed=False):
    return Record(name, "p", "q", options, "A" if options else "yes", closed=closed)


def line(name, passes, samples=8):
    return json.dumps({"id": name, "pass_count": passes, "num_samples": samples, "unparsed": 0, "truncated": 0}) + "\n"


RECORDS = [record(name) for name in "abcd"]
COUNTS = {"a": PassCount(0, 8), "b": PassCount(3, 8), "c": PassCount(8, 8), "d": PassCount(7, 8)}


def test_counts_of_all_ranks_are_read_together(tmp_path):
    (tmp_path / "n[1].jsonl").write_text(line("a", 0) + line("b", 2, 4))
    (tmp_path / "n[1]-rank1.jsonl").write_text(line("c", 8))
    (tmp_path / "n[1]-rankings.jsonl").write_text("not ours\n")
    counts = read_pass_counts(tmp_path / "n[1].jsonl")
    assert counts == {"a": PassCount(0, 8), "b": PassCount(2, 4), "c": PassCount(8, 8)}
    assert [count.share for count in counts.values()] == [0.0, 0.5, 1.0]


def test_a_torn_last_line_does_not_count(tmp_path):
    path = tmp_path / "n.jsonl"
    last = b'{"id": "\xc3\xa4", "pass_count": 2, "num_samples": 8}\n'
    for cut in range(1, len(last) + 1):
        path.write_bytes(line("a", 1).encode() + last[:-cut])
        assert list(read_pass_counts(path)) == ["a"]


def test_a_file_with_nothing_in_it_has_no_counts(tmp_path):
    (tmp_path / "n.jsonl").touch()
    assert read_pass_counts(tmp_path / "n.jsonl") == {}


@pytest.mark.parametrize(
    "bad",
    [
        b"\n",
        b"[1]\n",
        b"{\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        line("b", -1).encode(),
        line("b", 9).encode(),
        line("b", 0, 0).encode(),
        line(7, 1).encode(),
        b'{"id": "b", "pass_count": true, "num_samples": 8}\n',
        b'{"id": "b", "pass_count": 1.0, "num_samples": 8}\n',
        b'{"id": "b", "num_samples": 8}\n',
        b'{"id": "b", "pass_count": 1, "num_samples": 8, "question": 7}\n',
    ],
)
def test_a_malformed_line_is_named(tmp_path, bad):
    path = tmp_path / "n.jsonl"
    path.write_bytes(line("a", 1).encode() + bad + line("c", 1).encode())
    with pytest.raises(DataError, match=r"n\.jsonl, line 2: expected"):
        read_pass_counts(path)


def test_an_id_with_two_counts_is_named(tmp_path):
    (tmp_path / "n.jsonl").write_text(line("a", 1))
    (tmp_path / "n-rank1.jsonl").write_text(line("b", 1) + line("a", 1))
    with pytest.raises(DataError, match=r"n-rank1\.jsonl, line 2: record 'a' has .* in .*n\.jsonl, line 1"):
        read_pass_counts(tmp_path / "n.jsonl")


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(DataError, match="medgrpo data difficulty --out"):
        read_pass_counts(tmp_path / "n.jsonl")


@pytest.mark.parametrize(("lowest", "highest", "kept"), [(1, 7, "bd"), (0, 0, "a"), (8, 8, "c"), (0, 8, "abcd")])
def test_records_are_kept_by_how_often_they_were_right(lowest, highest, kept):
    assert [r.id for r in keep_by_passes(RECORDS, COUNTS, lowest, highest)] == list(kept)


def test_a_range_with_nothing_in_it_says_what_there_is():
    with pytest.raises(DataError, match=r"none of 4 .* 1 to 2 times \(records 0 of 8 right: 1, 3 of 8 .*widen"):
        keep_by_passes(RECORDS, COUNTS, 1, 2)


@pytest.mark.parametrize(("lowest", "highest"), [(-1, 7), (5, 3), (1, 9)])
def test_a_range_that_makes_no_sense_is_refused(lowest, highest):
    with pytest.raises(SettingsError, match=f"pass_count: .*<= 8, .* got {lowest} to {highest}"):
        keep_by_passes(RECORDS, COUNTS, lowest, highest)


def test_records_without_a_count_are_an_error_that_says_what_to_run():
    some = {"a": COUNTS["a"]}
    for function in (lambda: keep_by_passes(RECORDS, some, 0, 8), lambda: easy_to_hard(RECORDS, some)):
        with pytest.raises(DataError, match="3 of 4 records have no pass count, e.g. 'b'.*medgrpo data difficulty"):
            function()


def test_a_question_that_has_changed_since_is_an_error():
    asked = replace(record("a"), images=("x/1.png",))
    counts = COUNTS | {"a": PassCount(1, 8, question_hash(asked)), "b": PassCount(1, 8, question_hash(RECORDS[1]))}
    assert keep_by_passes([replace(asked, images=("y/1.png",)), *RECORDS[1:]], counts, 1, 1)
    volume = replace(asked, images=("x/1.dcm",))
    frames = replace(asked, images=("x/1.dcm[2]", "x/1.dcm[5]"))
    assert question_hash(volume) == question_hash(frames) != question_hash(asked)
    assert question_hash(volume) == question_hash(replace(asked, images=("x/1.dcm[coronal:2]",)))
    others = ({"images": ("x/2.png",)}, {"question": "r"}, {"options": ("b", "a")}, {"answer": "B"})
    for records in [[replace(asked, **other)] for other in others]:
        with pytest.raises(DataError, match="1 of 1 records are not the questions that were counted .* 'a'"):
            keep_by_passes(records, counts, 0, 8)
        with pytest.raises(DataError, match="not the questions"):
            easy_to_hard(records, counts)


def ids(records, curriculum, drawn):
    return "".join(records[i].id for i in curriculum.arrange(np.array(drawn)))


def test_easy_to_hard_goes_by_falling_share():
    counts = COUNTS | {"e": PassCount(1, 2)}  # shares: c 1, d 7/8, e 1/2, b 3/8, a 0
    records = [*RECORDS, record("e")]
    assert ids(records, easy_to_hard(records, counts), [0, 1, 2, 3, 4]) == "cdeba"


def test_closed_to_open_goes_by_kind_of_answer():
    records = [record("o", options=()), record("c", options=(), closed=True), record("m"), record("n")]
    assert ids(records, closed_to_open(records), [0, 1, 2, 3]) == "mnco"
    assert ids(records, closed_to_open(records), [3, 0, 1, 2]) == "nmco"


def test_mixed_interleaves_by_hand():
    # Group 0 holds 0, 1, 2, 3 at 1/8, 3/8, 5/8, 7/8; group 1 holds 4, 5 at 1/4, 3/4.
    assert mixed([0, 0, 0, 0, 1, 1]).arrange(np.arange(6)).tolist() == [0, 4, 1, 2, 5, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.booleans(), st.integers(0, 9), st.integers(0, 59))
def test_an_order_is_a_permutation_that_keeps_ties_as_drawn(keys, interleave, seed, cut):
    drawn = np.random.default_rng(seed).permutation(len(keys))[: max(1, len(keys) - cut)]
    arranged = Curriculum(tuple(map(float, keys)), interleave).arrange(drawn)
    assert sorted(arranged) == sorted(drawn)
    for key in set(keys):
        assert [i for i in arranged if keys[i] == key] == [i for i in drawn if keys[i] == key]
    if not interleave:
        assert [keys[i] for i in arranged] == sorted(keys[i] for i in drawn)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 9))
def test_every_beginning_of_a_mixed_epoch_holds_the_ratio(sizes, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    drawn = np.random.default_rng(seed).permutation(len(groups))
    arranged = groups[mixed(groups.tolist()).arrange(drawn)]
    for group, size in enumerate(sizes):
        share = size / len(groups)
        held = np.cumsum(arranged == group)
        expected = np.arange(1, len(groups) + 1) * share
        assert np.abs(held - expected).max() <= 0.5 + 0.5 * len(sizes) * share + 1e-9


def test_the_seeds_mix_in_batches_of_109():
    files = [[record(f"{name}{i}") for i in range(n)] for name, n in (("u", 1000), ("x", 500))]
    drawn = mix(files, [600, 490], seed=42)
    groups = [i for i, part in enumerate(drawn) for _ in part]
    order = mixed(groups).arrange(np.random.default_rng(0).permutation(1090))
    batches = np.array(groups)[order].reshape(10, 109)
    assert [len(part) for part in drawn] == [600, 490]
    assert np.abs(batches.sum(1) - 49).max() <= 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_a_mix_draws_each_file_by_itself(few, many, seed):
    few, many = sorted((few, many))
    files = [[record(f"{name}{i}") for i in range(12)] for name in "xy"]
    one, other = mix(files, [few, 7], seed), mix(files, [many, 3], seed)
    assert set(one[0]) <= set(other[0])
    assert set(other[1]) <= set(one[1])
    assert [len(set(part)) for part in one] == [few, 7]
    assert one == mix(files, [few, 7], seed)
    assert all(part == [r for r in file if r in part] for part, file in zip(one, files, strict=True))


def test_mixes_of_other_seeds_and_of_like_files_differ():
    files = [[record(f"{name}{i:02}") for i in range(40)] for name in "xy"]
    first, second = mix(files, [20, 20], 1)
    assert [first, second] != mix(files, [20, 20], 2)
    assert [r.id[1:] for r in first] != [r.id[1:] for r in second]


@pytest.mark.parametrize("counts", [[3], [3, 3, 1], [0, 3], [5, 3]])
def test_a_mix_that_the_files_do_not_hold_is_refused(counts):
    files = [[record(f"{name}{i}") for i in range(4)] for name in "xy"]
    with pytest.raises(SettingsError, match=r"mix: expected 2 counts.* \[4, 4\]; got"):
        mix(files, counts, 0)


def test_a_fingerprint_tells_curricula_apart():
    curricula = [Curriculum((0.0, 1.0)), Curriculum((1.0, 0.0)), Curriculum((0.0, 1.0), True), Curriculum((0.0,))]
    assert len({curriculum.fingerprint() for curriculum in curricula} | {0}) == 5
    assert Curriculum((0.0, 1.0)).fingerprint() == Curriculum((0.0, 1.0)).fingerprint()
