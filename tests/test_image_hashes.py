"""Hashes of images: copies and near duplicates are found, nothing is hashed twice, and blank images match nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import no_hang
from PIL import Image, ImageEnhance

import data_modules.image_hashes
from data_modules.image_hashes import ImageHash, hash_images, near_matches, perceptual_hash
from data_modules.image_root import ImageRoot
from data_modules.images import open_rgb
from medgrpo.types import DataError


def picture(seed: int, size: int = 96) -> Image.Image:
    """Smooth blobs, as unlike from seed to seed as photographs."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> ImageRoot:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(len(name) + ord(name[-5])).save(folder / name)
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    Image.new("RGB", (50, 50), "black").save(folder / "black.png")
    Image.new("RGB", (60, 60), "white").save(folder / "white.png")
    (folder / "broken.png").write_bytes(b"no image")
    return ImageRoot(folder)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def noted(file, limit):
        names.append(str(file.path.name) + (f"[{file.frame}]" if file.frame else ""))
        return open_rgb(file, limit)

    monkeypatch.setattr(data_modules.image_hashes, "open_rgb", noted)
    return names


REFERENCES = [
    "a.png",
    "b.png",
    "A.PNG",
    "copy.png",
    "c.png",
    "sub/c.png",
    "black.png",
    "broken.png",
    "none.png",
    "a.png",
]


def test_each_distinct_image_is_hashed_once(root: ImageRoot, opened: list[str]) -> None:
    hashes = hash_images(REFERENCES, root, None, 0, False)
    assert list(hashes) == list(dict.fromkeys(REFERENCES))
    assert sorted(opened) == ["a.png", "b.png", "black.png", "broken.png", "c.png", "copy.png"]
    content = (root.root / "a.png").read_bytes()
    expected = int(str(imagehash.phash(open_rgb(root.root / "a.png"))), 16)
    assert hashes["a.png"] == ImageHash(hashlib.sha256(content).hexdigest(), expected)
    assert hashes["A.PNG"] == hashes["copy.png"] == hashes["a.png"] != hashes["b.png"]
    assert hashes["sub/c.png"] == hashes["c.png"]
    assert hashes["black.png"].phash is None
    assert hashes["black.png"].error == ""
    assert (hashes["none.png"].sha256, hashes["none.png"].phash) == ("", None)
    assert "no such file" in hashes["none.png"].error
    assert hashes["broken.png"].sha256 == hashlib.sha256(b"no image").hexdigest()
    assert "broken.png: expected an image" in hashes["broken.png"].error


def test_processes_find_the_same(root: ImageRoot, tmp_path: Path) -> None:
    expected = hash_images(REFERENCES, root, None, 0, False)
    assert hash_images(REFERENCES, root, tmp_path / "store.jsonl", 2, False) == expected
    assert hash_images(REFERENCES, root, tmp_path / "store.jsonl", 2, False) == expected


def test_a_stopped_run_goes_on_where_it_was(root: ImageRoot, tmp_path: Path, opened, monkeypatch) -> None:
    store = tmp_path / "new" / "store.jsonl"
    expected = hash_images(REFERENCES, root, None, 0, False)
    opened.clear()

    def stopped(image: Image.Image) -> int | None:
        if len(opened) == 3:
            raise KeyboardInterrupt
        return perceptual_hash(image)

    with monkeypatch.context() as patch:
        patch.setattr(data_modules.image_hashes, "perceptual_hash", stopped)
        with pytest.raises(KeyboardInterrupt):
            hash_images(REFERENCES, root, store, 0, False)
    assert len(store.read_text().splitlines()) == 2
    with store.open("a") as file:
        file.write('{"key": "[1, \\"cop')  # the line that was being written
    opened.clear()
    assert hash_images(REFERENCES, root, store, 0, False) == expected
    assert opened == ["copy.png", "c.png", "black.png", "broken.png"]
    opened.clear()
    assert hash_images(REFERENCES, root, store, 0, False) == expected
    assert opened == ["broken.png"]  # errors are not kept
    assert [json.loads(line)["sha256"] for line in store.read_text().splitlines()]


STUCK = """
import os, sys, time
import data_modules.image_hashes as hashes
from data_modules.image_root import ImageRoot

def stuck(file, limit):
    with open(sys.argv[2], "a") as output:
        output.write(f"{os.getpid()}\\n")
    time.sleep(600)

hashes.open_rgb, hashes.CHUNK = stuck, 1
hashes.hash_images(["a.png", "b.png"], ImageRoot(sys.argv[1]), None, 2, False)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_processes_of_a_killed_run_end_too(root: ImageRoot, tmp_path: Path) -> None:
    pids, environment = tmp_path / "pids", os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pids.touch()
    run = subprocess.Popen([sys.executable, "-c", STUCK, str(root.root), str(pids)], env=environment)
    workers: list[int] = []
    try:
        with no_hang():
            while len(workers) < 2:
                time.sleep(0.05)
                workers = [int(line) for line in pids.read_text().splitlines(keepends=True) if line.endswith("\n")]
            assert all(map(is_alive, workers))
            run.kill()
            run.wait()
            while any(map(is_alive, workers)):
                time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)


def test_a_folder_is_no_store(root: ImageRoot, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a file of image hashes, or a path to make one at, got a folder"):
        hash_images(REFERENCES, root, tmp_path, 0, False)


def test_a_changed_file_is_hashed_again(root: ImageRoot, tmp_path: Path, opened: list[str]) -> None:
    store, path = tmp_path / "store.jsonl", root.root / "a.bmp"
    picture(98).save(path)
    before = hash_images(["a.bmp", "b.png"], root, store, 0, False)
    size = path.stat().st_size
    picture(99).save(path)
    assert path.stat().st_size == size
    opened.clear()
    after = hash_images(["a.bmp", "b.png"], ImageRoot(root.root), store, 0, False)
    assert opened == ["a.bmp"]
    assert after["a.bmp"] != before["a.bmp"]
    assert after["a.bmp"] == hash_images(["a.bmp"], root, None, 0, False)["a.bmp"]


@pytest.mark.parametrize(
    "content", ["some notes", '[{"image": "a.png"}]\n', '{"key": 3}\n', '{"key": "a"\n{"key": "b"']
)
def test_another_file_is_no_store_and_is_left_alone(root: ImageRoot, tmp_path: Path, content: str) -> None:
    store = tmp_path / "notes.txt"
    store.write_text(content)
    with pytest.raises(DataError, match="notes.txt, line 1: expected an image hash"):
        hash_images(["a.png"], root, store, 0, False)
    assert store.read_text() == content


def test_frames_of_a_volume_are_images_of_their_own(root: ImageRoot, tmp_path: Path, opened: list[str]) -> None:
    pages = [picture(seed) for seed in range(3)]
    pages[0].save(root.root / "v.tif", save_all=True, append_images=pages[1:])
    references = ["v.tif", "v.tif[0]", "v.tif[1]", "v.tif[2]", "v.tif[3]"]
    hashes = hash_images(references, root, tmp_path / "store.jsonl", 0, False)
    assert hashes == hash_images(references, root, tmp_path / "store.jsonl", 0, False)
    assert len({h.sha256 for h in hashes.values()}) == 5
    assert [hashes[r].phash for r in references[1:4]] == [perceptual_hash(page) for page in pages]
    assert "expected a frame from 0 to 2" in hashes["v.tif[3]"].error
    assert opened.count("v.tif[1]") == 1


def test_the_bar_is_on_stderr(root: ImageRoot, capsys: pytest.CaptureFixture[str]) -> None:
    hash_images(["a.png"], root, None, 0, True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "hashing images: 100%" in err
    hash_images(["a.png"], root, None, 0, False)
    assert capsys.readouterr().err == ""


def distance(one: Image.Image, other: Image.Image) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_near_duplicates_are_near_and_others_are_not(tmp_path: Path) -> None:
    original = picture(1)
    original.save(tmp_path / "a.jpg", quality=60)
    assert distance(original, Image.open(tmp_path / "a.jpg")) <= 4
    assert distance(original, original.resize((300, 280))) <= 4
    assert distance(original, ImageEnhance.Brightness(original).enhance(0.8)) <= 4
    assert min(distance(original, picture(seed)) for seed in range(2, 40)) > 10


def test_blank_images_have_no_perceptual_hash() -> None:
    assert all(perceptual_hash(Image.new("RGB", (90, 60), colour)) is None for colour in ("black", "white", "#808080"))
    almost = np.full((64, 64), 128, np.uint8)
    almost[::2] += 1
    assert perceptual_hash(Image.fromarray(almost)) is None
    almost[10:20, 10:20] = 140  # a faint spot is something
    assert perceptual_hash(Image.fromarray(almost)) is not None


HASHES = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 7), max_size=40)


@given(HASHES, HASHES, st.integers(0, 64))
def test_near_matches_are_the_nearest(train: list[int], test: list[int], max_distance: int) -> None:
    expected = []
    for i, ours in enumerate(test):
        found = min(((ours ^ theirs).bit_count(), j) for j, theirs in enumerate(train)) if train else (65, 0)
        if found[0] <= max_distance:
            expected.append((i, found[1], found[0]))
    assert near_matches(np.array(train, np.uint64), np.array(test, np.uint64), max_distance) == expected


def test_near_matches_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_modules.image_hashes, "BLOCK", 7)
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, 2**64, size, dtype=np.uint64) for size in (50, 40))
    test[[3, 20, 39]] = train[[6, 7, 49]] ^ np.uint64(0b101)
    train[30] = test[20] ^ np.uint64(1)
    train[40] = test[20] ^ np.uint64(2)
    assert near_matches(train, test, 6) == [(3, 6, 2), (20, 30, 1), (39, 49, 2)]
