"""DICOM as a viewer shows it, on pydicom's own files and on small ones made on the spot."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from data_modules.image_root import ImageFile
from data_modules.images import image_size, num_frames, open_rgb
from medgrpo.types import DataError


def bundled(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


def made(path: Path, values: np.ndarray, photometric: str = "MONOCHROME2", **elements) -> Path:
    """A file of [frames, rows, columns] or [rows, columns] values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    if values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    setattr(dataset, "FloatPixelData" if values.dtype == np.float32 else "PixelData", values.tobytes())
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path, frame: str = "", window: tuple[float, float] | None = None) -> list[list[int]]:
    image = np.asarray(open_rgb(ImageFile(path, frame), window=window))
    assert (image == image[..., :1]).all()
    return image[..., 0].tolist()


VALUES = np.array([[0, 924, 1024], [1064, 1264, 3000]], dtype=np.int16)
RESCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def test_ct_in_hounsfield_units() -> None:
    path = bundled("CT_small.dcm")
    stored = pixel_array(path)
    assert stored[0, :3].tolist() == [175, 180, 166]  # minus 1024: -849, -844, -858 HU, lung
    lung = np.asarray(open_rgb(path, window=(-600, 1500)))[..., 0]
    # ((-849 + 599.5) / 1499 + 0.5) * 255 = 85.06; -844: 85.91; -858: 83.53
    assert lung[0, :3].tolist() == [85, 86, 84]
    soft = np.asarray(open_rgb(path, window=(40, 400)))[..., 0]
    hounsfield = stored.astype(float) - 1024
    assert (soft[hounsfield <= -160] == 0).all()
    assert (soft[hounsfield >= 239] == 255).all()
    expected = ((hounsfield - 39.5) / 399 + 0.5) * 255
    assert np.abs(soft - expected.clip(0, 255)).max() <= 0.51
    # Without a window of its own: from 128 - 1024 to 2191 - 1024
    whole = np.asarray(open_rgb(path))[..., 0]
    assert np.abs(whole - (stored - 128.0) * 255 / (2191 - 128)).max() <= 0.51


def test_mr_is_shown_through_its_window() -> None:
    path = bundled("MR_small.dcm")
    expected = ((pixel_array(path) - 599.5) / 1599 + 0.5) * 255
    assert np.abs(np.asarray(open_rgb(path))[..., 0] - expected.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize("kind", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "padded"])
def test_how_the_file_is_written_does_not_matter(kind: str) -> None:
    assert grey(bundled(f"MR_small_{kind}.dcm")) == grey(bundled("MR_small.dcm"))


def test_palette_colours() -> None:
    path = bundled("examples_palette.dcm")
    dataset = pydicom.dcmread(path)
    red, green, blue = (
        np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2") for name in ("Red", "Green", "Blue")
    )
    image, stored = np.asarray(open_rgb(path)), dataset.pixel_array
    for row, column in ((0, 0), (100, 250), (200, 555), (349, 799)):
        entries = [table[stored[row, column]] for table in (red, green, blue)]
        assert image[row, column].tolist() == [round(int(entry) * 255 / 65535) for entry in entries]
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20


def test_colours_come_out_as_colours() -> None:
    # Bars of the same test pattern, written in eight ways
    expected = np.asarray(open_rgb(bundled("SC_rgb_rle.dcm")))
    assert expected[5, 50].tolist() == [255, 0, 0]
    assert expected[25, 50].tolist() == [0, 255, 0]
    names = ("SC_rgb_jpeg_dcmtk", "SC_ybr_full_422_uncompressed", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_rle_16bit")
    for name in (*names, "SC_rgb_dcmtk_+eb+cr", "SC_rgb_gdcm_KY", "SC_rgb_rle_32bit"):
        image = np.asarray(open_rgb(bundled(f"{name}.dcm"))).astype(int)
        assert np.abs(image[5:95:10, 50] - expected[5:95:10, 50]).max() <= 6, name  # JPEG
    assert open_rgb(bundled("examples_jpeg2k.dcm")).size == (640, 480)
    assert open_rgb(bundled("SC_rgb_jpeg.dcm")).size == (256, 256)
    assert open_rgb(bundled("image_dfl.dcm")).size == (512, 512)


def test_frames_of_a_compressed_colour_file() -> None:
    path = bundled("examples_ybr_color.dcm")
    assert num_frames(path) == 30
    frames = pixel_array(path)
    for frame, index in (("0", 0), ("29", 29), ("", 15)):
        assert np.array_equal(np.asarray(open_rgb(ImageFile(path, frame))), frames[index])
    for wrong in ("30", "coronal:3"):
        for function in (open_rgb, image_size):
            with pytest.raises(DataError, match=r"ybr_color.dcm: expected a frame from 0 to 29, got \[.*has 30 frames"):
                function(ImageFile(path, wrong))


def test_frames_of_an_uncompressed_file(tmp_path: Path) -> None:
    volume = np.array([[[0, 1]], [[2, 4]], [[9, 5]]], dtype=np.uint16)
    path = made(tmp_path / "a.dcm", volume)
    assert [grey(path, frame) for frame in ("0", "1", "2", "")] == [[[0, 255]], [[0, 255]], [[255, 0]], [[0, 255]]]
    assert grey(path, "2", (5, 10)) == [[255, 142]]  # ((5 - 4.5) / 9 + 0.5) * 255 = 141.7


def test_the_first_window_of_several_is_the_default(tmp_path: Path) -> None:
    path = made(tmp_path / "a.dcm", VALUES, WindowCenter=[40, -600], WindowWidth=[401, 1500], **RESCALED)
    # (x - 39.5) / 400 + 0.5 of -1024, -100, 0, 40, 240, 1976 HU
    assert grey(path) == [[0, 39, 102], [128, 255, 255]]
    assert grey(path, window=(-600, 1500)) == [[55, 213, 230], [236, 255, 255]]


@pytest.mark.parametrize("window", [{"WindowCenter": 0, "WindowWidth": 0}, {"WindowCenter": None, "WindowWidth": None}])
def test_a_window_that_is_none_is_not_used(tmp_path: Path, window: dict) -> None:
    assert grey(made(tmp_path / "a.dcm", VALUES, **window)) == [[0, 79, 87], [90, 107, 255]]


def test_other_window_functions(tmp_path: Path) -> None:
    window = {"WindowCenter": 40, "WindowWidth": 400, **RESCALED}
    assert grey(made(tmp_path / "a.dcm", VALUES, VOILUTFunction="LINEAR_EXACT", **window))[0] == [0, 38, 102]
    assert grey(made(tmp_path / "b.dcm", VALUES, VOILUTFunction="SIGMOID", **window))[0] == [0, 50, 102]
    with pytest.raises(DataError, match="c.dcm: .*VOI LUT Function: expected LINEAR"):
        grey(made(tmp_path / "c.dcm", VALUES, VOILUTFunction="CUBIC", **window))


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    values = np.array([[0, 100, 255]], dtype=np.uint8)
    assert grey(made(tmp_path / "a.dcm", values, "MONOCHROME1")) == [[255, 155, 0]]
    assert grey(made(tmp_path / "b.dcm", values, "MONOCHROME1"), window=(100.5, 101)) == [[255, 127, 0]]


def test_padding_is_black_and_not_counted(tmp_path: Path) -> None:
    values = np.array([[-2000, 0, 1000, 2000]], dtype=np.int16)
    assert grey(made(tmp_path / "a.dcm", values, PixelPaddingValue=-2000)) == [[0, 0, 128, 255]]
    assert grey(made(tmp_path / "b.dcm", values, "MONOCHROME1", PixelPaddingValue=-2000)) == [[0, 255, 127, 0]]
    limits = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": 10}
    assert grey(made(tmp_path / "c.dcm", values, **limits)) == [[0, 0, 0, 255]]
    assert grey(made(tmp_path / "d.dcm", values, "MONOCHROME1", **limits), window=(0, 9000))[0][:2] == [0, 0]


def test_padding_may_be_given_with_the_other_sign(tmp_path: Path) -> None:
    path = made(tmp_path / "a.dcm", np.array([[-2000, 0, 1000, 2000]], dtype=np.int16))
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 65_536 - 2000)
    dataset.save_as(path)
    assert grey(path) == [[0, 0, 128, 255]]


def test_padding_that_no_pixel_can_be_is_none(tmp_path: Path) -> None:
    # Left over from 16 bits: 63,536 (-2000) would be 48 in 8 bits, 256 would be 0
    values = np.array([[0, 48, 51, 255]], dtype=np.uint8)
    for padding in (63_536, 256):
        assert grey(made(tmp_path / "a.dcm", values, PixelPaddingValue=padding)) == [[0, 48, 51, 255]]


def test_floating_point_values(tmp_path: Path) -> None:
    values = np.array([[-9, 0.5, 1, 2]], dtype=np.float32)
    assert grey(made(tmp_path / "a.dcm", values, FloatPixelPaddingValue=-9.0)) == [[0, 0, 85, 255]]
    for missing in (np.nan, np.inf):  # black and not counted, as in NIfTI
        values[0, 0] = missing
        assert grey(made(tmp_path / "b.dcm", values)) == [[0, 0, 85, 255]]
        assert grey(made(tmp_path / "c.dcm", values), window=(1, 3)) == [[0, 128, 191, 255]]
    # LINEAR is not defined for a width below 1: (0.5 - 0.75) / 0.5 + 0.5 = 0, (1 - 0.75) / 0.5 + 0.5 = 1
    assert grey(made(tmp_path / "d.dcm", values, WindowCenter=0.75, WindowWidth=0.5)) == [[0, 0, 255, 255]]


@pytest.mark.parametrize(
    ("slope", "intercept", "units"),
    [(None, None, 1000), (None, -24, 976), (2, None, 2000), (2, -24, 1976)],
)
def test_an_empty_rescale_changes_nothing(tmp_path: Path, slope, intercept, units: int) -> None:
    path = made(tmp_path / "a.dcm", np.array([[1000]], np.int16), RescaleSlope=slope, RescaleIntercept=intercept)
    assert grey(path, window=(units + 0.5, 101)) == [[128]]  # in the middle
    assert grey(path, window=(units + 51, 101)) == [[0]]


def lookup_table(first: int, bits: int, entries: list[int]) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


def test_lookup_tables(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 3]], dtype=np.uint16)
    modality = {"ModalityLUTSequence": lookup_table(0, 16, [0, 10, 40, 90])}
    assert grey(made(tmp_path / "a.dcm", values, **modality)) == [[0, 28, 113, 255]]
    assert grey(made(tmp_path / "b.dcm", values, **modality), window=(45.5, 91)) == [[0, 28, 113, 255]]
    voi = {"VOILUTSequence": lookup_table(1, 12, [0, 1365, 4095])}
    assert grey(made(tmp_path / "c.dcm", values, **voi)) == [[0, 0, 85, 255]]
    assert grey(made(tmp_path / "d.dcm", values, RescaleSlope=1, RescaleIntercept=1, **voi)) == [[0, 85, 255, 255]]


def test_enhanced_files_keep_rescale_and_window_in_functional_groups(tmp_path: Path) -> None:
    def group(intercept: int, center: int) -> Dataset:
        transformation, voi, item = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, intercept
        voi.WindowCenter, voi.WindowWidth = center, 401
        item.PixelValueTransformationSequence = Sequence([transformation])
        item.FrameVOILUTSequence = Sequence([voi])
        return item

    groups = {
        "SharedFunctionalGroupsSequence": Sequence([group(0, 0)]),
        "PerFrameFunctionalGroupsSequence": Sequence([group(-1024, 40), group(-1024, 140)]),
    }
    path = made(tmp_path / "a.dcm", np.stack([VALUES, VALUES]), **groups)
    assert grey(path, "0") == [[0, 39, 102], [128, 255, 255]]
    assert grey(path, "1") == [[0, 0, 39], [64, 192, 255]]
    del groups["PerFrameFunctionalGroupsSequence"]
    assert grey(made(tmp_path / "b.dcm", np.stack([VALUES, VALUES]), **groups), "1")[0] == [128, 255, 255]


def test_a_number_of_frames_below_one_is_refused(tmp_path: Path) -> None:
    for function in (open_rgb, image_size, num_frames):
        with pytest.raises(DataError, match="a.dcm: expected at least one frame, got NumberOfFrames=-3"):
            function(made(tmp_path / "a.dcm", VALUES, NumberOfFrames=-3))


def test_a_huge_header_is_refused_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 65,535 is all that Rows can say
    path = made(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), Rows=65_535, Columns=65_535)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    for function in (open_rgb, image_size, num_frames):
        with pytest.raises(DataError, match="a.dcm: 65535 x 65535 pixels exceed max_image_pixels=100000000"):
            function(path)
    with pytest.raises(DataError, match="a.dcm: 3 x 2 pixels exceed max_image_pixels=5"):
        open_rgb(made(tmp_path / "a.dcm", VALUES), 5)
    assert image_size(path.with_name("a.dcm"), 6) == (3, 2)


def test_a_jpeg_larger_than_its_header_is_refused(tmp_path: Path) -> None:
    content = BytesIO()
    Image.new("L", (3000, 2000)).save(content, "JPEG")
    path = made(tmp_path / "a.dcm", np.zeros((2, 3), np.uint8))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([content.getvalue()])
    dataset.save_as(path)
    with pytest.raises(DataError, match="the header says 3 x 2 pixels, its JPEG 3000 x 2000"):
        open_rgb(path)


def test_a_small_file_may_not_inflate_without_end(tmp_path: Path) -> None:
    path = made(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert open_rgb(path).size == (3, 2)
    with pytest.raises(DataError, match="a.dcm: inflates to more than 48 bytes; raise max_image_pixels=6"):
        image_size(path, 6)
    assert len(zlib.compress(bytes(1000))) < path.stat().st_size


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("test-SR.dcm", "Comprehensive SR Storage"),
        ("rtplan.dcm", "RT Plan Storage"),
        ("waveform_ecg.dcm", "12-lead ECG Waveform Storage"),
        ("no_meta.dcm", "a file of no known kind"),
    ],
)
def test_files_without_an_image(name: str, kind: str) -> None:
    for function in (open_rgb, image_size, num_frames):
        with pytest.raises(DataError, match=f"{name}: expected a DICOM image, got {kind} without Rows and Columns"):
            function(bundled(name))


def test_what_cannot_be_decoded_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MR_truncated.dcm: .*it is broken or truncated$"):
        open_rgb(bundled("MR_truncated.dcm"))
    with pytest.raises(DataError, match="badVR.dcm: .*1A"):
        image_size(bundled("badVR.dcm"))
    with pytest.raises(DataError, match=r"12-bit precision.*pip install 'pylibjpeg\[all\]'"):
        open_rgb(bundled("JPEG-lossy.dcm"))
    header = made(tmp_path / "header.dcm", VALUES)
    header.write_bytes(header.read_bytes()[: -VALUES.nbytes - 12])
    with pytest.raises(DataError, match="header.dcm: expected a DICOM image, got CT Image Storage without Pixel Data"):
        image_size(header)
    (tmp_path / "text.dcm").write_text("no DICOM at all" * 100)
    with pytest.raises(DataError, match="text.dcm: "):
        open_rgb(tmp_path / "text.dcm")


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine without the optional packages, whatever this one has
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(type(decoder), "is_available", False)
    with pytest.raises(DataError, match="no installed package decodes JPEG-LS Lossless.*: pip install 'pylibjpeg"):
        open_rgb(bundled("MR_small_jpeg_ls_lossless.dcm"))


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("name", ["CT_small", "MR_small_RLE", "examples_ybr_color", "rtdose", "SC_rgb_rle"])
def test_truncated_files_are_data_errors(tmp_path: Path, name: str, kept: float) -> None:
    content = bundled(f"{name}.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(content[: int(len(content) * kept)])
    last = "14" if name == "rtdose" else "29" if name == "examples_ybr_color" else "0"
    with pytest.raises(DataError, match="cut.dcm: "):
        open_rgb(ImageFile(path, last))


def test_one_bit_pixels_that_are_missing_are_not_black(tmp_path: Path) -> None:
    content = bundled("liver_1frame.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(content)
    assert np.unique(np.asarray(open_rgb(path))).tolist() == [0, 255]
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut.dcm: .*broken or truncated"):
        open_rgb(path)


def test_a_file_without_meta_information_is_read(tmp_path: Path) -> None:
    path = made(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    dataset.preamble = None
    bare = tmp_path / "b.dcm"
    pydicom.dcmwrite(bare, dataset, implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[128:132] != b"DICM"
    assert grey(bare) == grey(path)


def test_the_preamble_is_enough(tmp_path: Path) -> None:
    path = made(tmp_path / "IM0001", VALUES)
    assert grey(path) == grey(path.rename(tmp_path / "a.DCM"))
    assert image_size(tmp_path / "a.DCM") == (3, 2)


def test_bytes_turned_at_random_are_data_errors_or_images(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    generator = np.random.default_rng(0)
    path, named = tmp_path / "a.dcm", set()
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        content = bundled(name).read_bytes()
        for _ in range(60):
            turned = bytearray(content)
            for position in generator.integers(0, 1800, 8):
                turned[position] = generator.integers(256)
            path.write_bytes(turned)
            try:
                assert open_rgb(path, 1_000_000).mode == "RGB"
            except DataError as error:
                named.add(str(path) in str(error))
    assert named == {True}
    assert not recwarn.list


@pytest.mark.parametrize(
    ("elements", "size"),
    [
        ({"PixelSpacing": [5.0, 1.0]}, (4, 15)),  # rows 5 mm apart, columns 1 mm
        ({"PixelSpacing": [1.0, 1.0], "PixelAspectRatio": [2, 1]}, (4, 3)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (8, 3)),
        ({"PixelAspectRatio": [2, 1]}, (4, 6)),
        ({"PixelSpacing": [0.0, 1.0]}, (4, 3)),
        ({}, (4, 3)),
    ],
)
def test_pixels_become_square(tmp_path: Path, elements: dict, size: tuple[int, int]) -> None:
    path = made(tmp_path / "a.dcm", np.arange(12, dtype=np.uint8).reshape(3, 4), **elements)
    assert image_size(path) == open_rgb(path).size == size
