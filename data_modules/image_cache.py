"""Processed images on disk: the second epoch, the next run and the other ranks neither decode nor process them again.

One safetensors file per image and settings, ``FOLDER/ab/abcd...safetensors``. Its name is a hash of the image file's
bytes and of everything else that the result depends on, so a changed image or setting is another file and nothing is
ever out of date. The values are stored as they are: 24 bytes per pixel after resizing for Qwen-VL, which stores each
float32 patch twice (two frames), 3.5 MB at 384 x 384. Nothing is removed: delete the folder when it is not in use.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_modules.image_root import ImageFile

FORMAT = 2
"""Goes up when ``images.open_rgb``, ``images.prepare``, the thumbnail or the file layout changes."""

LIBRARIES = ("transformers", "qwen-vl-utils", "pillow", "torch", "torchvision", "numpy", "pydicom")
"""What decodes, resizes and normalises; another version may round differently."""


@dataclass(frozen=True)
class ProcessedImage:
    """One image as the policy and the sample panels need it."""

    pixel_values: Tensor
    """[patches, patch dim] float32"""
    image_grid_thw: Tensor
    """[3] int64: time, height, width in patches."""
    thumbnail: Tensor
    """uint8 (3, h, w)"""


class ImageCache:
    """Keeps `ProcessedImage`s in a folder that any number of workers, ranks and runs may share.

    Args:
        folder: made when the first image is stored.
        settings: everything that the result depends on besides the image file and `LIBRARIES`; must fit in JSON.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, object]) -> None:
        self.folder = Path(folder)
        versions = {name: version(name) for name in LIBRARIES}
        everything = [FORMAT, platform.machine(), versions, dict(settings)]
        self.settings = json.dumps(everything, sort_keys=True)

    def get(self, file: ImageFile, process: Callable[[ImageFile], ProcessedImage]) -> ProcessedImage:
        """What ``process(file)`` returns, bit for bit; it is called only if no whole file holds the result."""
        stored = self._file(file)
        image = _read(stored)
        if image is None:
            image = process(file)
            _write(stored, image)
        return image

    def _file(self, file: ImageFile) -> Path:
        with file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
        digest.update(f"{file.frame}{self.settings}".encode())  # a frame has no bracket, settings begin with one
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"


def _read(path: Path) -> ProcessedImage | None:
    """None if there is no such file, or one that is not what `_write` wrote."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            expected = (file.metadata() or {}).get("crc32")
    except (FileNotFoundError, SafetensorError):
        return None
    return ProcessedImage(**tensors) if expected == _checksum(tensors) else None


def _write(path: Path, image: ProcessedImage) -> None:
    """All or nothing: readers see no file, the old one, or the whole new one. The last of several writers wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{uuid4().hex}.tmp")
    tensors = vars(image)
    try:
        save_file(tensors, temporary, {"crc32": _checksum(tensors)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    # safetensors notices a file that is cut off, but not blocks that never reached the disk before a power cut.
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.numpy(), value)
    return f"{value:08x}"
