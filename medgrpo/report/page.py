"""The report as one HTML page that needs nothing but itself; its policy forbids every request.

Template, style and script are the files beside this one: ``page.html``, ``browser.html``,
``page.css``, ``page.js``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from medgrpo.report.content import Finding, Table
from medgrpo.report.examples import shown

MAX_ROWS = 400
"""Of one table."""

MAX_DETAILS = 10
"""Runs that one finding names; the rest are counted."""

MAX_CELL = 300
"""Characters."""

MAX_CAPTION = 2000

HERE = Path(__file__).parent


def page(title: str, body: Sequence[str], browser: str = "") -> str:
    """The whole page.

    Args:
        title: plain text.
        body: HTML by the functions of this module.
        browser: by `browser`.
    """
    style = _file("page.css")
    script = _file("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    skip = '<a class="skip" href="#browser">To the examples</a>\n' if browser else ""
    parts = {"policy": policy, "title": _text(title), "style": style, "skip": skip, "body": "\n".join([*body, browser])}
    return _filled(_file("page.html"), parts)


def browser(data: dict[str, Any], how: str) -> str:
    """The browser of examples.

    Args:
        data: of `examples.to_json`.
        how: how they were chosen, plain text.
    """
    # With "<" escaped nothing in the data can end its element or open another one.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"how": _text(how), "data": text, "script": _file("page.js")}
    return _filled(_file("browser.html"), parts)


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{_text(text)}</h2>"


def paragraph(text: str) -> str:
    """A note."""
    return f'<p class="note">{_text(text)}</p>'


def finding_list(findings: Sequence[Finding]) -> str:
    """Findings, each with the runs concerned."""
    items = []
    for finding in findings:
        more = len(finding.details) - MAX_DETAILS
        details = [*finding.details[:MAX_DETAILS], *([f"and {more} more runs"] if more > 0 else [])]
        attention = "<strong>Attention:</strong> " if finding.serious else ""
        listed = f"<ul>{''.join(f'<li>{_text(d)}</li>' for d in details)}</ul>" if details else ""
        kind = "serious" if finding.serious else "plain"
        items.append(f'<li class="{kind}">{attention}{_text(finding.text)}{listed}</li>')
    return f'<ul class="findings">{"".join(items)}</ul>'


def table(content: Table, folded: bool = False) -> str:
    """A table of at least one row, which scrolls sideways where it does not fit; ``folded`` hides it at first."""

    columns = list(zip(*content.rows, strict=True))
    is_left = [
        place < content.labels or any(cell[:1] not in "0123456789+-[<" for cell in column)
        for place, column in enumerate(columns)
    ]

    def row(cells: Sequence[str]) -> str:
        elements = []
        for place, cell in enumerate(cells):
            tag, scope = ("th", ' scope="row"') if place < content.labels else ("td", "")
            elements.append(f"<{tag}{scope}{_left(is_left[place])}>{_text(cell)}</{tag}>")
        return f"<tr>{''.join(elements)}</tr>"

    head = "".join(
        f'<th scope="col"{_left(left)}>{_text(cell)}</th>' for cell, left in zip(content.head, is_left, strict=True)
    )
    title = _text(content.title)
    more = len(content.rows) - MAX_ROWS
    note = f'<p class="note">{more:,} more rows are in the CSV file.</p>' if more > 0 else ""
    element = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(row, content.rows[:MAX_ROWS]))}</tbody></table></div>{note}"
    )
    return f"<details><summary>{title}</summary>{element}</details>" if folded else element


def pictures(figures: Sequence[tuple[Path, str, Sequence[str]]]) -> str:
    """PNG files with their titles and notes, put into the page."""
    elements = []
    for path, title, notes in figures:
        source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        caption = _text(" ".join([f"{title}.", *notes]), MAX_CAPTION)
        elements.append(f'<figure><img src="{source}" alt="{_text(title)}"><figcaption>{caption}</figcaption></figure>')
    return f'<div class="figures">{"".join(elements)}</div>'


def _left(left: bool) -> str:
    """Names stand to the left, figures to the right."""
    return ' class="left"' if left else ""


def _text(text: str, limit: int = MAX_CELL) -> str:
    """Harmless inside an element and inside a quoted attribute."""
    return escape(shown(text, limit))


def _filled(template: str, parts: dict[str, str]) -> str:
    """Names in braces replaced by their parts, which are not looked into."""
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], template)


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
