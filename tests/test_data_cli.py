"""``medgrpo data``: each command from files to files, its exit status, and the figures of the real splits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_modules.formats import read_records
from medgrpo.data_cli import BAD_INPUT, HASHES, LIMIT_PASSED, main

SHARED = Path(__file__).parents[2] / "shared" / "data" / "med_r1" / "modality"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train.jsonl and test.jsonl: 40 and 20 questions; the first five test images are the first training images."""
    monkeypatch.chdir(tmp_path)
    names = ("cyst", "mass", "stone", "clot")
    for split, count, first in (("train", 40, 0), ("test", 20, 35)):
        rows = []
        for i in range(count):
            image = f"{split}/{i}.png" if split == "train" or i >= 5 else f"train/{i}.png"
            Path(image).parent.mkdir(exist_ok=True)
            seed = i + first if image.startswith(split) else i
            Image.effect_noise((32, 32), 50 + seed).resize((64, 64)).save(image)
            rows.append(
                {
                    "id": f"{split}{i}",
                    "question": "What is seen?",
                    "options": names,
                    "answer": "ABCD"[i % 4],
                    "images": [image],
                    "modality": "CT" if i % 2 else "MRI",
                }
            )
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_convert_writes_once(folder: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["convert", "train.jsonl", "--images", ".", "--out", "new/all.jsonl", "--num_workers", "0"]
    assert main(command) == 0
    assert "40 records from 1 files" in capsys.readouterr().out
    first = Path("new/all.jsonl").read_bytes()
    assert len(read_records("new/all.jsonl")) == 40
    assert main(command) == BAD_INPUT
    assert "all.jsonl, new/all.manifest.json exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert Path("new/all.jsonl").read_bytes() == first


def test_an_output_is_not_put_where_it_would_be_read(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", ".", "--out", "sub/all.jsonl"]) == BAD_INPUT
    assert "would be read with its folder the next time" in capsys.readouterr().err
    assert main(["convert", "train.jsonl", "--out", "all.json"]) == BAD_INPUT
    assert "expected a name that ends in .jsonl" in capsys.readouterr().err


def test_audit_guards_a_pipeline(folder: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["audit", "--train", "train.jsonl", "--test", "test.jsonl", "--images", ".", "--num_workers", "0"]
    output = ["--json", "out/audit.json", "--html", "pages/audit.html"]
    assert main([*command, *output, "--limit", "leak.path=4"]) == LIMIT_PASSED
    assert "limit exceeded: leak.path is 5, above the limit of 4\n" in capsys.readouterr().err
    assert len(Path(HASHES).read_text().splitlines()) == 55  # the next run opens none of these again
    found = json.loads(Path("out/audit.json").read_text())
    assert found["records"] == {"train": 40, "test": 20}
    assert (found["leak"]["path"], found["leak"]["hash"]) == (5, 5)
    assert found["blind"]["chance"] == 25.0
    assert "data:image/jpeg;base64" in Path("pages/audit.html").read_text()
    assert main([*command, "--limit", "leak.path=5", "blind.chance=25"]) == 0
    assert main([*command, "--limit", "leak.path=4", "--limit", "blind.chance=25"]) == LIMIT_PASSED
    assert main([*command, "--limit", "leak.paths=0"]) == BAD_INPUT
    assert main([*command, "--limit", "leak.path=nan"]) == BAD_INPUT
    assert main([*command, "--limit", "leak.path"]) == BAD_INPUT
    assert main(["audit"]) == BAD_INPUT
    assert main(["audit", "--test", "nowhere.jsonl"]) == BAD_INPUT
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_an_option_given_twice_adds_files(folder: Path) -> None:
    assert main(["audit", "--test", "train.jsonl", "--test", "test.jsonl", "--json", "a.json"]) == 0
    assert json.loads(Path("a.json").read_text())["records"] == {"train": 0, "test": 60}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--hashes", "h.jsonl"], "hashes: there is nothing to hash"),
        (["--images", "nowhere"], "images: expected a folder, got 'nowhere'"),
        (["--images", ".", "--num_workers", "-1"], "num_workers: expected 0"),
        (["--images", ".", "--near_distance", "17"], "near_distance: expected 0 to 16"),
        (["--images", ".", "--near_distance", "-1"], "near_distance: expected 0 to 16"),
        (["--json", "out", "--html", "./out"], "expected different places"),
        (["--json", "train", "--overwrite"], "expected a place for a file, got a folder"),
        (["--json", "test.jsonl", "--overwrite"], "is read, and would be replaced"),
    ],
)
def test_options_that_make_no_sense(folder: Path, capsys: pytest.CaptureFixture, options: list, reason: str) -> None:
    before = Path("test.jsonl").read_bytes()
    assert main(["audit", "--test", "test.jsonl", *options]) == BAD_INPUT
    assert reason in capsys.readouterr().err
    assert Path("test.jsonl").read_bytes() == before


def test_an_audit_fits_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["audit", "--train", "train.jsonl", "--test", "test.jsonl"]) == 0
    assert 60 < max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_near_duplicates_stay_together(folder: Path) -> None:
    images = sorted(Path("train").glob("*.png"))
    for path in images:  # the same picture, written otherwise
        Image.open(path).save(path.with_suffix(".jpg"), quality=70)
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    copies = [row | {"id": row["id"] + "b", "images": [row["images"][0].replace("png", "jpg")]} for row in rows]
    Path("all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, *copies)))
    hashing = ["--images", ".", "--num_workers", "0", "--hashes", "h.jsonl"]
    assert main(["split", "all.jsonl", "--out", "apart", *hashing]) == 0
    files = ["--train", "apart/train.jsonl", "--test", "apart/test.jsonl"]
    assert main(["audit", *files, *hashing, "--limit", "leak.near=0"]) == 0


def test_split_and_sample_share_no_image(folder: Path) -> None:
    files = ["train.jsonl", "test.jsonl"]
    assert main(["split", *files, "--out", "split", "--shares", "=0.7", "test=0.3"]) == BAD_INPUT  # would be hidden
    assert main(["split", *files, "--out", "split", "--shares", "train=0.7", "val=0.1", "test=0.2"]) == 0
    assert main(["sample", *files, "--out", "drawn", "--train", "10", "--test", "5", "--balance", "letter"]) == 0
    parts = {path: read_records(path) for path in sorted(Path().glob("*/*.jsonl"))}
    assert {f"{path.parent.name}/{path.stem}": len(records) for path, records in parts.items()} == {
        "drawn/test": 10,
        "drawn/train": 20,
        "split/test": 12,
        "split/train": 42,
        "split/val": 6,
    }
    images = {path: {record.images for record in records} for path, records in parts.items()}
    assert not images[Path("split/train.jsonl")] & images[Path("split/test.jsonl")]
    assert not images[Path("drawn/train.jsonl")] & images[Path("drawn/test.jsonl")]
    assert main(["sample", *files, "--out", "more", "--train", "100"]) == BAD_INPUT
    assert main(["split", *files, "--out", "split"]) == BAD_INPUT  # files are there


def test_debias_writes_both_and_compares(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["debias", "--train", "train.jsonl", "--test", "test.jsonl", "--out", "fair", "--no-redraw"]) == 0
    out = capsys.readouterr().out
    assert "lookup of option texts" in out
    assert "40 in another style" in out
    records = read_records("fair/train.jsonl")
    assert {frozenset(record.options) for record in records} == {frozenset({"Cyst", "Mass", "Stone", "Clot"})}
    gold = {record.id: record.options[record.letters.index(record.answer)] for record in records}
    assert [gold[f"train{i}"] for i in range(4)] == ["Cyst", "Mass", "Stone", "Clot"]


def test_a_pipe_that_closes_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m medgrpo.cli data audit --test test.jsonl | head -1"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True)
    assert done.stdout
    assert not done.stderr


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "leaks", "prior", "redrawn"),
    [("CT", (435, 454), 99.04, 75), ("OCT", (253, 253), 100.0, 44), ("X-Ray", (526, 891), 94.55, 64)],
)
def test_published_splits(name: str, leaks: tuple, prior: float, redrawn: float, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    train, test = (str(next((SHARED / split).glob(f"{name}*"))) for split in ("train", "test"))
    assert main(["audit", "--train", train, "--test", test, "--json", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["leak"]["path"], found["leak"]["name"]) == leaks
    assert found["blind"]["option_prior"] == prior
    others = ["--no-normalize_style", "--no-balance_binary", "--no-balance_letters", "--weights", "uniform"]
    assert main(["debias", "--train", train, "--test", test, "--out", str(tmp_path / "redrawn"), *others]) == 0
    assert main(["debias", "--train", train, "--test", test, "--out", str(tmp_path / "fair")]) == 0
    lookups = {}
    for kind in ("redrawn", "fair"):
        files = [str(tmp_path / kind / f"{split}.jsonl") for split in ("train", "test")]
        assert main(["audit", "--train", files[0], "--test", files[1], "--json", str(tmp_path / f"{kind}.json")]) == 0
        lookups[kind] = json.loads((tmp_path / f"{kind}.json").read_text())["blind"]["option_prior"]
    assert lookups["redrawn"] < redrawn
    assert lookups["fair"] < min(55, lookups["redrawn"])
