"""``medgrpo report``: a page, figures and tables, from saved predictions and event files alone."""

from __future__ import annotations

import json
import re
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
from medgrpo.report.grids import Matrix, caveats, differences, is_base, matrices, modes, steps
from medgrpo.runs import METRICS, PREDICTIONS, Run, find_runs
from medgrpo.tables import csv_table, latex_table, matrix_csv, matrix_latex
from medgrpo.types import DataError

MAX_COMPARISONS = 20
"""Pairs of the first run with another."""

OWN = re.compile(
    r"(table|heatmap_\w+|modes|accuracy_by_step|reward|completions_mean_length|val_accuracy)\.(png|csv|tex)"
)
"""Names of what a report may write beside the page and the metrics."""

Picture = tuple[Path, str, Sequence[str]]
"""File, title and notes of a figure."""


def write_report(paths: Sequence[str], out: str, max_examples: int = 300) -> None:
    """Write ``index.html``, ``metrics.json``, ``table.csv``, ``table.tex``, and the figures that the runs allow as PNG,
    heatmaps as CSV and LaTeX too.

    Files of these names are replaced, and those that an earlier report wrote there, by the list in its
    ``metrics.json``, are removed; nothing else in the folder is touched. What is not there is left out: event files
    alone give a page of curves. Runs of untrained policies come first, the others in the order of ``paths``.

    Args:
        paths: folders of runs, or folders of such, or files of predictions, or event files of TensorBoard.
        out: folder, made when it does not exist.
        max_examples: questions in the browser; the page takes some 15 kB for each.

    Raises:
        DataError: a path without predictions and without event files, malformed predictions, two runs of one name, or
            a folder that cannot be written or that has a run's own files.
    """
    folder = Path(out)
    if (folder / PREDICTIONS).is_file():
        raise DataError(f"--out {out}: expected a folder of its own, got that of a run, whose {METRICS} would be lost")
    runs, curves = _read(paths)
    tested = [run for run in runs if any(prediction.view == "image" for prediction in run.predictions)]
    summaries = {run.name: _summary(run) for run in tested}
    compared, incomparable = _compare(tested)
    text_only = {run.name for run in tested if not any(prediction.record.images for prediction in run.predictions)}
    untested = tuple(run.name for run in runs if run.name not in summaries)
    found = [
        *content.findings(summaries, text_only, {run.name for run in tested if run.trained_on is None}),
        *_differently_asked(tested),
        *([Finding(False, "Not compared with the first run.", incomparable)] if incomparable else []),
        *([Finding(False, "Left out: no predictions with the image.", untested)] if untested else []),
    ]
    asked = questions(tested)
    chosen = choose(asked, max_examples)
    earlier = _earlier(folder)
    grids = matrices(tested, summaries)
    written = dict(_tables_as_files(grids, summaries))
    # Now, so that a report that dies has said what may be left of it.
    write_text(folder / METRICS, _metrics(summaries, compared, sorted({*earlier, *written})))
    for name, text in written.items():
        write_text(folder / name, text.encode(errors="backslashreplace").decode())  # lone surrogates
    pictures = [*_heatmaps(grids, folder), *_run_figures(tested, summaries, folder), *_curve_figures(curves, folder)]
    names = [*written, *(path.name for path, _, _ in pictures)]
    for name in earlier - set(names):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / METRICS, _metrics(summaries, compared, sorted(names)))
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
    runs = find_runs(Path(path).resolve() for path in paths if path not in events)
    names = [run.name for run in runs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        folders = ", ".join(str(run.folder) for run in runs if run.name == doubled[0])
        raise DataError(f"expected runs of different names, got two called {doubled[0]!r}: rename one of {folders}")
    runs.sort(key=lambda run: not is_base(run))
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


def _differently_asked(runs: Sequence[Run]) -> list[Finding]:
    found = {run.name: differences(runs[0], run) for run in runs[1:]}
    details = tuple(f"{name}: {', '.join(settings)}" for name, settings in found.items() if settings)
    text = "Not tested in the same way as the first run: a difference from it may come from these settings."
    return [Finding(False, text, details)] if details else []


def _earlier(folder: Path) -> set[str]:
    """Files that an earlier report says it wrote into the folder."""
    try:
        names = json.loads((folder / METRICS).read_text(encoding="utf-8"))["files"]
        return {name for name in names if isinstance(name, str) and OWN.fullmatch(name)}
    except (OSError, ValueError, KeyError, TypeError):  # none, or not ours
        return set()


def _metrics(
    summaries: Mapping[str, Summary], compared: Sequence[tuple[str, str, Comparison]], files: Sequence[str]
) -> str:
    values = {
        "runs": {name: asdict(summary) for name, summary in summaries.items()},
        "comparisons": [{"runs": [first, second]} | asdict(comparison) for first, second, comparison in compared],
        "files": list(files),
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
        yield page.paragraph("A shadow at the side of a table means that it goes on there: it can be scrolled.")
        yield page.table(content.glossary(summaries), folded=True)
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


def _tables_as_files(grids: Sequence[Matrix], summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str]]:
    """Name and text."""
    if summaries:
        yield "table.csv", csv_table(summaries)
        yield "table.tex", latex_table(summaries)
    for matrix in grids:
        yield f"{_file_name(matrix)}.csv", matrix_csv(matrix.rows, matrix.columns, matrix.values)
        yield f"{_file_name(matrix)}.tex", matrix_latex(matrix.rows, matrix.columns, matrix.values)


def _file_name(matrix: Matrix) -> str:
    return "_".join(filter(None, ("heatmap", matrix.measure, matrix.kind, matrix.mode)))


def _heatmaps(grids: Sequence[Matrix], folder: Path) -> Iterator[Picture]:
    for matrix in grids:
        figures.save(figures.draw_heatmap(matrix), path := folder / f"{_file_name(matrix)}.png")
        yield path, matrix.title, matrix.notes


def _run_figures(runs: Sequence[Run], summaries: Mapping[str, Summary], folder: Path) -> Iterator[Picture]:
    points = modes(runs, summaries)
    if len({point.mode for point in points}) > 1:
        figures.save(figures.draw_bars(points), path := folder / "modes.png")
        yield path, "Accuracy by prompt mode, of the last checkpoint of each", caveats(runs, points)
    series = steps(runs, summaries)
    if any(len(each.points) > 1 for each in series):
        figures.save(figures.draw_steps(series), path := folder / "accuracy_by_step.png")
        yield path, "Accuracy by checkpoint step", caveats(runs, [point for each in series for point in each.points])


def _curve_figures(curves: Sequence[Curve], folder: Path) -> Iterator[Picture]:
    for tag in TAGS:
        if any(curve.tag == tag for curve in curves):
            figures.save(figures.draw_curves(curves, tag), path := folder / f"{tag.replace('/', '_')}.png")
            yield path, f"{figures.CURVES[tag][0]}, by optimizer step", ()


def _how(chosen: int, total: int) -> str:
    if chosen == total:
        return f"All {total:,} questions."
    return (
        f"{chosen:,} of {total:,} questions, in turn from each group of modality, question type, dataset and verdict "
        "of the first run; within a group those that the runs answered differently come first. Shares of right and "
        "wrong here are therefore not those of the test."
    )
