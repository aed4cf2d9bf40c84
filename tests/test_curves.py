"""Curves from event files that a real writer wrote."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from medgrpo.report.curves import TAGS, Curve, find_curves
from medgrpo.types import DataError


def write(
    folder: Path, values: dict[int, float], tag: str = "reward", time: float = 100.0, suffix: str = "", **options
) -> Path:
    """A new event file in the folder; one second passes between values."""
    before = set(folder.glob("*tfevents*"))
    with SummaryWriter(folder, filename_suffix=suffix) as writer:
        for number, (step, value) in enumerate(values.items()):
            writer.add_scalar(tag, value, step, walltime=time + number, **options)
    (file,) = set(folder.glob("*tfevents*")) - before
    return file


def test_tags_come_in_one_order_and_others_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {1: 40.0}, "completions/mean_length", suffix=".a")
    write(tmp_path, {1: 0.25, 2: 0.5}, "reward", suffix=".b")
    write(tmp_path, {1: 7.0}, "loss", suffix=".c")
    name = tmp_path.name
    assert find_curves([tmp_path]) == [
        Curve(name, "reward", (1, 2), (0.25, 0.5)),
        Curve(name, "completions/mean_length", (1,), (40.0,)),
    ]


def test_the_default_tags_are_those_that_are_logged() -> None:
    assert TAGS == ("reward", "completions/mean_length", "val/accuracy")


@pytest.mark.parametrize(("first", "second"), [(".a", ".b"), (".b", ".a")])
def test_of_one_step_the_value_written_last_counts(tmp_path: Path, first: str, second: str) -> None:
    write(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0}, time=100, suffix=first)
    write(tmp_path, {3: 30.0, 4: 40.0}, time=200, suffix=second)  # resumed from the checkpoint of step 2
    (curve,) = find_curves([tmp_path])
    assert (curve.steps, curve.values) == ((1, 2, 3, 4), (1.0, 2.0, 30.0, 40.0))


def test_a_last_record_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
    file.write_bytes(file.read_bytes()[:-5])
    (curve,) = find_curves([tmp_path])
    assert (curve.steps, curve.values) == ((1, 2), (1.0, 2.0))


def test_empty_and_foreign_files_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    (tmp_path / "events.out.tfevents.2.host").write_bytes(b"this is not a record file at all")
    assert find_curves([tmp_path]) == []


def test_scalars_written_as_tensors_are_read_too(tmp_path: Path) -> None:
    write(tmp_path, {1: 0.5, 2: 0.75}, new_style=True)
    (curve,) = find_curves([tmp_path])
    assert curve.values == (0.5, 0.75)


def test_nan_is_kept(tmp_path: Path) -> None:
    write(tmp_path, {1: math.nan, 2: 1.0})
    (curve,) = find_curves([tmp_path])
    assert curve.steps == (1, 2)
    assert math.isnan(curve.values[0])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["ct/fit/version_0", "mri/fit/version_0"], ["ct", "mri"]),
        (["ct/fit/version_0", "ct/fit/version_1"], ["version_0", "version_1"]),
        (["ct/version_0", "ct/version_1", "mri/version_0"], ["ct/version_0", "ct/version_1", "mri/version_0"]),
        (["run", "run/later"], ["run", "run/later"]),
        (["a/x", "b/a/x"], ["a", "b/a"]),
        (["ct/fit"], ["fit"]),
    ],
)
def test_names_are_what_tells_the_folders_apart(tmp_path: Path, folders: list[str], names: list[str]) -> None:
    for folder in folders:
        write(tmp_path / folder, {1: 1.0})
    assert [curve.name for curve in find_curves([tmp_path])] == names


def test_a_file_or_a_folder_named_twice_is_read_once(tmp_path: Path) -> None:
    file = write(tmp_path / "run", {1: 1.0})
    write(tmp_path / "run", {2: 2.0}, suffix=".b")
    assert [curve.steps for curve in find_curves([tmp_path, tmp_path / "run", file])] == [(1, 2)]
    assert [curve.steps for curve in find_curves([str(file)])] == [(1,)]


def test_a_folder_without_curves_does_not_lengthen_the_names(tmp_path: Path) -> None:
    write(tmp_path / "ct" / "fit", {1: 1.0})
    write(tmp_path / "mri" / "fit", {1: 1.0})
    write(tmp_path / "mri" / "test", {1: 1.0}, "test/accuracy")
    assert [curve.name for curve in find_curves([tmp_path])] == ["ct", "mri"]


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: expected a folder with TensorBoard event files"):
        find_curves([tmp_path / "nowhere"])
