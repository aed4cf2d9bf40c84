"""Pixels that are not square -> an image with the proportions of what it shows."""

from __future__ import annotations

from PIL import Image

from medgrpo.types import DataError

TOLERANCE = 0.01
"""Relative difference of the two spacings that is left as it is."""


def square_size(size: tuple[int, int], across: float, down: float, max_image_pixels: int) -> tuple[int, int]:
    """Size of the image once its pixels are squares of the finer spacing.

    Args:
        size: (width, height) in pixels.
        across: distance between the centers of neighbouring columns, in any unit.
        down: between rows, in the same unit.
        max_image_pixels: of the result.

    Returns:
        (width, height); ``size`` where the spacings are equal, or one of them is no distance.

    Raises:
        DataError: the result is too large.
    """
    finer, coarser = min(across, down), max(across, down)
    if not 0 < finer <= coarser < float("inf") or coarser / finer - 1 <= TOLERANCE:
        return size
    width, height = (round(count * spacing / finer) for count, spacing in zip(size, (across, down), strict=True))
    if width * height > max_image_pixels:
        raise DataError(
            f"{size[0]} x {size[1]} pixels of {across:g} x {down:g} would be {width} x {height} square ones, which "
            f"exceed max_image_pixels={max_image_pixels}; raise that option, or mend the spacing in the file"
        )
    return width, height


def squared(image: Image.Image, across: float, down: float, max_image_pixels: int) -> Image.Image:
    """The image with square pixels; see `square_size`."""
    size = square_size(image.size, across, down, max_image_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
