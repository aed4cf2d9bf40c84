"""``medgrpo grade``, ``compare`` and ``report``: tables and pages from saved predictions, without a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medgrpo.comparison import compare
from medgrpo.graders import GRADERS, grade, grader_name
from medgrpo.predictions import Prediction, read_predictions, read_rows
from medgrpo.results import is_results, read_results, write_results
from medgrpo.runs import PREDICTIONS, find_runs
from medgrpo.tables import compare_text
from medgrpo.types import DataError, UserError


def run_grade(args: argparse.Namespace) -> None:
    """Grade saved completions; of several samples of a question each, so that shares are means over samples."""
    path = Path(args.file)
    predictions = [p for p in _read(path) if p.view == "image"]
    if not predictions:
        raise DataError(f"{args.file}: expected predictions of questions as they are (view image), got none")
    name = grader_name(args.grader)
    samples = [(p, number) for p in predictions for number in range(len(p.completions))]
    grades = grade(name, [p.record for p, _ in samples], [p.completions[number] for p, number in samples])
    # Numbers stay numbers in the verdicts.
    given = {str(row["id"]): row["id"] for _, row in read_rows(path)} if path.is_file() and not is_results(path) else {}
    report: dict[str, Any] = {
        "grader": name,
        "n": len(predictions),
        "strict": sum(g.strict_correct for g in grades) / len(samples),
        "lenient": sum(g.correct for g in grades) / len(samples),
        "unparsed": sum(g.unparsed for g in grades) / len(samples),
        "truncated": sum(p.truncated[number] for p, number in samples) / len(samples),
        "verdicts": [
            {"id": given.get(p.record.id, p.record.id)}
            | ({"sample": number} if len(p.completions) > 1 else {})
            | {"extracted": g.extracted, "correct": g.correct, "strict_correct": g.strict_correct}
            for (p, number), g in zip(samples, grades, strict=True)
        ],
    }
    if args.results:
        write_results(args.results, predictions)
    if args.json:
        _write(args.json, report)
    if args.json != "-":
        figures = ", ".join(
            f"{key} {100 * report[key]:.2f} %" for key in ("lenient", "strict", "unparsed", "truncated")
        )
        print(f"{name}: n {report['n']}, {figures}")


def run_compare(args: argparse.Namespace) -> None:
    """Compare two runs on the questions that both were asked."""
    compared = compare(_read(Path(args.first)), _read(Path(args.second)))
    if args.json:
        _write(args.json, {"runs": [args.first, args.second], **asdict(compared)})
    if args.json != "-":
        print(compare_text(compared, (args.first, args.second)))


def run_report(args: argparse.Namespace) -> None:
    """Write the page, figures and tables."""
    from medgrpo.report.build import write_report  # loads matplotlib

    write_report(args.runs, args.out, args.max_examples)
    print(f"report: {Path(args.out) / 'index.html'}")


def parser() -> argparse.ArgumentParser:
    """The command line, one subcommand per task."""
    root = argparse.ArgumentParser(prog="medgrpo", description=__doc__, allow_abbrev=False)
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    sub = command("grade", run_grade, "Grade saved answers again, by our rules or by those of another project.")
    sub.add_argument(
        "file",
        help="predictions: JSON lines with id, completion, options, gold; the result JSON of Med-R1 or MedVLM-R1; or "
        "the folder of a test",
    )
    sub.add_argument(
        "--grader", default="ours", help=f"one of {', '.join(GRADERS)}; those of other projects keep their faults"
    )
    sub.add_argument("--json", metavar="OUT", help="write figures and verdicts; - is the standard output")
    sub.add_argument("--results", metavar="OUT", help="write the answers in the layout of Med-R1 and MedVLM-R1")

    sub = command(
        "compare", run_compare, "Compare two runs on the same questions: McNemar's test and a bootstrap interval."
    )
    sub.add_argument("first", help="folder of a test, or file of predictions")
    sub.add_argument("second", help="likewise; differences are second minus first")
    sub.add_argument("--json", metavar="OUT", help="write the figures; - is the standard output")

    sub = command("report", run_report, "Make a page, figures and tables of saved predictions and training curves.")
    sub.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a test or training run, or one that holds several"
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for index.html, PNG, CSV and LaTeX files")
    sub.add_argument(
        "--max_examples", type=int, default=300, metavar="N", help="questions to browse; default %(default)s"
    )
    return root


def main(args: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0, or 2 after bad input.
    """
    parsed = parser().parse_args(args)
    try:
        parsed.run(parsed)
    except UserError as error:
        print(f"medgrpo: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path: Path) -> list[Prediction]:
    """Predictions of a file of either kind, or of the one folder of a test at or below a path."""
    if path.is_file():
        return read_results(path) if is_results(path) else read_predictions(path)
    runs = find_runs([path])
    if len(runs) != 1:
        raise DataError(f"{path}: expected one {PREDICTIONS} in or below it, got {len(runs)}; name the file")
    return list(runs[0].predictions)


def _write(out: str, value: dict[str, Any]) -> None:
    """ASCII, which any terminal shows and which also holds halves of characters, as models say them."""
    text = json.dumps(value, indent=1)
    if out == "-":
        print(text)
        return
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    except OSError as error:
        raise DataError(f"{out}: expected a file that can be written; {error.strerror}") from error
