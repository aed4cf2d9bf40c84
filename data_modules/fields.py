"""Fields of one row of a question file, checked: each error names the field, what was expected and what was got."""

from __future__ import annotations

import json
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
    if len(value) > MAX_TEXT:
        raise DataError(f"field {name!r}: expected at most {MAX_TEXT} characters, got {len(value)}")
    return value


def label(row: Row, name: str) -> str:
    """A field that may be missing, null or empty, and must be text or a number if it is there."""
    value = row.get(name)
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"field {name!r}: expected text, got {show(value)}")
    return text({name: str(value)}, name)


def texts(row: Row, name: str) -> tuple[str, ...]:
    """A field that must hold a list of texts."""
    value = row.get(name)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise DataError(f"field {name!r}: expected a list of texts, got {show(value)}")
    return tuple(text({name: item}, name) if item.strip() else item for item in value)


def paths(row: Row, name: str) -> tuple[str, ...]:
    """A field that holds one path, a list of paths, or nothing."""
    value = row.get(name) or []
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(path, str) and path.strip() for path in found):
        raise DataError(f"field {name!r}: expected a path or a list of paths, got {show(value)}")
    return tuple(text({name: path}, name) for path in found)


def metadata(row: Row, *names: str) -> dict[str, str]:
    """Those of the fields that are there, as text."""
    return {name: value for name in names if (value := label(row, name))}


def with_options(question: str, options: tuple[str, ...]) -> str:
    """The question and one ``A) text`` line per option."""
    return "\n".join([question, *(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))])


def show(value: Any) -> str:
    """A value as JSON, cut to one line."""
    if isinstance(value, str | list | tuple):
        value = value[:80]
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 80 else shown[:77] + "..."
