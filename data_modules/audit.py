"""What is wrong with a data set, counted: bad rows, duplicates, contradictions, leaks, and what is solvable blind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_modules.formats import Reading
from data_modules.image_hashes import ImageHash
from data_modules.leaks import KINDS, Kind, Leak, LeakPair, find_leaks, name_key
from data_modules.repeats import (
    MAX_EXAMPLES,
    Contradictions,
    Duplicates,
    File,
    Problem,
    Split,
    View,
    compare_files,
    count_duplicates,
    find_contradictions,
    group_copies,
    group_equal,
)
from medgrpo.blind import OptionPrior, Share, StyleCue, chance, majority_letter, style
from medgrpo.types import Record

SPLITS: tuple[Split, Split] = ("train", "test")

UNKNOWN = "unknown"
"""Name of the group of records that name no modality, task or dataset."""


@dataclass(frozen=True)
class FileCount:
    """What one file gave."""

    split: Split
    name: str
    records: int
    malformed: int
    unused: int
    images: int
    """Distinct images (paths) that the records name."""


@dataclass(frozen=True)
class Rows:
    """Rows that gave no record."""

    train: int
    test: int
    reasons: dict[str, int]
    """Rows by reason, the most frequent ones."""
    examples: tuple[Problem, ...]


@dataclass(frozen=True)
class SplitImages:
    """The images of one split."""

    images: int
    """Distinct paths."""
    without: int
    """Records that name none."""
    missing: int | None = None
    """Images that could not be found or read; None when no hashes were given, as below."""
    unreadable: int | None = None
    """Files that are there and cannot be decoded."""
    contents: int | None = None
    """Distinct files by their bytes; fewer than were read when one is there under several paths."""


@dataclass(frozen=True)
class Blind:
    """What is reached without the image, on the test records, or the training records when there is no test."""

    chance: Share
    majority_letter: Share
    option_prior: Share | None
    """Learned on all training records; None without both splits."""
    style_cue: StyleCue
    text_only: Share | None = None
    """A model's that was shown no image; None when none was run."""


@dataclass(frozen=True)
class Group:
    """Records of one modality, one task or one number of options."""

    records: dict[Split, int]
    leak: dict[Kind, int | None]
    """Test records, by how their image was found in training."""
    blind: Blind


@dataclass(frozen=True)
class Audit:
    """All findings. ``data_modules.audit_text`` and ``data_modules.audit_page`` show them."""

    files: tuple[FileCount, ...]
    records: dict[Split, int]
    counts: dict[Split, dict[str, dict[str, int]]]
    """Records by split, then modality, task, dataset, options (their number), letter, answer_type; then by name."""
    malformed: Rows
    unused: Rows
    duplicates: Duplicates
    contradictions: Contradictions
    images: dict[Split, SplitImages]
    image_problems: tuple[Problem, ...]
    """Images that could not be read; ``record`` is the path."""
    most_used_name: tuple[str, int]
    """The file name that most paths end in, and how many do: a leak by a name like ``source.jpg`` may be none."""
    leak: dict[Kind, Leak | None]
    """None for what could not be compared: without both splits, or without hashes."""
    pairs: tuple[LeakPair, ...]
    """Some pairs of a test and a training record that show the same image."""
    blind: Blind
    groups: dict[str, dict[str, Group]]
    """By modality, task and options; then by name."""
    views: tuple[View, ...]
    """Every pair of files."""

    @property
    def asked(self) -> Split:
        """The split that the blind baselines are asked."""
        return "test" if self.records["test"] else "train"

    def to_json(self) -> dict[str, Any]:
        """Plain values: counts as integers, shares in percent with two decimals, None for what was not measured."""
        leak = {kind: None if found is None else len(found.records) for kind, found in self.leak.items()}
        return {
            "records": self.records,
            "leak": leak,
            "leak_percent": _leak_percent(leak, self.records["test"]),
            "leak_images": {kind: None if found is None else found.images for kind, found in self.leak.items()},
            "blind": {"asked": self.asked} | _blind_json(self.blind),
            "malformed": asdict(self.malformed),
            "unused": asdict(self.unused),
            "duplicates": asdict(self.duplicates),
            "contradictions": asdict(self.contradictions),
            "images": {split: asdict(found) for split, found in self.images.items()}
            | {"examples": [asdict(problem) for problem in self.image_problems]}
            | {"most_used_name": dict(zip(("name", "paths"), self.most_used_name, strict=True))},
            "counts": self.counts,
            "groups": {
                by: {
                    name: {
                        "records": group.records,
                        "leak": group.leak,
                        "leak_percent": _leak_percent(group.leak, group.records["test"]),
                        "blind": _blind_json(group.blind),
                    }
                    for name, group in groups.items()
                }
                for by, groups in self.groups.items()
            },
            "views": [asdict(view) for view in self.views],
            "files": [asdict(file) for file in self.files],
        }


def audit(
    train: Sequence[tuple[str, Reading]],
    test: Sequence[tuple[str, Reading]],
    *,
    hashes: Mapping[str, ImageHash] | None = None,
    near_distance: int = 4,
    text_only: Share | None = None,
) -> Audit:
    """Look for what makes accuracy on ``test`` mean less than it seems, and for what is broken.

    Args:
        train: name and content of each training file; may be empty, and so may ``test``.
        test: likewise.
        hashes: of every image that the records name, by its reference; None compares paths and names only.
        near_distance: bits of 64 by which the perceptual hashes of one picture may differ.
        text_only: what a model scored on the test records without their images.
    """
    files: list[File] = [("train", *file) for file in train]
    files += [("test", *file) for file in test]
    records = {split: [r for s, _, reading in files if s == split for r in reading.records] for split in SPLITS}
    leak, pairs, prior = dict.fromkeys(KINDS), (), None
    if records["train"] and records["test"]:
        leak, pairs = find_leaks(records["train"], records["test"], hashes, near_distance)
        prior = OptionPrior(records["train"])
    equal, copies = group_equal(files), group_copies(files)
    paths = {split: list(dict.fromkeys(i for r in found for i in r.images)) for split, found in records.items()}
    return Audit(
        files=tuple(_file_count(*file) for file in files),
        records={split: len(found) for split, found in records.items()},
        counts={split: _counts(found) for split, found in records.items()},
        malformed=_rows(files, "malformed"),
        unused=_rows(files, "unused"),
        duplicates=count_duplicates(files, equal, copies),
        contradictions=find_contradictions(files),
        images={split: _images(records[split], paths[split], hashes) for split in SPLITS},
        image_problems=_image_problems(files, hashes or {}),
        most_used_name=_most_used_name({*paths["train"], *paths["test"]}),
        leak=leak,
        pairs=pairs,
        blind=_blind(records["test"] or records["train"], prior, text_only),
        groups=_groups(records, leak, prior),
        views=compare_files(files, equal, copies),
    )


def _file_count(split: Split, name: str, reading: Reading) -> FileCount:
    images = {image for record in reading.records for image in record.images}
    return FileCount(split, name, len(reading.records), len(reading.malformed), len(reading.unused), len(images))


def _rows(files: Sequence[File], kind: Literal["malformed", "unused"]) -> Rows:
    counts, examples, reasons = Counter(), [], Counter()
    for split, name, reading in files:
        rows = getattr(reading, kind)
        counts[split] += len(rows)
        reasons.update(reason for _, reason in rows)
        examples += [Problem(split, name, index, reason) for index, reason in rows[: MAX_EXAMPLES - len(examples)]]
    return Rows(counts["train"], counts["test"], dict(reasons.most_common(MAX_EXAMPLES)), tuple(examples))


def _counts(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    values = {
        "modality": Counter(record.modality or UNKNOWN for record in records),
        "task": Counter(record.task or UNKNOWN for record in records),
        "dataset": Counter(record.dataset or UNKNOWN for record in records),
        "options": Counter(str(len(record.options)) for record in records),
        "letter": Counter(record.answer for record in records if record.options),
        "answer_type": Counter(record.answer_type for record in records),
    }
    return {by: {name: counter[name] for name in sorted(counter, key=_natural)} for by, counter in values.items()}


def _natural(name: str) -> tuple[int, str]:
    """Sorts 2 options before 10."""
    return (int(name) if name.isdecimal() else 0, name)


def _images(records: Sequence[Record], paths: Sequence[str], hashes: Mapping[str, ImageHash] | None) -> SplitImages:
    without = sum(not record.images for record in records)
    if hashes is None:
        return SplitImages(len(paths), without)
    found = [hashes[path] for path in paths]
    return SplitImages(
        images=len(paths),
        without=without,
        missing=sum(not image.sha256 for image in found),
        unreadable=sum(bool(image.sha256 and image.error) for image in found),
        contents=len({image.sha256 for image in found if image.sha256}),
    )


def _image_problems(files: Sequence[File], hashes: Mapping[str, ImageHash]) -> tuple[Problem, ...]:
    broken = {path: image.error for path, image in hashes.items() if image.error}
    users: dict[str, tuple[Split, str]] = {}
    for split, name, reading in files if broken else ():
        for record in reading.records:
            for image in record.images:
                if image in broken:
                    users.setdefault(image, (split, name))
    return tuple(Problem(*users[image], image, broken[image]) for image in list(users)[:MAX_EXAMPLES])


def _most_used_name(paths: Collection[str]) -> tuple[str, int]:
    names = Counter(map(name_key, paths))
    return min(names.items(), key=lambda item: (-item[1], item[0]), default=("", 0))


def _blind(records: Sequence[Record], prior: OptionPrior | None, text_only: Share | None = None) -> Blind:
    return Blind(
        chance=chance(records),
        majority_letter=majority_letter(records),
        option_prior=prior.share(records) if prior else None,
        style_cue=style(records),
        text_only=text_only,
    )


def _groups(
    records: Mapping[Split, Sequence[Record]], leak: Mapping[Kind, Leak | None], prior: OptionPrior | None
) -> dict[str, dict[str, Group]]:
    label = {
        "modality": lambda record: record.modality or UNKNOWN,
        "task": lambda record: record.task or UNKNOWN,
        "options": lambda record: str(len(record.options)),
    }
    return {by: _group_by(name_of, records, leak, prior) for by, name_of in label.items()}


def _group_by(
    name_of: Callable[[Record], str],
    records: Mapping[Split, Sequence[Record]],
    leak: Mapping[Kind, Leak | None],
    prior: OptionPrior | None,
) -> dict[str, Group]:
    members = {split: defaultdict(list) for split in SPLITS}
    for split, found in records.items():
        for index, record in enumerate(found):
            members[split][name_of(record)].append(index)
    asked: Split = "test" if records["test"] else "train"
    return {
        name: Group(
            records={split: len(members[split].get(name, ())) for split in SPLITS},
            leak={
                kind: None if found is None else len(found.records.intersection(members["test"].get(name, ())))
                for kind, found in leak.items()
            },
            blind=_blind([records[asked][index] for index in members[asked].get(name, ())], prior),
        )
        for name in sorted({*members["train"], *members["test"]}, key=_natural)
    }


def _rounded(share: Share | None) -> float | None:
    return None if share is None or share.percent is None else round(share.percent, 2)


def _leak_percent(leak: Mapping[Kind, int | None], n: int) -> dict[Kind, float | None]:
    return {kind: None if count is None else _rounded(Share(count, n)) for kind, count in leak.items()}


def _blind_json(blind: Blind) -> dict[str, Any]:
    cue = blind.style_cue
    return {
        "records": cue.n,
        "chance": _rounded(blind.chance),
        "majority_letter": _rounded(blind.majority_letter),
        "option_prior": _rounded(blind.option_prior),
        "text_only": _rounded(blind.text_only),
        "style_cue": {
            "fires": cue.fires,
            "right": cue.right,
            "fires_percent": _rounded(cue.fired),
            "right_percent": _rounded(cue.accuracy),
        },
    }
