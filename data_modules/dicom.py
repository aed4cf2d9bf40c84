"""DICOM -> 8-bit RGB as a viewer shows it: stored values -> modality units -> window -> grey, or colour.

The order is that of DICOM PS3.4 N.2: modality LUT or rescale, VOI LUT or window, photometric interpretation. One frame
is decoded, and only after the header has told how large it is.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from data_modules.aspect import square_size, squared
from data_modules.grey import stretched, windowed
from medgrpo.types import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SUFFIXES = (".dcm", ".dicom")
"""Of files that are taken for DICOM even without its preamble."""

INSTALL = "pip install 'pylibjpeg[all]'"

INFLATED_BYTES_PER_PIXEL = 8
"""What a deflated file may inflate to, per pixel of ``max_image_pixels``."""


@dataclass(frozen=True)
class _Header:
    dataset: Dataset
    """Everything before the pixel data."""
    syntax: str
    """Transfer syntax UID."""
    num_frames: int


def is_dicom(path: Path) -> bool:
    """By its preamble, else by its suffix."""
    return path.suffix.lower() in SUFFIXES or _has_preamble(path)


def num_frames(path: Path, max_image_pixels: int) -> int:
    """Frames of the file.

    Raises:
        DataError: not DICOM, without an image, or with too large a one.
    """
    with _naming(path):
        return _header(path, max_image_pixels).num_frames


def image_size(path: Path, frame: str, max_image_pixels: int) -> tuple[int, int]:
    """Width and height from the header.

    Raises:
        DataError: as `num_frames`, or no such frame.
    """
    with _naming(path):
        header = _header(path, max_image_pixels)
        dataset = _with_frame_groups(header.dataset, _index(frame, header.num_frames))
        return square_size((dataset.Columns, dataset.Rows), *_spacings(dataset), max_image_pixels)


def open_rgb(path: Path, frame: str, max_image_pixels: int, window: tuple[float, float] | None) -> Image.Image:
    """One frame as a viewer shows it.

    Grey values are shown through ``window``, else the file's VOI LUT or first window, else from their least to their
    greatest. Padding (Pixel Padding Value) and what is not finite is not counted and black. MONOCHROME1 is inverted.
    Colours are left alone. Pixels that are not square are made so.

    Args:
        path: of the file.
        frame: its number from 0; empty takes the middle one.
        max_image_pixels: greatest number of rows times columns.
        window: (center, width) in modality units, which are Hounsfield units for CT; None is the file's own.

    Raises:
        DataError: as `image_size`; pixel data that is missing, broken, truncated or compressed in a way that no
            installed package decodes.
    """
    with _naming(path):
        header = _header(path, max_image_pixels)
        index = _index(frame, header.num_frames)
        pixels = _decoded(path, header, index)
        dataset = _with_frame_groups(header.dataset, index)
        return squared(_shown(pixels, dataset, window), *_spacings(dataset), max_image_pixels)


def _shown(pixels: np.ndarray, dataset: Dataset, window: tuple[float, float] | None) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    photometric = str(dataset.PhotometricInterpretation).upper()
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)[..., :3]  # a fourth is its opacity
        return Image.fromarray(_to_8_bits(colours, 8 * colours.dtype.itemsize))
    if pixels.ndim == 3:
        return Image.fromarray(_to_8_bits(pixels, dataset.BitsStored))
    return Image.fromarray(_grey(pixels, dataset, photometric, window)).convert("RGB")


def _spacings(dataset: Dataset) -> tuple[float, float]:
    """Across and down; equal where the file says nothing (DICOM gives the distance between rows first)."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        value = dataset.get(name)
        if value is not None and len(value) == 2:
            return float(value[1]), float(value[0])
    return 1.0, 1.0


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file; pydicom's warnings about files that break the standard's small rules are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a broken element can raise nearly anything where its value is first used
        raise DataError(f"{path}: DICOM file cannot be read ({_one_line(error)}); it is broken or truncated") from error


def _header(path: Path, max_image_pixels: int) -> _Header:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        syntax = _transfer_syntax(path)
        if syntax == DeflatedExplicitVRLittleEndian:
            _check_inflated(path, max_image_pixels)
        try:
            dataset = dcmread(file, stop_before_pixels=True, force=path.suffix.lower() in SUFFIXES)
        except InvalidDicomError as error:
            raise DataError(f"expected a DICOM file, got: {_one_line(error)}") from error
        is_cut = syntax != DeflatedExplicitVRLittleEndian and not file.read(4)
    kind = getattr(dataset.get("SOPClassUID"), "name", "a file of no known kind")
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        raise DataError(f"expected a DICOM image, got {kind} without Rows and Columns")
    if dataset.Rows * dataset.Columns > max_image_pixels:
        raise DataError(
            f"{dataset.Columns} x {dataset.Rows} pixels exceed max_image_pixels={max_image_pixels}; raise that option"
        )
    if not dataset.Rows * dataset.Columns:
        raise DataError(f"expected at least one pixel, got {dataset.Columns} x {dataset.Rows}")
    if is_cut:
        raise DataError(f"expected a DICOM image, got {kind} without Pixel Data; it is a header alone, or truncated")
    count = int(dataset.get("NumberOfFrames") or 1)
    if count < 1:
        raise DataError(f"expected at least one frame, got NumberOfFrames={count}")
    return _Header(dataset, syntax or _implied_syntax(dataset), count)


def _transfer_syntax(path: Path) -> str:
    from pydicom.filereader import read_file_meta_info

    return read_file_meta_info(path).get("TransferSyntaxUID", "") if _has_preamble(path) else ""


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _implied_syntax(dataset: Dataset) -> str:
    """Of a file that does not name it: pydicom has seen how the elements are written."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    is_implicit, is_little = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _check_inflated(path: Path, max_image_pixels: int) -> None:
    """Refuse a small file that fills the memory: all of it is inflated to read its header."""
    from pydicom.filereader import read_file_meta_info

    limit = INFLATED_BYTES_PER_PIXEL * max_image_pixels
    with path.open("rb") as file:
        file.seek(128 + 4 + 12 + read_file_meta_info(path).FileMetaInformationGroupLength)
        size = len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), limit + 1))
    if size > limit:
        raise DataError(f"inflates to more than {limit} bytes; raise max_image_pixels={max_image_pixels}")


def _index(frame: str, count: int) -> int:
    if not frame:
        return count // 2
    if not frame.isdigit() or int(frame) >= count:
        raise DataError(f"expected a frame from 0 to {count - 1}, got [{frame}]: the file has {count} frames")
    return int(frame)


def _decoded(path: Path, header: _Header, index: int) -> np.ndarray:
    """Stored values of a frame, [rows, columns] or [rows, columns, 3]; YBR has become RGB."""
    from pydicom import dcmread
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

    syntax = UID(header.syntax)
    try:
        if syntax.is_encapsulated and not get_decoder(syntax).is_available:
            raise DataError(f"no installed package decodes {syntax.name}: {INSTALL}")
        # Of one-bit pixels that are missing, pydicom makes zeros unless it has read all of the file.
        if syntax == DeflatedExplicitVRLittleEndian or header.dataset.BitsAllocated == 1:
            return pixel_array(dcmread(path), index=index)
        if syntax.is_encapsulated:
            dataset = dcmread(path)
            _check_codestream(dataset, header, index)
            return pixel_array(dataset, index=index)
        return pixel_array(path, index=index, transfer_syntax_uid=syntax)  # reads this frame alone
    except DataError:
        raise
    except Exception as error:  # as in `_naming`
        hint = f"; another decoder may help: {INSTALL}" if syntax.is_encapsulated else ""
        raise DataError(
            f"{syntax.name} pixel data cannot be decoded ({_one_line(error)}); it is broken or truncated{hint}"
        ) from error


def _check_codestream(dataset: Dataset, header: _Header, index: int) -> None:
    """A JPEG in the file has a size of its own, which the decoders believe."""
    from pydicom.encaps import get_frame

    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    frame = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=header.num_frames,
        extended_offsets=offsets if all(offsets) else None,
    )
    try:
        with Image.open(BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            size = image.size
    except OSError:  # RLE, JPEG-LS or lossless JPEG
        return
    if size != (dataset.Columns, dataset.Rows):
        raise DataError(f"the header says {dataset.Columns} x {dataset.Rows} pixels, its JPEG {size[0]} x {size[1]}")


def _with_frame_groups(dataset: Dataset, index: int) -> Dataset:
    """The header with a frame's own values, which enhanced multi-frame files keep in functional groups."""
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in shared + own:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"):
            for item in group.get(name) or []:
                dataset.update(item)
    return dataset


def _to_8_bits(colours: np.ndarray, bits: int) -> np.ndarray:
    if colours.dtype == np.uint8:
        return colours
    return (colours.astype(np.float32) * (255 / (2**bits - 1))).clip(0, 255).round().astype(np.uint8)


def _grey(stored: np.ndarray, dataset: Dataset, photometric: str, window: tuple[float, float] | None) -> np.ndarray:
    """uint8 [rows, columns]"""
    from pydicom.pixels.processing import apply_voi

    shown = _not_padding(stored, dataset)
    values = _in_units(stored, dataset)
    file_window = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if window:
        grey = windowed(values, *window, "LINEAR", shown)
    elif dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        grey = _to_8_bits(apply_voi(values.round().astype(np.int64), dataset).astype(np.uint16), bits)
    elif None not in file_window and file_window[1] > 0:
        if function == "LINEAR" and file_window[1] < 1:  # of fractions, for which LINEAR is not defined
            function = "LINEAR_EXACT"
        grey = windowed(values, *file_window, function, shown)
    else:
        grey = stretched(values, shown)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    return grey if shown is None else np.where(shown, grey, 0).astype(np.uint8)


def _in_units(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Through the modality LUT, else rescaled; a slope or intercept that is missing or empty changes nothing."""
    from pydicom.pixels import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    slope, intercept = _first(dataset.get("RescaleSlope")), _first(dataset.get("RescaleIntercept"))
    return stored.astype(np.float64) * _or(slope, 1.0) + _or(intercept, 0.0)


def _not_padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """False where a value is no measurement; None if all are."""
    is_float = stored.dtype.kind == "f"
    kind = {4: "Float", 8: "DoubleFloat"}[stored.dtype.itemsize] if is_float else ""
    shown = np.isfinite(stored) if is_float else None
    padding = dataset.get(f"{kind}PixelPaddingValue")
    if padding is None:
        return shown
    ends = np.array([padding, _or(dataset.get(f"{kind}PixelPaddingRangeLimit"), padding)])
    if not is_float:
        bits = 8 * stored.dtype.itemsize
        if ends.min() < -(2 ** (bits - 1)) or ends.max() >= 2**bits:  # no pixel can be that
            return None
        # Files of signed values often give it as the unsigned number of the same bits, and the other way round.
        ends = ends.astype(stored.dtype)
    outside = (stored < ends.min()) | (stored > ends.max())
    return outside & shown if is_float else outside


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value


def _first(value: Any) -> float | None:
    """Of an element that may be missing, empty, one number or several."""
    numbers = np.atleast_1d(np.array([] if value is None else value, dtype=np.float64))
    return float(numbers[0]) if numbers.size else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
