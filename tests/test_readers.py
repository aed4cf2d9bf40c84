"""Image question formats: each published layout with its traps, found by its fields, and nothing lost in our own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.fields import Unused
from data_modules.formats import read_records, scan, write_jsonl
from data_modules.readers import FORMATS, MAX_TURNS
from medgrpo.types import DataError, Record

MEDVLM = {
    "image": ["images/a.png"],
    "problem": "Which?\nA) No.\nB) Yes",
    "solution": "A",
    "question": "Which?",
    "options": ["No.", "Yes"],
    "answer": "No.",
    "dataset": "OmniMedVQA",
    "subset": "X-Ray",
}
RAD = {
    "qid": 7,
    "image_name": "synpic1.jpg",
    "image_organ": "HEAD",
    "answer": "Left",
    "answer_type": "CLOSED ",
    "question_type": "POS",
    "question": "On which side?",
    "phrase_type": "freeform",
}
SLAKE = {
    "img_id": 3,
    "img_name": "xmlab3/source.jpg",
    "question": "Which organ?",
    "answer": "Liver",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Organ",
    "triple": ["vhead", "_", "_"],
    "qid": 11,
}
PMC = {
    "Figure_path": "PMC1_F1.jpg",
    "Question": ' "What is it? ',
    "Choice A": " A:Cyst ",
    "Choice B": ' B: "Mass": large ',
    "Choice C": " A: N/A ",
    "Choice D": 'D:"None" ',
}
ROWS: dict[str, dict] = {
    "med_r1": {"image": "Images/MIAS/a b.png", "problem": "It? A)cyst, B)mass", "solution": "<answer> B </answer>"},
    "medvlm_r1": MEDVLM,
    "medical_multimodal_evaluation": {k: v for k, v in MEDVLM.items() if k not in ("problem", "solution")},
    "omnimedvqa": {
        "dataset": "Chest CT Scan",
        "question_id": "Chest CT Scan_0000",
        "question_type": "Modality Recognition",
        "question": "Which technique?",
        "gt_answer": "ct",
        "image_path": "Images/Chest CT Scan/a (6).png",
        "option_A": "Angiography, old",
        "option_B": "CT.",
        "option_C": "",
        "modality_type": "CT(Computed Tomography)",
    },
    "pubmedvision": {
        "image": ["images/1.jpg", "images/2.jpg"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is seen?"},
            {"from": "gpt", "value": "Two slices."},
            {"from": "human", "value": "Is it large?"},
            {"from": "gpt", "value": "Yes."},
        ],
        "id": "Alignment_VQA_0",
        "modality": "Digital Photography",
        "body_part": "Skin",
    },
    "vqa_rad": RAD,
    "vqa_rad_hub": {"image": "1.jpg", "question": "Is it there?", "answer": "yes"},
    "adaptllm": {"image": "1.jpg", "input": "<image>\nHow many?", "label": 3, "answer_type": "OPEN"},
    "slake": SLAKE,
    "pmc_vqa": PMC | {"Answer": ' "Mass": large ', "Answer_label": "B"},
}
EXPECTED: dict[str, list[Record]] = {
    "med_r1": [
        Record("x-0", "It? A)cyst, B)mass", "It?", ("cyst", "mass"), "B", ("Images/MIAS/a b.png",), dataset="MIAS")
    ],
    "medvlm_r1": [
        Record(
            "x-0", "Which?\nA) No.\nB) Yes", "Which?", ("No.", "Yes"), "A", ("images/a.png",), "xray", "", "OmniMedVQA"
        )
    ],
    "omnimedvqa": [
        Record(
            "Chest CT Scan_0000",
            "Which technique?\nA) Angiography, old\nB) CT.",
            "Which technique?",
            ("Angiography, old", "CT."),
            "B",
            ("Images/Chest CT Scan/a (6).png",),
            "ct",
            "Modality Recognition",
            "Chest CT Scan",
        )
    ],
    "pubmedvision": [
        Record(
            "Alignment_VQA_0-0",
            "What is seen?",
            "What is seen?",
            (),
            "Two slices.",
            ("images/1.jpg", "images/2.jpg"),
            dataset="PubMedVision",
            metadata={"modality": "Digital Photography", "body_part": "Skin", "turn": "1"},
        ),
        Record(
            "Alignment_VQA_0-1",
            "What is seen?\n\nTwo slices.\n\nIs it large?",
            "Is it large?",
            (),
            "Yes.",
            ("images/1.jpg", "images/2.jpg"),
            dataset="PubMedVision",
            closed=True,
            metadata={"modality": "Digital Photography", "body_part": "Skin", "turn": "2"},
        ),
    ],
    "vqa_rad": [
        Record(
            "vqa_rad-7",
            "On which side?",
            "On which side?",
            (),
            "Left",
            ("synpic1.jpg",),
            dataset="VQA-RAD",
            closed=True,
            metadata={"image_organ": "HEAD", "question_type": "POS", "phrase_type": "freeform"},
        )
    ],
    "vqa_rad_hub": [Record("x-0", "Is it there?", "Is it there?", (), "yes", ("1.jpg",), closed=True)],
    "adaptllm": [Record("x-0", "How many?", "How many?", (), "3", ("1.jpg",))],
    "slake": [
        Record(
            "slake-11",
            "Which organ?",
            "Which organ?",
            (),
            "Liver",
            ("imgs/xmlab3/source.jpg",),
            "mri",
            "Organ",
            "SLAKE",
            metadata={
                "language": "en",
                "img_id": "3",
                "location": "Abdomen",
                "base_type": "vqa",
                "triple": '["vhead", "_", "_"]',
            },
        )
    ],
    "pmc_vqa": [
        Record(
            "x-0",
            'What is it?\nA) Cyst\nB) "Mass": large\nC) N/A\nD) None',
            "What is it?",
            ("Cyst", '"Mass": large', "N/A", "None"),
            "B",
            ("PMC1_F1.jpg",),
            dataset="PMC-VQA",
        )
    ],
}
EXPECTED["medical_multimodal_evaluation"] = EXPECTED["medvlm_r1"]


def read(name: str, **changes) -> Record:
    """The record of one changed row; a change to None takes the field away."""
    row = {field: value for field, value in (ROWS[name] | changes).items() if value is not None}
    found = FORMATS[name][1](row, "", "")
    return found if isinstance(found, Record) else found[-1]


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_found_by_its_fields_and_reads_right(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ROWS[name]]), encoding="utf-8")
    assert read_records(path) == read_records(path, name) == EXPECTED[name]
    write_jsonl(tmp_path / "own.jsonl", EXPECTED[name])
    assert read_records(tmp_path / "own.jsonl") == EXPECTED[name]


def test_every_reader_has_a_row_here() -> None:
    assert {reader for _, reader in FORMATS.values()} - {FORMATS[name][1] for name in ROWS} == {
        FORMATS["slake_zh"][1],
        FORMATS["slake_all"][1],
    }
    assert FORMATS["path_vqa"] == FORMATS["vqa_rad_hub"]  # the same fields, and nothing tells one from the other


@pytest.mark.parametrize("name", ROWS)
def test_patient_and_other_unknown_fields_are_kept(name: str) -> None:
    record = read(name, patient="p1", volume=4, views=["AP"])
    assert record.metadata | {"patient": "p1", "volume": "4", "views": '["AP"]'} == record.metadata


def test_omnimedvqa_answers_are_texts_of_exactly_one_option() -> None:
    assert read("omnimedvqa", option_C="MR, (old)", option_D="US", gt_answer="MR, (Old).").answer == "C"
    assert read("omnimedvqa", option_A="B", option_B="A", gt_answer="A").answer == "B"  # a text, not a letter
    with pytest.raises(DataError, match="field 'gt_answer': .*'PET': none of them"):
        read("omnimedvqa", gt_answer="PET")
    with pytest.raises(DataError, match=r"field 'gt_answer': .*several \(A, B\)"):
        read("omnimedvqa", option_A="CT")


def test_omnimedvqa_has_two_names_for_the_modality() -> None:
    other = read("omnimedvqa", modality_type=None, modality="CT(Computed Tomography)")
    assert (other.modality, other.metadata) == ("ct", {})
    unknown = read("omnimedvqa", modality_type="Endoscopy")
    assert (unknown.modality, unknown.metadata) == ("", {"modality_type": "Endoscopy"})
    none = FORMATS["omnimedvqa"][1]({k: v for k, v in ROWS["omnimedvqa"].items() if k != "modality_type"}, "oct", "")
    assert none.modality == "oct"  # of the file's name


def test_an_option_left_out_between_two_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ROWS["omnimedvqa"] | {"option_D": "US"}]), encoding="utf-8")
    with pytest.raises(DataError, match="record 0: field 'options': expected text, got nothing for C"):
        read_records(path)


def test_evaluation_data_without_options_is_open_or_closed() -> None:
    name = "medical_multimodal_evaluation"
    assert read(name, options=[], answer="left lung").answer_type == "open"
    assert read(name, options=[], answer="No.").answer_type == "closed"
    assert read(name, options=["C", "B", "A"], answer="C").answer == "A"  # a text, not a letter


def test_pubmedvision_conversations() -> None:
    turn = ROWS["pubmedvision"]["conversations"]
    one = read("pubmedvision", conversations=turn[:2], modality="Magnetic Resonance Imaging", image="1.jpg")
    assert (one.id, one.modality, one.images, one.problem) == ("Alignment_VQA_0", "mri", ("1.jpg",), "What is seen?")
    assert one.metadata == {"body_part": "Skin"}
    for bad in ([], turn[:1], turn[1:3], ["x"], turn * MAX_TURNS, [turn[0], {"from": "gpt"}]):
        with pytest.raises(DataError, match="field '(conversations|value)'"):
            read("pubmedvision", conversations=bad)


@pytest.mark.parametrize(
    ("solution", "modality", "extra", "answer", "closed"),
    [
        ("<CT_SCAN>pneumonia", "ct", {}, "pneumonia", False),
        ("<X_RAY> Yes", "xray", {}, "Yes", True),
        ("<ENDOSCOPY>polyp", "", {"modality": "ENDOSCOPY"}, "polyp", False),
        ("<answer> polyp </answer>", "", {}, "polyp", False),
    ],
)
def test_medix_r1_names_the_modality_before_the_solution(solution, modality, extra, answer, closed) -> None:
    row = {"image": "a.png", "problem": "What is it?", "solution": solution}
    record = FORMATS["med_r1"][1](row, "", "")
    assert (record.modality, record.metadata, record.answer, record.closed) == (modality, extra, answer, closed)
    row = row | {"problem": "What is it? A)polyp, B)cyst", "solution": "<ENDOSCOPY>B"}
    assert FORMATS["med_r1"][1](row, "", "").answer == "B"


def test_pmc_vqa_has_four_choices() -> None:
    with pytest.raises(DataError, match="field 'Choice E': expected four choices"):
        read("pmc_vqa", **{"Choice E": "E: more"})


def test_space_around_a_gold_answer_is_no_part_of_it() -> None:
    assert read("vqa_rad", answer=" 5 cm\t").answer == "5 cm"


def test_several_records_of_a_row_without_id_get_different_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    row = {name: value for name, value in ROWS["pubmedvision"].items() if name != "id"}
    path.write_text(json.dumps([row, row]), encoding="utf-8")
    reading = scan(path)
    assert [record.id for record in reading.records] == ["x-0-0", "x-0-1", "x-1-0", "x-1-1"]
    assert reading.rows == [0, 0, 1, 1]


def test_vqa_rad_answers_may_be_numbers_and_closed_is_not_only_yes_or_no() -> None:
    assert read("vqa_rad", answer=3, answer_type="OPEN").answer == "3"
    assert read("vqa_rad", answer=2.5).answer == "2.5"
    assert [read("vqa_rad", answer_type=kind).closed for kind in ("CLOSED", "closed", "OPEN")] == [True, True, False]
    with pytest.raises(DataError, match="field 'answer_type': expected OPEN or CLOSED, got \"MAYBE\""):
        read("vqa_rad", answer_type="MAYBE")
    with pytest.raises(DataError, match="field 'answer': expected text, got no such field"):
        read("vqa_rad", answer=None)


def test_vqa_rad_as_its_authors_published_it_keeps_its_other_fields() -> None:
    more = {
        "qid_linked_id": "03f451ca",
        "image_case_url": "case/1",
        "evaluation": "evaluated",
        "question_rephrase": "Where is it?",
        "question_relation": "strict agreement",
        "question_frame": "NULL",
    }
    assert read("vqa_rad", **more).metadata == EXPECTED["vqa_rad"][0].metadata | more


@pytest.mark.parametrize(
    ("answer", "closed"), [("yes", True), ("No.", True), ("in the canals of hering", False), ("not seen", False)]
)
def test_hub_questions_are_closed_when_the_answer_is_yes_or_no(answer: str, closed: bool) -> None:
    assert read("vqa_rad_hub", answer=answer).closed is closed


def test_adaptllm_has_options_for_pmc_vqa_alone() -> None:
    row = {"answer_type": None, "A": "Cyst", "B": "Mass", "label": "B"}
    record = read("adaptllm", **row)
    assert (record.options, record.answer, record.closed) == (("Cyst", "Mass"), "B", False)
    assert read("adaptllm", **row | {"label": "mass"}) == record
    assert read("adaptllm", label="left", answer_type="CLOSED").answer_type == "closed"
    with pytest.raises(DataError, match="field 'label': expected a letter of AB"):
        read("adaptllm", **row | {"label": "C"})


def test_slake_reads_one_language_or_all(tmp_path: Path) -> None:
    chinese = SLAKE | {"q_lang": "zh", "question": "哪个器官?", "answer": "肝脏", "qid": 12}
    path = tmp_path / "test.json"
    path.write_text(json.dumps([SLAKE, chinese], ensure_ascii=False), encoding="utf-8")
    assert scan(path).unused == [(1, "language zh")]
    assert [r.answer for r in read_records(path)] == ["Liver"]
    assert [r.answer for r in read_records(path, "slake_zh")] == ["肝脏"]
    assert [r.metadata["language"] for r in read_records(path, "slake_all")] == ["en", "zh"]
    with pytest.raises(Unused, match="language en"):
        FORMATS["slake_zh"][1](SLAKE, "", "")


def test_slake_closed_answers() -> None:
    record = read("slake", answer="Left", answer_type="CLOSED", modality="X-Ray")
    assert (record.answer_type, record.modality) == ("closed", "xray")


def test_pmc_vqa_schema_with_letters() -> None:
    second = {"Answer_label": None, "index": "0", "Caption": "Axial CT, see (a).", "split": "test"}
    record = read("pmc_vqa", Answer="B", **second)
    assert (record.answer, record.id) == ("B", "")
    assert record.metadata == {"index": "0", "Caption": "Axial CT, see (a).", "split": "test"}
    assert read("pmc_vqa", Answer=" none", **second).answer == "D"
    with pytest.raises(DataError, match="field 'Answer': expected a letter of ABCD or .*none of them"):
        read("pmc_vqa", Answer="E", **second)


def test_pmc_vqa_text_and_label_must_agree() -> None:
    assert read("pmc_vqa", Answer="Cyst", Answer_label="'").answer == "A"  # a label as published
    assert read("pmc_vqa", Answer="n/a", Answer_label=" C ").answer == "C"
    assert read("pmc_vqa", **{"Choice A": "A:None"}, Answer="None", Answer_label="D").answer == "D"
    with pytest.raises(DataError, match="field 'Answer': expected 'Cyst', the text of option A, got \"None\""):
        read("pmc_vqa", Answer="None", Answer_label="A")
    with pytest.raises(DataError, match="field 'Answer': .*several"):
        read("pmc_vqa", **{"Choice A": "A:None"}, Answer="None", Answer_label="'")


@pytest.mark.parametrize(
    ("published", "choice"),
    [
        (" A:Diffuse uptake ", "Diffuse uptake"),
        ("B : Focal", "Focal"),  # a letter of another column
        ("C:A: both", "A: both"),  # once
        ('"D: cut', "cut"),
        ('the "tree in bud"', 'the "tree in bud"'),
        ("Crohn's", "Crohn's"),
        ("None", "None"),
        ("BRCA: high", "BRCA: high"),
    ],
)
def test_pmc_vqa_choices_lose_their_letter_once(published: str, choice: str) -> None:
    assert read("pmc_vqa", **{"Choice A": published}).options[0] == choice


def test_a_row_of_two_records_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    taken = {name: ROWS["pubmedvision"][name] for name in ("image", "modality", "body_part")}
    first = taken | {"id": "Alignment_VQA_0-1", "conversations": ROWS["pubmedvision"]["conversations"][:2]}
    path.write_text(json.dumps([first, ROWS["pubmedvision"]]), encoding="utf-8")
    reading = scan(path)
    assert [record.id for record in reading.records] == [f"Alignment_VQA_0-{end}" for end in ("1", "0", "1~1")]
    turns = ROWS["pubmedvision"]["conversations"]
    broken = ROWS["pubmedvision"] | {"id": "other", "conversations": [*turns[:-1], turns[-1] | {"value": ""}]}
    path.write_text(json.dumps([first, broken]), encoding="utf-8")
    reading = scan(path)
    assert [record.id for record in reading.records] == ["Alignment_VQA_0-1"]
    assert [index for index, _ in reading.malformed] == [1]
    assert replace(reading.records[0], id="") == replace(
        EXPECTED["pubmedvision"][0], id="", metadata={"modality": "Digital Photography", "body_part": "Skin"}
    )
