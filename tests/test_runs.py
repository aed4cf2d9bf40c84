"""Folders of predictions: which are found, what is known of them, and what a damaged file says."""

import json
from dataclasses import asdict

import pytest

from medgrpo.predictions import Prediction, write_predictions
from medgrpo.runs import TRAINED_ON, TrainedOn, find_runs, trained_on, write_json
from medgrpo.types import DataError, Record

RECORD = Record("q", "Seen? A) cyst B) mass", "Seen?", ("cyst", "mass"), "B", modality="ct")
CT = TrainedOn(("ct",), ("Diagnosis",), (), 5, "think", 3)
DAMAGED = ["", "{", "[]", "null", "3", "\xff", '{"settings": 3}', '{"image_root": 3}', '{"trained_on": "ct"}']


def make(folder, run=None):
    folder.mkdir(parents=True)
    write_predictions(folder / "predictions.jsonl", [Prediction(RECORD, ("<answer>B</answer>",), (False,))])
    if run is not None:
        write_json(folder / "run.json", run)
    return folder


def test_a_run_says_how_it_was_made(tmp_path):
    settings = {"data.prompt": "med_r1_nothink"}
    make(tmp_path / "a", {"settings": settings, "image_root": "/images", "trained_on": asdict(CT)})
    (run,) = find_runs([tmp_path])
    assert (run.name, run.prompt, run.mode, run.image_root) == ("a", "med_r1_nothink", "nothink", "/images")
    assert run.trained_on == CT
    assert [p.record for p in run.predictions] == [RECORD]


def test_what_is_not_said_is_unknown(tmp_path):
    (run,) = find_runs([make(tmp_path / "a")])
    assert (run.settings, run.image_root, run.trained_on, run.prompt, run.mode) == ({}, ".", None, "", "")


def test_a_text_of_ones_own_has_no_mode(tmp_path):
    (run,) = find_runs([make(tmp_path / "a", {"settings": {"data.prompt": "Think. {Question}"}})])
    assert run.mode == ""


def test_names_are_the_parts_of_the_paths_that_differ(tmp_path):
    for name in ("ct/test", "mri/test"):
        make(tmp_path / "runs" / name)
    assert [run.name for run in find_runs([tmp_path, tmp_path / "runs/ct"])] == ["ct/test", "mri/test"]
    assert find_runs([]) == []
    with pytest.raises(DataError, match="got nothing"):
        find_runs([tmp_path / "none"])


@pytest.mark.parametrize("said", DAMAGED)
def test_a_damaged_run_is_named(tmp_path, said):
    (make(tmp_path / "a") / "run.json").write_bytes(said.encode("latin-1"))
    with pytest.raises(DataError, match=r"run\.json: expected"):
        find_runs([tmp_path])


@pytest.mark.parametrize("said", ["", "[]", "null", '{"step": "3"}', '{"modalities": "ct"}', '{"more": 1}'])
def test_damaged_words_on_training_are_named(tmp_path, said):
    (tmp_path / TRAINED_ON).write_text(said)
    with pytest.raises(DataError, match=r"trained_on\.json: expected"):
        trained_on(tmp_path)


def test_what_was_trained_on_comes_back(tmp_path):
    assert trained_on(tmp_path) is None
    write_json(tmp_path / TRAINED_ON, asdict(CT))
    assert trained_on(tmp_path) == CT
    assert json.loads((tmp_path / TRAINED_ON).read_text())["modalities"] == ["ct"]
