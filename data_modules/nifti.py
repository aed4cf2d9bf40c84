"""Slices of NIfTI volumes -> 8-bit RGB, seen as radiologists see them: the patient's right is on the image's left.

Needs nibabel (the extra ``nifti``). Only the wanted slice is read from an uncompressed file. Where voxels are no cubes,
slices are stretched to the proportions of the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data_modules.aspect import square_size, squared
from data_modules.grey import stretched, windowed
from medgrpo.types import DataError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

SUFFIXES = (".nii", ".nii.gz")

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Direction that slices of each kind are counted along: to the right, to the front, upwards."""

MAX_VOXELS = 2**31
"""Of one volume, since a slice of a compressed file can take the reading of all of it."""


@dataclass(frozen=True)
class _Volume:
    image: Nifti1Image
    shape: tuple[int, int, int]
    """Voxels to the right, to the front, upwards."""
    axes: tuple[int, int, int]
    """The file's axis of each of these directions."""
    flipped: tuple[bool, bool, bool]
    """Whether that axis runs the other way."""
    spacing: tuple[float, float, float]
    """Of voxels in these directions, in the file's unit."""

    def spacings(self, axis: int) -> tuple[float, float]:
        """Across and down a slice."""
        across, down = (spacing for other, spacing in enumerate(self.spacing) if other != axis)
        return across, down


def is_nifti(path: Path) -> bool:
    """By its suffix."""
    return path.name.lower().endswith(SUFFIXES)


def num_frames(path: Path, max_image_pixels: int) -> int:
    """Axial slices of the volume.

    Raises:
        DataError: not NIfTI, several volumes, or slices that are too large.
    """
    with _naming(path):
        volume = _volume(path)
        _size(volume, AXES["axial"], max_image_pixels)
        return volume.shape[AXES["axial"]]


def image_size(path: Path, frame: str, max_image_pixels: int) -> tuple[int, int]:
    """Width and height of a slice, from the header.

    Raises:
        DataError: as `num_frames`, or no such slice.
    """
    with _naming(path):
        volume = _volume(path)
        axis, _ = _slice(frame, volume)
        return square_size(_size(volume, axis, max_image_pixels), *volume.spacings(axis), max_image_pixels)


def open_rgb(path: Path, frame: str, max_image_pixels: int, window: tuple[float, float] | None) -> Image.Image:
    """One slice: front or head up, the patient's right on the left; in sagittal slices the front is on the left.

    Args:
        path: of the file.
        frame: ``40`` or ``axial:40``, counted upwards; ``coronal:40``, counted to the front; ``sagittal:40``, counted
            to the right; empty takes the middle axial slice.
        max_image_pixels: of a slice.
        window: (center, width) in the file's unit, Hounsfield units for CT, from center - width / 2 to center +
            width / 2; None shows the slice from its least to its greatest value. What is not finite is black.

    Raises:
        DataError: as `image_size`, or voxels that are missing, broken or no numbers.
    """
    with _naming(path):
        volume = _volume(path)
        axis, index = _slice(frame, volume)
        _size(volume, axis, max_image_pixels)
        # [first, second] of the two other directions -> rows from the greatest second, columns from the greatest first
        values = _plane(volume, axis, index)[::-1, ::-1].swapaxes(0, 1)
        return squared(_shown(values, window), *volume.spacings(axis), max_image_pixels)


def _shown(values: np.ndarray, window: tuple[float, float] | None) -> Image.Image:
    if values.dtype.names:
        return Image.fromarray(np.ascontiguousarray(np.stack([values[name] for name in "RGB"], -1)))
    shown = np.isfinite(values)
    values = np.where(shown, values, 0)
    grey = windowed(values, *window, shown=shown) if window else stretched(values, shown)
    return Image.fromarray(grey).convert("RGB")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a broken header can raise nearly anything from a reader
        raise DataError(f"{path}: NIfTI file cannot be read ({error}); it is broken or truncated") from error


def _volume(path: Path) -> _Volume:
    try:
        import nibabel
    except ImportError as error:
        raise DataError("NIfTI files need nibabel: pip install 'medgrpo[nifti]'") from error
    image = nibabel.load(path)
    shape = image.shape
    if len(shape) < 2 or min(shape) < 1:
        raise DataError(f"expected a volume, got shape {shape}")
    if max(shape[3:], default=1) > 1:
        raise DataError(f"expected one volume, got shape {shape}; write one of them to a file of its own")
    shape = (*shape, 1)[:3]
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise DataError(f"{' x '.join(map(str, shape))} voxels exceed {MAX_VOXELS}; cut the volume into several files")
    dtype = image.get_data_dtype()
    if not np.issubdtype(dtype, np.integer) and not np.issubdtype(dtype, np.floating) and not dtype.names:
        raise DataError(f"expected real numbers or colours, got values of type {dtype}")
    orientation = nibabel.io_orientation(image.affine)
    if not np.isfinite(orientation).all():
        raise DataError(f"expected an affine matrix that tells the three directions apart, got {image.affine.tolist()}")
    axes = tuple(int(axis) for axis in np.argsort(orientation[:, 0]))
    zooms = (*map(float, image.header.get_zooms()), 1.0)
    return _Volume(
        image=image,
        shape=tuple(shape[axis] for axis in axes),
        axes=axes,
        flipped=tuple(bool(orientation[axis, 1] < 0) for axis in axes),
        spacing=tuple(zooms[axis] for axis in axes),
    )


def _size(volume: _Volume, axis: int, max_image_pixels: int) -> tuple[int, int]:
    width, height = (count for other, count in enumerate(volume.shape) if other != axis)
    if width * height > max_image_pixels:
        raise DataError(f"{width} x {height} pixels exceed max_image_pixels={max_image_pixels}; raise that option")
    return width, height


def _slice(frame: str, volume: _Volume) -> tuple[int, int]:
    """Axis and index that a frame suffix means."""
    name, _, number = frame.rpartition(":")
    name = name or "axial"
    count = volume.shape[AXES[name]]
    index = int(number) if number else count // 2
    if index >= count:
        raise DataError(f"expected a slice from 0 to {count - 1}, got [{frame}]: the volume has {count} {name} slices")
    return AXES[name], index


def _plane(volume: _Volume, axis: int, index: int) -> np.ndarray:
    """[first, second] of the two other directions, both increasing."""
    image = volume.image
    wanted: list[slice | int] = [slice(None)] * min(3, len(image.shape)) + [0] * (len(image.shape) - 3)
    if volume.axes[axis] < len(image.shape):
        wanted[volume.axes[axis]] = volume.shape[axis] - 1 - index if volume.flipped[axis] else index
    values = np.asanyarray(image.dataobj[tuple(wanted)])
    others = [other for other in range(3) if other != axis]
    sizes = [(*image.shape, 1)[native] for native in range(3) if native != volume.axes[axis]]
    values = values.reshape(sizes)  # a file of one slice may leave out its third axis
    if volume.axes[others[0]] > volume.axes[others[1]]:
        values = values.T
    return values[tuple(slice(None, None, -1 if volume.flipped[other] else 1) for other in others)]
