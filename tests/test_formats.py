"""Question files: option and solution layouts, labels, errors, and the figures of the real splits."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import no_hang

from data_modules.fields import MAX_TEXT
from data_modules.formats import FORMATS, Format, read_records, scan, write_jsonl
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
        ("Q? A)x, B)y, C)both. See A)u, B)and C)v", "Q?", ("x", "y", "both. See A)u, B)and C)v")),
        ("Where is the lesion?", "Where is the lesion?", ()),
    ],
)
def test_options_of_every_layout(problem: str, stem: str, options: tuple[str, ...]) -> None:
    assert parse_options(problem) == (stem, options)


WORD = st.from_regex(r"""[a-z]{2,8}(,|\.|;|'s|-[a-z]+|/[a-z]+| \([A-Z]{2,4}\)| "[a-z]+"| [0-9]+%)?""", fullmatch=True)
BRACKETS = st.sampled_from(
    ["(CT)", "(IQA)", "(type A)", "(ACJ OA).", "[a-d]", "(a), (b)", '"x"', "A, B or C", "e.g. (T)"]
)
STEM = st.lists(WORD | BRACKETS, min_size=1, max_size=5).map(" ".join)
OPTION = st.lists(WORD, min_size=1, max_size=4).map(" ".join)
OPTION = OPTION.filter(lambda text: not text.endswith(",") and text not in ("or", "and"))


@given(STEM, st.lists(OPTION, min_size=2, max_size=10), st.sampled_from(range(4)))
def test_parsing_undoes_each_layout(stem: str, options: list[str], layout: int) -> None:
    separator, marker = [(", ", "{})"), ("\n", "{}) "), ("\n", "{}: "), (" ", "({}) ")][layout]
    listed = separator.join(marker.format(letter) + text for letter, text in zip(LETTERS, options, strict=False))
    joint = "\n" if separator == "\n" else " "
    assert parse_options(f"{stem}?{joint}{listed}") == (f"{stem}?", tuple(options))


@given(st.text(alphabet='ABCK(). ,:\n"xandor', max_size=60))
def test_whatever_is_parsed_is_made_of_the_text(problem: str) -> None:
    stem, options = parse_options(problem)
    assert len(options) != 1
    assert len(options) <= len(LETTERS)
    position = 0
    for part in (stem, *options):
        position = problem.index(part, position) + len(part)


@pytest.mark.parametrize(
    "text",
    [
        "A) " * 33_000,
        "A) x B) y " * 10_000,
        "A) " * 30_000 + "B)or C) x",
        "A)and B)" * 12_000,
        " (A)" * 25_000,
        "A: \n" * 25_000,
        "(" * 99_999 + ")",
        " " * 99_999 + "A)",
        "<answer>" * 12_000,
    ],
)
def test_no_text_hangs_the_parser(text: str) -> None:
    with no_hang():
        parse_options(text)
        with pytest.raises(DataError):
            parse_gold(text, ("x", "y"))


@pytest.mark.parametrize("solution", ["<answer> B </answer>", "B", "Mass", "mass.", "<answer>mass</answer>"])
def test_every_solution_layout_names_the_same_gold(solution: str) -> None:
    assert parse_gold(solution, ("Cyst", "Mass.")) == "B"


def test_gold_must_be_exactly_one_option() -> None:
    with pytest.raises(DataError, match="none of them"):
        parse_gold("C", ("cyst", "mass"))
    with pytest.raises(DataError, match=r"several \(A, C\)"):
        parse_gold("SPECT", ("SPECT", "CT", "spect."))
    assert parse_gold("A", ("SPECT", "CT", "SPECT")) == "A"
    assert parse_gold("<answer>A</answer> or <answer><answer>B</answer></answer>", ("x", "<answer>B")) == "B"
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
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
    name=st.sampled_from(["own", "CT_test", "lesion_grading"]),
)
def test_jsonl_gives_back_what_was_written(
    tmp_path_factory, question, options, gold, images, modality, task, metadata, name
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / f"{name}.jsonl"
    options = tuple(options)
    answer = LETTERS[gold % len(options)]
    records = [
        Record("a", question, question, options, answer, tuple(images), modality, task, "x", metadata=metadata),
        Record("b", question + "!", question, (), question, closed=True),
    ]
    write_jsonl(path, records)
    assert read_records(path) == records


def test_jsonl_leaves_out_empty_fields(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "own.jsonl", [Record("a", "Q?", "Q?", (), "x")])
    [line] = (tmp_path / "own.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {"id": "a", "problem": "Q?", "question": "Q?", "answer": "x", "modality": "", "task": ""}
    assert json.loads(line) == expected


def test_jsonl_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write_jsonl(path, [Record("a", "Q?", "Q?", (), "x")])

    def cut_off():
        yield Record("b", "Q?", "Q?", (), "x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, cut_off())
    assert [record.id for record in read_records(path)] == ["a"]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match="own.jsonl: cannot be written: No such file"):
        write_jsonl(tmp_path / "nowhere" / "own.jsonl", [])


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


def test_every_format_can_be_named() -> None:
    assert get_args(Format) == ("auto", *FORMATS)


def test_formats_with_the_same_fields_are_the_known_ones() -> None:
    same = [{a, b} for a, b in product(FORMATS, FORMATS) if a < b and FORMATS[a][0] == FORMATS[b][0]]
    known = [("slake", "slake_zh", "slake_all"), ("medmcqa", "medmcqa_0", "medmcqa_1"), ("path_vqa", "vqa_rad_hub")]
    assert sorted(map(sorted, same)) == sorted(sorted(p) for k in known for p in product(k, k) if p[0] < p[1])


def test_an_unknown_format_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.json: record 0 has fields \['caption', 'image'\]") as error:
        read_records(save(tmp_path / "x.json", [{"image": "a.png", "caption": "x"}]))
    assert all(name in str(error.value) for name in FORMATS)
    assert "(`format`)" in str(error.value)


@pytest.mark.parametrize("bad", [3, None, [], {}, {"problem": "x"}, {"question": "x", "answer": "y"}])
def test_one_bad_row_does_not_decide_the_format(tmp_path: Path, bad: object) -> None:
    reading = scan(save(tmp_path / "x.json", [bad, ITEM, ITEM]))
    assert (len(reading.records), [index for index, _ in reading.malformed]) == (2, [0])
    assert (reading.rows, [record.id for record in reading.records]) == ([1, 2], ["x-1", "x-2"])


def test_a_file_without_any_object_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x.json: record 0: expected an object with fields, got 3"):
        scan(save(tmp_path / "x.json", [3, 4]))


MEDMCQA = {"id": "m", "question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 1}


def test_medmcqa_counts_from_what_the_whole_file_says(tmp_path: Path) -> None:
    rows = [MEDMCQA | {"id": f"m{cop}", "cop": cop} for cop in (1, 2, 3, 4)]
    assert [r.answer for r in read_records(save(tmp_path / "one.json", rows))] == list("ABCD")
    rows[3]["cop"] = 0
    assert [r.answer for r in read_records(save(tmp_path / "zero.json", rows), "medmcqa")] == list("BCDA")
    neither = save(tmp_path / "neither.json", rows[:3])
    with pytest.raises(DataError, match="neither.json: field 'cop': .*name the format: medmcqa_0"):
        read_records(neither)
    assert [r.answer for r in read_records(neither, "medmcqa_1")] == list("ABC")


def test_question_and_options_together_are_no_longer_than_a_field(tmp_path: Path) -> None:
    row = {"question": "q" * (MAX_TEXT // 2), "options": ["x" * (MAX_TEXT // 2), "y"], "answer": "A"}
    with pytest.raises(DataError, match="record 0: question and options: expected at most 100000 characters"):
        read_records(save(tmp_path / "x.json", [row]))


def test_half_of_a_character_is_an_error_and_can_be_printed(tmp_path: Path) -> None:
    for change in ({"problem": "\ud800"}, {"image": "\ud800"}, {"\ud800": "x"}, {"solution": ["\ud800"]}):
        with pytest.raises(DataError, match="record 0: field") as error:
            read_records(save(tmp_path / "x.json", [ITEM | change]))
        str(error.value).encode()


ELEVEN = "ABCDEFGHIJK"


@pytest.mark.parametrize(
    "row",
    [
        {
            "image": "a.png",
            "problem": "Q? " + ", ".join(f"{x})o{x}" for x in ELEVEN),
            "solution": "<answer> B </answer>",
        },
        {"image": "a.png", "problem": "Q?" + "".join(f"\n{x}: o{x}" for x in ELEVEN), "solution": "B"},
        {"question": "Q?\nAnswer Choices: " + " ".join(f"({x}) o{x}" for x in ELEVEN), "label": ["B"]},
        {"question": "Q?", "gt_answer": "oB", "image_path": "a.png"} | {f"option_{x}": f"o{x}" for x in ELEVEN},
        {"image": "a.png", "input": "Q?", "label": "B"} | {x: f"o{x}" for x in ELEVEN},
        {"sent1": "Q?", "label": 1} | {f"ending{number}": f"o{number}" for number in range(11)},
        {"question": "Q?", "options": list(ELEVEN), "answer": "B"},
        {"question": "Q?", "options": {x: f"o{x}" for x in ELEVEN}, "answer_idx": "B"},
    ],
)
def test_an_eleventh_option_is_an_error_and_never_cut_off(tmp_path: Path, row: dict) -> None:
    [(_, why)] = scan(save(tmp_path / "x.json", [row])).malformed
    assert why == "field 'options': expected 2 to 10 options, got 11"


def test_the_name_of_a_file_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    [record] = read_records(save(tmp_path / "caf\udce9.json", [{"question": "Q?", "answer": "x"}]))
    assert record.id == r"caf\udce9-0"


def test_a_field_that_an_object_has_twice_is_an_error_wherever_it_is(tmp_path: Path) -> None:
    rows = [
        '{"question": "Q?", "answer": "a", "answer": "b"}',
        '{"question": "Q?", "answer": "a", "options": {"A": "x", "A": "y"}}',
        '{"question": "Q?", "answer": "a", "metadata": {"age": "1", "age": "2"}}',
        '{"image_name": "a", "question": "Q?", "answer": "a", "answer_type": "OPEN", "who": {"age": "1", "age": "2"}}',
        '{"question": "Q?", "answer": "a"}',
    ]
    (tmp_path / "x.json").write_text(f"[{', '.join(rows)}]", encoding="utf-8")
    reading = scan(tmp_path / "x.json")
    assert [index for index, _ in reading.malformed] == [0, 1, 2, 3]
    assert all("expected once, got it several times" in why for _, why in [reading.malformed[i] for i in (0, 1, 2)])
    (tmp_path / "x.json").write_text(f"[{rows[3]}]", encoding="utf-8")
    [(_, why)] = scan(tmp_path / "x.json").malformed
    assert why == "field 'who': cannot be kept as text: field 'age': expected once, got it several times"


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


def test_an_id_that_a_publication_gives_twice_costs_no_record(tmp_path: Path) -> None:
    row = {"question": "Is it?", "answer": "yes", "image_name": "a.jpg", "qid": 1, "answer_type": "CLOSED"}
    path = save(
        tmp_path / "train.json", [row | {"qid": id, "question": f"Is it {n}?"} for n, id in enumerate((1, 2, 1))]
    )
    first, second, third = read_records(path)
    assert third.question == "Is it 2?"
    assert (first.id != second.id, third.id) == (True, f"{first.id}~2")
