"""Conversion: the same bytes every time, ids from content, nothing left out silently, nothing replaced unasked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

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


def test_a_converted_file_keeps_ids_and_where_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"id": "q7", "question": "Where?", "answer": "left"}\n')
    first = convert([tmp_path / "own.jsonl"])
    save(tmp_path / "a.jsonl", first, {})
    [again] = convert([tmp_path / "a.jsonl"]).records
    assert again.id == first.records[0].id
    assert again.metadata == {"source": "a.jsonl#0", "source_id": "q7"}


def test_a_place_is_no_source_id(tmp_path: Path) -> None:
    turns = [{"from": speaker, "value": f"{speaker} {n}"} for n in range(2) for speaker in ("human", "gpt")]
    records = convert([put(tmp_path / "x.json", {"image": ["a.png"], "conversations": turns})]).records
    assert [record.metadata for record in records] == [{"turn": turn, "source": "x.json#0"} for turn in "12"]
    (tmp_path / "y.jsonl").write_text('{"id": "y-01", "question": "Where?", "answer": "left"}\n')
    assert convert([tmp_path / "y.jsonl"]).records[0].metadata["source_id"] == "y-01"


def test_copies_that_are_kept_have_ids_that_no_place_changes(tmp_path: Path) -> None:
    one = convert([put(tmp_path / "x.json", ITEM, OTHER, ITEM)], keep_duplicates=True)
    two = convert([put(tmp_path / "y.json", ITEM, ITEM, OTHER)], keep_duplicates=True)
    assert {record.id for record in one.records} == {record.id for record in two.records}
    assert len(one.records) == len({record.id for record in one.records}) == 3


def test_files_in_a_folder_that_hold_no_questions_are_left_out_and_listed(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.json", ITEM)
    organs = put(tmp_path / "set" / "imgs" / "1" / "detection.json", {"Liver": [1, 2, 3, 4]})
    result = convert([tmp_path / "set"])
    [dropped] = result.dropped
    assert (dropped.file, dropped.index, dropped.kind) == ("detection.json", None, "file")
    assert dropped.reason == "no known format: record 0 has fields ['Liver']"
    assert [source["file"] for source in result.sources] == ["train.json"]
    assert "1 files left out:\n         1  file: no known format: record 0 has fields ['Liver']" in result.summary()
    save(tmp_path / "out.jsonl", result, {})
    assert '"index": null' in (tmp_path / "out.dropped.jsonl").read_text()
    with pytest.raises(DataError, match="no known format"):  # one that is named is meant
        convert([tmp_path / "set", organs])
    with pytest.raises(DataError, match="nothing is left to write"):
        save(tmp_path / "none.jsonl", convert([tmp_path / "set" / "imgs"]), {})


def test_images_inside_files_that_nobody_writes_are_told(tmp_path: Path) -> None:
    row = {"image": {"bytes": b"\x89PNG\r\n\x1a\nx", "path": None}, "question": "Q?", "answer": "yes"}
    parquet.write_table(pyarrow.Table.from_pylist([row, row | {"question": "R?"}]), tmp_path / "x.parquet")
    assert (
        "1 images are stored inside the files: --save_images DIR writes them"
        in convert([tmp_path / "x.parquet"]).summary()
    )
    written = convert([tmp_path / "x.parquet"], save_images=tmp_path / "images")
    assert "stored inside" not in written.summary()
    save(tmp_path / "out.jsonl", written, {})
    assert "stored inside" not in convert([tmp_path / "out.jsonl"]).summary()


def test_names_that_are_no_text_can_be_printed_and_written(tmp_path: Path) -> None:
    result = convert([put(tmp_path / "caf\udce9.json", ITEM, "text")])
    save(tmp_path / "out.jsonl", result, {})
    assert result.summary().encode()
    [record] = read_records(tmp_path / "out.jsonl")
    assert record.metadata == {"source": r"caf\udce9.json#0"}


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    result = convert([put(tmp_path / "x.json", ITEM)])
    with pytest.raises(DataError, match="x.json: cannot be made a folder"):
        save(tmp_path / "x.json" / "out.jsonl", result, {})
    with pytest.raises(DataError, match=r"out\.csv: expected a name that ends in \.jsonl"):
        save(tmp_path / "out.csv", result, {})
    (tmp_path / "out.manifest.json").mkdir()
    with pytest.raises(DataError, match=r"out\.manifest\.json: cannot be written"):
        save(tmp_path / "out.jsonl", result, {})
    assert not list(tmp_path.glob("*.partial"))


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
    assert manifest["sources"][0]["records"] == manifest["records"] == 1
    assert manifest["images"] == {"Images/MIAS/a.png": "00"}
    assert manifest["sources"][0]["sha256"] == hashlib.sha256((tmp_path / "x.json").read_bytes()).hexdigest()
    assert manifest["output"]["sha256"] == hashlib.sha256((tmp_path / "out.jsonl").read_bytes()).hexdigest()


def test_a_summary_counts_equal_reasons_together(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("question,answer\nIs it?,yes\nshort\nshort\n")
    assert "2  malformed: expected 2 cells" in convert([tmp_path / "x.csv"]).summary()
    result = convert([put(tmp_path / "x.json", ITEM, ITEM, OTHER, OTHER)])
    assert "2  duplicate: same content\n" in f"{result.summary()}\n"
    broken = {
        image: f"{image}: image cannot be decoded ({image}); it is broken" for r in result.records for image in r.images
    }
    drop_missing_images(result, {image: ImageHash("00", None, error) for image, error in broken.items()})
    assert "2  image: image cannot be decoded\n" in f"{result.summary()}\n"


def test_a_published_source_stays(tmp_path: Path) -> None:
    first = convert([put(tmp_path / "x.json", ITEM | {"source": "RadImageNet"})])
    save(tmp_path / "a.jsonl", first, {})
    (again,) = convert([tmp_path / "a.jsonl"]).records
    assert first.records[0].metadata == {"published_source": "RadImageNet", "source": "x.json#0"}
    assert again.metadata == {"published_source": "RadImageNet", "source": "a.jsonl#0"}


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
    copies = put(tmp_path / "y.json", {"question": "q", "answer": "a", "id": "k"})
    more = put(tmp_path / "z.json", *({"question": "q", "answer": "a", "id": id} for id in ("k", "k~2")))
    ids = [record.id for record in all_records(read_sources([copies, more])[0])]
    assert ids == ["k~1", "k~3", "k~2"]  # the last one's own
    with pytest.raises(DataError, match=r"x\.json: 1 malformed records, e\.g\. record 1: expected an object"):
        all_records(read_sources([put(tmp_path / "x.json", ITEM, "text")])[0])
