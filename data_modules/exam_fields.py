"""Fields of exam rows, checked, in the many forms that exams publish them in: options, gold letters, ids.

Each error names the field, what was expected and what was got.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from data_modules.fields import Row, label, show, text, with_options
from data_modules.options import option_key, parse_options
from medgrpo.types import LETTERS, DataError

MAX_LITERAL = 20_000
"""Characters of a list in Python syntax that are parsed: nesting without end can crash the parser."""

_CHOICES = re.compile(r"Answer Choices:\s*(?=\(A\))")


def own_id(row: Row, name: str, prefix: str) -> str:
    """The row's own id, with a prefix when it is a bare number; empty when it has none."""
    own = label(row, name)
    return f"{prefix}-{own}" if own.isdecimal() else own


def optional(row: Row, name: str) -> str:
    """A field that may be missing, null or blank, and must be text or a number if it is there."""
    value = row.get(name)
    return "" if isinstance(value, str) and not value.strip() else label(row, name)


def option_text(row: Row, name: str) -> str:
    """A field that must hold a text or a number."""
    value = optional(row, name)
    if not value:
        raise DataError(f"field {name!r}: expected the text of an option, got {show(row.get(name))}")
    return value


def fields_of(row: Row, name: str) -> Row:
    """A field that must hold an object."""
    value = row.get(name)
    if not isinstance(value, dict):
        raise DataError(f"field {name!r}: expected an object with fields, got {show(value)}")
    return value


def images_of(row: Row, name: str) -> tuple[str, ...]:
    """A field that may be missing, and else holds a list of paths or of ``{image_path}``."""
    value = row.get(name)
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise DataError(f"field {name!r}: expected a list of images, got {show(value)}")
    return tuple(text({name: item.get("image_path") if isinstance(item, dict) else item}, name) for item in items)


def choices(row: Row, name: str) -> tuple[str, ...]:
    """Options: a list of texts, an object by letter, a list of ``{letter, content}``, or one of these as text."""
    value = row.get(name)
    if isinstance(value, str):
        value = _parsed(text(row, name), name)
    if isinstance(value, dict):
        # Parquet gives each row the letters of all rows, and null for those that it has not.
        pairs = [(letter, option) for letter, option in value.items() if option is not None]
    elif isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value):
        pairs = [(item.get("letter", item.get("key")), item.get("content", item.get("value"))) for item in value]
    elif isinstance(value, list | tuple):
        pairs = list(zip(LETTERS, value, strict=False)) if len(value) <= len(LETTERS) else value
    else:
        raise DataError(f"field {name!r}: expected options by letter or in a list, got {show(value)}")
    if not 2 <= len(pairs) <= len(LETTERS):
        raise DataError(f"field {name!r}: expected 2 to {len(LETTERS)} options, got {len(pairs)}")
    pairs.sort(key=lambda pair: str(pair[0]))
    if [letter for letter, _ in pairs] != list(LETTERS[: len(pairs)]):
        letters = [letter for letter, _ in pairs]
        raise DataError(f"field {name!r}: expected the letters {LETTERS[: len(pairs)]}, got {show(letters)}")
    return tuple(option_text({name: option}, name) for _, option in pairs)


def _parsed(value: str, name: str) -> Any:
    """Options in JSON, or as one line ``A. text`` each."""
    if value.lstrip()[0] not in "{[":
        return parse_options(value)[1]
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"field {name!r}: expected options as JSON, got {show(value)}") from error


def literal_options(row: Row, name: str) -> tuple[str, ...]:
    """Options as a list, or as Python writes one; an open question has none."""
    value = literal_list(text(row, name)) if isinstance(row.get(name), str) else row.get(name)
    if not isinstance(value, list | tuple):
        raise DataError(f"field {name!r}: expected a list of options, got {show(row.get(name))}")
    return choices({name: value}, name) if value else ()


def literal_list(value: str) -> list | None:
    """The list that a text is in Python, or None."""
    if len(value) > MAX_LITERAL or not value.lstrip().startswith("["):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # a lone backslash of a formula stands for itself
            found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    simple = isinstance(found, list) and all(
        type(item) in (str, float) or (type(item) is int and abs(item) < 10**15) for item in found
    )
    return [str(item) for item in found] if simple else None


def gold_letter(row: Row, name: str, options: tuple[str, ...]) -> str:
    """Gold: a letter of the options, alone or in a list of one."""
    value, letters = row.get(name), LETTERS[: len(options)]
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or value.strip() not in tuple(letters):
        raise DataError(f"field {name!r}: expected a letter of {letters}, got {show(row.get(name))}")
    return value.strip()


def index_of(row: Row, name: str, allowed: Sequence[int]) -> int:
    """A field that holds one of these numbers, as a number or as text."""
    value = row.get(name)
    for number in allowed:
        if value == str(number) or (type(value) is int and value == number):
            return number
    raise DataError(f"field {name!r}: expected one of {', '.join(map(str, allowed))}, got {show(value)}")


def check_gold_text(row: Row, name: str, options: tuple[str, ...], letter: str) -> None:
    """Raise if the text of the gold answer is given and is not that of its letter."""
    gold, value = options[LETTERS.index(letter)], optional(row, name)
    if value and option_key(value) != option_key(gold):
        raise DataError(f"field {name!r}: expected {show(gold)}, the text of option {letter}, got {show(value)}")


def given_options(row: Row, name: str) -> tuple[str, str, tuple[str, ...]]:
    """Problem, stem and options of a row whose field ``name`` has the options.

    The question may list them too: the stem does not, and the problem is the question as published when it lists the
    same ones, whatever the punctuation.
    """
    published, options = text(row, "question"), choices(row, name)
    question = stem_of(published)
    listing = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=False))
    same = _key(published[len(question) :]) == _key(f"Answer Choices {listing}")
    return published if same else with_options(question, options), question, options


def listed_options(row: Row) -> tuple[str, str, tuple[str, ...]]:
    """Problem, stem and options of a row whose question lists the options."""
    published = text(row, "question")
    question = stem_of(published)
    if question == published:
        question, options = parse_options(published)
    else:
        options = parse_options(published[len(question) :])[1]
    if not options:
        raise DataError("field 'question': expected options as in 'Answer Choices: (A) ... (B) ...', got none")
    return published, question, options


def stem_of(question: str) -> str:
    """A question without its last ``Answer Choices: (A) ...``."""
    marks = list(_CHOICES.finditer(question))
    return text({"question": question[: marks[-1].start()].rstrip()}, "question") if marks else question


def _key(listed: str) -> str:
    """What lists of options are compared by: letters and digits alone."""
    return "".join(filter(str.isalnum, listed)).casefold()
