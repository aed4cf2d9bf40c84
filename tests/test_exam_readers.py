"""Exams: each published layout with its traps, what is refused, and that nothing is lost in our own format."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.exam_readers import FORMATS, medmcqa_base
from data_modules.fields import Unused
from data_modules.formats import read_records, write_jsonl
from medgrpo.types import LETTERS, DataError, Record

ABSTRACT = ["Lace plants make holes.", "Mitochondria move."]
MEDXPERT = {
    "id": "MM-0",
    "question": "A man falls, (type A) fracture. Next?\n"
    "Answer Choices: (A) Repair, complex (B) Plication (C) Both (A) and (B)",
    "options": {"A": "Repair, complex", "B": "Plication", "C": "Both (A) and (B)"},
    "label": "C",
    "images": ["MM-0-a.jpeg", "MM-0-b.jpeg"],
    "medical_task": "Treatment",
    "body_system": "Skeletal",
    "question_type": "Reasoning",
}
ROWS: dict[str, dict] = {
    "medxpertqa": MEDXPERT,
    "mmmu": {
        "id": "validation_Clinical_Medicine_7",
        "question": "Which scan, <image 1> or <image 2>, shows it?",
        "options": "['<image 1>', \"Crohn's, \\\\alpha\", 'Neither']",
        "explanation": "",
        "image_1": "a.png",
        "image_2": "b.png",
        **{f"image_{number}": None for number in range(3, 8)},
        "img_type": "['CT']",
        "answer": "B",
        "topic_difficulty": "Medium",
        "question_type": "multiple-choice",
        "subfield": "Clinical Radiology",
    },
    "medqa": {
        "question": "A 23-year-old woman ...",
        "answer": "Nitrofurantoin",
        "options": {
            "A": "Ampicillin",
            "B": "Ceftriaxone",
            "C": "Ciprofloxacin",
            "D": "Doxycycline",
            "E": "Nitrofurantoin",
        },
        "meta_info": "step2&3",
        "answer_idx": "E",
        "metamap_phrases": ["woman"],
    },
    "medqa_hf": {
        "id": "train-00000",
        "sent1": "A 23-year-old woman ...",
        "sent2": "",
        "ending0": "Ampicillin",
        "ending1": "Ceftriaxone",
        "ending2": "Doxycycline",
        "ending3": "Nitrofurantoin",
        "label": 3,
    },
    "medmcqa_0": {
        "id": "e9ad821a-c438-4965-9f77-760819dfa155",
        "question": "Which is true?",
        "opa": "1 and 2",
        "opb": "2 and 3",
        "opc": "3 only",
        "opd": "None",
        "cop": 3,
        "choice_type": "multi",
        "exp": "Because.",
        "subject_name": "Physiology",
        "topic_name": None,
    },
    "pubmedqa": {
        "pubid": "21645374",
        "QUESTION": "Do mitochondria play a role?",
        "CONTEXTS": ABSTRACT,
        "LABELS": ["BACKGROUND", "RESULTS"],
        "MESHES": ["Alismataceae"],
        "YEAR": "2011",
        "reasoning_required_pred": "yes",
        "reasoning_free_pred": "yes",
        "final_decision": "maybe",
        "LONG_ANSWER": "They seem to.",
    },
    "pubmedqa_hub": {
        "pubid": 21645374,
        "question": "Do mitochondria play a role?",
        "context": {"contexts": ABSTRACT, "labels": ["BACKGROUND", "RESULTS"], "meshes": ["Alismataceae"]},
        "long_answer": "They seem to.",
        "final_decision": "maybe",
    },
    "pubmedqa_data": {
        "id": "7a9f",
        "data": {
            "Question": "Do mitochondria play a role?",
            "Options": {"A": "yes", "B": "no", "C": "maybe"},
            "Context": ABSTRACT,
            "Correct Option": "C",
            "Correct Answer": "maybe",
            "Long Answer": "They seem to.",
        },
        "subject_name": "biology",
    },
    "mmlu_pro": {
        "question_id": 6187,
        "question": "Which vitamin?",
        "options": [*"qrstuvwxy", "N/A"],
        "answer": "I",
        "answer_index": 8,
        "cot_content": "",
        "category": "health",
        "src": "ori_mmlu-nutrition",
    },
    "gpqa": {
        "Record ID": "rec06pnAkLOr2t2mp",
        "Question": "Which gene?\n",
        "Correct Answer": "the right one\n",
        "Incorrect Answer 1": "one",
        "Incorrect Answer 2": "two",
        "Incorrect Answer 3": "three",
        "Explanation": "Because.",
        "High-level domain": "Biology",
        "Subdomain": "Genetics",
        "Canary String": "do not train",
    },
    "medvlthinker": {
        "images": ["images/a.jpg"],
        "question": "Which organ?",
        "options": '{"A": "Lung, left", "B": "Liver"}',
        "answer_label": "B",
        "answer": "Liver",
        "reasoning": None,
        "dataset_name": "pmc_vqa",
        "dataset_index": 4,
    },
    "open_medical_r1": {
        "question": "Which drug?\nAnswer Choices: (A) aspirin (B) iron (oral)",
        "answer": "B",
        "option": "iron (oral)",
    },
}
OTHERS = [
    "image problem solution",
    "image question options answer dataset subset problem solution",
    "image question options answer dataset subset",
    "id problem question options answer images modality task dataset closed metadata",
    "dataset question_id question_type question gt_answer image_path option_A option_B modality_type",
    "image conversations id modality body_part",
    "qid image_name image_organ answer answer_type question_type question phrase_type",
    "image question answer",
    "image input label answer_type",
    "img_id img_name question answer q_lang location modality answer_type base_type content_type triple qid",
    "Figure_path Question Answer Answer_label",
    "index Figure_path Caption Question Answer split",
]


def read(name: str, **changes) -> Record:
    return FORMATS[name][1](ROWS[name] | changes, "", "")


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_fields_of_its_own_format_only(name: str) -> None:
    found = [other for other, (fields, _) in FORMATS.items() if fields <= ROWS[name].keys()]
    assert found == (["medmcqa", "medmcqa_0", "medmcqa_1"] if name == "medmcqa_0" else [name])


@pytest.mark.parametrize("names", OTHERS)
def test_no_row_of_an_image_format_looks_like_an_exam(names: str) -> None:
    assert not [name for name, (fields, _) in FORMATS.items() if fields <= set(names.split())]


def test_medxpertqa_cuts_the_choices_off_the_stem() -> None:
    expected = Record(
        id="MM-0",
        problem=MEDXPERT["question"],
        question="A man falls, (type A) fracture. Next?",
        options=("Repair, complex", "Plication", "Both (A) and (B)"),
        answer="C",
        images=("MM-0-a.jpeg", "MM-0-b.jpeg"),
        task="Treatment",
        dataset="MedXpertQA",
        metadata={"body_system": "Skeletal", "question_type": "Reasoning"},
    )
    assert read("medxpertqa") == expected
    repository = {
        "options": [{"letter": letter, "content": option} for letter, option in MEDXPERT["options"].items()],
        "label": ["C"],
        "images": [{"image_path": "MM-0-a.jpeg"}, {"image_path": "MM-0-b.jpeg"}],
    }
    assert read("medxpertqa", **repository) == expected
    assert read("medxpertqa", options=MEDXPERT["options"] | {"D": None, "E": None}) == expected
    assert read("medxpertqa", options=None) == expected


def test_medxpertqa_problem_lists_the_options_that_count() -> None:
    plain = read("medxpertqa", question="Next?")
    assert plain.problem == "Next?\nA) Repair, complex\nB) Plication\nC) Both (A) and (B)"
    other = read("medxpertqa", options={"A": "x", "B": "y", "C": "z"})
    assert other.problem == "A man falls, (type A) fracture. Next?\nA) x\nB) y\nC) z"


def test_medxpertqa_inputs_of_other_exams_have_no_options_field() -> None:
    row = {"question": "Q (A) or\nAnswer Choices: (A) one (B) two, three", "label": ["B"]}
    record = FORMATS["medxpertqa"][1](row, "", "")
    assert (record.question, record.options, record.answer) == ("Q (A) or", ("one", "two, three"), "B")
    assert (record.id, record.dataset, record.images) == ("", "", ())
    ten = "Q?\nAnswer Choices: " + " ".join(f"({letter}) o{letter}" for letter in LETTERS)
    assert len(read("medxpertqa", question=ten, options=None).options) == 10
    assert len(read("medxpertqa", question=ten + " (K) oK", options=None).options) == 11  # for whoever reads the file
    with pytest.raises(DataError, match="field 'question': expected options .* got none"):
        read("medxpertqa", question="Q?", options=None)


def test_mmmu_options_are_python_and_images_keep_their_order() -> None:
    record = read("mmmu")
    assert record.options == ("<image 1>", "Crohn's, \\alpha", "Neither")
    assert (record.id, record.answer, record.images) == ("validation_Clinical_Medicine_7", "B", ("a.png", "b.png"))
    assert (record.task, record.dataset) == ("Clinical Medicine", "MMMU")
    assert record.metadata == {
        "img_type": "['CT']",
        "topic_difficulty": "Medium",
        "question_type": "multiple-choice",
        "subfield": "Clinical Radiology",
    }
    assert read("mmmu", options=["x", "y"]).options == ("x", "y")
    assert read("mmmu", options="[1, 2.5]").options == ("1", "2.5")
    gap = read("mmmu", image_2=None, image_3="c.png")
    assert (gap.images, gap.metadata["image_fields"]) == (("a.png", "c.png"), "image_1 image_3")


def test_mmmu_leaves_out_other_subjects_and_hidden_answers() -> None:
    for changes, reason in [
        ({"id": "dev_Art_1"}, "subject Art"),
        ({"answer": "?"}, "not pub"),
        ({"answer": ""}, "not pub"),
    ]:
        with pytest.raises(Unused, match=reason):
            read("mmmu", **changes)


def test_mmmu_open_questions_have_no_options() -> None:
    record = read("mmmu", options="[]", question_type="open", answer="1.06")
    assert (record.options, record.answer, record.answer_type) == ((), "1.06", "open")
    several = read("mmmu", options="[]", question_type="open", answer="['1/7', '0.14']")
    assert (several.answer, several.metadata["answers"]) == ("1/7", "['1/7', '0.14']")
    assert read("mmmu", options="[]", question_type="open", answer="[Ca2+] rises").answer == "[Ca2+] rises"
    with pytest.raises(DataError, match="field 'options': expected options, as 'question_type' is multiple-choice"):
        read("mmmu", options="[]")


@pytest.mark.parametrize(
    "options",
    [
        "[" * 9000,
        "[" + "-" * 9000 + "1]",
        "[0x" + "f" * 9000 + "]",
        "['a', '" + "b" * 30_000 + "']",
        "['a', open('b')]",
        "{}",
    ],
)
def test_mmmu_options_that_are_no_list_are_refused(options: str) -> None:
    with pytest.raises(DataError, match="field 'options'"):
        read("mmmu", options=options)


def test_medqa_in_its_three_layouts() -> None:
    record = read("medqa")
    assert (record.options[4], record.answer, record.dataset, record.metadata) == (
        "Nitrofurantoin",
        "E",
        "MedQA",
        {"meta_info": "step2&3"},
    )
    hf = read("medqa_hf")
    assert (hf.id, hf.question, hf.answer, len(hf.options), hf.metadata) == (
        "train-00000",
        "A 23-year-old woman ...",
        "D",
        4,
        {},
    )
    assert (read("medqa_hf", label="0").answer, read("medqa_hf", sent2="Next?").question[-6:]) == ("A", "\nNext?")
    open_ended = {"Open-ended Verifiable Question": "Which drug?", "Ground-True Answer": "it"}
    huatuo = read("medqa", **open_ended)
    assert (huatuo.dataset, huatuo.metadata) == ("HuatuoGPT-o1", open_ended | {"meta_info": "step2&3"})


def test_medqa_text_and_letter_must_agree() -> None:
    assert read("medqa", answer="nitrofurantoin.").answer == "E"
    with pytest.raises(DataError, match='field \'answer\': expected "Nitrofurantoin", the text of option E, got "Ampi'):
        read("medqa", answer="Ampicillin")
    with pytest.raises(DataError, match="field 'label': expected one of 0, 1, 2, 3, got 4"):
        read("medqa_hf", label=4)


def test_medmcqa_counts_from_0_or_1() -> None:
    record = read("medmcqa_0")
    assert (record.id, record.answer, record.task) == (ROWS["medmcqa_0"]["id"], "D", "Physiology")
    assert record.metadata == {"choice_type": "multi", "explanation": "Because."}
    row = ROWS["medmcqa_0"]
    assert [FORMATS["medmcqa_1"][1](row | {"cop": cop}, "", "").answer for cop in (1, 2, 3, "4")] == [*"ABCD"]
    assert [FORMATS["medmcqa_0"][1](row | {"cop": cop}, "", "").answer for cop in (0, 1, "2", 3)] == [*"ABCD"]
    for name, cop, expected in [
        ("medmcqa_0", 4, "0, 1, 2, 3, -1"),
        ("medmcqa_1", 0, "1, 2, 3, 4, -1"),
        ("medmcqa_0", True, "0"),
    ]:
        with pytest.raises(DataError, match=f"field 'cop': expected one of {expected}"):
            FORMATS[name][1](row | {"cop": cop}, "", "")
    for hidden in (row | {"cop": -1}, without(row, "cop")):
        with pytest.raises(Unused, match="answer is not published"):
            FORMATS["medmcqa_0"][1](hidden, "", "")
    # One row of a file tells its base only at the ends.
    assert [FORMATS["medmcqa"][1](row | {"cop": cop}, "", "").answer for cop in (0, 4)] == [*"AD"]
    with pytest.raises(DataError, match="medmcqa_1 for the authors' own"):
        FORMATS["medmcqa"][1](row, "", "")


@pytest.mark.parametrize(
    ("cops", "base"),
    [
        ([3, 0, 2], "medmcqa_0"),
        ([1, "4"], "medmcqa_1"),
        ([-1, -1], "medmcqa_0"),
        ([1, -1, 0], "medmcqa_0"),
        ([0, 1, 4], "got both 0 and 4"),
        ([1, 2, 3], r"got only \[1, 2, 3\]; name the format: medmcqa_0 for"),
        ([2, -1, None, [4], False], "medmcqa_0 for files from the hub"),
    ],
)
def test_medmcqa_base_is_told_by_the_whole_file(cops: list, base: str) -> None:
    rows = [DataError("line 1"), *({"cop": cop} for cop in cops), "text", {}]
    if base in FORMATS:
        assert medmcqa_base(rows) == base
    else:
        with pytest.raises(DataError, match=base):
            medmcqa_base(rows)


def test_pubmedqa_puts_the_abstract_before_the_question() -> None:
    own, hub, data = (read(name) for name in ("pubmedqa", "pubmedqa_hub", "pubmedqa_data"))
    stem = "Lace plants make holes.\n\nMitochondria move.\n\nDo mitochondria play a role?"
    for record in (own, hub, data):
        assert (record.question, record.options, record.answer) == (stem, ("yes", "no", "maybe"), "C")
        assert record.problem == stem + "\nA) yes\nB) no\nC) maybe"
    assert (own.id, hub.id, data.id) == ("pubmedqa-21645374", "pubmedqa-21645374", "7a9f")
    assert own.metadata == {
        "LABELS": '["BACKGROUND", "RESULTS"]',
        "MESHES": '["Alismataceae"]',
        "YEAR": "2011",
        "reasoning_required_pred": "yes",
        "reasoning_free_pred": "yes",
        "LONG_ANSWER": "They seem to.",
    }
    assert hub.metadata == {
        "labels": '["BACKGROUND", "RESULTS"]',
        "meshes": '["Alismataceae"]',
        "long_answer": "They seem to.",
    }
    assert data.metadata == {"Long Answer": "They seem to.", "subject_name": "biology"}
    assert read("pubmedqa", final_decision=" Yes").answer == "A"
    with pytest.raises(DataError, match="field 'final_decision': expected yes, no or maybe, got \"perhaps\""):
        read("pubmedqa_hub", final_decision="perhaps")


def test_pubmedqa_options_keep_their_published_order() -> None:
    data = ROWS["pubmedqa_data"]["data"] | {"Options": {"A": "maybe", "B": "yes", "C": "no"}, "Correct Option": "A"}
    record = read("pubmedqa_data", data=data)
    assert (record.options, record.answer) == (("maybe", "yes", "no"), "A")
    with pytest.raises(DataError, match="field 'Correct Answer': expected \"no\""):
        read("pubmedqa_data", data=data | {"Correct Option": "C"})


def test_mmlu_pro_keeps_health_and_its_fillers() -> None:
    record = read("mmlu_pro")
    assert (record.id, record.answer, record.options[8:]) == ("mmlu_pro-6187", "I", ("y", "N/A"))
    assert record.metadata == {"category": "health", "src": "ori_mmlu-nutrition"}
    with pytest.raises(Unused, match="category law"):
        read("mmlu_pro", category="law")
    with pytest.raises(DataError, match="field 'answer_index': expected that of I, which 'answer' names, got 7"):
        read("mmlu_pro", answer_index=7)
    with pytest.raises(DataError, match="field 'options': expected 2 to 10 options, got 11"):
        read("mmlu_pro", options=[*"qrstuvwxyz", "N/A"])


def test_gpqa_is_shuffled_the_same_way_everywhere() -> None:
    record = read("gpqa")
    # The order of sha256("Which gene?\n" + option), worked out apart.
    assert record.options == ("one", "the right one", "three", "two")
    assert (record.answer, record.id, record.task) == ("B", "rec06pnAkLOr2t2mp", "Genetics")
    assert record.metadata == {
        "High-level domain": "Biology",
        "Canary String": "do not train",
        "explanation": "Because.",
    }
    moved = {"Incorrect Answer 1": "three", "Incorrect Answer 2": "one", "Incorrect Answer 3": "two"}
    assert read("gpqa", **moved).options == record.options
    letters = Counter(read("gpqa", Question=f"Which gene {n}?").answer for n in range(400))
    assert all(70 <= letters[letter] <= 130 for letter in "ABCD")
    with pytest.raises(Unused, match="domain Physics"):
        read("gpqa", **{"High-level domain": "Physics"})
    with pytest.raises(DataError, match="field 'Incorrect Answer 2': expected another text than in 'Correct Answer'"):
        read("gpqa", **{"Incorrect Answer 2": "The right one."})


def test_medvlthinker_options_are_json_text() -> None:
    record = read("medvlthinker")
    assert (record.id, record.options, record.answer) == ("", ("Lung, left", "Liver"), "B")
    assert (record.images, record.dataset, record.metadata) == (("images/a.jpg",), "pmc_vqa", {"dataset_index": "4"})
    assert read("medvlthinker", options="A. Lung, left\nB. Liver").options == record.options
    assert read("medvlthinker", options='{"B": "Liver", "A": "Lung, left"}').options == record.options
    assert read("medvlthinker", images=None).images == ()
    for options in (
        '{"A": "Lung"',
        '{"A": "Lung", "C": "Liver"}',
        '{"A": "Lung", "B": " "}',
        "[" * 99_999,
        "Liver",
        "[1]",
    ):
        with pytest.raises(DataError, match="field 'options'"):
            read("medvlthinker", options=options)
    with pytest.raises(DataError, match="field 'answer': expected \"Liver\""):
        read("medvlthinker", answer="Lung, left")


def test_open_medical_r1_takes_options_from_wherever_they_are() -> None:
    record = read("open_medical_r1")
    assert (record.question, record.options, record.answer) == ("Which drug?", ("aspirin", "iron (oral)"), "B")
    assert record.problem == ROWS["open_medical_r1"]["question"]
    assert read("open_medical_r1", option={"A": "aspirin", "B": "iron (oral)"}) == record
    assert read("open_medical_r1", question="Which drug? A) aspirin, B) iron (oral)").options == record.options
    with pytest.raises(DataError, match="field 'option': expected \"aspirin\", the text of option A"):
        read("open_medical_r1", answer="A")
    for question in ("Which drug?", "Given (A) pallor, and (B) fatigue, which drug?"):
        alone = read("open_medical_r1", question=question)
        assert (alone.problem, alone.options, alone.answer, alone.metadata) == (
            question,
            (),
            "iron (oral)",
            {"letter": "B"},
        )


def test_labels_of_the_file_are_kept_where_the_row_has_none() -> None:
    record = FORMATS["medvlthinker"][1](ROWS["medvlthinker"], "ct", "Disease Diagnosis")
    assert (record.modality, record.task) == ("ct", "Disease Diagnosis")
    assert FORMATS["medxpertqa"][1](MEDXPERT, "", "Disease Diagnosis").task == "Treatment"


CHECKED = {
    "medxpertqa": "id question options label images medical_task",
    "mmmu": "id question options image_1 image_2 answer",
    "medqa": "question options answer answer_idx",
    "medqa_hf": "id sent1 sent2 ending0 ending1 ending2 ending3 label",
    "medmcqa_0": "id question opa opb opc opd cop exp subject_name",
    "pubmedqa": "pubid QUESTION CONTEXTS final_decision",
    "pubmedqa_hub": "pubid question context final_decision",
    "pubmedqa_data": "id data",
    "mmlu_pro": "question_id question options answer answer_index category",
    "gpqa": "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,Explanation"
    ",High-level domain,Subdomain",
    "medvlthinker": "images question options answer_label answer dataset_name",
    "open_medical_r1": "question answer option",
}
WRONG = (True, [[["x"]]], {"x": [1]}, "x" * 200_000, "\ud800")
INSIDE = {"context": "contexts", "data": "Question"}
"""Fields that hold others -> the first one missing inside."""


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("value", WRONG, ids=("truth", "nested", "object", "huge", "half"))
def test_a_wrong_value_is_an_error_that_names_the_field(name: str, value: object) -> None:
    for field in CHECKED[name].split("," if "," in CHECKED[name] else None):
        named = INSIDE.get(field, field) if value == {"x": [1]} else field
        with pytest.raises(DataError, match=f"field '{named}'") as error:
            read(name, **{field: value})
        assert len(str(error.value)) < 400


NEEDED_UNNAMED = {"QUESTION", "ending0", "ending3", "data"}
"""Without these a row looks like another layout, and the error is about that one."""


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_or_null_field_is_an_error_that_names_it_or_was_not_needed(name: str) -> None:
    for field in ROWS[name]:
        for row in (without(ROWS[name], field), ROWS[name] | {field: None}):
            got = outcome(name, row)
            if (name, field) == ("medmcqa_0", "cop") and field not in row:
                assert got == "answer is not published"
            elif isinstance(got, str) and field not in NEEDED_UNNAMED:
                assert f"field '{field}'" in got


def outcome(name: str, row: dict) -> Record | str:
    """The record of a row, or why there is none."""
    try:
        return FORMATS[name][1](row, "", "")
    except (Unused, DataError) as error:
        return str(error)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from("ABC?12"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ABCx") | st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ROWS)).flatmap(lambda n: st.tuples(st.just(n), st.sampled_from(sorted(ROWS[n])), VALUE)))
def test_whatever_a_field_holds_gives_a_sound_record_or_an_error(tmp_path_factory, change) -> None:
    name, field, value = change
    record = outcome(name, ROWS[name] | {field: value})
    if isinstance(record, str):
        assert record.startswith(("field ", "answer is not published", "subject ", "category ", "domain "))
        return
    assert round_trip(tmp_path_factory.mktemp("exam"), record) == replace(record, id=record.id or "own-0")


def round_trip(folder: Path, record: Record) -> Record:
    rows = [{name: value for name, value in asdict(record).items() if name != "id" or value}]
    (folder / "own.jsonl").write_text(json.dumps(rows), encoding="utf-8")
    write_jsonl(folder / "own.jsonl", read_records(folder / "own.jsonl", "jsonl"))
    return read_records(folder / "own.jsonl", "jsonl")[0]


@pytest.mark.parametrize("name", ROWS)
def test_every_text_of_a_row_survives_in_our_own_format(tmp_path: Path, name: str) -> None:
    record = read(name)
    back = round_trip(tmp_path, record)
    assert back == replace(record, id=record.id or "own-0")
    kept = [back.id, back.problem, *back.images, back.task, back.dataset, *back.metadata.values()]
    kept = " ".join([*kept, back.options[LETTERS.index(back.answer)], back.answer])
    for value in texts_of(without(ROWS[name], "metamap_phrases")):
        assert value.strip().replace("_", " ") in kept.replace("_", " ")


def texts_of(value: object) -> list[str]:
    """All texts inside a row that are no encoded lists."""
    if isinstance(value, dict):
        return [found for item in value.values() for found in texts_of(item)]
    if isinstance(value, list):
        return [found for item in value for found in texts_of(item)]
    return [value] if isinstance(value, str) and value[:1] not in "[{" else []
