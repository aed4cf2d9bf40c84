"""The file of a checkpoint: there whole or not at all, and known to be as it was written.

Its last bytes are the comment of a zip archive, which readers of checkpoints do not look at: the optimizer steps so far
and the SHA-256 of everything before. So one flipped bit anywhere is noticed, and the newest of many files is found
without reading them.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from medgrpo.types import DataError

PARTIAL = ".partial"
"""Ends the names of what is being written."""

COMMENT = re.compile(rb"medgrpo step (\d{12}) sha256 ([0-9a-f]{64})")
_COMMENT_SIZE = len(b"medgrpo step  sha256 ") + 12 + 64
_END_SIZE = 22  # of an archive's last record, when no comment follows
_CHUNK = 2**22


class WholeFile(TorchCheckpointIO):
    """How a strategy writes and reads checkpoints: no half file, no altered one, and nothing that could be code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside the file, and take its place once all is on the disk."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL)
        with partial.open("w+b") as file:
            torch.save(checkpoint, file)
            _sign(file, int(checkpoint["global_step"]))
            os.fsync(file.fileno())
        partial.replace(path)
        flush(path.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a file that is sound, onto the host.

        Raises:
            DataError: it is not, or not a checkpoint.
        """
        check(path)
        return _read(path)


def check(path: str | Path) -> None:
    """Read all of a file.

    Raises:
        DataError: it is truncated or altered; the newest sound one of its folder is named.
    """
    if reason := damage(path):
        found = newest_sound(Path(path).parent, said=False)
        advice = f"go on with --ckpt_path {found}" if found else "no other in its folder is sound"
        raise DataError(f"{path}: {reason}; {advice}")


def damage(path: str | Path) -> str:
    """What is wrong with a file; empty when nothing is."""
    path = Path(path)
    if not path.is_file():
        return "expected a checkpoint, got nothing" if not path.exists() else "expected a file, got a folder"
    with path.open("rb") as file:
        comment = _comment(file)
        if comment is not None:
            file.seek(0)
            digest = _digest(file, path.stat().st_size - 64)
            return "" if digest == comment[2].decode() else "the checkpoint has been altered since it was written"
        file.seek(-min(_END_SIZE, path.stat().st_size), os.SEEK_END)
        end = file.read()
    if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):
        return "the checkpoint is truncated or altered"
    try:  # not by this version: the archive's own sums, which leave out some of its bytes
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, struct.error) as error:
        return f"the checkpoint is truncated or altered ({error})"
    if bad:
        return f"the checkpoint has been altered: {bad}"
    try:
        _read(path, mmap=True)
    except DataError as error:
        return str(error)
    return ""


def newest_sound(folder: str | Path, said: bool = True) -> Path | None:
    """The checkpoint of a folder with the most steps among those that are sound; None when there is none.

    Args:
        folder: may be missing.
        said: whether damaged ones are warned of.
    """
    files = {path.resolve() for path in Path(folder).glob("*.ckpt") if path.is_file()}
    for path in sorted(files, key=lambda path: (_step(path), path.stat().st_mtime_ns), reverse=True):
        if not (reason := damage(path)):
            return Path(folder) / path.name
        if said:
            rank_zero_warn(f"{path.name} is left out: {reason}")
    return None


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    inside = sorted(path.iterdir()) if path.is_dir() and path.name.endswith(PARTIAL) else []
    for part in inside:
        flush(part)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(paths: Iterable[Path]) -> None:
    """Remove what was being written."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sign(file: BinaryIO, step: int) -> None:
    end = file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _COMMENT_SIZE))
    file.write(b"medgrpo step %012d sha256 " % step)
    file.flush()
    file.seek(0)
    digest = _digest(file, end + 2 + _COMMENT_SIZE - 64)
    file.seek(0, os.SEEK_END)
    file.write(digest.encode())
    file.flush()


def _comment(file: BinaryIO) -> re.Match[bytes] | None:
    file.seek(0, os.SEEK_END)
    if file.tell() < _COMMENT_SIZE:
        return None
    file.seek(-_COMMENT_SIZE, os.SEEK_END)
    return COMMENT.fullmatch(file.read())


def _digest(file: BinaryIO, size: int) -> str:
    """Of the next ``size`` bytes."""
    digest = hashlib.sha256()
    while size and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _step(path: Path) -> int:
    """Optimizer steps; of a damaged file more than any, as those are to be told of first."""
    with path.open("rb") as file:
        comment = _comment(file)
    if comment:
        return int(comment[1])
    if damage(path):
        return sys.maxsize
    return _read(path, mmap=True)["global_step"]


def _read(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError("it holds what could be code, which is not loaded: expected tensors, numbers, texts") from error
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise DataError(f"expected a checkpoint of a training, got another archive ({told})") from error
    if not isinstance(state, dict) or "global_step" not in state:
        raise DataError("expected a checkpoint of a training, got a file without its global_step")
    return state
