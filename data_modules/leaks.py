"""Test records whose image is also in training: by path, file name, content, or as nearly the same picture."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from data_modules.image_hashes import ImageHash, near_matches
from data_modules.image_root import FRAME
from medgrpo.types import Record

Kind = Literal["path", "name", "hash", "near"]

KINDS: tuple[Kind, ...] = ("path", "name", "hash", "near")
"""How images are compared: same path; same file name in any folder; same bytes; perceptual hashes a few bits apart."""

MAX_PAIRS = 60
"""Pairs kept of each kind and modality: as many as a page shows in all, so that memory stays bounded."""


@dataclass(frozen=True)
class Leak:
    """What one way of comparing images finds."""

    records: frozenset[int]
    """Indices of the test records that have an image of training."""
    images: int
    """Distinct images (paths) of the test records that are in training."""


@dataclass(frozen=True)
class LeakPair:
    """A test record and a training record that show the same picture, to look at."""

    kind: Kind
    """The first that found it, of path, hash, near and name."""
    test: Record
    train: Record
    test_image: str
    train_image: str
    same_hash: bool
    """The files are equal byte for byte; False also when that is not known."""
    distance: int | None
    """Bits of 64 in which the perceptual hashes differ; None when they are not known."""

    @property
    def same_path(self) -> bool:
        """Both records name the same file."""
        return path_key(self.test_image) == path_key(self.train_image)

    @property
    def same_name(self) -> bool:
        """The files have the same name, in whatever folders."""
        return name_key(self.test_image) == name_key(self.train_image)


def path_key(image: str) -> str:
    """An image's path in one spelling: that of ``./a//b.png``, and of ``a\\b.png`` from Windows, is ``a/b.png``.

    All frames of a file have the same: slices of one volume show one patient.
    """
    if image.endswith("]") and (frame := FRAME.fullmatch(image)):
        image = frame[1]
    return posixpath.normpath(image.replace("\\", "/"))


def name_key(image: str) -> str:
    """An image's file name without its folders."""
    return posixpath.basename(path_key(image))


def find_leaks(
    train: Sequence[Record],
    test: Sequence[Record],
    hashes: Mapping[str, ImageHash] | None = None,
    near_distance: int = 4,
) -> tuple[dict[Kind, Leak | None], tuple[LeakPair, ...]]:
    """Compare the images of two splits.

    What has the same bytes also counts as near, and so do perceptual hashes at most ``near_distance`` bits apart.

    Returns:
        By kind what was found, None for ``hash`` and ``near`` without ``hashes``; and pairs to look at, at most
        `MAX_PAIRS` per kind and modality, one per test image, in the order of the test records.
    """
    train_images, test_images = (dict.fromkeys(i for record in split for i in record.images) for split in (train, test))
    partners: dict[Kind, dict[str, str] | None] = {
        "path": _partners(train_images, test_images, path_key),
        "name": _partners(train_images, test_images, name_key),
        "hash": None,
        "near": None,
    }
    if hashes is not None:
        content = {image: entry.sha256 for image, entry in hashes.items()}
        same = _partners(train_images, test_images, lambda image: content.get(image, ""))
        partners |= {"hash": same, "near": _near(train_images, test_images, hashes, near_distance) | same}
    leaks = {kind: None if found is None else _leak(test, found) for kind, found in partners.items()}
    return leaks, _pairs(train, test, partners, hashes or {})


def _partners(train: Iterable[str], test: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Test image -> the first training image with the same key; an empty key equals none."""
    index: dict[str, str] = {}
    for image in train:
        index.setdefault(key(image), image)
    index.pop("", None)
    return {image: index[found] for image in test if (found := key(image)) in index}


def _near(
    train: Iterable[str], test: Iterable[str], hashes: Mapping[str, ImageHash], max_distance: int
) -> dict[str, str]:
    """Test image -> the closest training image within ``max_distance`` bits, the first of equals."""
    known = {image: entry.phash for image, entry in hashes.items() if entry.phash is not None}
    image_of: dict[int, str] = {}
    for image in train:
        if image in known:
            image_of.setdefault(known[image], image)
    wanted = dict.fromkeys(known[image] for image in test if image in known)
    train_hashes, test_hashes = list(image_of), list(wanted)
    matches = near_matches(np.array(train_hashes, np.uint64), np.array(test_hashes, np.uint64), max_distance)
    partner = {test_hashes[index]: image_of[train_hashes[found]] for index, found, _ in matches}
    return {image: partner[known[image]] for image in test if known.get(image) in partner}


def near_pairs(hashes: Mapping[str, ImageHash], max_distance: int) -> list[tuple[str, str]]:
    """Pairs of images whose perceptual hashes are at most ``max_distance`` bits apart, enough to connect all such.

    Of images with the same hash only neighbours are paired.
    """
    holders: dict[int, list[str]] = {}
    for image, entry in hashes.items():
        if entry.phash is not None:
            holders.setdefault(entry.phash, []).append(image)
    found = [pair for images in holders.values() for pair in pairwise(images)]
    firsts = [images[0] for images in holders.values()]
    bits = np.array(list(holders), np.uint64)
    for index in range(len(bits) - 1):
        close = np.flatnonzero(np.bitwise_count(bits[index] ^ bits[index + 1 :]) <= max_distance)
        found += [(firsts[index], firsts[index + 1 + other]) for other in close]
    return found


def _leak(test: Sequence[Record], partner: Mapping[str, str]) -> Leak:
    hit = frozenset(i for i, record in enumerate(test) if any(image in partner for image in record.images))
    return Leak(hit, len(partner))


def _pairs(
    train: Sequence[Record],
    test: Sequence[Record],
    partners: Mapping[Kind, Mapping[str, str] | None],
    hashes: Mapping[str, ImageHash],
) -> tuple[LeakPair, ...]:
    shown_in = {image: record for record in reversed(train) for image in record.images}
    kept, room, seen = [], Counter(), set()
    for record in test:
        for image in record.images:
            # A file name alone is the weakest reason, so it stands last.
            kind = next((k for k in ("path", "hash", "near", "name") if image in (partners[k] or {})), None)
            if kind is None or image in seen or room[kind, record.modality] >= MAX_PAIRS:
                continue
            seen.add(image)
            room[kind, record.modality] += 1
            other = partners[kind][image]
            kept.append(_pair(kind, record, shown_in[other], image, other, hashes))
    return tuple(kept)


def _pair(
    kind: Kind, test: Record, train: Record, test_image: str, train_image: str, hashes: Mapping[str, ImageHash]
) -> LeakPair:
    missing = ImageHash(sha256="", phash=None, error="not hashed")
    ours, theirs = hashes.get(test_image, missing), hashes.get(train_image, missing)
    known = ours.phash is not None and theirs.phash is not None
    return LeakPair(
        kind=kind,
        test=test,
        train=train,
        test_image=test_image,
        train_image=train_image,
        same_hash=ours.sha256 != "" and ours.sha256 == theirs.sha256,
        distance=(ours.phash ^ theirs.phash).bit_count() if known else None,
    )
