"""Results in the layout of Med-R1 and MedVLM-R1: written, read back, and read from files made as theirs are."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.answers import verdict
from medgrpo.predictions import Prediction, write_predictions
from medgrpo.results import is_results, read_results, write_results
from medgrpo.types import DataError, Record

SHARED = Path(__file__).parents[2] / "shared" / "data"

CHOICE = Prediction(
    Record(
        id="7",
        problem="Which organ? A)Skin, B)Breast, tissue",
        question="Which organ?",
        options=("Skin", "Breast, tissue"),
        answer="B",
        images=("Images/MIAS/a.png",),
        modality="xray",
        task="Anatomy Identification",
        dataset="MIAS",
        metadata={"patient": "12"},
    ),
    completions=("<think>x</think>\n<answer>B</answer>",),
    truncated=(False,),
    num_tokens=(9,),
    prompt="<|im_start|>user\nWhich organ?",
    seen=True,
    option_prior="A",
)
OPEN = Prediction(Record("8", "What is seen?", "What is seen?", (), "a cyst"), ("<answer>A cyst.</answer>",), (False,))
CLOSED = Prediction(
    Record("9", "Is it \u2264 2 cm?", "Is it \u2264 2 cm?", (), "yes", images=("a.png", "b.png"), closed=True),
    ("<think>it goes on",),
    (True,),
)
EMPTY = replace(CHOICE, record=replace(CHOICE.record, id="10"), completions=("",))
BOXED = replace(CHOICE, record=replace(CHOICE.record, id="11"), completions=("so \\boxed{B}",))
ALL = [CHOICE, OPEN, CLOSED, EMPTY, BOXED]


def write(path: Path, results: object, **about: object) -> Path:
    path.write_text(json.dumps({"accuracy": 50.0, **about, "results": results}, indent=4), encoding="utf-8")
    return path


def med_r1(output: str = "<answer>B</answer>", gold: str = "<answer> B </answer>", **question: object) -> dict:
    problem = "What is shown? A)Mammogram, B)Positron emission tomography (PET), C)CT, D)Fluoroscopy"
    asked = {"image": "Images/Chest CT Scan/test/a (9).png", "problem": problem, "solution": "<answer> B </answer>"}
    return {"question": asked | question, "ground_truth": gold, "model_output": output, "extracted_answer": None}


def test_what_is_written_is_read_back_whole(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", ALL)
    assert read_results(tmp_path / "r.json") == ALL


def test_accuracy_is_that_of_regrading(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", ALL)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["accuracy"] == 60.0  # the choice, the open question and the box; neither the cut nor the empty one
    verdicts = [verdict(p.record, p.completions[0], "lenient") for p in read_results(tmp_path / "r.json")]
    assert verdicts == ["right", "right", "unparsed", "unparsed", "right"]


def test_the_layout_is_that_of_med_r1(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", ALL)
    content = json.loads((tmp_path / "r.json").read_text())
    assert list(content) == ["accuracy", "results"]
    first = content["results"][0]
    assert list(first) == ["question", "ground_truth", "model_output", "extracted_answer"]
    assert list(first["question"])[:3] == ["image", "problem", "solution"]
    assert first["question"]["image"] == "Images/MIAS/a.png"
    assert first["question"]["solution"] == "<answer> B </answer>"
    assert first["ground_truth"] == first["extracted_answer"] == "B"
    assert [r["extracted_answer"] for r in content["results"]] == ["B", "A cyst.", None, None, "B"]
    assert not {"answer", "completion", "gold"} & first["question"].keys()


def test_an_answer_that_is_not_read_is_null(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [replace(OPEN, completions=("<answer> </answer>",))])
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["extracted_answer"] is None


def test_the_records_written_are_med_r1s(tmp_path: Path) -> None:
    """Without our own fields the file is a foreign one, and says the same."""
    write_results(tmp_path / "r.json", [CHOICE])
    content = json.loads((tmp_path / "r.json").read_text())
    question = content["results"][0]["question"]
    content["results"][0]["question"] = {name: question[name] for name in ("image", "problem", "solution")}
    (found,) = read_results(write(tmp_path / "s.json", content["results"]))
    for name in ("problem", "question", "options", "answer", "images", "dataset"):
        assert getattr(found.record, name) == getattr(CHOICE.record, name)


def test_only_the_image_view_is_written_with_all_samples(tmp_path: Path) -> None:
    several = replace(
        CHOICE, completions=("<answer>A</answer>", "<answer>B</answer>"), truncated=(False, True), num_tokens=(3, 4)
    )
    write_results(tmp_path / "r.json", [replace(CHOICE, view="blank"), several])
    (found,) = read_results(tmp_path / "r.json")
    assert found == several
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["accuracy"] == 50.0
    content["results"][1]["question"]["sample"] = 2  # the one between them is missing
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="ids must be unique"):
        read_results(tmp_path / "r.json")


def test_nothing_to_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="view `image`"):
        write_results(tmp_path / "r.json", [replace(CHOICE, view="blank")])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [CHOICE])

    def broken():
        yield OPEN
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_results(tmp_path / "r.json", broken())
    assert read_results(tmp_path / "r.json") == [CHOICE]


def test_folders_are_made_and_a_place_without_one_is_named(tmp_path: Path) -> None:
    write_results(tmp_path / "a" / "b" / "r.json", ALL)
    assert read_results(tmp_path / "a" / "b" / "r.json") == ALL
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a file that can be written; "):
        write_results(tmp_path / "file" / "r.json", ALL)


def test_a_file_of_med_r1(tmp_path: Path) -> None:
    path = write(tmp_path / "CT_test.json", [med_r1(), med_r1("B)", gold="B"), med_r1("<think>I see")])
    first, second, third = read_results(path)
    assert [p.record.id for p in (first, second, third)] == ["0", "1", "2"]
    assert first.record.options == ("Mammogram", "Positron emission tomography (PET)", "CT", "Fluoroscopy")
    assert first.record.question == "What is shown?"
    assert first.record.answer == second.record.answer == "B"
    assert first.record.images == ("Images/Chest CT Scan/test/a (9).png",)
    assert (first.record.modality, first.record.dataset) == ("ct", "Chest CT Scan")
    assert second.completions == ("B)",)
    assert [p.truncated for p in (first, second, third)] == [(False,), (False,), (True,)]


def test_a_file_of_medvlm_r1(tmp_path: Path) -> None:
    question = {
        "image": ["images/knee031316.png"],
        "problem": "What is seen?\nA) Chondral abnormality\nB) Ligament tear",
        "solution": "A",
        "question": "What is seen?",
        "options": ["Chondral abnormality", "Ligament tear"],
        "answer": "Chondral abnormality",
        "dataset": "OmniMedVQA",
        "subset": "MR (Mag-netic Resonance Imaging)",
    }
    result = {"question": question, "ground_truth": "A", "model_output": " <answer>A</answer>\n"}
    (found,) = read_results(write(tmp_path / "r.json", [result]))
    assert found.record.options == ("Chondral abnormality", "Ligament tear")
    assert (found.record.answer, found.record.modality, found.record.id) == ("A", "mri", "0")
    assert found.completions == (" <answer>A</answer>\n",)  # verbatim


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([3], r"results\[0\]: expected an object whose `question`"),
        ([{"question": "Which?", "ground_truth": "B", "model_output": "B"}], "the whole record"),
        ([med_r1(), med_r1() | {"model_output": None}], r"results\[1\]: expected a text in the field 'model_output'"),
        ([{"question": {"a": 1}, "ground_truth": "B", "model_output": "B"}], r"fields of Med-R1 .*got \['a'\]"),
        ([med_r1(gold="A")], "`ground_truth` is 'A', and the solution of the question 'B'"),
        ([med_r1(gold="E")], "field 'ground_truth'"),
        ([med_r1(problem="")], "field 'problem'"),
        ([med_r1(problem="Q? " + " ".join(f"{c}) {c}x" for c in "ABCDEFGHIJKL"))], "2 to 10 texts"),
        ([med_r1(image=3)], "field 'image'"),
        ({}, "a list in `results`"),
    ],
)
def test_what_is_malformed_is_named_by_its_place(tmp_path: Path, results: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_results(write(tmp_path / "r.json", results))


def test_ids_must_be_unique(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [CHOICE, CHOICE])
    with pytest.raises(DataError, match=r"results\[1\]: the id '7'"):
        read_results(tmp_path / "r.json")


def test_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(DataError, match="No such file"):
        is_results(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"accuracy": 50.0, "results": [{')
    with pytest.raises(DataError, match="is it whole"):
        read_results(tmp_path / "half.json")


def test_results_are_told_from_predictions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_results(path, ALL)
    assert is_results(path)
    for predictions in ([], ALL, ALL[:1]):
        write_predictions(path, predictions)
        assert not is_results(path)
    assert is_results(write(path, []))
    assert is_results(write(path, [], model='a "results": [ b', step=3, greedy=True))
    path.write_text('\ufeff{"results":[{"question": {}}]}')
    assert is_results(path)
    for text in ("", "[]", "[1, 2]", '{"id": "\\"results\\": [", "completion": "x"}', '{"results": 3}'):
        path.write_text(text)
        assert not is_results(path), text


TEXT = st.text(st.characters(), max_size=30) | st.just("half of a character: \ud800")


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from([CHOICE, OPEN, CLOSED]))
def test_any_text_survives(texts: list[str], like: Prediction) -> None:
    predictions = [
        replace(like, record=replace(like.record, id=str(i)), completions=(text,)) for i, text in enumerate(texts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder, "r.json"), predictions)
        assert read_results(Path(folder, "r.json")) == predictions


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["medvlm_r1/examples.json", "med_r1/modality/test/X-Ray_test.json"])
def test_results_on_the_real_records(name: str, tmp_path: Path) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs {SHARED / name}")
    records = json.loads((SHARED / name).read_text(encoding="utf-8"))
    results = [
        {"question": record, "ground_truth": record["solution"], "model_output": record["solution"]}
        for record in records
    ]
    found = read_results(write(tmp_path / Path(name).name, results))
    assert len(found) == len(records)
    write_results(tmp_path / "ours.json", found)
    assert read_results(tmp_path / "ours.json") == found
