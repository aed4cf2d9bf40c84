"""Completion text -> reasoning, answer, choice: the one extractor, for the reward and for evaluation.

It abstains where the text does not settle the choice; it never guesses and never takes the nearest string.

Reasoning is what stands inside ``<think> </think>``. Tags are read in any case. Three malformed cases, decided once:
an unclosed ``<think>`` runs to the end; a ``</think>`` without an opening tag ends reasoning that began with the
completion, as when the chat template opens the block; reasoning does not nest, it ends at the first ``</think>``.
The answer is the last closed ``<answer> </answer>`` outside the reasoning, before it or after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medgrpo.types import LETTERS, Record

_THINK_TAG = re.compile(r"<(/?)think>", re.IGNORECASE)
# No opening tag inside: of nested or unclosed openings, the innermost is the block.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)
# "C", "(C)", "C.", "C)" or "C:". A bare letter labels no text: "A CT scan" begins with an article.
_LETTER = re.compile(r"\(([a-z])\)|([a-z])[.):]?", re.IGNORECASE)
_LABELLED = re.compile(r"(?:\(([a-z])\)|([a-z])[.):])\s*(\S.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What one completion says."""

    reasoning: str
    """Text inside the think blocks, joined by newlines; empty without one."""
    text: str | None
    """Content of the answer block, stripped, also when it names no choice; None without a closed block."""
    choice: str | None
    """Letter of the option named; None when unparsed and for open questions."""
    status: Literal["parsed", "unparsed"]
    reason: str = ""
    """Why unparsed: ``no closed answer block``, ``empty``, ``two options``, ``letter not offered`` or
    ``no option matches``; empty when parsed."""


def extract(completion: str, options: Sequence[str]) -> Answer:
    """Reads the answer of a completion.

    A choice is named by its letter (``C``, ``c``, ``(C)``, ``C.``, ``C)``, ``C:``), by the letter and the text of
    that same option (``C) CT``, ``C. CT``, ``C: CT``, ``(C) CT``), or by the exact text of one option. Texts are
    compared up to case, white space and a final period. The readings that hold must agree on one option.

    Args:
        completion: Decoded text without special tokens.
        options: Option texts in letter order, 2 to 10; empty for an open question, whose answer is the block's text.

    Returns:
        The answer; ``status`` is ``unparsed`` when there is no closed block, it is empty, or it does not name exactly
        one option offered.

    Raises:
        ValueError: The number of options is not 0 and not 2 to 10.
    """
    if options and not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"options: expected none or 2 to {len(LETTERS)}, got {len(options)}")
    reasoning, rest = _split(completion)
    blocks = [match[1].strip() for part in rest for match in _ANSWER.finditer(part)]
    if not blocks:
        return Answer(reasoning, None, None, "unparsed", "no closed answer block")
    text = blocks[-1]
    if not text:
        return Answer(reasoning, text, None, "unparsed", "empty")
    if not options:
        return Answer(reasoning, text, None, "parsed")
    choices = _choices(text, options)
    if len(choices) == 1:
        return Answer(reasoning, text, choices.pop(), "parsed")
    return Answer(reasoning, text, None, "unparsed", "two options" if choices else _why_none(text, options))


def is_correct(answer: Answer, record: Record) -> bool:
    """True when the choice is the gold letter; for an open question, when the texts agree up to case, white space and
    a final period. Unparsed is never correct."""
    if answer.status == "unparsed" or answer.text is None:
        return False
    if record.options:
        return answer.choice == record.answer
    return _normal(answer.text) == _normal(record.answer)


def verdict(record: Record, completion: str) -> Literal["right", "wrong", "unparsed"]:
    """Grades one completion, keeping unparsed apart from wrong."""
    answer = extract(completion, record.options)
    if answer.status == "unparsed":
        return "unparsed"
    return "right" if is_correct(answer, record) else "wrong"


def _split(completion: str) -> tuple[str, list[str]]:
    """The reasoning, and the stretches of text outside it in order.

    The stretches stay apart so that removing reasoning cannot join two halves of a tag or of a block.
    """
    inside: list[str] = []
    outside: list[str] = []
    start, thinking = 0, False
    for tag in _THINK_TAG.finditer(completion):
        closes = tag[1] == "/"
        if closes and not thinking:  # the block opened before the completion: all so far was reasoning
            inside, outside = [completion[: tag.start()]], []
        elif closes or not thinking:
            (inside if thinking else outside).append(completion[start : tag.start()])
        else:  # an opening tag inside reasoning is part of it
            continue
        start, thinking = tag.end(), not closes
    (inside if thinking else outside).append(completion[start:])
    return "\n".join(part.strip() for part in inside), outside


def _normal(text: str) -> str:
    """Folds case, white space and one final period."""
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def _choices(text: str, options: Sequence[str]) -> set[str]:
    """Letters of the options that some reading of the block names."""
    named = {letter for letter, option in zip(LETTERS, options, strict=False) if _normal(option) == _normal(text)}
    if match := _LETTER.fullmatch(text):
        named |= {(match[1] or match[2]).upper()} & set(LETTERS[: len(options)])
    if match := _LABELLED.fullmatch(text):
        letter = (match[1] or match[2]).upper()
        if letter in LETTERS[: len(options)] and _normal(match[3]) == _normal(options[LETTERS.index(letter)]):
            named.add(letter)
    return named


def _why_none(text: str, options: Sequence[str]) -> str:
    """Names why no reading holds."""
    offered = LETTERS[: len(options)]
    match = _LETTER.fullmatch(text) or _LABELLED.fullmatch(text)
    if match and (match[1] or match[2]).upper() not in offered:
        return "letter not offered"
    letters = set(re.findall(rf"\b[{offered}]\b", text))
    folded = " ".join(text.split()).casefold()
    texts = {
        letter
        for letter, option in zip(offered, options, strict=True)
        if re.search(rf"(?<!\w){re.escape(_normal(option))}(?!\w)", folded)
    }
    return "two options" if len(letters | texts) > 1 else "no option matches"
