"""Audits: every number on cases worked by hand, laws, limits, the rendering, and the figures of the real splits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.audit import Audit, audit
from data_modules.audit_limits import check_limits
from data_modules.audit_text import findings, render, render_beside
from data_modules.formats import Reading, scan
from data_modules.image_hashes import ImageHash
from data_modules.leaks import MAX_PAIRS, name_key, path_key
from data_modules.repeats import MAX_EXAMPLES
from medgrpo.blind import Share
from medgrpo.types import LETTERS, Record, SettingsError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "med_r1"

File = tuple[str, Reading]


def record(
    id: str, *images: str, question: str = "What is it?", options=("cyst", "mass"), answer="A", **more
) -> Record:
    """The problem holds the options, as in published files."""
    problem = " ".join([question, *options])
    return Record(id, problem, question, tuple(options), answer, images, **more)


def file(name: str, *records: Record, malformed=(), unused=()) -> File:
    return name, Reading(list(records), list(malformed), list(unused))


TRAIN = [
    file(
        "a.json",
        record("a-0", "ct/1.png", modality="ct", task="Lesion Grading", dataset="X"),
        record("a-1", "ct/2.png", modality="ct", task="Lesion Grading", dataset="X", answer="B"),
        record("a-2", "mri/3.png", modality="mri", options=("Cyst.", "bone", "air", "fat")),
        record("a-3", options=(), answer="two lobes"),
        malformed=[(4, "field 'answer': expected a letter"), (6, "field 'answer': expected a letter")],
        unused=[(5, "answer is not published")],
    ),
]
TEST = [
    file(
        "b.json",
        record("b-0", "ct/1.png", modality="ct", question="Where?"),  # same path as a-0
        record("b-1", "./ct//2.png", modality="ct", question="Where?"),  # same path as a-1 in another spelling
        record("b-2", "other/1.png", modality="mri", options=("cyst", "bone", "fat"), answer="C"),  # same name as a-0
        record("b-3", "new.png", "ct/1.png", options=("Bone", "bone.", "Cyst"), answer="C"),
        record("b-4", "new.png", options=(), answer="yes", closed=True),
    ),
]
HASHES = {
    "ct/1.png": ImageHash("1", 0b1111),
    "ct/2.png": ImageHash("2", 0xFFFF << 48),
    "./ct//2.png": ImageHash("2", 0xFFFF << 48),
    "mri/3.png": ImageHash("3", None, "mri/3.png: broken"),
    "other/1.png": ImageHash("4", 0b0001),  # 3 bits from ct/1.png
    "new.png": ImageHash("", None, "new.png: no such file"),
}


def test_counts_by_split_and_file() -> None:
    found = audit(TRAIN, TEST).to_json()
    assert found["records"] == {"train": 4, "test": 5}
    assert found["counts"]["train"] == {
        "modality": {"ct": 2, "mri": 1, "unknown": 1},
        "task": {"Lesion Grading": 2, "unknown": 2},
        "dataset": {"X": 2, "unknown": 2},
        "options": {"0": 1, "2": 2, "4": 1},
        "letter": {"A": 2, "B": 1},
        "answer_type": {"choice": 3, "open": 1},
    }
    assert found["counts"]["test"]["answer_type"] == {"choice": 4, "closed": 1}
    assert found["files"] == [
        {"split": "train", "name": "a.json", "records": 4, "malformed": 2, "unused": 1, "images": 3},
        {"split": "test", "name": "b.json", "records": 5, "malformed": 0, "unused": 0, "images": 4},
    ]


def test_numbers_of_options_are_sorted_as_numbers() -> None:
    many = record("x", options=tuple(LETTERS), answer="J")
    assert list(audit([file("a", many, record("y"))], []).counts["train"]["options"]) == ["2", "10"]


def test_rows_without_a_record_are_counted_and_named() -> None:
    found = audit(TRAIN, TEST).to_json()
    reason = "field 'answer': expected a letter"
    assert found["malformed"] | {"examples": ()} == {"train": 2, "test": 0, "reasons": {reason: 2}, "examples": ()}
    assert found["malformed"]["examples"][1] == {"split": "train", "file": "a.json", "record": 6, "reason": reason}
    assert found["unused"]["reasons"] == {"answer is not published": 1}
    many = audit([file("a", malformed=[(i, "bad") for i in range(50)]), file("b", malformed=[(0, "bad")])], [])
    assert (many.malformed.train, len(many.malformed.examples)) == (51, MAX_EXAMPLES)


def test_leaks_by_path_name_content_and_look() -> None:
    found = audit(TRAIN, TEST, hashes=HASHES).to_json()
    assert found["leak"] == {"path": 3, "name": 4, "hash": 3, "near": 4}  # b-0 b-1 b-3, and b-2 by name and look
    assert found["leak_images"] == {"path": 2, "name": 3, "hash": 2, "near": 3}
    assert found["leak_percent"] == {"path": 60.0, "name": 80.0, "hash": 60.0, "near": 80.0}
    assert found["groups"]["modality"]["mri"]["leak"] == {"path": 0, "name": 1, "hash": 0, "near": 1}
    assert audit(TRAIN, TEST, hashes=HASHES, near_distance=2).to_json()["leak"]["near"] == 3


def test_without_hashes_only_names_are_compared() -> None:
    found = audit(TRAIN, TEST).to_json()
    assert found["leak"] == {"path": 3, "name": 4, "hash": None, "near": None}
    assert found["images"]["train"]["missing"] is None


def test_equal_content_is_near_even_without_a_perceptual_hash() -> None:
    blank = {"a.png": ImageHash("s", None), "b.png": ImageHash("s", None), "c.png": ImageHash("t", None)}
    splits = [file("a", record("0", "a.png"))], [file("b", record("1", "b.png"), record("2", "c.png"))]
    assert audit(*splits, hashes=blank).to_json()["leak"] == {"path": 0, "name": 0, "hash": 1, "near": 1}


def test_images_that_cannot_be_read_match_nothing() -> None:
    gone = {name: ImageHash("", None, "no such file") for name in ("x/a.png", "b.png")}
    splits = [file("a", record("0", "x/a.png"))], [file("b", record("1", "b.png"))]
    assert audit(*splits, hashes=gone).to_json()["leak"] == {"path": 0, "name": 0, "hash": 0, "near": 0}


@pytest.mark.parametrize(
    ("image", "path", "name"),
    [
        ("./a//b c.png", "a/b c.png", "b c.png"),
        ("a\\b.png", "a/b.png", "b.png"),
        ("a/52%0#1..JPG", "a/52%0#1..JPG", "52%0#1..JPG"),
        ("v/scan.nii.gz[coronal:40]", "v/scan.nii.gz", "scan.nii.gz"),
        ("v/scan.dcm[3]", "v/scan.dcm", "scan.dcm"),
        ("v/odd[x].png", "v/odd[x].png", "odd[x].png"),
    ],
)
def test_keys_that_images_are_compared_by(image: str, path: str, name: str) -> None:
    assert (path_key(image), name_key(image)) == (path, name)


def test_pairs_name_the_strongest_reason_and_all_others() -> None:
    pairs = audit(TRAIN, TEST, hashes=HASHES).pairs
    assert [(p.kind, p.test.id, p.train.id, p.same_path, p.same_name, p.same_hash, p.distance) for p in pairs] == [
        ("path", "b-0", "a-0", True, True, True, 0),
        ("path", "b-1", "a-1", True, True, True, 0),
        ("near", "b-2", "a-0", False, True, False, 3),
    ]  # b-3 shows the image of b-0 again
    assert [(p.kind, p.distance) for p in audit(TRAIN, TEST).pairs] == [("path", None)] * 2 + [("name", None)]
    assert not any(p.same_hash for p in audit(TRAIN, TEST).pairs)  # not known


def test_pairs_are_bounded_by_kind_and_modality() -> None:
    records = [record(str(i), f"{i}.png", modality="ct" if i % 4 else "mri") for i in range(400)]
    pairs = audit([file("a", *records)], [file("b", *records)]).pairs
    assert len(pairs) == 2 * MAX_PAIRS


def test_duplicates() -> None:
    one, two = record("a", "1.png", "2.png"), record("c", "3.png")
    again = replace(one, id="b", images=("2.png", "1.png"))  # the order of images does not matter
    other = replace(one, id="d", answer="B")
    found = audit([file("x", one, again, two), file("y", one)], [file("z", again, again, other, other)]).duplicates
    # x holds one twice, z again and other twice; training has three of one, the test split two, and other is new
    assert (found.within_files, found.train, found.test, found.between) == (3, 2, 2, 2)
    assert [(e.file, e.record, e.reason) for e in found.examples] == [
        ("x", "b", "is also 'a' of x"),
        ("z", "d", "is also 'd' of z"),
    ]
    assert audit([], [file("z", one)]).duplicates.between is None


def test_copies_under_other_folders_and_in_other_layouts() -> None:
    published = record("a", "Images/CT/abd (1).png", options=("Cyst.", "mass"), answer="A")
    again = replace(published, id="b", problem="What is it?\nA) cyst\nB) mass", images=("images/abd (1).png",))
    shuffled = replace(again, id="c", question="What  is it?", options=("Mass", "Cyst"), answer="B")
    others = [
        replace(again, id="d", answer="B"),
        replace(again, id="e", question="Where is it?"),
        replace(again, id="f", options=("cyst", "bone")),
        replace(again, id="g", images=("images/abd (2).png",)),
    ]
    found = audit([file("x", published)], [file("y", again, shuffled, *others), file("z", published)])
    assert (found.duplicates.between, found.duplicates.between_by_name) == (1, 3)
    views = {view.files: (view.records, view.records_by_name) for view in found.views}
    assert views == {("x", "y"): (0, 1), ("x", "z"): (1, 1), ("y", "z"): (0, 1)}
    assert "! 2 of 7 test records (28.6 %) are also in training under another folder" in render(found, width=200)
    assert audit([], [file("z", published)]).duplicates.between_by_name is None


def test_options_offered_twice() -> None:
    found = audit(TRAIN, TEST).duplicates
    assert found.options == 1  # Bone, bone.
    assert found.examples[-1].record == "b-3"


def test_contradictions() -> None:
    base = record("0", "1.png", options=("cyst", "mass"), answer="A")
    shuffled = replace(base, id="1", options=("Mass", "Cyst."), answer="B")  # also cyst: none
    worded = replace(base, id="2", options=("a cyst", "bone"), answer="A")  # other words
    wrong = replace(base, id="3", question="what  is it?", answer="B")
    assert audit([file("x", base, shuffled)], []).contradictions.groups == 0
    found = audit([file("x", base, shuffled, worded)], []).contradictions
    assert (found.groups, found.records, found.certain) == (1, 3, 0)
    found = audit([file("x", base)], [file("y", wrong)]).contradictions
    assert (found.groups, found.records, found.certain) == (1, 2, 1)
    assert (found.examples[0].split, found.examples[0].file, found.examples[0].record) == ("test", "y", "3")
    assert "'mass', and 'cyst' in '0' of x" in found.examples[0].reason
    unlisted = [replace(base, id=gold, options=(), answer=gold) for gold in ("yes", "No.", "a cyst")]
    found = audit([file("x", *unlisted[:2])], []).contradictions
    assert (found.groups, found.certain) == (1, 1)
    found = audit([file("x", *unlisted[1:])], []).contradictions
    assert (found.groups, found.certain) == (1, 0)  # nothing tells other words for the same from another answer


def test_text_questions_contradict_only_with_the_same_options() -> None:
    which = "Which of these is true?"
    first = record("0", question=which, options=("p", "q"))
    assert audit([file("x", first, record("1", question=which, options=("r", "q")))], []).contradictions.groups == 0
    assert audit([file("x", first, record("1", question=which, options=("q", "p")))], []).contradictions.groups == 1


def test_images_are_counted_and_named_when_they_cannot_be_read() -> None:
    found = audit(TRAIN, TEST, hashes=HASHES).to_json()["images"]
    assert found["train"] == {"images": 3, "without": 1, "missing": 0, "unreadable": 1, "contents": 3}
    assert found["test"] == {"images": 4, "without": 0, "missing": 1, "unreadable": 0, "contents": 3}
    assert [(e["file"], e["record"]) for e in found["examples"]] == [("a.json", "mri/3.png"), ("b.json", "new.png")]
    assert found["most_used_name"] == {"name": "1.png", "paths": 2}


def test_blind_baselines_are_those_of_the_test_split() -> None:
    found = audit(TRAIN, TEST, text_only=Share(3, 4)).to_json()["blind"]
    # b-0 and b-1 of 2 options, b-2 and b-3 of 3: (1/2 + 1/2 + 1/3 + 1/3) / 4; letters A A C C
    # lookup (right/offered: cyst 2/3, mass 1/2, bone 0/1, air 0/1, fat 0/1): cyst, cyst, cyst (wrong), cyst
    # style: of b-3 alone, where "bone." starts in lower case: wrong
    assert found == {
        "asked": "test",
        "records": 4,
        "chance": 41.67,
        "majority_letter": 50.0,
        "option_prior": 75.0,
        "text_only": 75.0,
        "style_cue": {"fires": 1, "right": 0, "fires_percent": 25.0, "right_percent": 0.0},
    }


def test_blind_baselines_by_group() -> None:
    groups = audit(TRAIN, TEST).to_json()["groups"]
    assert {by: list(names) for by, names in groups.items()} == {
        "modality": ["ct", "mri", "unknown"],
        "task": ["Lesion Grading", "unknown"],
        "options": ["0", "2", "3", "4"],
    }
    three = groups["options"]["3"]
    assert three["records"] == {"train": 0, "test": 2}
    assert (three["blind"]["chance"], three["blind"]["option_prior"]) == (33.33, 50.0)
    assert groups["options"]["0"]["blind"]["chance"] is None


def test_views_of_the_same_data() -> None:
    first, second, third = (record(str(i), f"{i}.png") for i in range(3))
    views = audit([file("x", first, second, second), file("y", second, third)], [file("z", third)]).to_json()["views"]
    assert [(v["files"], v["splits"], v["records"], v["images"]) for v in views] == [
        (("x", "y"), ("train", "train"), 1, 1),
        (("x", "z"), ("train", "test"), 0, 0),
        (("y", "z"), ("train", "test"), 1, 1),
    ]


def test_one_split_alone() -> None:
    none = {"path": None, "name": None, "hash": None, "near": None}
    for train, test, asked in ((TRAIN, [], "train"), ([], TEST, "test")):
        found = audit(train, test, hashes=HASHES)
        values = found.to_json()
        assert (values["leak"], values["leak_percent"], values["duplicates"]["between"]) == (none, none, None)
        assert (values["blind"]["asked"], values["blind"]["option_prior"]) == (asked, None)
        assert values["blind"]["chance"] is not None
        assert render(found)
    assert audit([], []).to_json()["blind"]["chance"] is None
    assert audit(TRAIN, [file("empty")]).to_json()["leak"] == none


def test_json_is_json() -> None:
    values = audit(TRAIN, TEST, hashes=HASHES).to_json()
    assert json.loads(json.dumps(values))["blind"]["style_cue"]["fires"] == 1


def test_limits() -> None:
    values = audit(TRAIN, TEST).to_json()
    limits = {"leak.path": 3, "leak_percent.path": 59.9, "blind.option_prior": 50, "groups.modality.ct.leak.name": 1}
    assert check_limits(values, limits) == [
        "leak_percent.path is 60, above the limit of 59.9",
        "blind.option_prior is 75, above the limit of 50",
        "groups.modality.ct.leak.name is 2, above the limit of 1",
    ]
    assert check_limits(values, {"leak.path": float("nan")})


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("leak.hash", "leak.hash was not measured"),
        ("leak.paths", "leak.paths is no figure"),
        ("leak", "leak is no figure"),
        ("blind.asked", "blind.asked is no figure"),
    ],
)
def test_limits_that_cannot_be_checked_are_errors(key: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"{reason}(.|\n)*leak.path, leak.name, (.|\n)*blind.style_cue.fires"):
        check_limits(audit(TRAIN, TEST).to_json(), {key: 1})


def test_rendering_says_what_the_figures_mean() -> None:
    text = render(audit(TRAIN, TEST, hashes=HASHES), width=100)
    for part in (
        "! 3 of 5 test records (60.0 %) show an image that is also in training: same path (2 images).",
        "A lookup of option texts, blind to image and question, answers 75.0 % (chance 41.7 %).",
        "! 2 training and 0 test rows could not be read: field 'answer': expected a letter (2)",
        "! 0 of 3 train images are missing, 1 unreadable.",
        "train a.json, record 4: field 'answer': expected a letter",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    assert ["train", "a.json", "4", "2", "1", "3"] in rows
    assert ["same", "file", "name", "4", "80.0", "%", "3"] in rows


def test_rendering_names_repeats() -> None:
    one = record("0", "1.png")
    text = render(audit([file("x", one, one)], [file("y", one, replace(one, answer="B"))]), width=200)
    for part in (
        "! 1 of 2 test records (50.0 %) are also in training: same images, problem and answer.",
        "- 1 of 2 training records (50.0 %) repeat another one of the split word for word.",
        "! Questions about the same images with several right answers: 1 (4 records); in 1 of them",
    ):
        assert part in text


def test_rendering_keeps_to_the_width_and_aligns() -> None:
    long = file("n" * 300 + ".json", record("0", "x/" + "p" * 300, dataset="d" * 300), malformed=[(0, "w " * 300)])
    text = render(audit([long], [long]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    table = text[text.index("Files\n") :].split("\n\n")[0].splitlines()[1:]
    assert {len(line) for line in table} == {80}
    names = [file(name * 90, record("0", "a.png")) for name in "xy"]
    text = render(audit(names, []), width=100)  # two long names share what room there is
    assert len(text[text.index("Files that overlap\n") :].splitlines()[1]) == 100


def test_what_files_say_does_not_steer_the_terminal() -> None:
    bad = file("a\x1b[31m.json", record("i\n0", "p.png", dataset="d\x07\ud800"), malformed=[(0, "why\x1b[2J")])
    text = render(audit([bad], [bad]))
    assert text.replace("\n", "").isprintable()
    assert text.encode()


def test_clean_data_gives_no_serious_finding() -> None:
    def clean(split: str) -> File:
        gold = [("cyst", "mass"), ("mass", "cyst")]
        return file(split, *(record(f"{split}{i}", f"{split}{i}.png", options=gold[i % 2]) for i in range(8)))

    # each text is right as often as the other, so the lookup takes the first of equals: half are right
    both = [
        (name, Reading([replace(r, answer="AB"[i // 2 % 2]) for i, r in enumerate(reading.records)], [], []))
        for name, reading in (clean("train"), clean("test"))
    ]
    assert [f.text for f in findings(audit(both[:1], both[1:])) if f.serious] == []


def test_two_audits_beside_each_other() -> None:
    text = render_beside(audit(TRAIN, TEST), audit(TRAIN, []))
    rows = [line.split("  ") for line in text.splitlines()]
    cells = {row[1]: [cell.strip() for cell in row[2:] if cell.strip()] for row in rows if len(row) > 3}
    assert cells["test records"] == ["5", "0"]
    assert cells["test records, same path"] == ["3", "-"]
    assert cells["lookup of option texts"] == ["75.0 %", "-"]


IMAGES = st.sampled_from(["x/1.png", "y/1.png", "x/2.png", "z/3.png", "4.png"])


@st.composite
def records(draw: st.DrawFn) -> Record:
    options = draw(st.lists(st.sampled_from(["cyst", "Cyst.", "mass", "Bone"]), max_size=4))
    options = tuple(options) if len(options) > 1 else ()
    answer = draw(st.sampled_from(LETTERS[: len(options)])) if options else draw(st.sampled_from(["yes", "no"]))
    images = draw(st.lists(IMAGES, max_size=2))
    question = draw(st.sampled_from(["What?", "Where?"]))
    return record(
        "r", *images, question=question, options=options, answer=answer, modality=draw(st.sampled_from(["ct", ""]))
    )


FILES = st.lists(st.lists(records(), max_size=4), max_size=3)
BITS = st.one_of(st.none(), st.integers(0, 31))


def named(split: str, contents: list[list[Record]]) -> list[File]:
    return [file(f"{split}{i}", *found) for i, found in enumerate(contents)]


def figures(found: Audit) -> dict:
    """The JSON without what depends on which example comes first."""
    values = found.to_json()
    for kind in ("malformed", "unused", "duplicates", "contradictions", "images"):
        values[kind].pop("examples")
    values["files"] = sorted(map(str, values["files"]))
    values["views"] = sorted((sorted(v["files"]), v["records"], v["images"]) for v in values["views"])
    return values


@given(FILES, FILES, st.fixed_dictionaries({i: BITS for i in ("x/1.png", "y/1.png", "x/2.png", "z/3.png", "4.png")}))
def test_the_order_of_files_and_records_changes_no_figure(train: list, test: list, bits: dict) -> None:
    hashes = {image: ImageHash(f"{value}", value) for image, value in bits.items()}
    train, test = named("train", train), named("test", test)
    turned = [
        [(name, Reading(reading.records[::-1], [], [])) for name, reading in reversed(split)] for split in (train, test)
    ]
    assert figures(audit(train, test, hashes=hashes)) == figures(audit(*turned, hashes=hashes))


@given(FILES, FILES, records(), st.integers(0, 6))
def test_leaks_grow_with_training_data_and_with_weaker_comparison(
    train: list, test: list, more: Record, bits: int
) -> None:
    hashes = {
        image: ImageHash(f"{i}", 2**i - 1)
        for i, image in enumerate(["x/1.png", "y/1.png", "x/2.png", "z/3.png", "4.png"])
    }
    fewer, greater = (
        audit(named("train", contents), named("test", test), hashes=hashes, near_distance=distance).leak
        for contents, distance in ((train, bits), ([*train, [more]], bits + 1))
    )
    for kind, leak in fewer.items():
        if leak is not None:
            assert leak.records <= greater[kind].records
            assert leak.images <= greater[kind].images
    if fewer["path"] is not None:
        assert fewer["path"].records <= fewer["name"].records
        assert fewer["path"].records <= fewer["hash"].records <= fewer["near"].records


@given(FILES, FILES)
def test_groups_add_up(train: list, test: list) -> None:
    found = audit(named("train", train), named("test", test)).to_json()
    for groups in found["groups"].values():
        for split, total in found["records"].items():
            assert sum(group["records"][split] for group in groups.values()) == total
        if found["leak"]["path"] is not None:
            assert sum(group["leak"]["path"] for group in groups.values()) == found["leak"]["path"]
        assert sum(g["blind"]["style_cue"]["fires"] for g in groups.values()) == found["blind"]["style_cue"]["fires"]


@given(st.lists(records(), min_size=1, max_size=5))
def test_a_split_tested_on_itself_leaks_wholly(contents: list[Record]) -> None:
    found = audit(named("train", [contents]), named("test", [contents]))
    assert found.duplicates.between == len(contents)
    assert len(found.leak["path"].records) == sum(bool(r.images) for r in contents)


@cache
def published(name: str, train: bool = True) -> Audit:
    found = [
        [(path.name, scan(path)) for path in SHARED.glob(f"modality/{split}/{name}*.json")]
        for split in ("train", "test")
    ]
    if not found[1] or (train and not found[0]):
        pytest.skip(f"no {name} splits in {SHARED}")
    return audit(*found)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "records", "images", "leak", "shared_images", "blind"),
    [
        ("CT", (12567, 3241), (11657, 3169), {"path": 435}, 396, (31.43, 32.21, 99.04)),
        ("OCT", (3798, 848), (3228, 813), {"path": 253}, 250, (25.94, 26.77, 100.0)),
        ("X-Ray", (6301, 1615), (5226, 1535), {"path": 526, "name": 891}, 510, (25.73, 26.69, 94.55)),
    ],
)
def test_figures_of_the_real_splits(name: str, records, images, leak: dict, shared_images: int, blind) -> None:
    values = published(name).to_json()
    assert tuple(values["records"].values()) == records
    assert tuple(values["images"][split]["images"] for split in ("train", "test")) == images
    assert values["leak"].items() >= leak.items()
    assert values["leak_images"]["path"] == shared_images
    assert tuple(values["blind"][key] for key in ("chance", "majority_letter", "option_prior")) == pytest.approx(blind)
    duplicates = values["duplicates"]
    assert (duplicates["within_files"], duplicates["between"], values["malformed"]["train"]) == (0, 0, 0)


@pytest.mark.shared_data
def test_style_of_the_real_mri_split() -> None:
    cue = published("MR ", train=False).to_json()["blind"]["style_cue"]
    assert (cue["fires"], cue["right"]) == (510, 483)
