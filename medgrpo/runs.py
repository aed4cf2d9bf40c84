"""Folders of predictions, and what is known of the run that made them: settings, training data, step.

DIR/predictions.jsonl   one line per question and view (``predictions.py``)
DIR/run.json            what the predictions depend on, and what the policy was trained on
DIR/metrics.json        the table, as numbers
DIR/results.json        the same predictions in the layout of Med-R1 and MedVLM-R1
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medgrpo.predictions import Prediction, read_predictions
from medgrpo.types import DataError

PREDICTIONS = "predictions.jsonl"
RUN = "run.json"
METRICS = "metrics.json"
RESULTS = "results.json"

TRAINED_ON = "trained_on.json"
"""Beside the weights of a checkpoint's folder: a `TrainedOn`."""


@dataclass(frozen=True)
class TrainedOn:
    """What a policy has learned from."""

    modalities: tuple[str, ...] = ()
    """Sorted names of the training records."""
    tasks: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    num_records: int = 0
    prompt: str = ""
    """``data.prompt`` in training."""
    step: int = 0
    """Optimizer steps."""

    @staticmethod
    def of(values: Any, file: Path) -> TrainedOn:
        """From JSON values.

        Raises:
            DataError: they are not what was written into ``file``.
        """
        if isinstance(values, dict):
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            kinds = {field.name: type(field.default) for field in fields(TrainedOn)}
            if all(type(value) is kinds.get(name) for name, value in values.items()):
                return TrainedOn(**values)
        raise DataError(f"{file}: expected what a policy was trained on, as `medgrpo fit` writes it; got {values!r}")


def trained_on(folder: str | Path) -> TrainedOn | None:
    """What the weights in a checkpoint's folder have learned from; None where nothing says so, as for a base model.

    Raises:
        DataError: a file that says so is malformed.
    """
    file = Path(folder) / TRAINED_ON
    return TrainedOn.of(_read_json(file), file) if file.is_file() else None


@dataclass(frozen=True)
class Run:
    """One folder of predictions."""

    folder: Path
    name: str
    """Short and unique among the runs read together."""
    settings: dict[str, Any]
    """What the predictions depend on, by the name of the option; empty when unknown."""
    image_root: str
    """Folder that the image paths start from."""
    trained_on: TrainedOn | None
    """None for a base model, or when unknown."""
    predictions: tuple[Prediction, ...]

    @property
    def prompt(self) -> str:
        """``data.prompt``: a preset's name or a text."""
        return str(self.settings.get("data.prompt", ""))

    @property
    def mode(self) -> str:
        """``think``, ``nothink`` or ``think_after`` by the name of the preset; empty for others and for a text."""
        if "{Question}" in self.prompt:
            return ""
        return next((mode for mode in ("think_after", "nothink", "think") if mode in self.prompt.lower()), "")


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every folder with predictions among and below ``paths``, a path may also be a file of predictions; may be empty.

    Raises:
        DataError: a path that does not exist, or malformed files.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(
                f"{path}: expected a folder or a file of predictions, as `medgrpo test` writes; got nothing"
            )
        found = [path] if path.is_file() else sorted(path.rglob(PREDICTIONS))
        files += [file for file in found if file not in files]
    names = _names(files)
    return [_read(file, name) for file, name in zip(files, names, strict=True)]


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _read(file: Path, name: str) -> Run:
    about = file.with_name(RUN)
    described: dict[str, Any] = {"settings": {}, "image_root": ".", "trained_on": None}
    if about.is_file():
        said = _read_json(about)
        described |= said if isinstance(said, dict) else {"settings": None}
    if not isinstance(described["settings"], dict) or not isinstance(described["image_root"], str):
        raise DataError(f"{about}: expected `settings` and `image_root`, as `medgrpo test` writes there")
    trained_on = TrainedOn.of(described["trained_on"], about) if described["trained_on"] is not None else None
    return Run(
        file.parent, name, described["settings"], described["image_root"], trained_on, tuple(read_predictions(file))
    )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: expected JSON, as `medgrpo` writes there; {error}") from error


def _names(files: list[Path]) -> list[str]:
    """The parts of the paths that are not common to all, from the left."""
    parts = [file.resolve().with_suffix("").parts for file in files]
    parts = [p[:-1] if p[-1] == Path(PREDICTIONS).stem else p for p in parts]
    if len(parts) == 1:
        return [parts[0][-1]]
    common = 0
    while len({p[: common + 1] for p in parts}) == 1 and all(len(p) > common + 1 for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]
