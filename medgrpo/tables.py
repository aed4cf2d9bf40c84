"""Figures of runs as tables: for the terminal, as CSV for a spreadsheet, as LaTeX for a paper; and cross tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from textwrap import wrap

from medgrpo.comparison import Comparison
from medgrpo.evaluation import Cell, Summary

WIDTH = 150
"""Characters in a line for the terminal, at most."""

_GAP = "  "
_BLIND = {
    "chance": "chance",
    "majority": "the best constant letter",
    "option_prior": "the lookup of option texts",
}
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "_&%#${}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


@dataclass(frozen=True)
class _Column:
    head: str
    """One or two lines."""
    show: Callable[[Cell], str | None]
    """None where a cell has no such figure."""


def percent(share: float | None) -> str | None:
    """A share 0..1 as percent with one digit; None when it is not known."""
    return None if share is None else f"{round(100 * share, 1) + 0:.1f}"  # + 0: no "-0.0"


def _interval(low: float, high: float) -> str:
    return f"[{percent(low)}, {percent(high)}]"


def _share(head: str, field: str) -> _Column:
    return _Column(head, lambda cell: percent(getattr(cell, field)))


_COLUMNS = (
    _Column("n", lambda cell: f"{cell.n:,}"),
    _share("accuracy", "accuracy"),
    _Column("95 %", lambda cell: _interval(cell.low, cell.high)),
    _Column("by\nimage", lambda cell: _interval(cell.boot_low, cell.boot_high) if cell.images < cell.n else None),
    _share("strict", "strict"),
    _share("unparsed", "unparsed"),
    _share("truncated", "truncated"),
    _share("chance", "chance"),
    _share("majority", "majority"),
    _share("prior", "option_prior"),
    _share("blank", "blank"),
    _share("wrong\nimage", "wrong_image"),
)


def text_table(summary: Summary) -> str:
    """One run for the terminal, in percent: a row per group, and below them macro averages, the other views, the
    reasoning, and `warning`. Columns without a value are left out."""
    rows: list[tuple[str, Cell | None]] = [("all", summary.overall)]
    for kind, groups in summary.groups.items():
        rows += [(kind, None), *((f"{_GAP}{name}", cell) for name, cell in groups.items())]
    columns = _used(cell for _, cell in rows if cell)
    heads = [column.head.split("\n") for column in columns]
    lines = [["", *(head[0] if len(head) > 1 else "" for head in heads)]] if max(map(len, heads)) > 1 else []
    lines += [["", *(head[-1] for head in heads)]]
    lines += [[label, *((column.show(cell) or "-") if cell else "" for column in columns)] for label, cell in rows]
    below = [*_of_options(summary), *_averages(summary), *_other_views(summary.overall), *_reasoning(summary)]
    below.append(warning(summary))
    lines = [*_aligned(lines), *(part for line in below for part in wrap(line, WIDTH, subsequent_indent=_GAP))]
    return "\n".join(lines)


def best_blind(summary: Summary) -> tuple[str, float] | None:
    """The highest accuracy that needs no policy to reach, and whose it is; None when none is known.

    Chance, majority letter and option prior are figures of the questions with options: they count here only if all are.
    """
    if {"open", "closed"} & set(summary.groups["options"]):
        return None
    known = [(getattr(summary.overall, name), whose) for name, whose in _BLIND.items()]
    found = max(((share, whose) for share, whose in known if share is not None), default=None)
    return (found[1], found[0]) if found else None


def warning(summary: Summary) -> str:
    """A sentence when an interval does not lie above what is possible without looking at the image; else empty.

    It is that of the accuracy, against `best_blind`, or that of what the image adds for the same policy, against 0.
    """
    cell, blind = summary.overall, best_blind(summary)
    low = min(cell.low, cell.boot_low) if cell.images < cell.n else cell.low
    reasons = []
    if blind and low <= blind[1]:
        reasons.append(
            f"accuracy is {percent(cell.accuracy)} %, with a 95 % interval from {percent(low)} %, and {blind[0]} has "
            f"{percent(blind[1])} %"
        )
    if cell.blank_gain_low is not None and cell.blank_gain_low <= 0:
        reasons.append(
            f"the same policy has {percent(cell.blank)} % with a blank image, and what the image adds lies between "
            f"{_points(cell.blank_gain_low)} and {_points(cell.blank_gain_high)} points (95 % interval)"
        )
    return f"not distinguishable from answering blind: {'; '.join(reasons)}" if reasons else ""


def compare_text(comparison: Comparison, names: tuple[str, str]) -> str:
    """Two runs on the same questions, for the terminal.

    Args:
        comparison: of the runs.
        names: of the first and of the second run.
    """
    first, second = (_cut(name, (WIDTH - 40) // 2) for name in names)
    missing = f" ({comparison.missing:,} that one run alone has are left out)" if comparison.missing else ""
    lines = [
        f"{first} -> {second}",
        f"  {comparison.n:,} questions of both runs{missing}",
        f"  accuracy {percent(comparison.first)} -> {percent(comparison.second)}: "
        f"{_points(comparison.difference)} points, 95 % bootstrap over images "
        f"[{_points(comparison.low)}, {_points(comparison.high)}]",
        f"  right in both {comparison.both_right:,}, in the first only {comparison.only_first:,}, in the second only "
        f"{comparison.only_second:,}, in neither {comparison.neither:,}; McNemar p = {_p(comparison.p_value)}",
    ]
    if comparison.samples > 1:
        lines.append("  accuracy is a mean over samples; the counts and McNemar's test are of each first sample")
    if comparison.low <= 0 <= comparison.high:
        lines.append("  the interval holds 0: no difference is shown")
    return "\n".join(lines)


def csv_table(summaries: Mapping[str, Summary]) -> str:
    """Every figure of every run and group as CSV; shares are 0..1 and empty where not known.

    The columns are ``run``, ``kind``, ``group`` and the fields of `Cell`. The first row of a run is of kind ``all``;
    rows of kind ``macro`` have an accuracy alone.

    Args:
        summaries: name of the run -> its figures.
    """
    names = [field.name for field in fields(Cell)]
    rows: list[list[str]] = [["run", "kind", "group", *names]]
    for run, summary in summaries.items():
        for kind, group, cell in _cells(summary):
            rows.append([_guarded(run), kind, _guarded(group), *(_number(getattr(cell, name)) for name in names)])
        for kind, share in summary.macro.items():
            shown = [_number(share) if name == "accuracy" else "" for name in names]
            rows.append([_guarded(run), "macro", kind, *shown])
    return _csv(rows)


def latex_table(summaries: Mapping[str, Summary]) -> str:
    """Runs and their groups as a ``tabular`` in percent, for a document that loads ``booktabs``.

    Args:
        summaries: name of the run -> its figures.
    """
    columns = _used(cell for summary in summaries.values() for _, _, cell in _cells(summary))
    blocks = []
    for run, summary in summaries.items():
        rows = [
            [f"{kind}: {group}" if group else kind, *(column.show(cell) or "--" for column in columns)]
            for kind, group, cell in _cells(summary)
        ]
        blocks.append([[run if i == 0 else "", *row] for i, row in enumerate(rows)])
    return _tabular("ll", ["Run", "Group", *(column.head for column in columns)], blocks)


def matrix_csv(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """A cross table as CSV.

    Args:
        rows: [R] names.
        columns: [C] names.
        values: [R][C] shares or differences of shares; None where not known.
    """
    body = [[_guarded(name), *map(_number, row)] for name, row in zip(rows, values, strict=True)]
    return _csv([["", *map(_guarded, columns)], *body])


def matrix_latex(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """A cross table as a ``tabular`` in percent, for a document that loads ``booktabs``; arguments as `matrix_csv`."""
    body = [[name, *(percent(value) or "--" for value in row)] for name, row in zip(rows, values, strict=True)]
    return _tabular("l", ["", *columns], [body])


def _cells(summary: Summary) -> list[tuple[str, str, Cell]]:
    """Kind, name and cell of every row."""
    named = [(kind, name, cell) for kind, groups in summary.groups.items() for name, cell in groups.items()]
    return [("all", "", summary.overall), *named]


def _used(cells: Iterable[Cell]) -> list[_Column]:
    cells = list(cells)
    return [column for column in _COLUMNS if any(column.show(cell) is not None for cell in cells)]


def _of_options(summary: Summary) -> list[str]:
    """What the figures that need options are of, where some questions have none."""
    n = sum(cell.n for name, cell in summary.groups["options"].items() if name not in ("open", "closed"))
    if n in (0, summary.overall.n):
        return []
    return [f"chance, majority and prior: of the {n:,} questions with options"]


def _averages(summary: Summary) -> list[str]:
    """Macro average and worst group, of kinds with several groups."""
    several = [kind for kind in summary.macro if len(summary.groups[kind]) > 1]
    worst = [(kind, name, summary.groups[kind][name]) for kind, name in summary.worst.items() if kind in several]
    lines = {
        "macro accuracy": [f"{kind} {percent(summary.macro[kind])}" for kind in several],
        "worst group": [
            f"{kind} {_cut(name, 24)} {percent(cell.accuracy)} (n = {cell.n:,})" for kind, name, cell in worst
        ],
    }
    return [f"{title}: {', '.join(parts)}" for title, parts in lines.items() if parts]


def _other_views(cell: Cell) -> list[str]:
    changed = {"blank image": cell.blank_changed, "wrong image": cell.wrong_image_changed}
    parts = [f"{name} {percent(share)} %" for name, share in changed.items() if share is not None]
    lines = [f"answers that change: {', '.join(parts)}"] if parts else []
    if cell.shuffled is not None:
        lines.append(
            f"options in another order: accuracy {percent(cell.shuffled)}, {percent(cell.order_changed)} % of answers "
            "change"
        )
    if cell.k > 1:
        lines.append(
            f"{cell.k} samples per question: majority vote {percent(cell.majority_vote)}, pass@{cell.k} "
            f"{percent(cell.pass_at_k)}"
        )
    if cell.f1 is not None:
        lines.append(f"open questions: F1 {percent(cell.f1)}")
    return lines


def _reasoning(summary: Summary) -> list[str]:
    reasoning = summary.reasoning
    if reasoning is None:
        return []
    by_verdict = {"right": reasoning.mean_words_right, "wrong": reasoning.mean_words_wrong}
    parts = [f"{verdict} {words:.1f}" for verdict, words in by_verdict.items() if words is not None]
    lines = [
        f"reasoning: {reasoning.n:,} completions, {reasoning.mean_words:.1f} words each ({', '.join(parts)}), "
        f"{percent(reasoning.repetition)} % of 4-grams repeated"
    ]
    if reasoning.concluded is not None:
        line = f"its conclusion: found in {percent(reasoning.concluded)} %"
        agreement = percent(reasoning.agreement)
        lines.append(line if agreement is None else f"{line}, the answer agrees with it in {agreement} % of these")
    return lines


def _aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, cut so that a line fits; figures to the right."""
    widths = [max(map(len, column)) for column in zip(*(row[1:] for row in rows), strict=True)]
    room = WIDTH - sum(widths) - len(_GAP) * len(widths)
    names = [_cut(row[0], room) for row in rows]
    label = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        figures = (cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))
        lines.append(_GAP.join([name.ljust(label), *figures]).rstrip())
    return lines


def _cut(text: str, width: int) -> str:
    """Printable, and with an ellipsis in the middle when it is too long: names often differ at their end."""
    text = _printable(text)
    tail = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0:+.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _guarded(name: str) -> str:
    """A spreadsheet takes what begins with one of these for a formula."""
    return f"'{name}" if name.lstrip()[:1] in ("=", "+", "-", "@") else name


def _number(value: float | None) -> str:
    return "" if value is None else str(round(value, 6))


def _csv(rows: list[list[str]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _tabular(labels: str, head: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    """Rows of cells, a rule between blocks; columns of ``labels`` are names, the others figures."""
    figures = "r" * (len(head) - len(labels))
    lines = [rf"\begin{{tabular}}{{{labels}{figures}}}", r"\toprule", _latex_row(head)]
    for block in blocks:
        lines += [r"\midrule", *map(_latex_row, block)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(cells: Sequence[str]) -> str:
    row = " & ".join(_latex(cell) for cell in cells) + r" \\"
    # At the start of a row these would be read as an argument of the line break before it.
    return "{}" + row if row[0] in "[*" else row


def _latex(text: str) -> str:
    text = " ".join(_printable(text).split())
    if re.fullmatch(r"-[\d.]+", text):
        return f"${text}$"
    return text.translate(_LATEX)
