"""Which training records to keep, and in which order an epoch shows them: by pass count, by kind of answer, by file.

Pass counts are what ``medgrpo data difficulty`` writes: how many of k sampled answers to a question were right.
"""

from __future__ import annotations

import glob
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_modules.leaks import name_key
from medgrpo.types import DataError, Record, SettingsError

ANSWER_TYPES = ("choice", "closed", "open")
"""Kinds of answers, the most constrained first."""


@dataclass(frozen=True)
class PassCount:
    """How often a model was right on one question."""

    pass_count: int
    num_samples: int
    """k, answers drawn."""
    question: str = ""
    """``question_hash`` of what was asked; empty is not compared."""

    @property
    def share(self) -> float:
        """From 0, never right, to 1."""
        return self.pass_count / self.num_samples


def question_hash(record: Record) -> str:
    """16 hex digits that change when the record is another question: many ids are mere positions in a file.

    It is blind to the folder of an image, and to which and how many of a volume's frames are looked at (``x.dcm[3]``).
    """
    images = list(dict.fromkeys(map(name_key, record.images)))
    said = json.dumps([record.question, record.options, record.answer, images])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def rank_files(path: str | Path) -> list[Path]:
    """The file, if it is there, and those that further ranks wrote beside it: ``NAME-rank1.jsonl`` and so on."""
    path = Path(path)
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}-rank*{glob.escape(path.suffix)}"))
    prefix = len(path.stem) + len("-rank")
    return [path] * path.is_file() + [file for file in beside if file.stem[prefix:].isdecimal()]


def read_pass_counts(path: str | Path) -> dict[str, PassCount]:
    """Pass counts by record id, from a file of ``medgrpo data difficulty`` and the files of its further ranks.

    A line counts once its newline is written: what follows the last newline is of a run that died there.

    Raises:
        DataError: no file, a malformed line, or an id that has two lines.
    """
    files = rank_files(path)
    if not files:
        raise DataError(f"{path}: no such file; `medgrpo data difficulty --out {path}` makes it")
    counts: dict[str, PassCount] = {}
    seen: dict[str, str] = {}
    for file in files:
        whole, _, _ = file.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
            place = f"{file}, line {number}"
            id, count = _parse(line, place)
            if id in counts:
                raise DataError(f"{place}: record {id!r} has a count already, in {seen[id]}; delete one of the lines")
            counts[id], seen[id] = count, place
    return counts


def _parse(line: bytes, place: str) -> tuple[str, PassCount]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise DataError(f"{place}: expected a JSON object, got {line[:80]!r} ({error})") from error
    row = row if isinstance(row, dict) else {}
    id, question = row.get("id"), row.get("question", "")
    passes, samples = row.get("pass_count"), row.get("num_samples")
    texts = isinstance(id, str) and isinstance(question, str)
    whole = type(passes) is int and type(samples) is int  # True is an int, too
    if not texts or not whole or not 0 <= passes <= samples or samples < 1:
        raise DataError(
            f"{place}: expected a text `id` and whole numbers 0 <= `pass_count` <= `num_samples`, `num_samples` >= 1; "
            f"got {line[:80]!r}"
        )
    return id, PassCount(passes, samples, question)


def keep_by_passes(
    records: Sequence[Record], counts: Mapping[str, PassCount], lowest: int, highest: int
) -> list[Record]:
    """The records that were answered right ``lowest`` to ``highest`` times, both included, in their order.

    Groups that are always right or always wrong have no gradient under GRPO: 1 to k - 1 leaves them out.

    Raises:
        SettingsError: an empty range, or one that reaches beyond the answers drawn.
        DataError: records without a count or changed since, or none in the range.
    """
    of = _counts_of(records, counts)
    drawn = max((count.num_samples for count in of), default=highest)
    if not 0 <= lowest <= highest <= drawn:
        raise SettingsError(
            f"pass_count: expected 0 <= lowest <= highest <= {drawn}, the answers drawn per question, "
            f"got {lowest} to {highest}"
        )
    kept = [record for record, count in zip(records, of, strict=True) if lowest <= count.pass_count <= highest]
    if records and not kept:
        times = Counter((count.pass_count, count.num_samples) for count in of)
        found = ", ".join(f"{n} of {k} right: {number}" for (n, k), number in sorted(times.items()))
        raise DataError(
            f"pass_count: none of {len(records)} records was answered right {lowest} to {highest} times "
            f"(records {found}); widen the range"
        )
    return kept


def _counts_of(records: Sequence[Record], counts: Mapping[str, PassCount]) -> list[PassCount]:
    missing = [record.id for record in records if record.id not in counts]
    if missing:
        raise DataError(
            f"difficulty: {len(missing)} of {len(records)} records have no pass count, e.g. {missing[0]!r}; run "
            "`medgrpo data difficulty --out FILE` with data.predict set to these questions, and the same FILE to add "
            "to the counts that are there"
        )
    check_same_questions(records, counts)
    return [counts[record.id] for record in records]


def check_same_questions(records: Sequence[Record], counts: Mapping[str, PassCount]) -> None:
    """Records with a count are the questions that were counted.

    Raises:
        DataError: some are not.
    """
    known = [record for record in records if record.id in counts and counts[record.id].question]
    changed = [record.id for record in known if counts[record.id].question != question_hash(record)]
    if changed:
        raise DataError(
            f"difficulty: {len(changed)} of {len(known)} records are not the questions that were counted under their "
            f"ids, e.g. {changed[0]!r}: the question file has changed; run `medgrpo data difficulty` with a new --out"
        )


@dataclass(frozen=True)
class Curriculum:
    """The order of the training records within an epoch."""

    keys: tuple[float, ...]
    """One per record: records with smaller keys come first. When interleaving, the group of each record."""
    interleave: bool = False
    """Spread every group evenly over the epoch, in place of one group after the other."""

    def arrange(self, drawn: np.ndarray) -> np.ndarray:
        """Put the records of an epoch in order; equals stay as they are, so a shuffle before breaks ties.

        Which records an epoch leaves out is decided before: cut off after sorting, the hardest would never be seen.

        Args:
            drawn: [n] int64, indices of the records, shuffled.

        Returns:
            The same indices. Interleaved, record j (from 0) of a group of g stands at the quantile ``(j + 1/2) / g``:
            the first m of n records hold ``m g / n`` of the group, give or take half a record and half a record per
            group times ``g / n``.
        """
        keys = np.asarray(self.keys)[drawn]
        if self.interleave:
            quantiles = np.empty(len(drawn))
            for group in np.unique(keys):
                members = np.flatnonzero(keys == group)
                quantiles[members] = (np.arange(len(members)) + 0.5) / len(members)
            keys = quantiles
        return drawn[np.argsort(keys, kind="stable")]

    def fingerprint(self) -> int:
        """Tells one curriculum from another when training resumes; never 0."""
        return zlib.crc32(np.asarray([self.interleave, *self.keys], dtype=np.float64).tobytes()) or 1


def easy_to_hard(records: Sequence[Record], counts: Mapping[str, PassCount]) -> Curriculum:
    """By falling share of right answers.

    Raises:
        DataError: records without a count or changed since.
    """
    return Curriculum(tuple(-count.share for count in _counts_of(records, counts)))


def closed_to_open(records: Sequence[Record]) -> Curriculum:
    """Multiple choice, then closed, then open questions, as in MedCCO (arXiv 2505.19213)."""
    return Curriculum(tuple(float(ANSWER_TYPES.index(record.answer_type)) for record in records))


def mixed(groups: Sequence[int]) -> Curriculum:
    """Every stretch of an epoch holds the groups, e.g. the files, in the ratio of the whole.

    Args:
        groups: the group of each record.
    """
    return Curriculum(tuple(float(group) for group in groups), interleave=True)


def mix(files: Sequence[Sequence[Record]], counts: Sequence[int], seed: int) -> list[list[Record]]:
    """Draw ``counts[i]`` records of file i without replacement; open-medical-r1: 600 of MedQA, 490 of MedXpertQA.

    What is drawn of a file depends neither on the other files nor on their counts, and more records hold the fewer.

    Returns:
        The records drawn from each file, in file order.

    Raises:
        SettingsError: a count that is missing, below 1, or more than the file has.
    """
    sizes = [len(file) for file in files]
    if len(counts) != len(sizes) or any(not 1 <= n <= size for n, size in zip(counts, sizes, strict=False)):
        raise SettingsError(
            f"mix: expected {len(sizes)} counts, one per file, each at least 1 and at most the file's records after "
            f"the filters, {sizes}; got {list(counts)}"
        )
    drawn = []
    for i, (file, count) in enumerate(zip(files, counts, strict=True)):
        chosen = np.random.default_rng((seed, i)).permutation(len(file))[:count]
        drawn.append([file[index] for index in sorted(chosen.tolist())])
    return drawn
