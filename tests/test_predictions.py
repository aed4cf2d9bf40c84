"""Files of predictions: what is written is read again, what others write is understood, and faults are named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.predictions import Prediction, from_row, line_of, read_predictions, to_row, write_predictions
from medgrpo.types import LETTERS, DataError, Record

QUESTION = Record("q", "Seen? A) cyst B) mass", "Seen?", ("cyst", "mass"), "B", ("a/1.png",), "ct", "Diagnosis", "X")
ONE = Prediction(QUESTION, ("<answer>B</answer>",), (False,), (5,), "image", "<|im_start|>", True, "A")
THREE = Prediction(QUESTION, ("<answer>B</answer>", "", "c"), (False, True, True), (5, 9, 9), "blank")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize("prediction", [ONE, THREE])
def test_rows_come_back(prediction):
    assert from_row(to_row(prediction), "") == prediction


@given(st.lists(TEXT, min_size=0, max_size=10).filter(lambda texts: len(texts) != 1), TEXT, TEXT, st.data())
def test_any_prediction_comes_back(options, text, completion, data):
    gold = data.draw(st.sampled_from(LETTERS[: len(options)])) if options else text
    record = Record(text, text, text, tuple(options), gold, (text,), closed=not options, metadata={"who": text})
    prediction = Prediction(record, (completion,), (data.draw(st.booleans()),), seen=None, option_prior=None)
    assert from_row(json.loads(line_of(prediction)), "") == prediction


def test_blanks_around_an_open_answer_come_back():
    """Else a test that was stopped could not go on: its question would be another one."""
    prediction = Prediction(Record("q", "Seen?", "Seen?", (), " a cyst\n"), ("x",), (False,))
    assert from_row(json.loads(line_of(prediction)), "") == prediction


def test_a_row_says_what_was_read_from_the_first_completion():
    assert {name: to_row(THREE)[name] for name in ("answer", "correct", "strict_correct", "gold")} == {
        "answer": "B",
        "correct": True,
        "strict_correct": True,
        "gold": "B",
    }
    lenient = Prediction(QUESTION, ("The answer is B.",), (False,))
    assert (to_row(lenient)["correct"], to_row(lenient)["strict_correct"]) == (True, False)


def test_the_least_that_a_row_needs():
    row = {"id": 7, "completion": "<answer>b", "options": {"A": "cyst", "B": "mass"}, "gold": "b"}
    read = from_row(row, "")
    assert (read.record.id, read.record.options, read.record.answer) == ("7", ("cyst", "mass"), "B")
    assert read.truncated == (True,)  # a tag that is not closed
    assert from_row(row | {"options": {"b": "mass", "a": "cyst"}}, "").record.options == ("cyst", "mass")
    assert from_row(row | {"completion": "<answer>b</answer>"}, "").truncated == (False,)
    assert from_row(row | {"truncated": False}, "").truncated == (False,)
    assert from_row({"id": "o", "completion": "a cyst", "gold": "cyst"}, "").record.answer_type == "open"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": None}, "field 'id'"),
        ({"completion": 3}, "field 'completion'"),
        ({"gold": None}, "field 'gold'"),
        ({"gold": "C"}, "letter from A to B, got 'C'"),
        ({"gold": "AB"}, "letter from A to B"),
        ({"options": ["one"]}, "options: expected 2 to 10"),
        ({"options": "AB"}, "options: expected 2 to 10"),
        ({"options": {"A": "x", "C": "y"}}, "options: expected 2 to 10"),
        ({"options": ["x", 3]}, "options: expected 2 to 10"),
        ({"view": "upside down"}, "view: expected one of image, blank"),
        ({"samples": [{"text": "x"}]}, "samples"),
        ({"images": [1]}, "images"),
        ({"modality": 3}, "field 'modality'"),
        ({"seen": "yes"}, "seen: expected true, false or none"),
        ({"option_prior": "C"}, "option_prior: expected the letter of an option"),
        ({"option_prior": ""}, "option_prior: expected the letter of an option"),
    ],
)
def test_faults_of_a_row_are_named(change, said):
    row = {"id": "q", "completion": "x", "options": ["cyst", "mass"], "gold": "A"}
    with pytest.raises(DataError, match=said) as error:
        from_row(row | change, "file, line 3")
    assert str(error.value).startswith("file, line 3: ")


def test_a_file_comes_back(tmp_path):
    write_predictions(tmp_path / "p.jsonl", [ONE, THREE])
    assert read_predictions(tmp_path / "p.jsonl") == [ONE, THREE]
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_the_line_that_a_dying_run_wrote_is_left_out(tmp_path, cut):
    text = line_of(ONE) + line_of(THREE)
    path = tmp_path / "p.jsonl"
    path.write_text(text[:-cut], encoding="utf-8")
    whole = [ONE, THREE] if cut == 1 else [ONE]  # only the newline is missing
    assert read_predictions(path) == whole


def test_faults_of_a_file_are_named(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(DataError, match="expected a file of predictions"):
        read_predictions(path)
    path.write_text(line_of(ONE) + line_of(ONE), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: the id 'q' has a line already"):
        read_predictions(path)
    path.write_text("no JSON\n" + line_of(ONE), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        read_predictions(path)
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        read_predictions(path)
