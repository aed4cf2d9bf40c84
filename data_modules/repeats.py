"""Records that are there more than once: duplicates, contradictions, and what files have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from data_modules.formats import Reading
from data_modules.leaks import name_key
from data_modules.options import option_key
from medgrpo.types import Record

Split = Literal["train", "test"]
File = tuple[Split, str, Reading]
"""Split, name and content of a question file."""

MAX_EXAMPLES = 20
"""Rows or records that are named for each kind of problem; all are counted."""

Found = tuple[int, Record]
"""A record and the index of its file."""


@dataclass(frozen=True)
class Problem:
    """One row or record to look at."""

    split: Split
    file: str
    record: int | str
    """Index of a row that gave no record, else the record's id."""
    reason: str


@dataclass(frozen=True)
class Duplicates:
    """Records that are there more than once: same images, problem, options and answer."""

    within_files: int
    """Records beyond the first of their kind in the same file."""
    train: int
    """Records beyond the first of their kind in training."""
    test: int
    between: int | None
    """Test records that are also in training; None without both splits."""
    between_by_name: int | None
    """Test records that are also in training but for folders, layout and order of options: see `group_copies`."""
    options: int
    """Records that offer the same text twice, but for case and final period."""
    examples: tuple[Problem, ...]


@dataclass(frozen=True)
class Contradictions:
    """Questions with several right answers: same images and stem (without images also same options), other gold."""

    groups: int
    records: int
    """Records in those groups."""
    certain: int
    """Groups that are no matter of wording: one record offers another's right answer as a wrong one, or both yes and
    no are right."""
    examples: tuple[Problem, ...]


@dataclass(frozen=True)
class View:
    """What two files have in common: a model trained on one is not to be tested on the other."""

    files: tuple[str, str]
    splits: tuple[Split, Split]
    records: int
    """Distinct records that are in both."""
    records_by_name: int
    """Likewise but for folders, layout and order of options: see `group_copies`."""
    images: int
    """Distinct images (paths) that are in both."""


def group_equal(files: Sequence[File]) -> list[list[Found]]:
    """Equal records of all files, together: same images in any order, problem, options and answer."""
    groups: dict[tuple, list[Found]] = defaultdict(list)
    for index, (_, _, reading) in enumerate(files):
        for record in reading.records:
            groups[_images(record), record.problem, record.options, record.answer].append((index, record))
    return list(groups.values())


def group_copies(files: Sequence[File]) -> list[list[Found]]:
    """The same question as another data set may write it, together.

    Same file names of images in whatever folders, same stem, same options in any order, same right answer; case, space
    and final periods do not count. MedVLM-R1's file repeats Med-R1's records so. Where folders use the same names,
    as SLAKE's ``source.jpg``, different images count as one.
    """
    groups: dict[tuple, list[Found]] = defaultdict(list)
    for index, (_, _, reading) in enumerate(files):
        for record in reading.records:
            names = frozenset(map(name_key, record.images))
            groups[names, _stem(record), frozenset(map(option_key, record.options)), _gold(record)].append(
                (index, record)
            )
    return list(groups.values())


def count_duplicates(
    files: Sequence[File], equal: Sequence[Sequence[Found]], copies: Sequence[Sequence[Found]]
) -> Duplicates:
    """Count records that repeat another or an option; from `group_equal` and `group_copies`."""
    within, beyond, between, examples = 0, Counter(), 0, []
    for group in equal:
        if len(group) == 1:
            continue
        within += len(group) - len({index for index, _ in group})
        splits = Counter(files[index][0] for index, _ in group)
        beyond.update({split: count - 1 for split, count in splits.items()})
        between += splits["test"] if splits["train"] else 0
        (first_index, first), (index, record) = group[:2]
        if len(examples) < MAX_EXAMPLES:
            examples.append(_problem(files, index, record, f"is also {first.id!r} of {files[first_index][1]}"))
    twice = [
        (index, record)
        for index, (_, _, reading) in enumerate(files)
        for record in reading.records
        if len({option_key(option) for option in record.options}) < len(record.options)
    ]
    examples += [_problem(files, i, r, f"offers a text twice: {', '.join(r.options)}") for i, r in twice[:MAX_EXAMPLES]]
    both = {split for split, _, reading in files if reading.records} == {"train", "test"}
    return Duplicates(
        within_files=within,
        train=beyond["train"],
        test=beyond["test"],
        between=between if both else None,
        between_by_name=sum(_tested_again(files, group) for group in copies) if both else None,
        options=len(twice),
        examples=tuple(examples),
    )


def find_contradictions(files: Sequence[File]) -> Contradictions:
    """Find records of the same images and stem with different right answers, but for case and final period."""
    groups: dict[tuple, list[Found]] = defaultdict(list)
    for index, (_, _, reading) in enumerate(files):
        for record in reading.records:
            images = _images(record)
            offered = () if images else frozenset(map(option_key, record.options))  # "Which of these is true?"
            groups[images, _stem(record), offered].append((index, record))
    wrong = [group for group in groups.values() if len(group) > 1 and len({_gold(record) for _, record in group}) > 1]
    examples = []
    for group in wrong[:MAX_EXAMPLES]:
        (first_index, first), (index, record) = group[0], next(f for f in group if _gold(f[1]) != _gold(group[0][1]))
        reason = f"{_gold(record)!r}, and {_gold(first)!r} in {first.id!r} of {files[first_index][1]}"
        examples.append(_problem(files, index, record, f"{record.question} The answer is {reason}"))
    certain = sum(_is_certain([record for _, record in group]) for group in wrong)
    return Contradictions(len(wrong), sum(map(len, wrong)), certain, tuple(examples))


def compare_files(
    files: Sequence[File], equal: Iterable[Sequence[Found]], copies: Iterable[Sequence[Found]]
) -> tuple[View, ...]:
    """Count what each pair of files has in common; from `group_equal` and `group_copies`."""
    holders = defaultdict(list)
    for index, (_, _, reading) in enumerate(files):
        for image in {image for record in reading.records for image in record.images}:
            holders[image].append(index)
    records, by_name, images = Counter(), Counter(), Counter()
    for counts, groups in ((records, equal), (by_name, copies)):
        for group in groups:
            counts.update(combinations(sorted({index for index, _ in group}), 2))
    for indices in holders.values():
        images.update(combinations(indices, 2))
    return tuple(
        View((files[a][1], files[b][1]), (files[a][0], files[b][0]), records[a, b], by_name[a, b], images[a, b])
        for a, b in combinations(range(len(files)), 2)
    )


def _tested_again(files: Sequence[File], group: Sequence[Found]) -> int:
    """Test records of a group that has training records."""
    splits = [files[index][0] for index, _ in group]
    return splits.count("test") if "train" in splits else 0


def _stem(record: Record) -> str:
    return " ".join(record.question.lower().split())


def _images(record: Record) -> tuple[str, ...]:
    return record.images if len(record.images) < 2 else tuple(sorted(set(record.images)))


def _gold(record: Record) -> str:
    return option_key(record.options[record.letters.index(record.answer)] if record.options else record.answer)


def _is_certain(group: Sequence[Record]) -> bool:
    golds = {_gold(record) for record in group}
    return {"yes", "no"} <= golds or any(
        not {option_key(option) for option in record.options}.isdisjoint(golds - {_gold(record)}) for record in group
    )


def _problem(files: Sequence[File], index: int, record: Record, reason: str) -> Problem:
    split, name, _ = files[index]
    return Problem(split, name, record.id, reason)
