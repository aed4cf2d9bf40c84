"""Question files: option and solution layouts, labels, errors, and the figures of the real splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.formats import read_records, write_jsonl
from data_modules.labels import modality_of, task_of
from data_modules.options import parse_gold, parse_options
from medgrpo.types import LETTERS, MODALITIES, DataError, Record

SHARED = Path(__file__).parents[2] / "shared" / "data"
ITEM = {"image": "Images/MIAS/a b.png", "problem": "What is it? A)cyst, B)mass", "solution": "<answer> B </answer>"}


def save(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("problem", "stem", "options"),
    [
        ("What is it? A)cyst, B)mass", "What is it?", ("cyst", "mass")),
        ("What is it?\nA) cyst\nB) mass", "What is it?", ("cyst", "mass")),
        ("What is it?\nA: cyst\nB: mass, large", "What is it?", ("cyst", "mass, large")),
        ("What is it? (A) cyst (B) mass", "What is it?", ("cyst", "mass")),
        ("Is it?A)Yes,B)No", "Is it?", ("Yes", "No")),
        ("Does this (CT) scan show it? A)Yes, B)No", "Does this (CT) scan show it?", ("Yes", "No")),
        ("Image quality (IQA) is A)good, B)bad", "Image quality (IQA) is", ("good", "bad")),
        ("Q? A)x, B)joint osteoarthritis (ACJ OA)., C)z", "Q?", ("x", "joint osteoarthritis (ACJ OA).", "z")),
        (
            "Q? A)Hepatitis (type A), B)Hepatitis (type B), C)No",
            "Q?",
            ("Hepatitis (type A)", "Hepatitis (type B)", "No"),
        ),
        ("Q? A)Hepatitis (type B), B)Mild (type C), C)No", "Q?", ("Hepatitis (type B)", "Mild (type C)", "No")),
        ("Q? A)OCT (Optical, B)MRI, C)CT", "Q?", ("OCT (Optical", "MRI", "CT")),
        ("Q? A)red, swollen, B)pale, dry", "Q?", ("red, swollen", "pale, dry")),
        ("Q? A)SPECT, B)Ultrasound, C)SPECT", "Q?", ("SPECT", "Ultrasound", "SPECT")),
        ('"Which one is it?" A)x, B)y', "Which one is it?", ("x", "y")),
        ("Compare (A), (B) and (C). A)Yes, B)No", "Compare (A), (B) and (C).", ("Yes", "No")),
        ("Which A) x or B) y? A)Yes, B)No", "Which A) x or B) y?", ("Yes", "No")),
        ("Q? (A) x (B) y (C) both (A) and (B)", "Q?", ("x", "y", "both (A) and (B)")),
        ("Where is the lesion?", "Where is the lesion?", ()),
    ],
)
def test_options_of_every_layout(problem: str, stem: str, options: tuple[str, ...]) -> None:
    assert parse_options(problem) == (stem, options)


WORDS = st.lists(st.from_regex(r"[a-z]{2,8}(,|\.|-[a-z]+| \([A-Z]{2,4}\))?", fullmatch=True), min_size=1, max_size=4)
OPTION = WORDS.map(" ".join).filter(lambda text: not text.endswith(",") and text not in ("or", "and"))


@given(WORDS.map(" ".join), st.lists(OPTION, min_size=2, max_size=10), st.sampled_from(range(4)))
def test_parsing_undoes_each_layout(stem: str, options: list[str], layout: int) -> None:
    separator, marker = [(", ", "{})"), ("\n", "{}) "), ("\n", "{}: "), (" ", "({}) ")][layout]
    listed = separator.join(marker.format(letter) + text for letter, text in zip(LETTERS, options, strict=False))
    joint = "\n" if separator == "\n" else " "
    assert parse_options(f"{stem}?{joint}{listed}") == (f"{stem}?", tuple(options))


@pytest.mark.parametrize("solution", ["<answer> B </answer>", "B", "Mass", "mass.", "<answer>mass</answer>"])
def test_every_solution_layout_names_the_same_gold(solution: str) -> None:
    assert parse_gold(solution, ("Cyst", "Mass.")) == "B"


def test_gold_must_be_exactly_one_option() -> None:
    with pytest.raises(DataError, match="none of them"):
        parse_gold("C", ("cyst", "mass"))
    with pytest.raises(DataError, match=r"several \(A, C\)"):
        parse_gold("SPECT", ("SPECT", "CT", "spect."))
    assert parse_gold("A", ("SPECT", "CT", "SPECT")) == "A"
    assert parse_gold("left lung", ()) == "left lung"
    with pytest.raises(DataError, match="'problem' has no options"):
        parse_gold("A", ())


def test_med_r1_records_take_labels_from_file_and_path(tmp_path: Path) -> None:
    [record] = read_records(save(tmp_path / "OCT (Optical Coherence Tomography_test.json", [ITEM]))
    assert record == Record(
        id="OCT (Optical Coherence Tomography_test-0",
        problem="What is it? A)cyst, B)mass",
        question="What is it?",
        options=("cyst", "mass"),
        answer="B",
        images=("Images/MIAS/a b.png",),
        modality="oct",
        task="",
        dataset="MIAS",
    )
    [record] = read_records(save(tmp_path / "Lesion Grading_train.json", [ITEM]))
    assert (record.modality, record.task) == ("", "Lesion Grading")


def test_medvlm_records_take_labels_from_fields(tmp_path: Path) -> None:
    row = {
        "image": ["images/a.png", "images/b.png"],
        "problem": "Which?\nA) No.\nB) Yes",
        "solution": "A",
        "question": "Which?",
        "options": ["No.", "Yes"],
        "answer": "No.",
        "dataset": "OmniMedVQA",
        "subset": "MR (Mag-netic Resonance Imaging)",
    }
    [record] = read_records(save(tmp_path / "all.json", [row]))
    assert record.images == ("images/a.png", "images/b.png")
    assert (record.answer, record.modality, record.dataset) == ("A", "mri", "OmniMedVQA")
    with pytest.raises(DataError, match="field 'answer': expected 'No.', the text of option A, got \"Yes\""):
        read_records(save(tmp_path / "bad.json", [row | {"answer": "Yes"}]))
    # The same data without problem and solution, as FreedomIntelligence publishes it.
    [record] = read_records(save(tmp_path / "f.json", [{k: row[k] for k in row if k not in ("problem", "solution")}]))
    assert (record.problem, record.answer) == ("Which?\nA) No.\nB) Yes", "A")


TEXT = st.text(min_size=1).filter(str.strip)


@given(
    question=TEXT,
    options=st.lists(TEXT, min_size=2, max_size=10),
    gold=st.integers(0, 9),
    images=st.lists(TEXT, max_size=3),
    modality=st.sampled_from(("", *MODALITIES)),
    task=st.just("") | TEXT,
)
def test_jsonl_gives_back_what_was_written(tmp_path_factory, question, options, gold, images, modality, task) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "own.jsonl"
    options = tuple(options)
    answer = LETTERS[gold % len(options)]
    records = [
        Record("a", question, question, options, answer, tuple(images), modality, task, "x"),
        Record("b", question + "!", question, (), question),
    ]
    write_jsonl(path, records)
    assert read_records(path) == records


def test_jsonl_needs_question_and_answer_only(tmp_path: Path) -> None:
    path = tmp_path / "own_test.jsonl"
    path.write_text('{"question": "Which?", "options": ["x", "y"], "answer": "B"}\n\n', encoding="utf-8")
    assert read_records(path) == [Record("own_test-0", "Which?\nA) x\nB) y", "Which?", ("x", "y"), "B")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solution": "<answer> C </answer>"}, r"record 1: field 'solution': expected a letter of AB .*'C'"),
        ({"solution": None}, "record 1: field 'solution': expected text, got null"),
        ({"problem": ""}, "record 1: field 'problem': expected text, got \"\""),
        ({"problem": "A)x, B)y"}, "record 1: field 'question': expected text before the options"),
        ({"image": 3}, "record 1: field 'image': expected a path or a list of paths, got 3"),
    ],
)
def test_a_bad_record_is_named_by_file_index_and_field(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_records(save(tmp_path / "x.json", [ITEM, ITEM | change]))
    assert str(tmp_path / "x.json") in str(error.value)


def test_all_problems_of_a_file_come_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="23 bad of 24 records") as error:
        read_records(save(tmp_path / "x.json", [ITEM, "text", *[ITEM | {"solution": "?"}] * 22]))
    assert str(error.value).count("\n  record ") == 20
    assert "... and 3 more" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{]", "not valid JSON"),
        (b'{"question": "Q", "answer": "A"}\n{"question"', "line 2: not valid JSON"),
        (b"[]", "got no record"),
        (b"", "got no record"),
        (b'["\xff"]', "expected UTF-8 text, got byte 0xff"),
        (b'[{"text": "x"}]', r"record 0 has fields \['text'\]"),
        (b'{"question": "Q", "answer": "A", "imgs": []}', r"unknown fields \['imgs'\]"),
        (b'{"question": "Q", "answer": "x", "modality": "smell"}', "field 'modality': expected one of ct, .* 'smell'"),
        (
            b'{"question": "Q", "answer": "AB", "options": ["x", "y"]}',
            "field 'answer': expected a letter of AB, .*'AB'",
        ),
        (b'{"question": "Q", "answer": "A", "options": ["x"]}', "expected 2 to 10 options, got 1"),
        (b'{"question": "Q", "answer": "A", "options": ["x", " "]}', "got nothing for B"),
        (b'{"id": "i", "question": "Q", "answer": "A"}\n' * 2, "'i' is also the id of record 0"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_records(path)
    assert "bad.json" in str(error.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.json: cannot be read: No such file"):
        read_records(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT(Computed Tomography)", "ct"),
        ("Dermoscopy", "dermoscopy"),
        ("Fundus Photography", "fundus"),
        ("MR (Mag-netic Resonance Imaging)", "mri"),
        ("Microscopy Images", "microscopy"),
        ("OCT (Optical Coherence Tomography", "oct"),
        ("X-Ray", "xray"),
        ("ultrasound", "ultrasound"),
        ("cxr", "xray"),
        ("US", "ultrasound"),
        ("unknown", ""),
    ],
)
def test_modality_names(name: str, modality: str) -> None:
    assert modality_of(name) == modality


def test_task_names() -> None:
    assert task_of("lesion_grading") == "Lesion Grading"
    assert task_of("grading") == ""


# name: records, images, options {number: records}, letters in %; measured on the published files
SPLITS = {
    "modality/test/CT(Computed Tomography)_test": (3241, 3169, {2: 834, 4: 2407}, (32.2, 30.7, 18.6, 18.5)),
    "modality/test/MR (Mag-netic Resonance Imaging)_test": (6370, 6330, {2: 3, 4: 6367}, (24.8, 25.9, 24.8, 24.5)),
    "modality/test/OCT (Optical Coherence Tomography_test": (848, 813, {2: 32, 4: 816}, (26.8, 24.9, 24.4, 23.9)),
    "modality/test/X-Ray_test": (1615, 1535, {2: 47, 4: 1568}, (26.7, 26.1, 23.7, 23.5)),
    "modality/train/CT(Computed Tomography)_train": (12567, 11657, {2: 3247, 4: 9320}, (31.6, 31.4, 18.3, 18.7)),
    "modality/train/OCT (Optical Coherence Tomography_train": (3798, 3228, {2: 129, 4: 3669}, (25.1, 26.9, 23.8, 24.1)),
    "modality/train/X-Ray_train": (6301, 5226, {2: 183, 4: 6118}, (25.6, 25.5, 24.5, 24.5)),
    "modality/train/unknown_train": (1, 1, {4: 1}, (0.0, 0.0, 0.0, 100.0)),
    "question_type/test/Lesion Grading_test": (436, 436, {3: 30, 4: 406}, (24.8, 24.5, 28.0, 22.7)),
    "question_type/train/Lesion Grading_train": (1662, 1662, {3: 92, 4: 1570}, (25.5, 23.2, 25.0, 26.4)),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SPLITS)
def test_published_med_r1_splits(name: str) -> None:
    path = SHARED / "med_r1" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    records = read_records(path)
    letters = Counter(record.answer for record in records)
    num_options = Counter(len(record.options) for record in records)
    shares = tuple(round(100 * letters[letter] / len(records), 1) for letter in "ABCD")
    assert (len(records), len({r.images for r in records}), num_options, shares) == SPLITS[name]
    assert all(record.dataset for record in records)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "count"), [("examples", 8), ("records_without_images", 148)])
def test_published_medvlm_r1_records(name: str, count: int) -> None:
    path = SHARED / "medvlm_r1" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    records = read_records(path)
    assert len(records) == count
    assert {record.modality for record in records} == {"ct", "mri", "xray"}
    # These files give the parsed question and options too: the inline parser must agree with them.
    assert [parse_options(record.problem) for record in records] == [(r.question, r.options) for r in records]
