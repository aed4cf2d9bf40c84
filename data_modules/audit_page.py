"""An `Audit` as one HTML page that needs nothing but itself: findings, tables, and pictures of leaking pairs."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from data_modules.audit import Audit
from data_modules.audit_text import KIND_NAMES, MAX_TEXT, Table, findings, listed_problems, printable, tables
from data_modules.convert import write_text
from data_modules.leaks import MAX_PAIRS, LeakPair
from data_modules.repeats import Problem
from medgrpo.types import DataError, Record

THUMBNAIL_PIXELS = 224
"""Longest side of a picture on the page."""

OpenImage = Callable[[str], Image.Image]
"""Reference of an image -> the image; raises `DataError` when there is none to show."""


def write_page(path: str | Path, audit: Audit, open_image: OpenImage | None = None, max_pairs: int = MAX_PAIRS) -> None:
    """Write the page. It loads nothing and runs nothing: pictures are inside, and its policy forbids all else.

    Args:
        path: of the HTML file.
        audit: what to show.
        open_image: opens the images of the pairs; None shows the pairs without pictures.
        max_pairs: of a test and a training record that share an image, spread over kinds of leak and modalities.

    Raises:
        DataError: it cannot be written.
    """
    pairs = spread(audit.pairs, max_pairs)
    body = [
        "<h1>Data audit</h1>",
        "<h2>Findings</h2>",
        "<ul class=findings>",
        *(
            f"<li class={'serious' if finding.serious else 'note'}>"
            f"{'<strong>Attention:</strong> ' if finding.serious else ''}{_text(finding.text)}</li>"
            for finding in findings(audit)
        ),
        "</ul>",
        "<h2>Figures</h2>",
        *(_table(table) for table in tables(audit)),
        *(_problems(title, problems) for title, problems in listed_problems(audit)),
    ]
    if pairs:
        total = len(frozenset().union(*(leak.records for leak in audit.leak.values() if leak)))
        body.append("<h2>Images that are in test and in training</h2>")
        body.append(f"<p>{len(pairs):,} examples; {total:,} test records are concerned.</p>")
        body += _pairs(pairs, open_image)
    write_text(Path(path), _PAGE.replace("<!-- body -->", "\n".join(body)))


def spread(pairs: Sequence[LeakPair], count: int) -> list[LeakPair]:
    """At most ``count`` pairs, in turn from each kind of leak and modality, so that none is left out by many others."""
    groups = defaultdict(list)
    for pair in pairs:
        groups[pair.kind, pair.test.modality].append(pair)
    chosen = [pair for turn in zip_longest(*groups.values()) for pair in turn if pair is not None][:count]
    places = {key: place for place, key in enumerate(groups)}
    return sorted(chosen, key=lambda pair: places[pair.kind, pair.test.modality])


def why(pair: LeakPair) -> str:
    """All that the two images of a pair have in common, in words."""
    facts = {
        "same path": pair.same_path,
        "same file name": pair.same_name,
        "same content": pair.same_hash,
        f"perceptual hashes differ in {pair.distance} of 64 bits": pair.distance is not None,
    }
    return ", ".join(fact for fact, holds in facts.items() if holds)


def _text(text: str) -> str:
    """Text from a file, harmless inside an element and inside a quoted attribute."""
    shown = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."
    return escape("\n".join(map(printable, shown.splitlines())))


def _table(table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        labels = "".join(f"<th scope=row>{_text(cell)}</th>" for cell in cells[: table.labels])
        return f"<tr>{labels}{''.join(f'<td>{_text(cell)}</td>' for cell in cells[table.labels :])}</tr>"

    head = "".join(
        f"<th scope=col{' class=label' if column < table.labels else ''}>{_text(cell)}</th>"
        for column, cell in enumerate(table.head)
    )
    title = _text(table.title)
    return (
        f'<div class=scroll role=region tabindex=0 aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(row, table.rows))}</tbody></table></div>"
    )


def _problems(title: str, problems: Sequence[Problem]) -> str:
    lines = (f"<li>{_text(f'{p.split} {p.file}, record {p.record}: {p.reason}')}</li>" for p in problems)
    return f"<details><summary>{_text(title)} (examples)</summary><ul>{''.join(lines)}</ul></details>"


def _pairs(pairs: Sequence[LeakPair], open_image: OpenImage | None) -> list[str]:
    picture = cache(lambda reference: _picture(reference, open_image))
    shown = []
    for number, pair in enumerate(pairs, 1):
        title = ", ".join(filter(None, (KIND_NAMES[pair.kind], pair.test.modality)))
        test = _side("Test", pair.test, pair.test_image, picture)
        train = _side("Training", pair.train, pair.train_image, picture)
        head = f"<h3>{number}. {_text(title)}</h3><p>{_text(why(pair))}</p>"
        shown.append(f"<article>{head}<div class=pair>{test}{train}</div></article>")
    return shown


def _side(split: str, record: Record, image: str, picture: Callable[[str], tuple[str, str]]) -> str:
    source, reason = picture(image)
    alt = _text(f"{split} image {image} of record {record.id}")
    shown = f'<img src="{source}" alt="{alt}">' if source else f"<p class=missing>No picture: {_text(reason)}</p>"
    options = "".join(
        f"<li class=gold>{_text(option)} <strong>(right)</strong></li>"
        if letter == record.answer
        else f"<li>{_text(option)}</li>"
        for letter, option in zip(record.letters, record.options, strict=True)
    )
    answer = f"<ol type=A>{options}</ol>" if options else f"<p class=gold>{_text(record.answer)}</p>"
    return (
        f"<section><h4>{split} record {_text(record.id)}</h4>"
        f"<figure>{shown}<figcaption>{_text(image)}</figcaption></figure>"
        f"<p class=question>{_text(record.question)}</p>{answer}</section>"
    )


def _picture(reference: str, open_image: OpenImage | None) -> tuple[str, str]:
    """A ``data:`` address, or an empty one and the reason."""
    if open_image is None:
        return "", "images were not opened"
    try:
        image = open_image(reference)
    except DataError as error:
        return "", str(error)
    image = image.convert("RGB")
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}", ""


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Data audit</title>
<style>
:root { --ground: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --bad: #b3261e; --good: #1a6b33; --box: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --ink: #e6e9ec; --soft: #a3adb7; --line: #3a424a;
    --bad: #ff8f85; --good: #7ddb97; --box: #1f2429; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; }
.findings { padding-left: 1.2rem; }
.serious::marker, .serious strong { color: var(--bad); }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; }
th[scope=row] { font-weight: 400; }
th[scope=row], thead th.label { text-align: left; }
thead th { color: var(--soft); }
details { margin: 1rem 0; }
article { border-top: 1px solid var(--line); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
section { background: var(--box); padding: .75rem; border-radius: .5rem; min-width: 0; }
section h4 { margin: 0 0 .5rem; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; }
.missing { width: 14rem; max-width: 100%; min-height: 8rem; padding: .75rem;
  border: 2px dashed var(--line); margin: 0; }
.question { white-space: pre-line; }
.gold strong, p.gold { color: var(--good); }
</style>
</head>
<body>
<main>
<!-- body -->
</main>
</body>
</html>
"""
