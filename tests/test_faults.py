"""Faults in a run: rewards that fail, images and processes that break; what the user reads, what is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_cli import write_config, write_data

import data_modules.collate
from data_modules.images import open_rgb
from medgrpo import failures
from medgrpo.failures import last_words
from medgrpo.module import GRPOModule
from medgrpo.rewards import Reward
from medgrpo.trainer_cli import MedGRPOCLI, main
from medgrpo.types import DataError

BAD = "images/3 0.png"
"""The only image of record 3 of `write_data`."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)  # where tracebacks are kept
    return tmp_path


def truncate(path: Path) -> None:
    """The header stays, so the check before training passes."""
    Image.effect_noise((90, 90), 50).convert("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def stopped(command: str, config: str, *more: str) -> str:
    """What is said when the command stops."""
    with pytest.raises(SystemExit) as error:
        main([command, "--config", config, *more])
    said = str(error.value)
    assert said.startswith("medgrpo: ")
    assert "Traceback (most" not in said
    return said


# ------------------------------------------------------------------------------------------------------------- images


def fit(folder: Path, name: str, *more: str, **changes) -> dict[str, torch.Tensor]:
    """The adapter after four steps."""
    changes = {"trainer__max_steps": 4, "data__init_args__prompts_per_batch": 3} | changes
    config = write_config(folder, **changes)
    main(["fit", "--config", config, "--data.init_args.val", "null", "--trainer.logger.init_args.version", name, *more])
    return load_file(folder / f"runs/{name}/checkpoints/step4/adapter_model.safetensors")


def test_a_broken_image_is_skipped_alike_with_workers_and_after_resuming(folder, capsys):
    truncate(folder / BAD)
    with pytest.warns(UserWarning, match=rf"skipped: record questions-3: .*{BAD}: image cannot be decoded"):
        alone = fit(folder, "alone")
    lines = [json.loads(line) for line in (folder / "runs/alone/skipped_images.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"questions-3"}
    assert all(line["instead"] != "questions-3" and BAD in line["reason"] for line in lines)
    assert f"rank 0 skipped 1 records with broken images, {len(lines)} times in all: see " in capsys.readouterr().out
    with pytest.warns(UserWarning, match="skipped"):
        helped = fit(folder, "helped", "--data.init_args.num_workers", "2")
    half = str(folder / "runs/alone/checkpoints/step2.ckpt")
    rest = fit(folder, "rest", "--ckpt_path", half)
    for other in (helped, rest):
        assert all(torch.equal(alone[name], other[name]) for name in alone)
    again = [json.loads(line) for line in (folder / "runs/helped/skipped_images.jsonl").read_text().splitlines()]
    assert again[: len(lines)] == lines  # workers may have prepared batches that were not used


def test_a_broken_image_can_be_an_error_in_training_and_is_one_in_evaluation(folder):
    truncate(folder / BAD)
    # The probe or the validation would meet the image, too.
    alone = {"memory_probe__enabled": False, "data__init_args__val": None}
    config = write_config(folder, data__init_args__on_bad_image="error", **alone)
    for workers in ("0", "1"):
        said = stopped("fit", config, "--data.init_args.num_workers", workers)
        assert re.fullmatch(rf"medgrpo: record questions-3: .*{BAD}: image cannot be decoded .*truncated", said), said
    config = write_config(folder)
    for command in ("validate", "test", "predict"):
        said = stopped(command, config, "--data.init_args.num_workers", "1", "--predictions.dirpath", "out")
        assert re.fullmatch(rf"medgrpo: record questions-3: .*{BAD}: image cannot be decoded .*truncated", said), said
    assert not list(folder.glob("medgrpo_error_*"))  # no traceback is needed


def test_a_run_without_any_whole_image_stops(folder):
    for path in (folder / "images").iterdir():
        truncate(path)
    records = json.loads((folder / "questions.json").read_text())
    (folder / "questions.json").write_text(json.dumps([record for record in records if record["image"]]))
    said = stopped("fit", write_config(folder, data__init_args__prompts_per_batch=2))
    assert re.match(r"medgrpo: record questions-\d: .* cannot be decoded .* of 4 records that .* none can; is", said)


def test_what_a_command_needs_is_named(folder):
    said = stopped("fit", write_config(folder, data__init_args__train=None))
    assert said == "medgrpo: fit needs data.train: set it to a question file or a list of them"


# ---------------------------------------------------------------------------------------------------------- processes


def test_a_dead_worker_is_one_line_that_says_what_to_change(folder, monkeypatch):
    def die(*args):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return open_rgb(*args)

    monkeypatch.setattr(data_modules.collate, "open_rgb", die)
    said = stopped("fit", write_config(folder), "--data.init_args.num_workers", "1")
    assert re.match(r"medgrpo: a process that prepares batches has died \(DataLoader worker \(pid", said), said
    assert "data.num_workers" in said
    assert len(said.splitlines()) == 1


def test_an_error_that_nobody_expected_is_one_line_and_its_traceback_is_kept(folder, monkeypatch, capsys):
    def fail(*_):
        raise OSError("the first\nthe second")

    monkeypatch.setattr(GRPOModule, "configure_optimizers", fail)
    said = stopped("fit", write_config(folder))
    path = folder / f"medgrpo_error_{os.getpid()}.txt"
    assert said == f"medgrpo: fit stopped: OSError: the first\nThe whole traceback is in {path}"
    assert "the second" in path.read_text()
    assert ", in fail\n" in path.read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_an_unexpected_error_of_a_worker_tells_its_own_type(folder, monkeypatch):
    def fail(*args):
        if torch.utils.data.get_worker_info() is not None:
            raise ZeroDivisionError("no such number")
        return open_rgb(*args)

    monkeypatch.setattr(data_modules.collate, "open_rgb", fail)
    said = stopped("fit", write_config(folder), "--data.init_args.num_workers", "1")
    assert said.startswith("medgrpo: fit stopped: ZeroDivisionError: no such number\n")


def test_where_nothing_can_be_written_the_traceback_follows_the_line(folder, monkeypatch):
    monkeypatch.setattr(failures.Path, "cwd", lambda: folder / "nowhere")
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        first, *rest = last_words(error, "fit").splitlines()
    assert first == "fit stopped: RuntimeError: why"
    assert rest[0].startswith("Traceback")
    assert last_words(DataError("a: b"), "fit") == "a: b"


def test_ctrl_c_has_its_exit_status(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    for owner, place in ((GRPOModule, "configure_optimizers"), (MedGRPOCLI, "before_instantiate_classes")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, interrupt)
            with pytest.raises(SystemExit) as error:
                main(["fit", "--config", write_config(folder)])
            assert error.value.code == 130
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored


# ------------------------------------------------------------------------------------------------------------ rewards


class Fragile(Reward):
    """Raises on one record."""

    name = "fragile"

    def __call__(self, completions, records):
        return [1.0 / (record.id != "questions-3") for record in records]


FRAGILE = [{"class_path": "test_faults.Fragile"}]


def test_a_reward_that_raises_stops_the_run_and_its_traceback_is_kept(folder):
    said = stopped("fit", write_config(folder, model__rewards=FRAGILE))
    match = r"medgrpo: reward fragile \(test_faults.Fragile\): ZeroDivisionError: .*, for record questions-3, "
    assert re.match(match, said), said
    [path] = folder.glob("medgrpo_error_*")
    assert "return [1.0 / (record.id" in path.read_text()


def run_two_ranks(folder: Path, **changes) -> subprocess.CompletedProcess:
    two = {"trainer__devices": 2, "trainer__strategy": "ddp", "data__init_args__prompts_per_batch": 2}
    config = write_config(folder, **(two | changes))
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medgrpo.cli", "fit", "--config", config]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=120)


def test_all_ranks_stop_together_and_one_of_them_says_why(folder):
    done = run_two_ranks(folder, model__rewards=FRAGILE)
    said = [line for line in done.stderr.splitlines() if "medgrpo: " in line]
    assert done.returncode == 1
    assert len(said) == 1, done.stderr
    assert re.match(r"medgrpo: rank [01]: reward fragile .* for record questions-3, completion", said[0]), said
    # The one file is that of the rank on which the reward raised.
    [path] = folder.glob("medgrpo_error_*")
    assert str(path) in done.stderr
    assert "return [1.0 / (record.id" in path.read_text()
    assert "Traceback (most" not in done.stderr


def test_an_error_of_all_ranks_is_said_once(folder):
    (folder / BAD).write_bytes(b"no image")
    done = run_two_ranks(folder)
    assert done.returncode == 1
    assert done.stderr.count("1 of 8 prompts cannot be used") == 1, done.stderr
