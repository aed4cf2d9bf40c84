"""Find, open and size images: PNG, JPEG, TIFF, BMP and what else Pillow reads -> 8-bit RGB.

Nothing outside the image root is opened, and no pixel is decoded before the header has told how many there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, ImageOps

from medgrpo.types import DataError, Record

MAX_IMAGE_PIXELS = 100_000_000
"""Default of the option ``max_image_pixels``: a 10,000 x 10,000 image, 300 MB as RGB."""

MAX_LISTED = 1000
"""Images or prompts that one error names; the rest are counted."""

MERGE_SIZE = 2
"""Patches per token and direction, in all three Qwen-VL families."""


def resolve(root: str | Path, relative: str) -> Path:
    """Path of an image below ``root``.

    A file that is not there under exactly this name is looked for in other letter case, since data sets made on
    other systems mix ``.jpg`` and ``.JPG``.

    Raises:
        DataError: an absolute path, a ``..`` component, a link that leads out of ``root``, no such file, or several
            in other letter case.
    """
    root = Path(root)
    parts = PurePosixPath(relative).parts
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive or ".." in parts or "\0" in relative:
        raise DataError(f"image {relative!r}: expected a path below image_root without '..'")
    path = root.joinpath(*parts)
    if not path.is_file():
        path = _in_other_case(root, relative, parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"image {relative!r}: is a link that leads out of image_root={str(root)!r}")
    return path


def _in_other_case(root: Path, relative: str, parts: tuple[str, ...]) -> Path:
    path = root
    for part in parts:
        exact = path / part
        if exact.exists():
            path = exact
            continue
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        similar = [name for name in names if name.lower() == part.lower()]
        if len(similar) > 1:
            raise DataError(f"image {relative!r}: {part!r} could be any of {sorted(similar)} in {str(path)!r}")
        if not similar:
            raise DataError(f"image {relative!r}: no such file below image_root={str(root)!r}")
        path = path / similar[0]
    if not path.is_file():
        raise DataError(f"image {relative!r}: expected a file below image_root={str(root)!r}, got a folder")
    return path


def check_images(records: Iterable[Record], root: str | Path) -> None:
    """Look up every image of the records.

    Raises:
        DataError: the images that are missing or lie outside ``root``, up to `MAX_LISTED` of them, and their number.
    """
    wanted = {image: record.id for record in reversed(list(records)) for image in record.images}
    problems = []
    for image, record_id in reversed(wanted.items()):
        try:
            resolve(root, image)
        except DataError as error:
            problems.append(f"record {record_id}: {error}")
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "\n  ".join(problems[:MAX_LISTED])
        raise DataError(
            f"{len(problems)} of {len(wanted)} images cannot be used. Set image_root (now {str(root)!r}) to the folder "
            f"that the paths in the question file start from:\n  {listed}{more}"
        )


def image_size(path: str | Path, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Width and height in pixels as stored, from the header alone.

    Raises:
        DataError: not an image, or more than ``max_image_pixels``.
    """
    with _opened(path, max_image_pixels) as image:
        return image.size


def open_rgb(path: str | Path, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode an image (the first frame if it has several) to 8-bit RGB, turned upright by its EXIF tag.

    Deeper grey values (12 or 16 bits, float) are stretched from the image's least and greatest value to 0 and 255,
    because a 12-bit radiograph in a 16-bit file would be black otherwise. Transparent parts become white, as in
    ``qwen_vl_utils``.

    Raises:
        DataError: not an image, truncated, or more than ``max_image_pixels``.
    """
    with _opened(path, max_image_pixels) as image:
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
        except Exception as error:  # a broken file can raise nearly anything from a decoder
            raise DataError(f"{path}: image cannot be decoded ({error}); it is broken or truncated") from error
    if image.mode.startswith(("I", "F")):
        return _stretched(image, path).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _opened(path: str | Path, max_image_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_image_pixels decides, below
            image = Image.open(path)
    except Exception as error:  # a broken header can raise nearly anything from a reader
        raise DataError(
            f"{path}: expected an image that Pillow can open (PNG, JPEG, TIFF, BMP), got: {error}"
        ) from error
    width, height = image.size
    if width * height > max_image_pixels:
        image.close()
        raise DataError(
            f"{path}: {width} x {height} pixels exceed max_image_pixels={max_image_pixels}; raise that option"
        )
    return image


def _stretched(image: Image.Image, path: str | Path) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise DataError(f"{path}: expected finite grey values, got {low} to {high}")
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))


def prepare(image: Image.Image, min_pixels: int | None, max_pixels: int | None, patch_size: int) -> Image.Image:
    """Resize an RGB image to whole tokens with ``qwen_vl_utils``; the HF processor then gets ``do_resize=False``.

    Args:
        image: RGB.
        min_pixels: Least area in pixels; None leaves the choice to ``qwen_vl_utils``.
        max_pixels: Greatest area, likewise.
        patch_size: 14 for Qwen2-VL and Qwen2.5-VL, 16 for Qwen3-VL.

    Returns:
        RGB with both sides divisible by ``patch_size * MERGE_SIZE``.

    Raises:
        DataError: so long and narrow that no size fits.
    """
    from qwen_vl_utils import fetch_image  # heavy: brings torchvision and a video reader

    image_tokens(image.size, min_pixels, max_pixels, patch_size)
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    element = {"image": image, **{name: limit for name, limit in limits.items() if limit is not None}}
    return fetch_image(element, image_patch_size=patch_size)


def image_tokens(size: tuple[int, int], min_pixels: int | None, max_pixels: int | None, patch_size: int) -> int:
    """Tokens that an image of this (width, height) takes in a prompt, once `prepare`d.

    Raises:
        DataError: as `prepare`.
    """
    from qwen_vl_utils.vision_process import smart_resize

    width, height = size
    factor = patch_size * MERGE_SIZE
    try:
        rows, columns = smart_resize(height, width, factor, min_pixels, max_pixels)
    except ValueError as error:
        raise DataError(f"image of {width} x {height} pixels cannot be resized: {error}") from error
    if not rows * columns:
        raise DataError(
            f"image of {width} x {height} pixels is too narrow for max_pixels={max_pixels}; raise it or crop the image"
        )
    return (rows // factor) * (columns // factor)
