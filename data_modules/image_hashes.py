"""Hashes of images: of the file, which finds copies, and of what it looks like, which finds near duplicates.

What an image looks like is the 64-bit perceptual hash of the ImageHash library: the lowest frequencies of a 32 x 32
grey copy, each above or below their median. Resizing, recompression and a change of brightness turn few bits or none;
32 bits differ between unrelated images on average. A blank image has no such frequencies and its hash would be that of
every other blank image, up to rounding errors, so it has none: it is compared by file alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from data_modules.image_root import ImageFile, ImageRoot
from data_modules.images import MAX_IMAGE_PIXELS, obey_parent, open_rgb
from medgrpo.types import DataError

FORMAT = 1
"""Goes up when a hash changes, so that stored ones are not believed."""

BLANK_DEVIATION = 1.0
"""Standard deviation of the 32 x 32 grey copy, in grey levels of 256, below which an image is blank."""

LINE_START = '{"key": '
"""How each line of a store begins."""

CHUNK = 16
"""Images that a process is given at a time."""

BLOCK = 16_384
"""Training hashes compared at a time: with 16 test hashes, 2 MiB that stay in the processor's cache."""


@dataclass(frozen=True)
class ImageHash:
    """What is known of one image."""

    sha256: str
    """Of the file, and of the frame if the reference names one; empty if there is no such file."""
    phash: int | None
    """64 bits; None for a blank image and for one that cannot be opened."""
    error: str = ""
    """Why the image cannot be used; empty if it can."""


def hash_images(
    references: Iterable[str],
    root: ImageRoot,
    store: Path | None,
    num_workers: int,
    progress: bool,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> dict[str, ImageHash]:
    """Hash each distinct image once.

    Args:
        references: of images below ``root``; repeats cost nothing.
        root: where they are.
        store: JSON lines that results are added to as they come, and taken from while the image file's size and time
            of change are the same: a run that was stopped goes on where it was. Errors are not kept; None keeps
            nothing.
        num_workers: processes; 0 hashes in this one.
        progress: show a bar on stderr.
        max_image_pixels: larger images are errors.

    Returns:
        By reference, in the order in which each first occurs.
    """
    found: dict[str, ImageFile | str] = {}
    for reference in references:
        if reference not in found:
            found[reference] = _find(root, reference)
    files = {file: _key(file, root) for file in found.values() if isinstance(file, ImageFile)}
    known = _stored(store)
    hashes = {file: known[key] for file, key in files.items() if key in known}
    missing = [file for file in files if file not in hashes]
    task = partial(_hash, max_image_pixels=max_image_pixels)
    with _appending(store if missing else None) as output, _mapping(num_workers, len(missing)) as mapped:
        results = zip(missing, mapped(task, missing), strict=True)
        for file, result in _with_bar(results, len(missing), progress):
            hashes[file] = result
            if output and not result.error:
                output.write(_line(files[file], result))
                output.flush()
    return {r: ImageHash("", None, f) if isinstance(f, str) else hashes[f] for r, f in found.items()}


def near_matches(train: np.ndarray, test: np.ndarray, max_distance: int) -> list[tuple[int, int, int]]:
    """For each test hash, the training hash that differs from it in the fewest bits.

    Args:
        train: uint64 [number of training images]; leave out the images without a hash.
        test: uint64 [number of test images].
        max_distance: greatest number of different bits.

    Returns:
        (test index, train index, different bits) by test index; of equally near training images, the first.
    """
    if not len(train):
        return []
    nearest = np.zeros(len(test), dtype=np.int64)
    distances = np.full(len(test), 65, dtype=np.uint8)
    for first in range(0, len(test), 16):
        rows = slice(first, first + 16)
        for start in range(0, len(train), BLOCK):
            bits = np.bitwise_count(test[rows, None] ^ train[None, start : start + BLOCK])
            columns = bits.argmin(1)
            least = bits[np.arange(len(bits)), columns]
            closer = least < distances[rows]
            distances[rows][closer] = least[closer]
            nearest[rows][closer] = columns[closer] + start
    matches = np.flatnonzero(distances <= max_distance)
    return [(int(i), int(nearest[i]), int(distances[i])) for i in matches]


def perceptual_hash(image: Image.Image) -> int | None:
    """64 bits, or None for a blank image."""
    import imagehash  # heavy: brings scipy

    grey = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    return None if np.asarray(grey).std() < BLANK_DEVIATION else int(str(imagehash.phash(grey)), 16)


def _find(root: ImageRoot, reference: str) -> ImageFile | str:
    """The file, or why there is none."""
    try:
        return root.find(reference)
    except DataError as error:
        return str(error)


def _hash(file: ImageFile, max_image_pixels: int) -> ImageHash:
    try:
        with file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
    except OSError as error:
        return ImageHash("", None, f"{file}: cannot be opened: {error}")
    digest.update(file.frame.encode())
    try:
        return ImageHash(digest.hexdigest(), perceptual_hash(open_rgb(file, max_image_pixels)))
    except DataError as error:
        return ImageHash(digest.hexdigest(), None, str(error))


def _key(file: ImageFile, root: ImageRoot) -> str:
    """What a stored hash is good for."""
    status = os.stat(file.path)
    path = file.path.relative_to(root.root).as_posix()
    return json.dumps([FORMAT, path, file.frame, status.st_size, status.st_mtime_ns])


def _line(key: str, result: ImageHash) -> str:
    bits = None if result.phash is None else f"{result.phash:016x}"
    return json.dumps({"key": key, "sha256": result.sha256, "phash": bits}) + "\n"


def _stored(store: Path | None) -> dict[str, ImageHash]:
    known: dict[str, ImageHash] = {}
    if store is not None and store.is_dir():
        raise DataError(f"{store}: expected a file of image hashes, or a path to make one at, got a folder")
    if store is None or not store.exists():
        return known
    with store.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n") and (line.startswith(LINE_START) or LINE_START.startswith(line)):
                break  # the run that wrote it was stopped in the middle
            try:
                row = json.loads(line)
                bits = row["phash"]
                known[row["key"]] = ImageHash(row["sha256"], None if bits is None else int(bits, 16))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{store}, line {number}: expected an image hash, got {line[:100]!r}; set another file or delete it"
                ) from error
    return known


@contextmanager
def _appending(store: Path | None) -> Iterator[IO[str] | None]:
    """The store, open after its last whole line."""
    if store is None:
        yield None
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    with store.open("a", encoding="utf-8") as output:
        yield output


@contextmanager
def _mapping(num_workers: int, count: int) -> Iterator[Any]:
    """``map`` in this process or in some others."""
    if not num_workers or not count:
        yield map
        return
    pool = ProcessPoolExecutor(min(num_workers, count), initializer=obey_parent)
    try:
        yield partial(pool.map, chunksize=CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, what has not begun does not begin


def _with_bar(results: Iterable[Any], count: int, progress: bool) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(results, total=count, desc="hashing images", unit="img", disable=not progress, file=sys.stderr)
