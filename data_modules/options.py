"""Question text -> stem and options; published solution -> gold answer."""

from __future__ import annotations

import re

from medgrpo.blind import option_key
from medgrpo.types import LETTERS, DataError

_BEFORE = r"(?:^|(?<=[\s,;.?!:\"']))"
_LAYOUTS = (
    re.compile(_BEFORE + r"([A-Z])\)"),  # A)x, B)y and A) x\nB) y
    re.compile(r"^[ \t]*([A-Z])[:.](?=\s)", re.MULTILINE),  # A: x\nB: y
    re.compile(_BEFORE + r"\(([A-Z])\)"),  # (A) x (B) y
)
REFERS = re.compile(
    r"\b(all|none|any|both|neither) of (the )?(above|following|options|answers|others?|these)\b|^(all|both)$"
    r"|\b[A-J]\)?,? (and|or|&) \(?[A-J]\b",
    re.IGNORECASE,
)
"""Options that speak of each other: in another order they would say something else."""
_MENTION = re.compile(r"\s*+(?:and/or|and|or|&|)\s*+,?\s*+", re.IGNORECASE)


def parse_options(problem: str) -> tuple[str, tuple[str, ...]]:
    """Split a problem into its stem and its inline options.

    The options are the last chain of markers A, B, C ... in letter order, in any of the layouts ``A)x, B)y``,
    ``A) x`` per line, ``A: x`` per line and ``(A) x (B) y``. A marker needs white space or punctuation before it, so
    ``(CT)`` and ``(ACJ OA)`` are none; commas inside options and equal options are kept.

    Returns:
        Stem without enclosing quotes, and the options; the stem is the whole problem when there are none.
    """
    for layout in _LAYOUTS:
        # A bracket that closes one opened before is text, as in "(type B)", unless the bracket before is a stray one.
        inside = _closing_brackets(problem)
        found = list(layout.finditer(problem))
        outside = [m for m in found if m.end() - 1 not in inside]
        chain = _last_chain(problem, outside)
        if len(outside) < len(found):
            chain = max(chain, _last_chain(problem, found), key=len)  # the first of equals
        if chain:
            return _unquote(problem[: chain[0].start()]), _texts(problem, chain)
    return _unquote(problem), ()


def _closing_brackets(text: str) -> set[int]:
    """Positions of ``)`` that close a ``(`` more than one letter away."""
    opened, closing = [], set()
    for bracket in re.finditer(r"[()]", text):
        if bracket[0] == "(":
            opened.append(bracket.start())
        elif opened and bracket.start() - opened.pop() > 2:
            closing.add(bracket.start())
    return closing


def _last_chain(text: str, markers: list[re.Match[str]]) -> list[re.Match[str]]:
    """The last run of markers A, B, ... of two letters or more that is not a mere mention like ``(A) and (B)``."""
    # One pass from the end: a marker's chain is itself and the chain of the nearest next letter behind it, so that no
    # text is looked at once per marker A before it.
    nearest: dict[str, int] = {}
    following: dict[int, int] = {}
    mentions = set()
    for index, marker in reversed(list(enumerate(markers))):
        later = nearest.get(chr(ord(marker[1]) + 1))
        nearest[marker[1]] = index
        if later is None:
            continue
        following[index] = later
        if later in mentions or _MENTION.fullmatch(text, marker.end(), markers[later].start()):
            mentions.add(index)
        elif marker[1] == "A":
            chain = [index]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            return [markers[i] for i in chain]
    return []


def _texts(text: str, chain: list[re.Match[str]]) -> tuple[str, ...]:
    ends = [marker.start() for marker in chain[1:]]
    inner = [text[marker.end() : end].strip() for marker, end in zip(chain, ends, strict=False)]
    return (*(option.removesuffix(",").rstrip() for option in inner), text[chain[-1].end() :].strip())


def _unquote(stem: str) -> str:
    stem = stem.strip()
    quoted = len(stem) > 1 and stem[0] == stem[-1] == '"' and '"' not in stem[1:-1]
    return stem[1:-1].strip() if quoted else stem


def parse_gold(solution: str, options: tuple[str, ...], name: str = "solution") -> str:
    """Gold answer of a published solution: ``<answer> C </answer>``, ``C``, or the text of one option.

    Option texts are compared without regard to case and a final period. ``name`` is that of the field, for errors.

    Returns:
        A letter when there are options, else the text.

    Raises:
        DataError: neither a letter of the options nor the text of exactly one of them.
    """
    text = _answer_of(solution).strip()
    letters = LETTERS[: len(options)]
    if not options:
        if len(text) == 1 and text in LETTERS:
            raise DataError(f"field {name!r}: the letter {text} names an option, but 'problem' has no options")
        return text
    if len(text) == 1 and text in letters:
        return text
    return match_option(text, options, name, f"a letter of {letters} or ")


def match_option(wanted: str, options: tuple[str, ...], name: str, otherwise: str = "") -> str:
    """Letter of the one option that has this text, compared by `option_key`.

    Args:
        wanted: text of the gold answer.
        options: 2 to 10 texts.
        name: of the field that holds the text.
        otherwise: what else the field might have held, for the error.

    Raises:
        DataError: none of the options has this text, or several have.
    """
    key = option_key(wanted)
    matches = [letter for letter, option in zip(LETTERS, options, strict=False) if option_key(option) == key]
    if len(matches) != 1:
        found = f"the text of several ({', '.join(matches)})" if matches else "none of them"
        raise DataError(
            f"field {name!r}: expected {otherwise}the text of one option, got {wanted.strip()[:80]!r}: {found}"
        )
    return matches[0]


def _answer_of(solution: str) -> str:
    """What the last pair of answer tags encloses, or all of it when there is none."""
    for part in reversed(solution.split("</answer>")[:-1]):
        _, tag, inside = part.partition("<answer>")
        if tag:
            return inside
    return solution
