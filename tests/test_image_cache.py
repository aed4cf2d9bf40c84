"""The cache of processed images: the same batch as without it, nothing done twice, nothing broken believed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, processor_of
from torch import Tensor
from torch.utils.data import DataLoader

import data_modules.collate
import data_modules.image_cache
from data_modules.collate import Collate
from data_modules.image_cache import ImageCache, ProcessedImage
from data_modules.image_root import ImageFile
from data_modules.images import open_rgb
from medgrpo.types import DataError, PromptBatch, Record


def record(index: int, *images: str) -> Record:
    return Record(f"r{index}", "What is it? A)cyst, B)mass", "What is it?", ("cyst", "mass"), "A", images)


MIXED = [record(0, "a.png"), record(1), record(2, "b.png", "c.png")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shape in {"a.png": (60, 90, 3), "b.png": (200, 50), "c.png": (84, 84, 3)}.items():
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded."""
    names: list[str] = []

    def noted(file: ImageFile, *options) -> Image.Image:
        names.append(file.path.name)
        return open_rgb(file, *options)

    monkeypatch.setattr(data_modules.collate, "open_rgb", noted)
    return names


def collate_of(root: Path, family: str = "qwen2_5_vl", **options) -> Collate:
    options = {"processor": processor_of(family), "image_cache": str(root.parent / "cache")} | options
    return Collate(prompt="{Question}", image_root=str(root), **options)


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in (root.parent / "cache").rglob("*") if path.is_file())


def assert_same(one: PromptBatch, other: PromptBatch) -> None:
    for field in fields(PromptBatch):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "thumbnails":
            assert all(
                torch.equal(a, b) if isinstance(a, Tensor) else a is b for a, b in zip(ours, theirs, strict=True)
            )
        elif isinstance(ours, Tensor):
            assert torch.equal(ours, theirs), field.name
            assert ours.dtype == theirs.dtype
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("records", [MIXED, MIXED[:1], MIXED[1:2], MIXED[2:]])
def test_the_batch_is_the_same_with_and_without(family: str, records: list[Record], root: Path) -> None:
    expected = collate_of(root, family, image_cache=None)(records)
    assert not (root.parent / "cache").exists()
    collate = collate_of(root, family)
    assert_same(collate(records), expected)  # stored
    assert_same(collate(records), expected)  # found
    assert_same(collate_of(root, family)(records), expected)  # found by another run
    assert len(files_in(root)) == sum(len(r.images) for r in records)


def test_what_is_found_is_neither_decoded_nor_processed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = collate_of(root)(MIXED)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(data_modules.collate, "prepare", lambda *_: pytest.fail("resized"))
    image_processor = type(processor_of("qwen2_5_vl").image_processor)
    monkeypatch.setattr(image_processor, "preprocess", lambda *_, **__: pytest.fail("processed"))
    assert_same(collate_of(root)(MIXED), first)


def test_the_name_of_an_image_does_not_matter_but_its_content_does(root: Path, opened: list[str]) -> None:
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    collate = collate_of(root)
    collate([record(0, "a.png")])
    collate([record(0, "copy.png")])
    assert opened == ["a.png"]
    Image.new("RGB", (90, 60), "red").save(root / "a.png")
    assert_same(collate([record(0, "a.png")]), collate_of(root, image_cache=None)([record(0, "a.png")]))
    assert opened == ["a.png", "a.png", "a.png"]
    assert len(files_in(root)) == 2


def other_config(**changed):
    processor = copy.deepcopy(processor_of("qwen2_5_vl"))
    for name, value in changed.items():
        setattr(processor.image_processor, name, value)
    return processor


@pytest.mark.parametrize(
    "changed",
    [
        lambda: {"min_pixels": 28 * 28 * 20},
        lambda: {"max_pixels": 28 * 28 * 4},
        lambda: {"resize": (60, 60)},
        lambda: {"window": (40, 400)},
        lambda: {"family": "qwen3_vl"},
        lambda: {"processor": other_config(image_mean=[0.5, 0.5, 0.5])},
        lambda: {"processor": other_config(rescale_factor=1 / 127)},
        lambda: {"processor": other_config(temporal_patch_size=1)},
    ],
)
def test_a_changed_setting_is_another_file(changed: Callable[[], dict], root: Path, opened: list[str]) -> None:
    options = changed()
    collate_of(root)(MIXED[:1])
    other = collate_of(root, **options)(MIXED[:1])
    assert opened == ["a.png"] * 2
    assert len(files_in(root)) == 2
    assert_same(other, collate_of(root, **options, image_cache=None)(MIXED[:1]))


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (data_modules.image_cache, "version", lambda library: "99" if library == "pillow" else "1"),
        (data_modules.image_cache, "FORMAT", -1),
        (data_modules.collate, "THUMBNAIL_PIXELS", 20),
    ],
)
def test_another_version_is_another_file(module, name, value, root, opened, monkeypatch) -> None:
    collate_of(root)(MIXED[:1])
    monkeypatch.setattr(module, name, value)
    collate_of(root)(MIXED[:1])
    assert opened == ["a.png"] * 2


def test_settings_that_change_no_image_share_its_file(root: Path, opened: list[str]) -> None:
    collate_of(root)(MIXED[:1])
    collate_of(root, max_image_pixels=6000, max_prompt_length=1000)(MIXED[:1])
    assert opened == ["a.png"]


def test_a_stored_image_is_still_refused_when_it_is_too_large(root: Path) -> None:
    collate_of(root)(MIXED)
    with pytest.raises(DataError, match="record r2: .*b.png: 50 x 200 pixels exceed max_image_pixels=9999"):
        collate_of(root, max_image_pixels=9999)(MIXED)


def test_a_refused_image_is_not_stored(root: Path) -> None:
    with pytest.raises(DataError, match="a.png: 90 x 60 pixels exceed"):
        collate_of(root, max_image_pixels=5399)(MIXED[:1])
    (root / "a.png").write_bytes((root / "a.png").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"record r0: .*a.png: image cannot be decoded"):
        collate_of(root)(MIXED[:1])
    assert files_in(root) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_checksum(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{}" * 100),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 20),
        lambda path: save_file({"pixel_values": torch.zeros(2)}, path, {"crc32": "00000000"}),
        flip,
        without_checksum,
    ],
)
def test_a_broken_file_is_made_anew(damage: Callable[[Path], None], root: Path, opened: list[str]) -> None:
    expected = collate_of(root)(MIXED[:1])
    [file] = files_in(root)
    whole = file.read_bytes()
    damage(file)
    assert_same(collate_of(root)(MIXED[:1]), expected)
    assert opened == ["a.png"] * 2
    assert file.read_bytes() == whole


def test_a_writer_that_is_stopped_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collate_of(root)(MIXED[:1])
    assert files_in(root) == []
    collate_of(root)(MIXED[:1])
    [file] = files_in(root)
    assert file.parent.name == file.name[:2]


def test_each_frame_of_a_volume_is_a_file_of_its_own(tmp_path: Path) -> None:
    image = ProcessedImage(torch.rand(4, 6), torch.tensor([1, 2, 2]), torch.ones(3, 2, 2, dtype=torch.uint8))
    path = tmp_path / "a.dcm"
    path.write_bytes(b"any")
    cache, made = ImageCache(tmp_path / "cache", {}), []
    files = [ImageFile(path, frame) for frame in ("", "1", "2", "coronal:1")]
    for file in files * 2:
        cache.get(file, lambda file: made.append(file) or image)
    assert made == files


def test_threads_that_write_and_read_one_file_see_it_whole(tmp_path: Path) -> None:
    image = ProcessedImage(torch.rand(64, 1176), torch.tensor([1, 8, 8]), torch.ones(3, 9, 9, dtype=torch.uint8))
    path = ImageFile(tmp_path / "a.png")
    path.path.write_bytes(b"any")
    cache = ImageCache(tmp_path / "cache", {})
    made = []

    def get(turn: int) -> bool:
        if turn % 3 == 0:  # write although the file is there, as a rank does that began before it was
            data_modules.image_cache._write(cache._file(path), image)
        return torch.equal(cache.get(path, lambda _: made.append(turn) or image).pixel_values, image.pixel_values)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(get, range(60)))
    assert len(made) <= 4  # only those that looked before the first file was there
    assert len([file for file in (tmp_path / "cache").rglob("*") if file.is_file()]) == 1


def test_workers_share_the_folder(root: Path) -> None:
    records = [record(index, "a.png") for index in range(6)]
    collate = collate_of(root)
    expected = collate_of(root, image_cache=None)(records[:1])
    for batch in DataLoader(records, 1, collate_fn=collate, num_workers=2):
        assert torch.equal(batch.pixel_values, expected.pixel_values)
    assert len(files_in(root)) == 1
