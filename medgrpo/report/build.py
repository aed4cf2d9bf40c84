"""``medgrpo report``: a page, figures and tables, from saved predictions and event files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from data_modules.convert import write_text
from medgrpo.comparison import Comparison, compare
from medgrpo.evaluation import Summary, summarize
from medgrpo.report import content, figures, page
from medgrpo.report.content import Finding
from medgrpo.report.curves import EVENTS, TAGS, Curve, find_curves
from medgrpo.report.examples import choose, questions, to_json
from medgrpo.report.grids import matrices, modes, steps
from medgrpo.runs import PREDICTIONS, Run, find_runs
from medgrpo.tables import csv_table, latex_table, matrix_csv, matrix_latex
from medgrpo.types import DataError

MAX_COMPARISONS = 20
"""Pairs of the first run with another."""

CURVE_TITLES = {
    "reward": "Mean reward by step",
    "completions/mean_length": "Completion length by step",
    "val/accuracy": "Accuracy in validation by step",
}

Picture = tuple[Path, str, Sequence[str]]
"""File, title and notes of a figure."""


def write_report(paths: Sequence[str], out: str, max_examples: int = 300) -> None:
    """Write ``index.html``, ``metrics.json``, ``table.csv``, ``table.tex``, and the figures that the runs allow as PNG,
    heatmaps as CSV and LaTeX too.

    Files of these names are replaced; nothing else in the folder is touched. What is not there is left out: event files
    alone give a page of curves.

    Args:
        paths: folders of runs, or folders of such, or files of predictions, or event files of TensorBoard.
        out: folder, made when it does not exist.
        max_examples: questions in the browser; the page takes some 15 kB for each.

    Raises:
        DataError: a path without predictions and without event files, malformed predictions, or a folder that cannot
            be written.
    """
    runs, curves = _read(paths)
    folder = Path(out)
    tested = [run for run in runs if any(prediction.view == "image" for prediction in run.predictions)]
    summaries = {run.name: _summary(run) for run in tested}
    compared, incomparable = _compare(tested)
    text_only = {run.name for run in tested if not any(prediction.record.images for prediction in run.predictions)}
    untested = tuple(run.name for run in runs if run.name not in summaries)
    found = [
        *content.findings(summaries, text_only),
        *([Finding(False, "Not compared with the first run.", incomparable)] if incomparable else []),
        *([Finding(False, "Left out: no predictions with the image.", untested)] if untested else []),
    ]
    asked = questions(tested)
    chosen = choose(asked, max_examples)
    write_text(folder / "metrics.json", _metrics(summaries, compared))
    if summaries:
        write_text(folder / "table.csv", csv_table(summaries))
        write_text(folder / "table.tex", latex_table(summaries))
    pictures = [*_run_figures(tested, summaries, folder), *_curve_figures(curves, folder)]
    body = [
        *_tables(tested, summaries, compared, found),
        *([page.heading("Figures"), page.pictures(pictures)] if pictures else []),
        *_reasoning(summaries),
    ]
    browser = page.browser(to_json(chosen, tested), _how(len(chosen), len(asked))) if chosen else ""
    write_text(folder / "index.html", page.page("Evaluation", body, browser))


def _read(paths: Sequence[str]) -> tuple[list[Run], list[Curve]]:
    """Files of predictions and event files, from paths that hold at least one of both."""
    for path in map(Path, paths):
        if path.is_dir() and not any(next(path.rglob(name), None) for name in (PREDICTIONS, EVENTS)):
            raise DataError(
                f"{path}: expected {PREDICTIONS} (as `medgrpo test` writes) or TensorBoard event files in this folder "
                "or below it, found neither"
            )
    events = {path for path in paths if Path(path).match(EVENTS) and Path(path).is_file()}
    runs = find_runs(path for path in paths if path not in events)
    return runs, find_curves(path for path in paths if path in events or Path(path).is_dir())


def _summary(run: Run) -> Summary:
    try:
        return summarize(run.predictions)
    except DataError as error:
        raise DataError(f"{run.folder}: {error}") from error


def _compare(runs: Sequence[Run]) -> tuple[list[tuple[str, str, Comparison]], tuple[str, ...]]:
    """The first run with others that were asked some of its questions, and why it cannot be compared with the rest."""
    compared, problems = [], []
    ids = [{p.record.id for p in run.predictions if p.view == "image"} for run in runs]
    others = [run for run, own in zip(runs[1:], ids[1:], strict=True) if own & ids[0]]
    for run in others[:MAX_COMPARISONS]:
        try:
            compared.append((runs[0].name, run.name, compare(runs[0].predictions, run.predictions)))
        except DataError as error:
            problems.append(f"{run.name}: {error}")
    problems += [f"{run.name}: more than {MAX_COMPARISONS} runs" for run in others[MAX_COMPARISONS:]]
    return compared, tuple(problems)


def _metrics(summaries: Mapping[str, Summary], compared: Sequence[tuple[str, str, Comparison]]) -> str:
    values = {
        "runs": {name: asdict(summary) for name, summary in summaries.items()},
        "comparisons": [{"runs": [first, second]} | asdict(comparison) for first, second, comparison in compared],
    }
    return json.dumps(values, indent=1) + "\n"


def _tables(
    runs: Sequence[Run],
    summaries: Mapping[str, Summary],
    compared: Sequence[tuple[str, str, Comparison]],
    found: Sequence[Finding],
) -> Iterator[str]:
    if runs:
        yield page.table(content.run_table(runs, summaries))
    if found:
        yield page.heading("What to know before reading the figures")
        yield page.finding_list(found)
    if runs:
        yield page.heading("Accuracy")
        yield page.paragraph(
            "By the lenient rule, with 95 % intervals: of a share of independent questions (Wilson), and by the "
            "bootstrap over images. Strict accuracy wants one closed answer block with one offered letter or text. "
            "Changed: share of answers that are not the same under another view."
        )
        yield page.table(content.overall_table(summaries))
        if compared:
            yield page.table(content.comparison_table(compared))
        for table in content.group_tables(summaries):
            yield page.table(table, folded=True)
        if averages := content.macro_table(summaries):
            yield page.table(averages, folded=True)


def _reasoning(summaries: Mapping[str, Summary]) -> Iterator[str]:
    if table := content.reasoning_table(summaries):
        yield page.heading("Reasoning")
        yield page.paragraph("Words are counted, not judged: nothing here says whether the reasoning is right.")
        yield page.table(table)


def _run_figures(runs: Sequence[Run], summaries: Mapping[str, Summary], folder: Path) -> Iterator[Picture]:
    for matrix in matrices(runs, summaries):
        name = "_".join(filter(None, ("heatmap", matrix.measure, matrix.kind, matrix.mode)))
        write_text(folder / f"{name}.csv", matrix_csv(matrix.rows, matrix.columns, matrix.values))
        write_text(folder / f"{name}.tex", matrix_latex(matrix.rows, matrix.columns, matrix.values))
        figures.heatmap(matrix, path := folder / f"{name}.png")
        yield path, matrix.title, matrix.notes
    points = modes(runs, summaries)
    if len({point.mode for point in points}) > 1:
        figures.bars(points, path := folder / "modes.png")
        yield path, "Accuracy by prompt mode", ()
    series = steps(runs, summaries)
    if len({point.step for each in series for point in each.points}) > 1:
        figures.step_lines(series, path := folder / "accuracy_by_step.png")
        yield path, "Accuracy by checkpoint step", ()


def _curve_figures(curves: Sequence[Curve], folder: Path) -> Iterator[Picture]:
    for tag in TAGS:
        if drawn := [curve for curve in curves if curve.tag == tag]:
            figures.curve_lines(drawn, path := folder / f"{tag.replace('/', '_')}.png")
            yield path, CURVE_TITLES[tag], ()


def _how(chosen: int, total: int) -> str:
    if chosen == total:
        return f"All {total:,} questions."
    return (
        f"{chosen:,} of {total:,} questions, in turn from each group of modality, question type, dataset and verdict "
        "of the first run; within a group those that the runs answered differently come first. Shares of right and "
        "wrong here are therefore not those of the test."
    )
