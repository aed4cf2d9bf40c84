"""Question text -> stem and options; published solution -> gold answer."""

from __future__ import annotations

import re

from medgrpo.types import LETTERS, DataError

_BEFORE = r"(?:^|(?<=[\s,;.?!:\"']))"
_LAYOUTS = (
    re.compile(_BEFORE + r"([A-J])\)"),  # A)x, B)y and A) x\nB) y
    re.compile(r"^[ \t]*([A-J])[:.](?=\s)", re.MULTILINE),  # A: x\nB: y
    re.compile(_BEFORE + r"\(([A-J])\)"),  # (A) x (B) y
)
_CONNECTIVES = {"", "and", "or", "and/or", "&"}


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
        chains = [_last_chain(problem, [m for m in found if m.end() - 1 not in inside]), _last_chain(problem, found)]
        chain = max(chains, key=len)  # the first of equals
        if chain:
            return _unquote(problem[: chain[0].start()]), _texts(problem, chain)
    return _unquote(problem), ()


def _closing_brackets(text: str) -> set[int]:
    """Positions of ``)`` that close a ``(`` more than one letter away."""
    opened, closing = [], set()
    for position, character in enumerate(text):
        if character == "(":
            opened.append(position)
        elif character == ")" and opened and position - opened.pop() > 2:
            closing.add(position)
    return closing


def _last_chain(text: str, markers: list[re.Match[str]]) -> list[re.Match[str]]:
    """The last run of markers A, B, ... of two letters or more that is not a mere mention like ``(A) and (B)``."""
    for start in reversed([i for i, marker in enumerate(markers) if marker[1] == "A"]):
        chain = [markers[start]]
        for marker in markers[start + 1 :]:
            if len(chain) < len(LETTERS) and marker[1] == LETTERS[len(chain)]:
                chain.append(marker)
        if len(chain) > 1 and _CONNECTIVES.isdisjoint(option.lower() for option in _texts(text, chain)[:-1]):
            return chain
    return []


def _texts(text: str, chain: list[re.Match[str]]) -> tuple[str, ...]:
    ends = [marker.start() for marker in chain[1:]]
    inner = [text[marker.end() : end].strip() for marker, end in zip(chain, ends, strict=False)]
    return (*(option.removesuffix(",").rstrip() for option in inner), text[chain[-1].end() :].strip())


def _unquote(stem: str) -> str:
    stem = stem.strip()
    quoted = len(stem) > 1 and stem[0] == stem[-1] == '"' and '"' not in stem[1:-1]
    return stem[1:-1].strip() if quoted else stem


def parse_gold(solution: str, options: tuple[str, ...]) -> str:
    """Gold answer of a published solution: ``<answer> C </answer>``, ``C``, or the text of one option.

    Option texts are compared without regard to case and a final period.

    Returns:
        A letter when there are options, else the text.

    Raises:
        DataError: neither a letter of the options nor the text of exactly one of them.
    """
    tagged = re.findall(r"<answer>(.*?)</answer>", solution, re.DOTALL)
    text = (tagged[-1] if tagged else solution).strip()
    letters = LETTERS[: len(options)]
    if not options:
        if len(text) == 1 and text in LETTERS:
            raise DataError(f"field 'solution': the letter {text} names an option, but 'problem' has no options")
        return text
    if len(text) == 1 and text in letters:
        return text
    wanted = option_key(text)
    matches = [letter for letter, option in zip(letters, options, strict=False) if option_key(option) == wanted]
    if len(matches) != 1:
        found = f"the text of several ({', '.join(matches)})" if matches else "none of them"
        raise DataError(
            f"field 'solution': expected a letter of {letters} or the text of one option, got {text[:80]!r}: {found}"
        )
    return matches[0]


def option_key(text: str) -> str:
    """What options are compared by: without case, surrounding space and final periods."""
    return text.strip().lower().rstrip(".").rstrip()
