"""Images: nothing huge, nothing broken, and the same RGB whatever the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import data_modules.images
from data_modules.image_root import ImageFile, ImageRoot
from data_modules.images import (
    MAX_LISTED,
    find_images,
    image_size,
    image_sizes,
    image_tokens,
    num_frames,
    open_rgb,
    prepare,
    spread,
)
from medgrpo.types import DataError, Record

SHARED = Path(__file__).parents[2] / "shared" / "data" / "medvlm_r1"


def png(path: Path, size: tuple[int, int] = (4, 3), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, "PNG")
    return path


def record(*images: str) -> Record:
    return Record(id="r1", problem="q", question="q", options=(), answer="a", images=images)


def test_all_missing_images_come_in_one_error(tmp_path: Path) -> None:
    png(tmp_path / "ok.png")
    find_images([record("ok.png"), record()], ImageRoot(tmp_path))
    missing = [record("ok.png"), *(record(f"{i}.png", f"{i}.png") for i in range(25))]
    with pytest.raises(DataError, match=r"25 of 26 images cannot be used. Set image_root") as error:
        find_images(missing, ImageRoot(tmp_path))
    assert all(f"'{i}.png'" in str(error.value) for i in range(25))


def test_an_endless_list_of_missing_images_is_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.\.\. and 5 more$") as error:
        find_images([record(f"{i}.png") for i in range(MAX_LISTED + 5)], ImageRoot(tmp_path))
    assert str(error.value).count("no such file") == MAX_LISTED


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    opened = open_rgb(tmp_path / name)
    assert opened.mode == "RGB"
    return np.asarray(opened)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8))
    assert saved(tmp_path, grey).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    assert saved(tmp_path, grey, "a.bmp").tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    assert saved(tmp_path, grey.convert("1", dither=Image.Dither.NONE)).tolist() == [[[0] * 3, [0] * 3, [255] * 3]]
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert saved(tmp_path, palette).tolist() == [[[10, 20, 30]]]
    assert saved(tmp_path, palette, transparency=1).tolist() == [[[255, 255, 255]]]
    assert saved(tmp_path, Image.new("RGBA", (1, 1), (10, 20, 30, 0))).tolist() == [[[255, 255, 255]]]
    assert saved(tmp_path, Image.new("LA", (1, 1), (10, 255))).tolist() == [[[10, 10, 10]]]


def test_deep_grey_values_are_stretched(tmp_path: Path) -> None:
    # A 12-bit radiograph in 16 bits: 100 -> 0, 2100 -> 127.5 -> 128 (to even), 4100 -> 255
    deep = np.array([[100, 2100, 4100]])
    expected = [[[0] * 3, [128] * 3, [255] * 3]]
    assert saved(tmp_path, Image.fromarray(deep.astype(np.uint16))).tolist() == expected
    assert saved(tmp_path, Image.fromarray(deep.astype(np.uint16)), "a.tif").tolist() == expected
    assert saved(tmp_path, Image.fromarray(deep.astype(np.int32)), "a.tif").tolist() == expected
    assert saved(tmp_path, Image.fromarray(deep.astype(np.float32)), "a.tif").tolist() == expected
    assert saved(tmp_path, Image.fromarray(np.full((1, 1), 700, np.uint16))).tolist() == [[[0, 0, 0]]]
    with pytest.raises(DataError, match="expected finite grey values"):
        saved(tmp_path, Image.fromarray(np.array([[0, np.inf]], np.float32)), "b.tif")


def test_exif_turns_the_image_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8))  # 2 wide: red, green
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    assert saved(tmp_path, image, exif=exif).tolist() == [[[255, 0, 0]], [[0, 255, 0]]]


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path / "big.png", (300, 200))
    assert open_rgb(path, 60_000).size == (300, 200)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="big.png: 300 x 200 pixels exceed max_image_pixels=59999"):
        open_rgb(path, 59_999)
    with pytest.raises(DataError, match="max_image_pixels"):
        image_size(path, 59_999)
    assert image_size(path, 60_000) == (300, 200)


def test_a_header_of_ten_billion_pixels_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "bomb.png").write_bytes(content)
    for read in (open_rgb, image_size):
        with pytest.raises(DataError, match=r"bomb\.png: exceeds max_image_pixels=100000000: .*10000000000 pixels"):
            read(tmp_path / "bomb.png")


def test_what_pillow_refuses_whatever_the_option_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(DataError, match="a.png: exceeds what Pillow opens, however great max_image_pixels is"):
        open_rgb(png(tmp_path / "a.png"), 1000)
    with pytest.raises(DataError, match="a.png: exceeds max_image_pixels=9: "):
        open_rgb(tmp_path / "a.png", 9)


def test_a_program_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.eps")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("run"))
    for function in (open_rgb, image_size):
        with pytest.raises(DataError, match="a.eps: expected an image"):
            function(tmp_path / "a.eps")


def test_many_headers_are_read_by_two_processes_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.png" for i in range(1, 8)]
    for i, name in enumerate(names, 1):
        png(tmp_path / name, (i, 1))
    (tmp_path / "3.png").write_bytes(b"broken")
    files = {name: ImageRoot(tmp_path).find(name) for name in names}
    alone = image_sizes(files, 6)
    monkeypatch.setattr(data_modules.images, "MANY", 2)
    together = image_sizes(files, 6)
    assert list(map(str, together.values())) == list(map(str, alone.values()))
    assert [size for size in together.values() if isinstance(size, tuple)] == [(i, 1) for i in (1, 2, 4, 5, 6)]
    assert "exceed max_image_pixels=6" in str(together["7.png"])
    assert "3.png: expected an image" in str(together["3.png"])


def test_between_pillows_warning_and_our_limit_there_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert open_rgb(png(tmp_path / "a.png")).size == (4, 3)
    assert not recwarn.list


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5])
def test_broken_files_are_named(tmp_path: Path, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(DataError, match=f"{name}: .*(cannot be decoded|expected an image)"):
            open_rgb(path)


def pages(path: Path, *greys: int, size: tuple[int, int] = (4, 3), **options) -> Path:
    first, *rest = (Image.new("L", size, grey) for grey in greys)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png"])
def test_a_frame_suffix_picks_a_page(tmp_path: Path, name: str) -> None:
    path = pages(tmp_path / name, 10, 20, 30)
    assert num_frames(path) == num_frames(ImageFile(path, "1")) == 3
    colours = [np.unique(np.asarray(open_rgb(ImageFile(path, frame)))).tolist() for frame in ("", "0", "1", "2")]
    assert colours == [[10], [10], [20], [30]]
    for wrong in ("3", "coronal:1"):
        for function in (open_rgb, image_size):
            with pytest.raises(DataError, match=rf"{name}\[{wrong}\]: expected a frame from 0 to 2, .* the file has 3"):
                function(ImageFile(path, wrong))
    assert num_frames(png(tmp_path / "one.png")) == 1
    with pytest.raises(DataError, match="expected a frame from 0 to 0"):
        open_rgb(ImageFile(tmp_path / "one.png", "1"))


def test_pages_have_sizes_of_their_own(tmp_path: Path) -> None:
    small, large = Image.new("L", (4, 3)), Image.new("L", (300, 200))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[large])
    assert image_size(ImageFile(tmp_path / "a.tif", "1")) == open_rgb(ImageFile(tmp_path / "a.tif", "1")).size
    for function in (open_rgb, image_size):
        with pytest.raises(DataError, match=r"a.tif\[1\]: 300 x 200 pixels exceed max_image_pixels=59999"):
            function(ImageFile(tmp_path / "a.tif", "1"), 59_999)
    assert open_rgb(tmp_path / "a.tif", 12).size == (4, 3)


def test_previews_in_a_photograph_are_no_frames(tmp_path: Path) -> None:
    assert num_frames(pages(tmp_path / "a.mpo", 10, 20, size=(64, 64))) == 1


def test_a_volume_becomes_several_images(tmp_path: Path) -> None:
    # 10 frames in 4 equal parts of 2.5: middles 1.25, 3.75, 6.25, 8.75
    file = ImageFile(pages(tmp_path / "a.tif", *range(10)))
    assert spread("x/a.tif", file, 4) == ("x/a.tif[1]", "x/a.tif[3]", "x/a.tif[6]", "x/a.tif[8]")
    assert spread("a.tif", file, 1) == ("a.tif[5]",)
    assert spread("a.tif", file, 10) == spread("a.tif", file, 99) == tuple(f"a.tif[{k}]" for k in range(10))
    assert spread("a.tif[3]", ImageFile(file.path, "3"), 4) == ("a.tif[3]",)
    assert spread("b.png", ImageFile(png(tmp_path / "b.png")), 4) == ("b.png",)


@given(
    size=st.tuples(st.integers(64, 300), st.integers(64, 300)),
    patch_size=st.sampled_from((14, 16)),
    min_pixels=st.integers(1, 100) | st.none(),
    max_pixels=st.integers(9_000, 40_000) | st.none(),
)
def test_prepared_images_fit_the_limits_and_the_predicted_tokens(size, patch_size, min_pixels, max_pixels) -> None:
    image = prepare(Image.new("RGB", size), min_pixels, max_pixels, patch_size)
    factor = 2 * patch_size
    assert image.width % factor == image.height % factor == 0
    assert image_tokens(size, min_pixels, max_pixels, patch_size) == image.width * image.height // factor**2
    assert max_pixels is None or image.width * image.height <= max_pixels


def test_known_token_counts() -> None:
    # A 384 x 384 stretch: 14 x 14 tokens at patch 14 (392 x 392 pixels), 12 x 12 at patch 16
    assert image_tokens((384, 384), None, None, 14) == 196
    assert image_tokens((384, 384), None, None, 16) == 144
    assert image_tokens((1462, 1010), None, 401408, 14) <= 512


def test_images_that_no_size_fits_are_refused() -> None:
    with pytest.raises(DataError, match="aspect ratio"):
        image_tokens((2010, 10), None, None, 14)
    with pytest.raises(DataError, match="max_pixels=3136; raise it or crop"):
        image_tokens((5600, 40), None, 3136, 14)


@pytest.mark.shared_data
def test_real_images_open() -> None:
    paths = sorted((SHARED / "images").glob("*"))
    if not paths:
        pytest.skip(f"{SHARED / 'images'} is not here")
    for path in paths:
        image = open_rgb(path)
        assert image.size == image_size(path)
        assert np.asarray(image).std() > 10
