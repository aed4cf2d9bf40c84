"""Files and folders -> rows: which files count, every container, images inside rows, and what is broken."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import struct
from hashlib import sha256
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from data_modules.formats import read_records, scan
from data_modules.rows import find_files, load_rows
from medgrpo.types import DataError

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
JPG = b"\xff\xd8\xff" + b"pixels"
ROWS = [{"question": f"Is it {number}?", "answer": "yes"} for number in range(3)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def name_of(image: bytes, ending: str) -> str:
    return f"{sha256(image).hexdigest()[:32]}.{ending}"


def with_images(count: int = 3) -> pyarrow.Table:
    """As the hub stores images: one with a name, one without, and lists of them."""
    rows = [
        {
            "image": {"bytes": PNG + bytes([number]), "path": "a.png" if number == 0 else None},
            "views": [{"bytes": JPG, "path": None}],
            "question": f"Is it {number}?",
            "answer": "yes",
        }
        for number in range(count)
    ]
    return pyarrow.Table.from_pylist(rows)


def saved(path: Path) -> Path:
    datasets.Dataset(with_images()).save_to_disk(str(path))
    return path


def test_a_folder_gives_its_question_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ("b/z.JSON", "b.csv", "a.jsonl", "b/a.tsv", "c.parquet")
    for name in (*names, "a.manifest.json", "notes.txt", ".hidden/a.json", ".b.json", "imgs/a.png"):
        write(tmp_path / name, "[]")
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)]
    assert found == ["a.jsonl", "b.csv", "b/a.tsv", "b/z.JSON", "c.parquet"]
    assert find_files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_links_to_files_elsewhere_are_errors_and_links_to_folders_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "secret.json", "[]")
    inside = write(tmp_path / "data" / "a.json", "[]")
    (tmp_path / "data" / "folder").symlink_to(outside.parent)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b.json").symlink_to(inside)
    assert find_files(tmp_path / "data") == [inside, tmp_path / "data" / "b.json"]
    (tmp_path / "data" / "link.json").symlink_to(outside)
    with pytest.raises(DataError, match=r"link\.json: is a link that leads out of .*; name the file itself"):
        find_files(tmp_path / "data")


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path: Path) -> None:
    hub = tmp_path / "datasets--a--b"
    write(hub / "blobs" / "d41d8", "[]")
    link = hub / "snapshots" / "abc" / "data" / "train.json"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../../blobs/d41d8")
    assert find_files(hub / "snapshots" / "abc") == find_files(link.parent) == [link]


def test_what_convert_writes_beside_its_output_is_no_source(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.dropped.jsonl", "a.manifest.json"):
        write(tmp_path / name, "[]")
    assert find_files(tmp_path) == [tmp_path / "a.jsonl"]


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for function in (find_files, lambda path: list(load_rows(path))):
        with pytest.raises(DataError, match=r"a\.json: expected a file or folder, got a pipe or device"):
            function(tmp_path / "a.json")
    [found] = find_files(tmp_path)  # of a folder, the one who reads it says so
    with pytest.raises(DataError, match="got a pipe or device"):
        list(load_rows(found))


def test_a_folder_without_question_files_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected question files .* got none"):
        find_files(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_files(tmp_path / "nowhere")
    for function in (find_files, lambda path: list(load_rows(path))):
        with pytest.raises(DataError, match="xxx: cannot be read.*: File name too long"):
            function(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match="is a folder; expected a file"):
        list(load_rows(tmp_path))


def test_saved_data_sets_count_as_files_and_several_splits_must_be_named(tmp_path: Path) -> None:
    folder, other = saved(tmp_path / "a" / "set"), write(tmp_path / "b.json", "[]")
    assert find_files(folder) == [folder]
    assert find_files(tmp_path) == [folder, other]
    splits = tmp_path / "c"
    datasets.DatasetDict(
        {"train": datasets.Dataset(with_images()), "test": datasets.Dataset(with_images())}
    ).save_to_disk(str(splits))
    for function in (find_files, lambda path: list(load_rows(path))):
        with pytest.raises(DataError, match="c: holds several splits; name the folder of one of them: test, train"):
            function(splits)
    assert find_files(splits / "train") == [splits / "train"]


LINES = "\n".join(json.dumps(row) for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=4),
        "\ufeff" + json.dumps(ROWS),
        LINES,
        "\ufeff" + LINES + "\n",
        LINES.replace("\n", "\r\n\n"),
        json.dumps({"version": 1, "info": {"of": "x"}, "data": ROWS}),
        json.dumps({"questions": ROWS, "data": []}, indent=1),
        '{"data": [\n' + LINES.replace("\n", ",\n") + "\n]}",
    ],
)
def test_json_layouts(tmp_path: Path, content: str) -> None:
    assert list(load_rows(write(tmp_path / "x.json", content))) == ROWS


def test_an_object_of_records_gives_each_its_key(tmp_path: Path) -> None:
    content = {"21645374": {"QUESTION": "Q?"}, "7": "text", "8": {"QUESTION": "R?"}}
    expected = [{"QUESTION": "Q?", "pubid": "21645374"}, "text", {"QUESTION": "R?", "pubid": "8"}]
    for indent in (None, 4):
        assert list(load_rows(write(tmp_path / "x.json", json.dumps(content, indent=indent)))) == expected


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_may_be_one_record(tmp_path: Path, indent: int | None) -> None:
    row = {"question": "Q?", "options": {"A": "x", "B": "y"}, "conversations": [{"from": "human"}]}
    assert list(load_rows(write(tmp_path / "x.json", json.dumps(row, indent=indent)))) == [row]


def test_white_space_of_other_kinds_inside_a_line_does_not_end_it(tmp_path: Path) -> None:
    row = {"question": "a\u2028b\u0085c\x0cd", "answer": "x"}
    content = json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(row)
    assert list(load_rows(write(tmp_path / "x.jsonl", content))) == [row, row]


@pytest.mark.parametrize(
    ("content", "index", "message"),
    [
        (LINES.encode() + b'\n{"question": "\xff"}', 3, "line 4: expected UTF-8 text, got byte 0xff"),
        (LINES.encode() + b'\n{"question"', 3, "line 4: not valid JSON: .*column 12"),
        (LINES.encode() + b"\n" + b"[" * 100_000, 3, "line 4: JSON is nested too deeply"),
        (b'{"question": \n' + LINES.encode(), 0, "line 1: not valid JSON"),
        (LINES.encode() + b"\n" + b"9" * 5000, 3, "line 4: not valid JSON: Exceeds the limit"),
        (b'{"answer": "a", "answer": "b"}\n' + LINES.encode(), 0, "line 1: field 'answer': expected once"),
    ],
)
def test_a_bad_line_is_the_error_of_its_record_alone(tmp_path: Path, content: bytes, index: int, message: str) -> None:
    path = write(tmp_path / "x.jsonl", content)
    [(found, why)] = scan(path).malformed
    assert found == index
    with pytest.raises(DataError, match=rf"x.jsonl: 1 bad of 4 records:\n  record {index}: {message}"):
        read_records(path)
    assert message.split(":")[0] in why


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", json.dumps(ROWS)[:-9], "not valid JSON: .*line 1 column"),
        ("x.json", json.dumps(ROWS, indent=1)[:-9], "not valid JSON: .*line 1[0-9] column"),
        ("x.json", b'["\xe9"]', "expected UTF-8 text, got byte 0xe9"),
        ("x.json", "[" * 100_000, "nested too deeply"),
        ("x.json", '{"a":' * 100_000, "nested too deeply"),
        ("x.json", "[" + "9" * 5000 + "]", "Exceeds the limit"),
        ("x.json", '"text"', "expected a JSON list, or an object per line, got"),
        ("x.json", gzip.compress(b"[]"), "gzip archive: unpack it"),
        ("x.jsonl", json.dumps(ROWS).encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("x.json", json.dumps(ROWS).encode("utf-16-le"), "NUL bytes: save it as UTF-8"),
        ("x.csv", "question,answer\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("x.json", b"PAR1" + bytes(20), "Parquet: name it .parquet"),
        ("x.json", json.dumps({"train": ROWS, "test": ROWS}), r"has fields \['test', 'train'\], which is no known"),
        ("x.json", json.dumps({"data": ROWS, "questions": ROWS}), "several: data, questions"),
        ("x.json", json.dumps({"data": ROWS, "more": ROWS}), "several: data, more"),
        ("x.json", '{"7": {"a": 1}, "7": {"a": 2}}', "field '7': expected once, got it several times"),
        ("x.json", '{"7": {"a": 1},\n "7": {"a": 2}}', "field '7': expected once, got it several times"),
        ("x.csv", b"question,answer\nQ,\xff\n", "expected UTF-8 text, got byte 0xff"),
        ("x.csv", "question,question\nQ,R\n", "line 1: expected each column once, got 'question' several times"),
        ("x.csv", 'question,answer\n"' + "x\n" * 70_000, "line [0-9]+: field larger than field limit .*never closed"),
        ("x.csv", "question,answer\n", "got no record"),
        ("x.parquet", b"PAR1" + bytes(20), "cannot be read after record 0: is it whole"),
        ("x.parquet", "", "cannot be read after record 0: is it whole"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as error:
        scan(path)
    assert str(path) in str(error.value)


def test_tables_keep_every_cell_as_text(tmp_path: Path) -> None:
    rows = [
        {"question": 'a "quoted", b', "answer": "N/A", "x": "None"},
        {"question": "two\r\nlines", "answer": "007", "x": ""},
    ]
    for name, delimiter in (("x.csv", ","), ("x.TSV", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, [" question", "answer", "x"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows({" question": row["question"], "answer": row["answer"], "x": row["x"]} for row in rows)
        assert list(load_rows(tmp_path / name)) == rows


def test_missing_and_extra_cells_are_errors_of_their_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,b\n1,2\n\n3\n4,5,6\n7,8\n")
    first, short, long, last = load_rows(path)
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "7", "b": "8"})
    assert str(short) == "line 4: expected 2 cells, got 1"
    assert str(long) == "line 5: expected 2 cells, got 3"


@pytest.mark.parametrize(
    ("stray", "first"),
    [
        ('1,"open\n', "line 3: unexpected end of data. Is there a quote that is never closed?"),
        ('1,"open\n6,"again\n', "line 3: ',' expected after"),
        ('1,"a\nb",2\n', "line 3: expected 2 cells, got 3"),
        ('1,"' + "x" * 140_000 + '"\n', "line 3: field larger than field limit (131072). Is there a quote"),
        ("1,caf\udce9\n", "line 3: expected UTF-8 text, got byte 0xe9"),
    ],
)
def test_a_stray_quote_or_byte_of_a_table_costs_no_other_row(tmp_path: Path, stray: str, first: str) -> None:
    content = "a,b\n0,0\n" + stray + "".join(f"{number},{number}\n" for number in range(40))
    (tmp_path / "x.csv").write_text(content, encoding="utf-8", errors="surrogateescape")
    rows = list(load_rows(tmp_path / "x.csv"))
    assert [row["a"] for row in rows if isinstance(row, dict)][-40:] == [str(number) for number in range(40)]
    assert str(rows[1]).startswith(first)
    assert rows[0] == {"a": "0", "b": "0"}


def test_a_table_whose_first_line_is_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.csv: line 1: unexpected end of data"):
        list(load_rows(write(tmp_path / "x.csv", 'a,"b\n1,2\n')))
    with pytest.raises(DataError, match=r"x\.csv: line 1: field larger"):
        list(load_rows(write(tmp_path / "x.csv", "a" * 140_000)))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_images_inside_rows_become_paths_and_files(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "x.parquet"
    parquet.write_table(with_images(), source)
    if kind == "saved":
        source = saved(tmp_path / "set")
    out = tmp_path / "images" / "deep"
    rows = list(load_rows(source, out))
    assert rows == list(load_rows(source))  # the same paths, whether or not they are written
    assert [row["image"] for row in rows] == [name_of(PNG + bytes([number]), "png") for number in range(3)]
    assert [row["views"] for row in rows] == [[name_of(JPG, "jpg")]] * 3
    assert [row.get("image_file") for row in rows] == ["a.png", None, None]
    assert len(list(out.iterdir())) == 4
    assert (out / rows[1]["image"]).read_bytes() == PNG + b"\x01"
    [first, *_] = read_records(source, "path_vqa")
    assert (first.images, first.metadata["image_file"]) == ((rows[0]["image"],), "a.png")


def test_an_image_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    parquet.write_table(with_images(1), tmp_path / "x.parquet")
    [row] = load_rows(tmp_path / "x.parquet", tmp_path)
    (tmp_path / row["image"]).write_bytes(b"older")
    list(load_rows(tmp_path / "x.parquet", tmp_path))
    assert (tmp_path / row["image"]).read_bytes() == b"older"


@pytest.mark.parametrize(
    ("start", "ending"),
    [(b"II*\0", "tif"), (b"MM\0*", "tif"), (b"BM", "bmp"), (bytes(128) + b"DICM", "dcm"), (b"RIFF1234WEBP", "webp")],
)
def test_endings_tell_what_an_image_is(tmp_path: Path, start: bytes, ending: str) -> None:
    content = start + b"rest"
    parquet.write_table(pyarrow.table({"image": [content]}), tmp_path / "x.parquet")  # bytes without a name
    assert list(load_rows(tmp_path / "x.parquet")) == [{"image": name_of(content, ending)}]


def test_images_that_are_paths_nothing_or_no_images(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "a.png"}, None, {"bytes": b"<html>", "path": "b.png"}]
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "x.parquet")
    path, nothing, error = load_rows(tmp_path / "x.parquet")
    assert (path, nothing) == ({"image": "a.png"}, {"image": None})
    assert str(error) == "field 'image': expected an image, got bytes that begin with b'<html>'"


def test_an_image_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    parquet.write_table(with_images(1), tmp_path / "x.parquet")
    taken = write(tmp_path / "file", "")
    with pytest.raises(DataError, match=f"{taken}.*: cannot be read or written"):
        list(load_rows(tmp_path / "x.parquet", taken / "images"))


def test_the_images_of_a_large_file_are_not_in_memory_at_once(tmp_path: Path) -> None:
    generator = random.Random(0)
    images = [PNG + generator.randbytes(100_000) for _ in range(200)]
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "x.parquet", row_group_size=10)
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in load_rows(tmp_path / "x.parquet")]
    assert len(held) == 200
    assert max(held) < 10_000_000


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_truncated_saved_data_set_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "set")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="set: cannot be read after record 0: is it whole"):
        list(load_rows(folder))


def test_a_saved_data_set_with_a_wrong_offset_is_an_error_and_no_crash(tmp_path: Path) -> None:
    file = saved(tmp_path / "set") / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    ends = struct.pack("<4i", 0, 8, 16, 24)  # of the questions, eight characters each
    assert content.count(ends) == 1
    file.write_bytes(content.replace(ends, struct.pack("<4i", 0, 8, 2**30, 2**31 - 1)))
    with pytest.raises(DataError, match="set: cannot be read after record 0: is it whole"):
        list(load_rows(tmp_path / "set"))
