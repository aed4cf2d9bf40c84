"""The file of a checkpoint is whole and unaltered, or refused; it knows nothing of the machine."""

import os
import random
import zipfile
from pathlib import Path

import pytest
import torch
from test_cli import write_config, write_data

from medgrpo.checkpoint import Checkpoint
from medgrpo.checkpoint_file import WholeFile, check, damage, newest_sound
from medgrpo.runs import trained_on
from medgrpo.trainer_cli import main
from medgrpo.types import DataError


def write(path: Path, step: int = 3) -> Path:
    weights = {f"w{i}": torch.arange(40.0) + i for i in range(3)}
    WholeFile().save_checkpoint({"global_step": step, "state_dict": weights, "loops": {"ready": 7}}, path)
    return path


def read(path: Path):
    return torch.load(path, weights_only=True)


def test_no_altered_byte_and_no_truncation_goes_unnoticed(tmp_path):
    path = write(tmp_path / "step3.ckpt")
    assert damage(path) == ""
    assert read(path)["state_dict"]["w2"][3] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["step3.ckpt"]
    data = path.read_bytes()
    rng = random.Random(0)
    for position in [*rng.sample(range(len(data)), 400), *range(len(data) - 120, len(data))]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :])
        assert "altered" in damage(path), position
    for size in [0, 1, *rng.sample(range(len(data)), 100), *range(len(data) - 120, len(data))]:
        path.write_bytes(data[:size])
        assert damage(path), size
    path.write_bytes(data + b"x")
    assert damage(path)


def test_files_of_others_are_known_by_their_sums(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"global_step": 1, "w": torch.arange(4000.0)}, path)
    assert damage(path) == ""
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor(7.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert "altered" in damage(path)
    torch.save({"global_step": 12}, path)
    write(tmp_path / "step11.ckpt", 11)
    assert newest_sound(tmp_path) == path
    assert "got nothing" in damage(tmp_path / "none.ckpt")
    assert "got a folder" in damage(tmp_path)


def test_the_newest_sound_one_is_found(tmp_path):
    for step in (8, 10, 9):
        write(tmp_path / f"step{step}.ckpt", step)
    (tmp_path / "last.ckpt").symlink_to("step10.ckpt")
    (tmp_path / "step11.ckpt.partial").write_bytes(b"half")
    assert newest_sound(tmp_path).name == "step10.ckpt"
    os.truncate(tmp_path / "step10.ckpt", 500)
    with pytest.warns(UserWarning, match="step10.ckpt is left out: .*truncated"):
        assert newest_sound(tmp_path).name == "step9.ckpt"
    with pytest.raises(DataError, match=r"last.ckpt: .*truncated.*--ckpt_path \S+step9.ckpt"):
        check(tmp_path / "last.ckpt")
    with pytest.raises(DataError, match="last.ckpt: .*truncated"):
        WholeFile().load_checkpoint(tmp_path / "last.ckpt")
    assert newest_sound(tmp_path / "nowhere") is None


def test_a_file_that_could_be_code_is_not_loaded(tmp_path):
    WholeFile().save_checkpoint({"global_step": 1, "hook": print}, tmp_path / "code.ckpt")
    with pytest.raises(DataError, match="could be code"):
        WholeFile().load_checkpoint(tmp_path / "code.ckpt")


def test_what_is_no_checkpoint_is_refused_and_left_out(tmp_path):
    sound = write(tmp_path / "step3.ckpt")
    torch.save({"global_step": 9, "hook": print}, tmp_path / "code.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.ckpt")
    (tmp_path / "empty.ckpt").touch()
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    reasons = {path.stem: damage(path) for path in tmp_path.glob("*.ckpt")}
    assert "could be code" in reasons.pop("code")
    assert "truncated" in reasons.pop("empty")
    assert "another archive" in reasons.pop("zip")
    assert "without its global_step" in reasons.pop("list")
    assert "without its global_step" in reasons.pop("weights")
    assert reasons == {"step3": ""}
    with pytest.warns(UserWarning, match="is left out"):
        assert newest_sound(tmp_path) == sound


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "step3.ckpt")
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        WholeFile().save_checkpoint({"global_step": 4, "hook": lambda: None}, path)
    assert path.read_bytes() == before


def test_a_run_that_was_moved_goes_on_where_it_is_now(tmp_path):
    """Its checkpoints hold no path; the best and the last are known again, and an old one makes room."""
    old, new = tmp_path / "old", tmp_path / "new"
    for steps, folder in ((2, old), (4, new)):
        if folder is new:
            old.rename(new)
        else:
            folder.mkdir()
            write_data(folder)
        monitor = {"checkpoint__monitor": "reward", "checkpoint__mode": "max", "checkpoint__save_top_k": 2}
        config = write_config(folder, trainer__max_steps=steps, **monitor | {"checkpoint__every_n_train_steps": 1})
        main(["fit", "--config", config, "--ckpt_path", "last"])
        there = folder / "runs/run/checkpoints"
        file = there / f"step{steps}.ckpt"
        assert str(tmp_path).encode() not in file.read_bytes()
        state = next(value for key, value in read(file)["callbacks"].items() if key.startswith("Checkpoint"))
        assert state["best_model_path"] in state["best_k_models"]
        assert all((there / path).is_file() for path in state["best_k_models"]), state
        assert (there / "last.ckpt").resolve() == file
        assert (there / "last").resolve() == there / f"step{steps}"
        assert all(path.with_suffix("").is_dir() for path in there.glob("*.ckpt"))


def test_paths_in_another_folder_stay_there(tmp_path):
    callback = Checkpoint(dirpath=tmp_path / "one")
    callback.best_model_path = str(tmp_path / "one/step2.ckpt")
    state = callback.state_dict()
    assert state["best_model_path"] == "step2.ckpt"
    other = Checkpoint(dirpath=tmp_path / "two")
    other._resumed_from = tmp_path / "one"
    with pytest.warns(UserWarning, match="dirpath has changed"):
        other.load_state_dict(state)
    assert other.best_model_path == str(tmp_path / "one/step2.ckpt")


def test_the_one_before_the_newest_stays_too(tmp_path):
    write_data(tmp_path)
    config = write_config(tmp_path, trainer__max_steps=4, checkpoint={"every_n_train_steps": 1})
    folder = tmp_path / "runs/run/checkpoints"
    main(["fit", "--config", config])
    assert {path.stem for path in folder.glob("step*")} == {"step3", "step4"}
    newest = folder / "step4.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert newest_sound(folder) == folder / "step3.ckpt"
    for steps in (5, 6):
        main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", str(steps)])
        assert {path.stem for path in folder.glob("step*")} == {f"step{steps - 1}", f"step{steps}"}


def test_the_last_state_is_there_when_it_is_not_among_the_best(tmp_path):
    """Then `last` is a file of its own; with the best as the newest, a link to it."""
    write_data(tmp_path)
    config = write_config(tmp_path, checkpoint={"every_n_train_steps": 1, "monitor": "num_tokens", "mode": "min"})
    folder = tmp_path / "runs/run/checkpoints"
    main(["fit", "--config", config])
    assert {path.name for path in folder.iterdir()} == {"step1", "step1.ckpt", "last", "last.ckpt"}
    assert [read(folder / name)["global_step"] for name in ("step1.ckpt", "last.ckpt")] == [1, 4]
    assert trained_on(folder / "last").step == 4
    more = ["--checkpoint.mode", "max", "--checkpoint.save_top_k", "1", "--trainer.max_steps", "5"]
    main(["fit", "--config", config, "--ckpt_path", "last", *more])
    assert (folder / "last.ckpt").resolve() == folder / "step5.ckpt"
    assert (folder / "last").resolve() == folder / "step5"


def test_what_a_validation_says_counts_in_its_own_step(tmp_path):
    """Lightning leaves out the first validated step when the metric is new."""
    write_data(tmp_path)
    monitor = {"every_n_train_steps": 1, "monitor": "val/accuracy", "mode": "max", "save_top_k": -1}
    main(["fit", "--config", write_config(tmp_path, trainer__val_check_interval=1, checkpoint=monitor)])
    assert {path.name for path in (tmp_path / "runs/run/checkpoints").glob("step*.ckpt")} == {
        f"step{step}.ckpt" for step in (1, 2, 3, 4)
    }


def test_another_model_checkpoint_saves_the_same_state(tmp_path):
    """It comes before ours: its files hold the step that has just ended, and ours are found as `last`."""
    write_data(tmp_path)
    own = {"dirpath": str(tmp_path / "own"), "filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": own}
    config = write_config(tmp_path, trainer__callbacks=[callback], model__num_iterations=2)
    main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "3"])
    other, ours = read(tmp_path / "own/step=2.ckpt"), read(tmp_path / "runs/run/checkpoints/step2.ckpt")
    assert other["global_step"] == 2
    assert other["loops"] == ours["loops"]
    assert "unfinished" not in other["grpo"][0]
    assert "unfinished" in read(tmp_path / "own/step=3.ckpt")["grpo"][0]


def test_a_folder_that_cannot_be_written_is_told_of_before_training(tmp_path):
    callback = Checkpoint()
    (tmp_path / "file").touch()
    assert "checkpoint.dirpath: " in callback._prepare_folder(tmp_path / "file" / "checkpoints")
    assert callback._prepare_folder(tmp_path / "new") is None
    assert not list((tmp_path / "new").iterdir())
