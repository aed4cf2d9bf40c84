"""Subsets and splits of records that share no image, patient or volume."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b

from data_modules.leaks import name_key, path_key
from data_modules.options import option_key
from medgrpo.types import Record, SettingsError

_TEXT_FIELDS = {field.name for field in fields(Record) if field.type == "str"}


def value_of(record: Record, name: str) -> str:
    """What a record says under a name; empty when it says nothing.

    Args:
        name: a text field of `Record`, ``answer_type``, ``letter`` (gold letter), ``answer`` (gold as text, compared by
            `option_key`), or a name in ``metadata``.
    """
    if name == "answer":
        return option_key(record.options[record.letters.index(record.answer)] if record.options else record.answer)
    if name == "letter":
        return record.answer if record.options else ""
    if name in _TEXT_FIELDS or name == "answer_type":
        return getattr(record, name)
    return record.metadata.get(name, "")


def draw_order(records: Sequence[Record], seed: int) -> list[int]:
    """Positions of the records in a random order that depends on the seed and on each record, not on the positions."""
    ranks = [_rank(record, seed) for record in records]
    return sorted(range(len(records)), key=ranks.__getitem__)


def sample(records: Sequence[Record], num: int, seed: int, balance: str | None = None) -> list[Record]:
    """Random subset without replacement, in the order of ``records``.

    Args:
        num: size of the subset.
        seed: the same seed and records, in any order, give the same subset.
        balance: draw equally often from each value of this (see `value_of`); values with too few records give all
            of theirs, and the others fill up.

    Raises:
        SettingsError: ``num`` is not 1 to the number of records, or no record says anything under ``balance``.
    """
    if not 1 <= num <= len(records):
        raise SettingsError(f"num: expected 1 to {len(records)}, the number of records, got {num}")
    return [records[i] for i in sorted(_draw(records, range(len(records)), num, seed, balance))]


def sample_splits(
    records: Sequence[Record],
    num_train: int,
    num_test: int,
    seed: int,
    by: str | None = "modality",
    balance: str | None = None,
    groups: Sequence[int] | None = None,
) -> tuple[list[Record], list[Record]]:
    """Draw a training and a test set that share no group, so many records of each value.

    The groups are first divided in the proportion of the two sizes, and each set is drawn from its part.

    Args:
        num_train: records per value of ``by``; 0 draws no training set.
        num_test: as ``num_train``.
        seed: the same seed and records, in any order, give the same sets.
        by: ``modality``, ``task``, ``dataset`` or any other name of `value_of`. Records that say nothing under it are
            not drawn. None draws from all records together.
        balance: as for `sample`, within each value of ``by``.
        groups: group number of each record; None is ``group_records(records)``.

    Returns:
        Training and test records, each in the order of ``records``.

    Raises:
        SettingsError: too few records, or groups too large to be divided so; it says how many there are per value.
    """
    sizes = {name: num for name, num in (("train", num_train), ("test", num_test)) if num}
    if min(num_train, num_test) < 0 or not sizes:
        raise SettingsError(f"expected num_train and num_test of 0 or more, not both 0, got {num_train}, {num_test}")
    names = _values(records, by, "by") if by else ["all"] * len(records)
    total = num_train + num_test
    _check_counts(names, [i for i, name in enumerate(names) if name], total, f"{num_train} + {num_test} records", by)

    known = [i for i, name in enumerate(names) if name]
    groups = group_records(records) if groups is None else groups
    shares = {name: num / total for name, num in sizes.items()}
    stratify = (by,) if by else ()
    sides = _assign([records[i] for i in known], shares, seed, [groups[i] for i in known], stratify)
    drawn: dict[str, list[Record]] = {"train": [], "test": []}
    for side, num in sizes.items():
        here = [i for i, name in zip(known, sides, strict=True) if name == side]
        _check_counts(names, here, num, f"{num} {side} records that share no group with the other set", by)
        members = defaultdict(list)
        for i in here:
            members[names[i]].append(i)
        chosen = [i for indices in members.values() for i in _draw(records, indices, num, seed, balance)]
        drawn[side] = [records[i] for i in sorted(chosen)]
    return drawn["train"], drawn["test"]


def group_records(
    records: Sequence[Record],
    hashes: Mapping[str, str] | None = None,
    near: Iterable[Sequence[str]] | None = None,
    names: bool = True,
    group_field: str | None = None,
    group_pattern: str | None = None,
) -> list[int]:
    """Number the groups of records that must stay together, since they share an image or a patient.

    Two records are together when they share any of: an image path, and what the arguments add, directly or through
    other records.

    Args:
        hashes: content hash of each image, by path; images that are not in it count as different.
        near: sets of image paths that show nearly the same, e.g. pairs.
        names: file names count too, whatever the folder. Turn it off where every folder uses the same names, as in
            SLAKE (``xmlab1/source.jpg``, ``xmlab2/source.jpg``): all records would be one group.
        group_field: a name of `value_of`, such as ``patient``; records that say nothing under it are not joined by it.
        group_pattern: regular expression, searched in each image path; its first group is the patient or volume.

    Returns:
        [records] group number, counted from 0 in the order of the records.

    Raises:
        SettingsError: no record has ``group_field``; ``group_pattern`` is no pattern, has no group, or matches nothing.
    """
    near_of: dict[str, list[str]] = defaultdict(list)
    for number, paths in enumerate(near or ()):
        for path in paths:
            near_of[path].append(str(number))
    keys: list[list[tuple[str, str]]] = []
    for record in records:
        found = [("path", path_key(path)) for path in record.images]
        if names:
            found += [("name", name_key(path)) for path in record.images]
        if hashes:
            found += [("hash", hashes[path]) for path in record.images if path in hashes]
        found += [("near", number) for path in record.images if path in near_of for number in near_of[path]]
        keys.append(found)
    if group_field is not None:
        for found, value in zip(keys, _values(records, group_field, "group_field"), strict=True):
            found += [("field", value)] if value else []
    if group_pattern is not None:
        for found, values in zip(keys, _captures(records, group_pattern), strict=True):
            found += [("pattern", value) for value in values]
    return _connect(keys)


def split(
    records: Sequence[Record],
    shares: Mapping[str, float],
    seed: int,
    groups: Sequence[int] | None = None,
    stratify: Sequence[str] = ("modality", "task", "answer_type"),
) -> dict[str, list[Record]]:
    """Divide records into sets of whole groups.

    Groups are placed one by one, the largest first, each where it is most lacking: over all records, per value of
    ``stratify[0]``, per pair of values of ``stratify[:2]``, and so on. With up to three sets, none is further from its
    share of the records than the size of the largest group.

    Args:
        shares: part of the records that each set gets, e.g. ``{"train": 0.8, "test": 0.2}``; they add up to 1.
        seed: the same seed, records and groups, in any order, give the same sets.
        groups: group number of each record; None is ``group_records(records)``.
        stratify: names of `value_of`, the most important first; each combination of values is divided by the shares.

    Returns:
        The sets by name, each in the order of ``records``.

    Raises:
        SettingsError: bad shares, a name that no record has, or a set that would get no record.
    """
    groups = group_records(records) if groups is None else groups
    sides = _assign(records, shares, seed, groups, stratify)
    parts: dict[str, list[Record]] = {name: [] for name in shares}
    for record, side in zip(records, sides, strict=True):
        parts[side].append(record)
    return parts


def _assign(
    records: Sequence[Record], shares: Mapping[str, float], seed: int, groups: Sequence[int], stratify: Sequence[str]
) -> list[str]:
    """Name of the set that each record goes to."""
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise SettingsError(f"shares: expected positive numbers that add up to 1, got {dict(shares)}")
    if len(groups) != len(records):
        raise SettingsError(f"groups: expected one number per record ({len(records)}), got {len(groups)}")
    columns = [
        [value_of(record, name) for record in records]
        if name in _TEXT_FIELDS or name == "answer_type"  # may be unknown for all records
        else _values(records, name, "stratify")
        for name in stratify
    ]
    strata = list(zip(*columns, strict=True)) if columns else [()] * len(records)
    ranks = [_rank(record, seed) for record in records]
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)

    def place(group: list[int]) -> tuple[int, tuple[str, ...], bytes]:
        return -len(group), min(strata[i] for i in group), min(ranks[i] for i in group)

    ordered = sorted(members.values(), key=place)
    placed: Counter[tuple[str, ...]] = Counter()  # records so far of a stratum, of all that begins with it, and of all
    counts: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in shares}
    sides = [""] * len(records)
    for group in ordered:
        cells = Counter(stratum[:depth] for stratum in (strata[i] for i in group) for depth in range(len(stratify) + 1))
        placed.update(cells)
        side = _most_lacking(shares, counts, placed, cells, len(ordered[0]))
        counts[side].update(cells)
        for i in group:
            sides[i] = side
    empty = [name for name in shares if not counts[name]]
    if empty:
        raise SettingsError(
            f"shares: nothing is left for {', '.join(empty)}. {len(records)} records are in {len(members)} groups, the "
            f"largest of {len(ordered[0]) if ordered else 0}; change the shares, or group by less "
            "(file names? near duplicates?)"
        )
    return sides


def _most_lacking(
    shares: Mapping[str, float],
    counts: Mapping[str, Counter[tuple[str, ...]]],
    placed: Mapping[tuple[str, ...], int],
    cells: Mapping[tuple[str, ...], int],
    largest: int,
) -> str:
    """The set that a group goes to, when ``cells`` says how many records of each stratum it has.

    With c_k records more in stratum k, the squared distance of the counts n_k to the targets t_k grows by
    ``sum_k c_k^2 - 2 sum_k c_k (t_k - n_k)``: the largest second sum is best. ``placed`` counts the group already. The
    total may be off by ``largest`` at most.
    """
    lack = {name: share * placed[()] - counts[name][()] for name, share in shares.items()}
    worst = max(lack, key=lack.__getitem__)
    if lack[worst] > largest:
        return worst
    allowed = [name for name in shares if lack[name] >= cells[()] - largest]
    in_order = sorted(cells.items())  # sums of floats depend on it, and the records come in any order
    gain = {
        name: sum(num * (shares[name] * placed[cell] - counts[name][cell]) for cell, num in in_order)
        for name in allowed
    }
    return max(gain, key=gain.__getitem__)


def _draw(records: Sequence[Record], indices: Iterable[int], num: int, seed: int, balance: str | None) -> list[int]:
    """``num`` of the indices."""
    indices = list(indices)
    candidates = [records[i] for i in indices]
    values = _values(candidates, balance, "balance") if balance else [""] * len(indices)
    queues = defaultdict(list)
    for place in draw_order(candidates, seed):
        queues[values[place]].append(indices[place])
    drawn: list[int] = []
    ascending = sorted(queues.items(), key=lambda item: (len(item[1]), item[0]))
    for done, (_, queue) in enumerate(ascending):
        drawn += queue[: (num - len(drawn)) // (len(queues) - done)]
    return drawn


def _check_counts(names: Sequence[str], indices: Iterable[int], num: int, wanted: str, by: str | None) -> None:
    counts = dict.fromkeys(sorted(set(names) - {""}), 0) | Counter(names[i] for i in indices)
    if not counts or min(counts.values()) < num:
        have = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no record"
        raise SettingsError(f"expected at least {wanted} per {by or 'draw'}, got {have}; ask for fewer or add records")


def _values(records: Sequence[Record], name: str, setting: str) -> list[str]:
    values = [value_of(record, name) for record in records]
    if not any(values):
        known = sorted({"modality", "task", "dataset", "answer", *(key for r in records for key in r.metadata)})
        raise SettingsError(f"{setting}: no record says anything under {name!r}; expected a name such as {known[:20]}")
    return values


def _captures(records: Sequence[Record], pattern: str) -> list[list[str]]:
    """What the first group of a pattern matches in the image paths of each record."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"group_pattern: expected a regular expression, got {pattern!r}: {error}") from None
    if not compiled.groups:
        raise SettingsError(f"group_pattern: expected a group such as (\\d+) in it, got {pattern!r}")
    found = [[match[1] for path in r.images if (match := compiled.search(path)) and match[1]] for r in records]
    if not any(found):
        example = next((path for r in records for path in r.images), "no record has an image")
        raise SettingsError(f"group_pattern: {pattern!r} matches none of the image paths, e.g. {example!r}")
    return found


def _connect(keys: Sequence[Iterable[tuple[str, str]]]) -> list[int]:
    """Number the groups of items that share a key, directly or through others (union-find)."""
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first: dict[tuple[str, str], int] = {}
    for item, shared in enumerate(keys):
        for key in shared:
            a, b = root(first.setdefault(key, item)), root(item)
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(item), len(numbers)) for item in range(len(keys))]


def _rank(record: Record, seed: int) -> bytes:
    """Random and yet always the same for a record and a seed."""
    said = (record.id, record.images, record.problem, record.answer, record.modality, record.task, record.dataset)
    return blake2b(repr((seed, said, sorted(record.metadata.items()))).encode(), digest_size=12).digest()
