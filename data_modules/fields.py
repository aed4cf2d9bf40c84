"""Fields of one row of a question file, checked: each error names the field, what was expected and what was got."""

from __future__ import annotations

import json
import math
from typing import Any

from medgrpo.types import LETTERS, DataError

Row = dict[str, Any]

MAX_TEXT = 100_000
"""Characters of one field; what is longer is no question."""


class Unused(Exception):
    """A row that is well-formed and yet gives no record; the message says why, e.g. ``answer is not published``."""


def text(row: Row, name: str) -> str:
    """A field that must hold text."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {name!r}: expected text, got {show(value) if name in row else 'no such field'}")
    if len(value) > MAX_TEXT or not value.isascii():
        _check_characters(value, name)
    return value


def label(row: Row, name: str) -> str:
    """A field that may be missing, null or empty, and must be text or a number if it is there."""
    value = row.get(name)
    if value is None or value == "":
        return ""
    if isinstance(value, str):
        return text(row, name)
    if type(value) is not int and not (isinstance(value, float) and math.isfinite(value)):
        raise DataError(f"field {name!r}: expected text, got {show(value)}")
    return str(value)


def texts(row: Row, name: str) -> tuple[str, ...]:
    """A field that must hold a list of texts."""
    value = row.get(name)
    if not isinstance(value, (list, tuple)):
        raise DataError(f"field {name!r}: expected a list of texts, got {show(value)}")
    for item in value:
        if not isinstance(item, str):
            raise DataError(f"field {name!r}: expected a list of texts, got {show(value)}")
        if len(item) > MAX_TEXT or not item.isascii():
            _check_characters(item, name)
    return tuple(value)


def paths(row: Row, name: str) -> tuple[str, ...]:
    """A field that holds one path, a list of paths, or nothing."""
    value = row.get(name)
    found = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)):
        raise DataError(f"field {name!r}: expected a path or a list of paths, got {show(value)}")
    for path in found:
        if not isinstance(path, str) or not path.strip():
            raise DataError(f"field {name!r}: expected a path or a list of paths, got {show(value)}")
        if len(path) > MAX_TEXT or not path.isascii():
            _check_characters(path, name)
    return tuple(found)


def others(row: Row, *used: str) -> dict[str, str]:
    """All fields but the ``used`` ones, as text: numbers and truth values as JSON writes them, and so what is nested.

    Fields that are null, blank or not a number are left out.
    """
    found = {}
    for name, value in row.items():
        if name in used or value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        content = value if isinstance(value, str) else _json(value, name)
        if content.strip():
            _check_characters(name, name)
            _check_characters(content, name)
            found[name] = content
    return found


def with_options(question: str, options: tuple[str, ...]) -> str:
    """The question and one ``A) text`` line per option."""
    return "\n".join([question, *(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))])


def show(value: Any) -> str:
    """A value as JSON, cut to one line."""
    shown = json.dumps(_cut(value, 3), ensure_ascii=False, default=repr)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return shown.encode("utf-8", "backslashreplace").decode()


def _cut(value: Any, depth: int) -> Any:
    """What `show` has room for, so that nothing deep or long is walked through."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict):
        return {str(name): _cut(value[name], depth - 1) for name in list(value)[:20]} if depth else "..."
    if isinstance(value, list | tuple):
        return [_cut(item, depth - 1) for item in value[:40]] if depth else "..."
    return value


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (ValueError, RecursionError, TypeError) as error:
        raise DataError(f"field {name!r}: cannot be kept as text: {error}") from error


def _plain(value: Any) -> str:
    if isinstance(value, DataError):  # in place of an object that has a field twice
        raise value
    return str(value)


def _check_characters(value: str, name: str) -> None:
    if len(value) > MAX_TEXT:
        raise DataError(f"field {name[:80]!r}: expected at most {MAX_TEXT} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        broken = value[error.start]
        raise DataError(f"field {name!r}: expected Unicode text, got half of a character: {broken!r}") from error
