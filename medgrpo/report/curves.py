"""Scalar curves of training runs, read from TensorBoard event files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from medgrpo.types import DataError

TAGS = ("reward", "completions/mean_length", "val/accuracy")
"""Mean reward, mean completion length in tokens, and accuracy in validation, 0..1."""

EVENTS = "*tfevents*"


@dataclass(frozen=True)
class Curve:
    """One scalar of one run against the optimizer step."""

    name: str
    """Of the run: short, unique among the runs read together."""
    tag: str
    steps: tuple[int, ...]
    """[n] ascending, each once."""
    values: tuple[float, ...]
    """[n] as logged; NaN stays NaN."""


def find_curves(paths: Iterable[str | Path]) -> list[Curve]:
    """The curves of every folder with event files among and below ``paths``, by folder, then in the order of ``TAGS``.

    A folder is a run, however often it was resumed: of the values that its files have for one step the one written
    last counts. A last record that was cut off by a crash is left out. Tags without a value give no curve.

    Args:
        paths: folders, or event files.

    Raises:
        DataError: a path that does not exist.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(file.resolve() for path in paths for file in _event_files(Path(path))):
        folders[file.parent].append(file)
    found = {folder: _read(events) for folder, events in folders.items()}
    found = {folder: scalars for folder, scalars in found.items() if scalars}
    return [
        Curve(name, tag, *zip(*sorted(scalars[tag].items()), strict=True))
        for name, scalars in zip(_names(list(found)), found.values(), strict=True)
        for tag in TAGS
        if tag in scalars
    ]


def _event_files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path}: expected a folder with TensorBoard event files, or such a file; got nothing")
    return [path] if path.is_file() else sorted(file for file in path.rglob(EVENTS) if file.is_file())


def _read(files: Iterable[Path]) -> dict[str, dict[int, float]]:
    """Values by tag and step."""
    points = sorted((point for file in files for point in _scalars(file)), key=itemgetter(0))
    scalars: dict[str, dict[int, float]] = defaultdict(dict)
    for _, tag, step, value in points:
        scalars[tag][step] = value
    return scalars


def _scalars(file: Path) -> Iterator[tuple[float, str, int, float]]:
    """Wall time in seconds, tag, step and value of each scalar of ``TAGS`` in an event file."""
    # `EventFileLoader` would convert every image and histogram of the run as well.
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag not in TAGS:
                continue
            if value.HasField("simple_value"):
                yield event.wall_time, value.tag, event.step, value.simple_value
            elif value.HasField("tensor"):
                yield event.wall_time, value.tag, event.step, float(make_ndarray(value.tensor).item())


def _names(folders: Sequence[Path]) -> list[str]:
    """The parts of the paths that tell them apart: without those that all begin with or all end with."""
    parts = [folder.parts for folder in folders]
    if len(parts) == 1:
        return [parts[0][-1]]
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts]
