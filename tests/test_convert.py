"""Conversion: the same bytes every time, ids from content, nothing left out silently, nothing replaced unasked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data_modules.convert import all_records, content_id, convert, drop_missing_images, read_sources, save
from data_modules.formats import read_records
from data_modules.image_hashes import ImageHash
from medgrpo.types import DataError

ITEM = {"image": "Images/MIAS/a.png", "problem": "What is it? A)cyst, B)mass", "solution": "<answer> B </answer>"}
OTHER = ITEM | {"image": "Images/MIAS/b.png"}


def put(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_ids_depend_on_content_alone(tmp_path: Path) -> None:
    one = convert([put(tmp_path / "a" / "x.json", ITEM, OTHER)]).records
    two = convert([put(tmp_path / "b" / "CT_test.json", OTHER, ITEM)]).records
    assert [record.id for record in one] == [record.id for record in reversed(two)]
    assert len(set(record.id for record in one)) == 2
    changed = convert([put(tmp_path / "c.json", ITEM | {"solution": "A"})]).records
    assert changed[0].id not in {record.id for record in one}
    assert one[0].id == content_id(one[0])  # reading what was written gives the same id


def test_a_row_is_found_again_by_its_source(tmp_path: Path) -> None:
    row = {"id": "q7", "question": "Where?", "answer": "left"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    [own] = convert([tmp_path / "own.jsonl"]).records
    assert own.metadata == {"source": "own.jsonl#0", "source_id": "q7"}
    [_, second] = convert([put(tmp_path / "x.json", ITEM, OTHER)]).records
    assert second.metadata == {"source": "x.json#1"}


def test_a_duplicate_is_left_out_and_completes_the_first(tmp_path: Path) -> None:
    files = [put(tmp_path / "CT_test.json", ITEM), put(tmp_path / "Lesion Grading_test.json", OTHER, ITEM)]
    result = convert(files)
    assert [(r.modality, r.task) for r in result.records] == [("ct", "Lesion Grading"), ("", "Lesion Grading")]
    [dropped] = result.dropped
    assert (dropped.file, dropped.index, dropped.kind) == ("Lesion Grading_test.json", 1, "duplicate")
    assert dropped.reason == "same content as CT_test.json#0"
    kept = convert(files, keep_duplicates=True)
    assert (len(kept.records), kept.dropped) == (3, [])
    assert len({record.id for record in kept.records}) == 3


def test_what_is_left_out_is_counted_and_listed(tmp_path: Path) -> None:
    bad = [ITEM | {"solution": "?"}, ITEM | {"solution": "!"}, "text"]
    result = convert([put(tmp_path / "x.json", ITEM, *bad, OTHER)])
    image = ImageHash("", None, "image 'b': no such file below image_root='r'")
    hashes = {"Images/MIAS/a.png": ImageHash("00", 1), "Images/MIAS/b.png": image}
    drop_missing_images(result, hashes)
    save(tmp_path / "out.jsonl", result, {}, hashes)
    assert [record.images for record in read_records(tmp_path / "out.jsonl")] == [("Images/MIAS/a.png",)]
    rows = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").read_text().splitlines()]
    assert [(row["index"], row["kind"]) for row in rows] == [
        (1, "malformed"),
        (2, "malformed"),
        (3, "malformed"),
        (4, "image"),
    ]
    summary = result.summary()
    assert "1 records from 1 files" in summary
    assert "4 rows left out" in summary
    assert "2  malformed: field 'solution': expected a letter of AB or the text of one option" in summary
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["dropped"] == {"image": 1, "malformed": 3}
    assert manifest["images"] == {"Images/MIAS/a.png": "00"}
    assert manifest["sources"][0]["sha256"] == hashlib.sha256((tmp_path / "x.json").read_bytes()).hexdigest()
    assert manifest["output"]["sha256"] == hashlib.sha256((tmp_path / "out.jsonl").read_bytes()).hexdigest()


def test_nothing_left_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    result = convert([put(tmp_path / "x.json", ITEM | {"solution": "?"})])
    with pytest.raises(DataError, match="nothing is left to write"):
        save(tmp_path / "out.jsonl", result, {})
    assert not list(tmp_path.glob("out*"))


def test_a_second_conversion_leaves_no_list_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    save(out, convert([put(tmp_path / "x.json", ITEM, "text")]), {})
    assert out.with_suffix(".dropped.jsonl").exists()
    save(out, convert([put(tmp_path / "x.json", ITEM)]), {})
    assert not out.with_suffix(".dropped.jsonl").exists()


def test_files_of_the_same_name_keep_apart(tmp_path: Path) -> None:
    put(tmp_path / "train" / "CT.json", ITEM)
    put(tmp_path / "test" / "CT.json", OTHER)
    (train, test) = read_sources([tmp_path / "train"], [tmp_path / "test"])
    assert [train[0][0], test[0][0]] == ["train/CT.json", "test/CT.json"]
    assert [record.id for record in all_records(train + test)] == ["CT-0~1", "CT-0~2"]
    with pytest.raises(DataError, match=r"x\.json: 1 malformed records, e\.g\. record 1: expected an object"):
        all_records(read_sources([put(tmp_path / "x.json", ITEM, "text")])[0])
