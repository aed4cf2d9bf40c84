"""An `Audit` in words and tables: for the terminal, and as the content of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from textwrap import wrap

from data_modules.audit import Audit, Blind
from data_modules.repeats import Problem
from medgrpo.blind import Share

MAX_ROWS = 30
"""Rows of one table; the rest are counted."""

MAX_SHOWN = 5
"""Problems of one kind that the terminal shows; the JSON and the page have more."""

MAX_TEXT = 1000
"""Characters of a text from a file that are shown."""

MARGIN = 10
"""Points between a blind baseline and chance from which on it is called a finding."""

KIND_NAMES = {"path": "same path", "name": "same file name", "hash": "same content", "near": "nearly the same picture"}


@dataclass(frozen=True)
class Finding:
    """One sentence about the data."""

    serious: bool
    """True when accuracy would mislead, or records are lost."""
    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``labels`` columns are names, the others figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1


def render(audit: Audit, width: int = 100) -> str:
    """Findings and tables as plain text, at most ``width`` characters wide where the columns of figures allow it."""
    parts = ["\n".join(_bullet(found.text, "! " if found.serious else "- ", width) for found in findings(audit))]
    parts += [_aligned(table, width) for table in tables(audit)]
    for title, problems in listed_problems(audit):
        lines = [
            _bullet(f"{p.split} {p.file}, record {p.record}: {p.reason}", "- ", width) for p in problems[:MAX_SHOWN]
        ]
        parts.append("\n".join([f"{title} (some)", *lines]))
    return "\n\n".join(parts) + "\n"


def render_beside(before: Audit, after: Audit, width: int = 100) -> str:
    """The figures of two audits in two columns, e.g. of a data set and of what became of it."""
    rows = tuple((name, old, new) for (name, old), (_, new) in zip(_figures(before), _figures(after), strict=True))
    return _aligned(Table("Audit before and after", ("", "before", "after"), rows), width) + "\n"


def findings(audit: Audit) -> list[Finding]:
    """What the figures mean, the worst first."""
    found = [*_leak_findings(audit), *_blind_findings(audit), *_repeat_findings(audit), *_row_findings(audit)]
    return sorted(found, key=lambda finding: not finding.serious)


def _leak_findings(audit: Audit) -> Iterable[Finding]:
    if not audit.records["train"] or not audit.records["test"]:
        yield Finding(False, "Leaks, the option lookup and duplicates between splits need both train and test records.")
        return
    for kind, leak in audit.leak.items():
        if leak is None:
            continue
        share = _of(len(leak.records), audit.records["test"], "test records")
        text = f"{share} show an image that is also in training: {KIND_NAMES[kind]} ({leak.images:,} images)."
        if kind == "name" and leak.records:
            text += _weak_names(audit)
        if kind == "near":
            text += " Those of the same content are among them."
        yield Finding(bool(leak.records), text)
    if audit.leak["hash"] is None:
        yield Finding(False, "Images were not opened: copies under other names were not looked for.")


def _weak_names(audit: Audit) -> str:
    name, paths = audit.most_used_name
    return f" Some names say little: {paths:,} different paths end in {printable(name)}." if paths > 2 else ""


def _blind_findings(audit: Audit) -> Iterable[Finding]:
    blind = audit.blind
    chance = blind.chance.percent
    if chance is None:
        return
    guess = f"(chance {chance:.1f} %)"
    best = blind.majority_letter.percent
    yield Finding(best - chance > MARGIN, f"The best constant letter answers {best:.1f} % {guess}.")
    learned = {
        "A lookup of option texts, blind to image and question,": blind.option_prior,
        "A model that was shown no image": blind.text_only,
    }
    for what, share in learned.items():
        if share is not None and share.percent is not None:
            serious = share.percent - chance > MARGIN
            meaning = " High accuracy here is no evidence that a model looks at the image." if serious else ""
            yield Finding(serious, f"{what} answers {share.percent:.1f} % {guess}.{meaning}")
    cue = blind.style_cue
    if cue.fires:
        right = cue.accuracy.percent
        serious = cue.fired.percent >= 1 and abs(right - chance) > MARGIN
        share = _of(cue.fires, cue.n, "questions")
        text = f"In {share} one option is the odd one out in case or final period; it is the right one in {right:.1f} %"
        yield Finding(serious, f"{text} of these {guess}.")
    else:
        yield Finding(False, "No option is the odd one out in case or final period.")


def _repeat_findings(audit: Audit) -> Iterable[Finding]:
    same, wrong = audit.duplicates, audit.contradictions
    if same.between:
        share = _of(same.between, audit.records["test"], "test records")
        yield Finding(True, f"{share} are also in training: same images, problem and answer.")
    elsewhere = (same.between_by_name or 0) - (same.between or 0)
    if elsewhere > 0:
        share = _of(elsewhere, audit.records["test"], "test records")
        text = f"{share} are also in training under another folder, or with options in another layout or order."
        yield Finding(True, text + _weak_names(audit))
    repeated = {
        "training": (same.train, audit.records["train"], "training records"),
        "test": (same.test, audit.records["test"], "test records"),
    }
    for count, total, what in repeated.values():
        if count:
            yield Finding(False, f"{_of(count, total, what)} repeat another one of the split word for word.")
    if same.within_files:
        yield Finding(False, f"{same.within_files:,} records repeat another one of the same file.")
    if same.options:
        yield Finding(False, f"{same.options:,} records offer the same text twice, but for case and final period.")
    if wrong.groups:
        text = (
            f"Questions about the same images with several right answers: {wrong.groups:,} ({wrong.records:,} records);"
            f" in {wrong.certain:,} of them one record offers the other's right answer as a wrong one, or both yes and"
            " no are right."
        )
        yield Finding(wrong.certain > 0, text)


def _row_findings(audit: Audit) -> Iterable[Finding]:
    for rows, serious, what in (
        (audit.malformed, True, "could not be read"),
        (audit.unused, False, "give no record on purpose"),
    ):
        if rows.train + rows.test:
            reasons = "; ".join(f"{printable(why)} ({n:,})" for why, n in list(rows.reasons.items())[:3])
            yield Finding(serious, f"{rows.train:,} training and {rows.test:,} test rows {what}: {reasons}")
    for split, images in audit.images.items():
        if images.missing or images.unreadable:
            text = (
                f"{images.missing:,} of {images.images:,} {split} images are missing, {images.unreadable:,} unreadable."
            )
            yield Finding(True, text)


def tables(audit: Audit) -> list[Table]:
    """All counts."""
    files = [
        (file.split, file.name, *map(_count, (file.records, file.malformed, file.unused, file.images)))
        for file in audit.files
    ]
    names = {
        by: dict.fromkeys(chain(audit.counts["train"][by], audit.counts["test"][by])) for by in audit.counts["test"]
    }
    counts = [
        row
        for by, of_both in names.items()
        for row in _limited(
            [(by, name, *(_count(audit.counts[s][by].get(name, 0)) for s in ("train", "test"))) for name in of_both]
        )
    ]
    leaks = [
        (
            KIND_NAMES[kind],
            _count(len(leak.records)),
            _percent(Share(len(leak.records), audit.records["test"])),
            _count(leak.images),
        )
        for kind, leak in audit.leak.items()
        if leak is not None
    ]
    blind = [
        (name, f"{share.right:,.0f}", _count(share.n), _percent(share))
        for name, share in _shares(audit.blind)
        if share is not None
    ]
    groups = [(by, name, group) for by, of_name in audit.groups.items() for name, group in of_name.items()]
    leaking = [
        (by, name, *map(_count, group.records.values()), *map(_count, group.leak.values()))
        for by, name, group in groups
    ]
    guessed = [
        (by, name, _count(group.blind.chance.n), *(_percent(share) for _, share in _shares(group.blind)[:5]))
        for by, name, group in groups
        if group.blind.chance.n
    ]
    views = [
        (*view.files, _count(view.records), _count(view.records_by_name), _count(view.images))
        for view in audit.views
        if view.records or view.records_by_name or view.images
    ]
    asked = "test" if audit.asked == "test" else "training"
    found = [
        Table("Files", ("split", "file", "records", "malformed", "unused", "images"), tuple(files), 2),
        Table("Records", ("by", "name", "train", "test"), tuple(counts), 2),
        Table("Test records whose image is in training", ("compared by", "records", "share", "images"), tuple(leaks)),
        Table(f"What is reached without the image ({asked} records)", ("", "right", "of", "share"), tuple(blind)),
        Table(
            "Records by group, and test records whose image is in training",
            ("by", "name", "train", "test", "path", "name", "hash", "near"),
            _limited(leaking),
            2,
        ),
        Table(
            f"By group: what is reached without the image ({asked} records)",
            ("by", "name", "of", "chance", "letter", "lookup", "odd", "right"),
            _limited(guessed),
            2,
        ),
        Table("Files that overlap", ("file", "and file", "records", "by name", "images"), _limited(views), 2),
    ]
    return [table for table in found if table.rows]


def listed_problems(audit: Audit) -> list[tuple[str, tuple[Problem, ...]]]:
    """Rows and records to look at, by kind."""
    kinds = {
        "Rows that could not be read": audit.malformed.examples,
        "Rows that give no record": audit.unused.examples,
        "Repeated records and options": audit.duplicates.examples,
        "Different right answers": audit.contradictions.examples,
        "Images that could not be read": audit.image_problems,
    }
    return [(title, problems) for title, problems in kinds.items() if problems]


def printable(text: str) -> str:
    """Text from a file without what would steer a terminal or break a line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _shares(blind: Blind) -> list[tuple[str, Share | None]]:
    return [
        ("chance", blind.chance),
        ("best constant letter", blind.majority_letter),
        ("lookup of option texts", blind.option_prior),
        ("there is an odd one out", blind.style_cue.fired),
        ("it is the right one", blind.style_cue.accuracy),
        ("model without the image", blind.text_only),
    ]


def _figures(audit: Audit) -> list[tuple[str, str]]:
    leaks = [
        (f"test records, {KIND_NAMES[kind]}", "-" if leak is None else _count(len(leak.records)))
        for kind, leak in audit.leak.items()
    ]
    return [
        ("training records", _count(audit.records["train"])),
        ("test records", _count(audit.records["test"])),
        *leaks,
        *((name, _percent(share)) for name, share in _shares(audit.blind)),
        ("test records that are also in training", _count(audit.duplicates.between)),
        ("likewise, but for folders and layout", _count(audit.duplicates.between_by_name)),
        ("records that offer a text twice", _count(audit.duplicates.options)),
        ("questions with different right answers", _count(audit.contradictions.groups)),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(share: Share | None) -> str:
    return "-" if share is None or share.percent is None else f"{share.percent:.1f} %"


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} ({_percent(Share(count, total))})"


def _limited(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    if len(rows) <= MAX_ROWS:
        return tuple(rows)
    rest = (rows[0][0], f"... and {len(rows) - MAX_ROWS:,} more", *[""] * (len(rows[0]) - 2))
    return (*rows[:MAX_ROWS], rest)


def _bullet(text: str, mark: str, width: int) -> str:
    return "\n".join(wrap(printable(text)[:MAX_TEXT], width, initial_indent=mark, subsequent_indent="  "))


def _aligned(table: Table, width: int) -> str:
    """Title, head and rows; names are cut where they make a line longer than ``width``."""
    lines = [tuple(map(printable, row)) for row in (table.head, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    excess = sum(widths) + 2 * len(widths) - width
    for column in sorted(range(table.labels), key=lambda column: -widths[column]):
        cut = min(max(excess, 0), max(widths[column] - 12, 0))
        widths[column] -= cut
        excess -= cut
    text = [
        "  ".join(
            _cut(cell, size).ljust(size) if column < table.labels else cell.rjust(size)
            for column, (cell, size) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, *(f"  {line}" for line in text)])


def _cut(text: str, size: int) -> str:
    """The text, with its middle left out where it is longer than ``size``."""
    if len(text) <= size:
        return text
    tail = (size - 3) // 2
    return f"{text[: size - 3 - tail]}...{text[len(text) - tail :]}"
