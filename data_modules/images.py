"""Open and size images: PNG, JPEG, TIFF, BMP and a few more, DICOM and NIfTI -> 8-bit RGB.

No pixel is decoded before the header has told how many there are.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps

from data_modules import dicom, nifti
from data_modules.grey import stretched
from data_modules.image_root import ImageFile, ImageRoot
from data_modules.rows import STORED
from medgrpo.types import DataError, Record

MAX_IMAGE_PIXELS = 100_000_000
"""Default of the option ``max_image_pixels``: a 10,000 x 10,000 image, 300 MB as RGB."""

MAX_LISTED = 1000
"""Images or prompts that one error names; the rest are counted."""

MANY = 5000
"""Image headers that one process reads at a time."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""That Pillow may open a file as. Of the others, EPS is a program that Ghostscript would run."""

PLAIN_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
"""Files that are neither DICOM nor NIfTI."""

MERGE_SIZE = 2
"""Patches per token and direction, in all three Qwen-VL families."""


def find_images(records: Iterable[Record], images: ImageRoot) -> dict[str, ImageFile]:
    """Look up every image of the records.

    Returns:
        The files by reference.

    Raises:
        DataError: the images that are missing or lie outside the root, up to `MAX_LISTED` of them, and their number.
    """
    found, problems = {}, {}
    for record in records:
        for image in record.images:
            if image not in found and image not in problems:
                try:
                    found[image] = images.find(image)
                except DataError as error:
                    problems[image] = f"record {record.id}: {error}"
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "\n  ".join(islice(problems.values(), MAX_LISTED))
        if any(map(STORED.fullmatch, problems)):
            raise DataError(
                f"{len(problems)} images are stored inside the question file, e.g. {next(iter(problems))!r}: run "
                "`medgrpo data convert FILE --out NEW.jsonl --save_images DIR`, then use NEW.jsonl with image_root DIR"
            )
        raise DataError(
            f"{len(problems)} of {len(found) + len(problems)} images cannot be used. Set image_root (now "
            f"{str(images.root)!r}) to the folder that the paths in the question file start from:\n  {listed}{more}"
        )
    return found


def image_sizes(files: Mapping[str, ImageFile], max_image_pixels: int) -> dict[str, tuple[int, int] | DataError]:
    """`image_size` of each file, by two processes when there are many; errors are given, not raised."""
    measure = partial(_sizes, max_image_pixels=max_image_pixels)
    if len(files) <= MANY:
        return dict(zip(files, measure(files.values()), strict=True))
    places = [(str(file.path), file.frame) for file in files.values()]  # far smaller than pickled paths
    parts = [places[start : start + MANY] for start in range(0, len(places), MANY)]
    # Forked, since an interpreter that starts anew would load all of torch first.
    with ProcessPoolExecutor(2, get_context("fork"), obey_parent) as pool:
        sizes = chain.from_iterable(pool.map(partial(_sizes_at, measure), parts))
        return dict(zip(files, sizes, strict=True))


def obey_parent() -> None:
    """First thing in a process of a pool: leave Ctrl-C to the parent, and end when it is killed, not wait for ever."""

    def follow() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=follow, daemon=True).start()


def _sizes_at(measure: Callable, places: Iterable[tuple[str, str]]) -> list[tuple[int, int] | DataError]:
    return measure(ImageFile(Path(path), frame) for path, frame in places)


def _sizes(files: Iterable[ImageFile], max_image_pixels: int) -> list[tuple[int, int] | DataError]:
    sizes: list[tuple[int, int] | DataError] = []
    for file in files:
        try:
            sizes.append(image_size(file, max_image_pixels))
        except DataError as error:
            sizes.append(error)
    return sizes


def image_size(file: str | Path | ImageFile, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Width and height in pixels as stored, from the header alone.

    Raises:
        DataError: not an image, no such frame, or more than ``max_image_pixels``.
    """
    file = _as_image_file(file)
    if volume := _volume_reader(file):
        return volume.image_size(file.path, file.frame, max_image_pixels)
    with _opened(file, max_image_pixels) as image:
        return image.size


def num_frames(file: str | Path | ImageFile, max_image_pixels: int = MAX_IMAGE_PIXELS) -> int:
    """Frames of the whole file: of a DICOM or GIF file, pages of a TIFF, axial slices of a NIfTI volume; else 1.

    Raises:
        DataError: as `image_size`.
    """
    file = ImageFile(_as_image_file(file).path)
    if volume := _volume_reader(file):
        return volume.num_frames(file.path, max_image_pixels)
    with _opened(file, max_image_pixels) as image:
        return _num_pages(image, file)


def spread(reference: str, file: ImageFile, count: int, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[str, ...]:
    """References to ``count`` evenly spaced frames of a volume, to put several images of it into a prompt.

    The frames are cut into ``count`` equal parts, and the middle one of each is taken; all are taken if there are
    fewer. A reference that names a frame, or a file of one frame, is left as it is.

    Raises:
        DataError: as `num_frames`.
    """
    frames = 1 if file.frame else num_frames(file, max_image_pixels)
    if frames == 1:
        return (reference,)
    parts = min(count, frames)
    return tuple(f"{reference}[{(2 * part + 1) * frames // (2 * parts)}]" for part in range(parts))


def open_rgb(
    file: str | Path | ImageFile,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    window: tuple[float, float] | None = None,
) -> Image.Image:
    """Decode an image to 8-bit RGB, turned upright by its EXIF tag.

    Without a frame, the first page of a TIFF or GIF and the middle frame of a DICOM or NIfTI volume. Deeper grey values
    (12 or 16 bits, float) are stretched from the image's least and greatest value to 0 and 255, because a 12-bit
    radiograph in a 16-bit file would be black otherwise; ``dicom.open_rgb`` and ``nifti.open_rgb`` say what they do.
    Transparent parts become white, as in ``qwen_vl_utils``.

    Args:
        file: path, or what `ImageRoot.find` returned.
        max_image_pixels: larger images are refused before they are decoded.
        window: (center, width) that DICOM and NIfTI grey values are shown through; other images have no unit.

    Raises:
        DataError: not an image, truncated, no such frame, or more than ``max_image_pixels``.
    """
    file = _as_image_file(file)
    if volume := _volume_reader(file):
        return volume.open_rgb(file.path, file.frame, max_image_pixels, window)
    with _opened(file, max_image_pixels) as image:
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):
                image = Image.fromarray(stretched(np.asarray(image)))
        except Exception as error:  # a broken file can raise nearly anything from a decoder
            reason = str(error) or repr(error)
            raise DataError(f"{file}: image cannot be decoded ({reason}); it is broken or truncated") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _as_image_file(file: str | Path | ImageFile) -> ImageFile:
    return file if isinstance(file, ImageFile) else ImageFile(Path(file))


def _volume_reader(file: ImageFile) -> ModuleType | None:
    """`dicom` or `nifti`, or None for what Pillow opens."""
    suffix = file.path.suffix.lower()
    if suffix in PLAIN_SUFFIXES:  # spares hundreds of thousands of files a second look
        return None
    if nifti.is_nifti(file.path):
        return nifti
    try:
        return dicom if dicom.is_dicom(file.path) else None
    except OSError as error:
        raise DataError(f"{file}: cannot be opened: {error}") from error


def _opened(file: ImageFile, max_image_pixels: int) -> Image.Image:
    """The image at the wanted page, not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_image_pixels decides, below
            image = Image.open(file.path, formats=FORMATS)
    except Image.DecompressionBombError as error:  # so large that Pillow refuses it before we can
        which = f"max_image_pixels={max_image_pixels}"
        if max_image_pixels >= 2 * Image.MAX_IMAGE_PIXELS:
            which = "what Pillow opens, however great max_image_pixels is; scale it down"
        raise DataError(f"{file}: exceeds {which}: {error}") from error
    except Exception as error:  # a broken header can raise nearly anything from a reader
        raise DataError(f"{file}: expected an image ({', '.join(FORMATS)}, DICOM or NIfTI), got: {error}") from error
    try:
        _check_pixels(image, file, max_image_pixels)
        if file.frame:
            _seek(image, file)
            _check_pixels(image, file, max_image_pixels)
    except DataError:
        image.close()
        raise
    return image


def _check_pixels(image: Image.Image, file: ImageFile, max_image_pixels: int) -> None:
    width, height = image.size
    if width * height > max_image_pixels:
        raise DataError(
            f"{file}: {width} x {height} pixels exceed max_image_pixels={max_image_pixels}; raise that option"
        )


def _seek(image: Image.Image, file: ImageFile) -> None:
    count = _num_pages(image, file)
    if not file.frame.isdigit() or int(file.frame) >= count:
        raise DataError(f"{file}: expected a frame from 0 to {count - 1}, got [{file.frame}]: the file has {count}")
    try:
        image.seek(int(file.frame))
    except Exception as error:  # as in `_opened`
        raise DataError(f"{file}: this page cannot be read ({error}); the file is broken or truncated") from error


def _num_pages(image: Image.Image, file: ImageFile) -> int:
    if image.format == "MPO":  # a photograph with previews
        return 1
    try:
        return getattr(image, "n_frames", 1)  # only formats that can hold several have it
    except Exception as error:  # as in `_opened`
        raise DataError(f"{file}: pages cannot be counted ({error}); the file is broken or truncated") from error


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


@lru_cache(maxsize=4096)
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
