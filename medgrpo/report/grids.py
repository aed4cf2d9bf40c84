"""What several runs say together: trained on × tested on, prompt modes, and accuracy by checkpoint step.

All accuracies are lenient shares from 0 to 1 on the questions as asked (`evaluation.Cell`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medgrpo.evaluation import UNKNOWN, Cell, Summary
from medgrpo.runs import Run
from medgrpo.types import MODALITIES

BASE = "base"
"""Label of a policy that was not trained."""

UNKNOWN_DATA = "unknown data"
"""Label of a policy of which nothing is known, or not what it was trained on."""

MODES = ("think", "nothink", "think_after", "")
"""Prompt modes in the order of display; the last is any other prompt."""

LABEL_LENGTH = 30

NOT_OF_ASKING = {"model.policy.model_name_or_path", "model.policy.adapter", "ckpt_path", "weights"} | {
    "data.test",
    "data.predict",
    "data.modalities",
    "data.tasks",
    "data.limit_eval_records",
    "data.seed",
}
"""Settings in which runs may differ that were asked in one way: the policy, and which questions, looked at as such."""

Kind = Literal["modality", "task"]
Row = tuple[float | None, ...]


@dataclass(frozen=True)
class Matrix:
    """R rows of what runs were trained on, K columns of what they were tested on."""

    title: str
    kind: Kind
    """What rows and columns are."""
    measure: Literal["accuracy", "gain"]
    """Shares of right answers, or the differences from the base's shares, -1..1."""
    mode: str
    """Prompt mode of the rows, one of ``MODES``."""
    rows: tuple[str, ...]
    """[R] the base first, in a matrix of accuracy that has one."""
    columns: tuple[str, ...]
    """[K]"""
    values: tuple[Row, ...]
    """[R][K] None where a run was not tested; a gain, too, where the base was not asked the same questions."""
    counts: tuple[tuple[int, ...], ...]
    """[R][K] questions."""
    runs: tuple[str, ...]
    """[R] names of the runs."""
    notes: tuple[str, ...] = ()
    """Sentences on how runs were chosen, and what hampers the comparison."""

    @property
    def means(self) -> Row:
        """[R] unweighted means over the columns that have a value."""
        return tuple(_mean(row) for row in self.values)

    @property
    def means_elsewhere(self) -> Row:
        """[R] as ``means``, without the column that the row was trained on: what carries over. None for the base."""
        return tuple(
            _mean([v for v, column in zip(row, self.columns, strict=True) if column != name]) if name != BASE else None
            for name, row in zip(self.rows, self.values, strict=True)
        )


@dataclass(frozen=True)
class Point:
    """Overall accuracy of one run, with its 95 % interval (`evaluation.Cell`)."""

    label: str
    """What it was trained on (``label``)."""
    mode: str
    """One of ``MODES``."""
    step: int
    """Optimizer steps; 0 for the base."""
    accuracy: float
    low: float
    high: float
    n: int
    """Questions."""
    run: str
    """Name of the run."""


@dataclass(frozen=True)
class Series:
    """Checkpoints of one training, by step."""

    label: str
    mode: str
    points: tuple[Point, ...]
    """Ascending steps, each once; the base is a series of one."""


def label(run: Run) -> str:
    """What the run was trained on, in at most 30 characters: ``base``, ``ct``, ``ct+mri``, ``all modalities``."""
    full = _trained_on(run)
    return full if len(full) <= LABEL_LENGTH else full[: LABEL_LENGTH - 1] + "…"


def is_base(run: Run) -> bool:
    """Whether the policy is known to be one that was not trained here: without settings nothing is known of a run."""
    return run.trained_on is None and bool(run.settings)


def differences(first: Run, second: Run) -> tuple[str, ...]:
    """Names of the settings that hamper comparing two runs: both have them, with different values.

    ``weights`` is among them when an adapter does not belong to the weights of the other run.
    """
    common = first.settings.keys() & second.settings.keys() - NOT_OF_ASKING
    found = [name for name in sorted(common) if first.settings[name] != second.settings[name]]
    if any(run.settings.get("model.policy.adapter") for run in (first, second)):
        weights = [run.settings.get("weights", {}).get("model_name_or_path") for run in (first, second)]
        found += ["weights"] if None not in weights and weights[0] != weights[1] else []
    return tuple(found)


def matrices(runs: Sequence[Run], summaries: Mapping[str, Summary]) -> list[Matrix]:
    """Accuracy, and gain over the base when there is one, by modality and by task: at most one pair per prompt mode.

    Rows are runs trained on exactly one modality or task; columns are what any of them was tested on, two or more. Of
    several runs of one row the one with the highest step counts, then the last by name; a note says so. Where all rows
    have one task and differ in modality there is no matrix by task, and the reverse.

    Args:
        runs: with unique names.
        summaries: by the name of the run.
    """
    found = []
    names = {kind: {_only(run, kind) for run in runs} - {""} for kind in ("modality", "task")}
    for kind, other in (("modality", "task"), ("task", "modality")):
        if len(names[kind]) == 1 < len(names[other]):
            continue
        by_mode: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            if name := _only(run, kind):
                by_mode[run.mode][name].append(run)
        title = f"trained on one {kind}, tested on each"
        for mode in sorted(by_mode, key=MODES.index):
            suffix = f" ({mode or 'other prompts'})" if len(by_mode) > 1 else ""
            found += _pair(kind, mode, by_mode[mode], list(filter(is_base, runs)), summaries, title + suffix)
    return found


def modes(runs: Sequence[Run], summaries: Mapping[str, Summary]) -> list[Point]:
    """Accuracy by label and prompt mode: the last checkpoint of each, the base first, prompts without a mode left out.

    Points of one label are neighbours, in the order of ``MODES``.
    """
    last = [each.points[-1] for each in steps(runs, summaries) if each.mode]
    order = list(dict.fromkeys(point.label for point in last))
    return sorted(last, key=lambda point: (order.index(point.label), MODES.index(point.mode)))


def steps(runs: Sequence[Run], summaries: Mapping[str, Summary]) -> list[Series]:
    """Accuracy by step for each label and prompt mode, the base first; runs of which nothing is known are left out.

    Of several runs with the same label, mode and step, the last by name counts: see `caveats`.
    """
    series: dict[tuple[str, str], dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run.name):
        if run.trained_on or is_base(run):
            series[_trained_on(run), run.mode][_step(run)] = run
    order = sorted(series, key=lambda key: (key[0] != BASE, _rank(key[0]), MODES.index(key[1])))
    return [
        Series(
            label=label(next(iter(series[key].values()))),
            mode=key[1],
            points=tuple(_point(run, summaries[run.name].overall) for _, run in sorted(series[key].items())),
        )
        for key in order
    ]


def caveats(runs: Sequence[Run], points: Iterable[Point]) -> tuple[str, ...]:
    """What must be known before the points of a figure are compared.

    Args:
        runs: all, those of the points among them.
        points: of the figure.
    """
    names = {point.run for point in points}
    drawn = [run for run in runs if run.name in names]
    alike = {(_trained_on(run), run.mode, _step(run)) for run in drawn}
    hidden = [run.name for run in runs if run.name not in names and (_trained_on(run), run.mode, _step(run)) in alike]
    notes = []
    if hidden:
        notes.append(
            "Of runs with the same training data, prompt mode and step the last by name is shown, not "
            f"{', '.join(hidden)}."
        )
    if len({_questions(run) for run in drawn}) > 1:
        notes.append("Not all were asked the same questions.")
    return tuple(notes)


def _pair(
    kind: Kind,
    mode: str,
    rows: Mapping[str, Sequence[Run]],
    bases: Sequence[Run],
    summaries: Mapping[str, Summary],
    title: str,
) -> list[Matrix]:
    """The matrix of accuracy and, with a base, of gain; nothing when the runs were tested on fewer than two columns."""
    chosen, notes = _choose(rows)
    if bases:
        base = max(bases, key=lambda run: (*_likeness(run, chosen.values()), run.name))
        notes += _on_base(base, len(bases), chosen)
        chosen = {BASE: base, **chosen}
    cells = {name: summaries[run.name].groups.get(kind, {}) for name, run in chosen.items()}
    columns = _columns(kind, cells.values())
    if len(columns) < 2:
        return []
    counts = {name: tuple(row[c].n if c in row else 0 for c in columns) for name, row in cells.items()}
    asked = {name: tuple(_questions(run, kind, c) for c in columns) for name, run in chosen.items()}
    if any(len(set(column) - {frozenset()}) > 1 for column in zip(*asked.values(), strict=True)):
        notes.append("Not every row was asked the same questions in each column.")

    def matrix(title: str, measure: Literal["accuracy", "gain"], values: Mapping[str, Row]) -> Matrix:
        return Matrix(
            title=title,
            kind=kind,
            measure=measure,
            mode=mode,
            rows=tuple(values),
            columns=columns,
            values=tuple(values.values()),
            counts=tuple(counts[name] for name in values),
            runs=tuple(chosen[name].name for name in values),
            notes=tuple(notes),
        )

    accuracy = {name: tuple(row[c].accuracy if c in row else None for c in columns) for name, row in cells.items()}
    found = [matrix(f"Accuracy, {title}", "accuracy", accuracy)]
    if bases:
        before = accuracy.pop(BASE)
        gain = {
            name: tuple(
                None if None in pair or questions != of_base else pair[1] - pair[0]
                for *pair, questions, of_base in zip(before, row, asked[name], asked[BASE], strict=True)
            )
            for name, row in accuracy.items()
        }
        if any(value is not None for row in gain.values() for value in row):
            found.append(matrix(f"Gain over the base, {title}", "gain", gain))
    return found


def _choose(rows: Mapping[str, Sequence[Run]]) -> tuple[dict[str, Run], list[str]]:
    """One run for each row, rows in the order of display; and a note for each choice."""
    chosen, notes = {}, []
    for name in sorted(rows, key=_rank):
        best = max(rows[name], key=lambda run: (_step(run), run.name))
        chosen[name] = best
        others = ", ".join(sorted(run.name for run in rows[name] if run is not best))
        if others:
            notes.append(f"Of the runs trained on {name}, {best.name} (step {_step(best)}) counts, not {others}.")
    return chosen, notes


def _likeness(base: Run, rows: Iterable[Run]) -> tuple[int, int]:
    """How many rows were asked like the base, and how many with the same prompt mode at least."""
    found = [(not differences(base, run), base.mode == run.mode) for run in rows]
    return sum(same for same, _ in found), sum(mode for _, mode in found)


def _on_base(base: Run, count: int, rows: Mapping[str, Run]) -> list[str]:
    """Which base it is, where that is not plain, and which rows were not asked as it was."""
    notes = []
    if count > 1:
        notes.append(f"The base is {base.name}: of {count} the one asked most like the rows, then the last by name.")
    elif base.name != BASE:
        notes.append(f"The base is {base.name}.")
    by_settings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, run in rows.items():
        by_settings[differences(base, run)].append(name)
    notes += [
        f"The base was tested with another {' and '.join(settings)} than {', '.join(names)}: "
        "a gain there is not one of training alone."
        for settings, names in by_settings.items()
        if settings
    ]
    return notes


def _questions(run: Run, kind: Kind | None = None, name: str = "") -> frozenset[tuple]:
    """What the run was asked, or what of one modality or task: id, text, options and gold answer."""
    return frozenset(
        (record.id, record.question or record.problem, record.options, record.answer)
        for record in (prediction.record for prediction in run.predictions if prediction.view == "image")
        if kind is None or getattr(record, kind) == name
    )


def _columns(kind: Kind, rows: Iterable[Mapping[str, Cell]]) -> tuple[str, ...]:
    names = {name for row in rows for name in row}
    if kind == "modality":
        return tuple(name for name in MODALITIES if name in names)
    return tuple(sorted(names - {UNKNOWN}))


def _only(run: Run, kind: Kind) -> str:
    """The one modality or task that the run was trained on; empty when there are none or several."""
    if run.trained_on is None:
        return ""
    names = run.trained_on.modalities if kind == "modality" else run.trained_on.tasks
    return names[0] if len(names) == 1 else ""


def _trained_on(run: Run) -> str:
    if run.trained_on is None:
        return BASE if is_base(run) else UNKNOWN_DATA
    about = run.trained_on
    if set(about.modalities) >= set(MODALITIES):
        return about.tasks[0] if len(about.tasks) == 1 else "all modalities"
    names = sorted(about.modalities, key=_rank)
    if len(about.tasks) == 1 and len(names) != 1:
        names = about.tasks
    return "+".join(names or about.tasks or about.datasets) or UNKNOWN_DATA


def _step(run: Run) -> int:
    return run.trained_on.step if run.trained_on else 0


def _rank(name: str) -> tuple[int, str]:
    """Sorts modalities in the order of ``MODALITIES``, then everything else by name."""
    return (MODALITIES.index(name) if name in MODALITIES else len(MODALITIES)), name


def _point(run: Run, cell: Cell) -> Point:
    return Point(label(run), run.mode, _step(run), cell.accuracy, cell.low, cell.high, cell.n, run.name)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
