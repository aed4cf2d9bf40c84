"""Questions shown otherwise, to see what an accuracy owes to the image and to the order of the options.

blank         the image is grey: what is answered without looking (``Collate`` makes it grey)
wrong_image   another question's image: what is answered against the evidence
shuffled      the options in another order: what is owed to their letters
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from random import Random

from data_modules.fields import with_options
from data_modules.options import REFERS
from medgrpo.types import Record, View

TRIES = 100
"""Records looked at for one whose answer differs: one is soon found, or there is none."""


def shown(records: Sequence[Record], view: View, seed: int) -> list[Record]:
    """The questions under one view, in their order, under the same ids.

    What a question becomes depends on the records and the seed, not on batches or ranks. Left out are questions that
    the view has no meaning for: without image, without another question to take an image from, or without options
    that can change places.
    """
    if view == "image":
        return list(records)
    if view == "blank":
        return [record for record in records if record.images]
    if view == "wrong_image":
        return _wrong_images(records, seed)
    free = [r for r in records if r.options and not any(REFERS.search(option) for option in r.options)]
    return [_reordered(record, Random(f"{seed}/{record.id}")) for record in free]


def _wrong_images(records: Sequence[Record], seed: int) -> list[Record]:
    """Each with the images of another of the same modality, of as many images, and with another right answer if
    there is one."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        if record.images:
            groups[record.modality, len(record.images)].append(record)
    places: dict[str, tuple[list[Record], int]] = {}
    for group in groups.values():
        Random(seed).shuffle(group)
        places |= {record.id: (group, place) for place, record in enumerate(group)}
    found = []
    for record in records:
        if record.images:
            group, place = places[record.id]
            near = (group[(place + step) % len(group)] for step in range(1, min(len(group), TRIES)))
            others = (other for other in near if not set(other.images) & set(record.images))
            if first := next(others, None):
                answer = _answer(record)
                other = next((o for o in chain([first], others) if _answer(o) != answer), first)
                found.append(replace(record, images=other.images))
    return found


def _answer(record: Record) -> str:
    return (record.options[record.letters.index(record.answer)] if record.options else record.answer).casefold()


def _reordered(record: Record, random: Random) -> Record:
    """The options turned by a random number of places, so that every one gets another letter."""
    turn = random.randrange(1, len(record.options))
    options = record.options[turn:] + record.options[:turn]
    letter = record.letters[(record.letters.index(record.answer) - turn) % len(options)]
    return replace(record, options=options, answer=letter, problem=_retold(record, options))


def _retold(record: Record, options: tuple[str, ...]) -> str:
    """The published wording with the options in another order; laid out anew where they are not found in it.

    They are found as one chain of letters, each with its option, so that neither a letter nor words around the options
    are taken for one: ``Which? A) B, B) A. Answer A or B``.
    """
    chain = r"[\s,;.]*\(?".join(
        rf"{letter}[).:]\s*({re.escape(option)})" for letter, option in zip(record.letters, record.options, strict=True)
    )
    found = re.compile(rf"(?<!\w){chain}(?!\w)").search(record.problem, len(record.question))
    if not found or not all(record.options):
        return with_options(record.question, options)
    text = record.problem
    for group in range(len(options), 0, -1):
        start, stop = found.span(group)
        text = text[:start] + options[group - 1] + text[stop:]
    return text
