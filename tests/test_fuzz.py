"""Damaged question files: each reads, or is an error that names file, record and field; never another, never slow."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import no_hang
from pyarrow import parquet
from test_exam_readers import ROWS as EXAM_ROWS
from test_readers import ROWS as IMAGE_ROWS

from data_modules import formats
from data_modules.formats import FORMATS, Reading, read_records, scan, write_jsonl
from medgrpo.types import DataError

OWN = {
    "id": "i",
    "problem": "Q?\nA) x\nB) y",
    "question": "Q?",
    "options": ["x", "y"],
    "answer": "A",
    "images": ["a.png"],
    "modality": "ct",
    "task": "t",
    "dataset": "d",
    "closed": False,
    "metadata": {"patient": "p"},
}
ROWS: dict[str, dict[str, Any]] = {"jsonl": OWN} | IMAGE_ROWS | EXAM_ROWS


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


WRONG = [None, True, 0, 3, -1, 2.5, float("nan"), float("inf"), 10**4000, "", " ", "\0", "\ud800", "x" * 200_000]
WRONG += [
    "A) " * 33_000,
    "<answer>" * 12_000,
    "[" * 90_000,
    "y" * 99_999,
    "'" * 99_999,
    "A: \n" * 24_000,
    '{"A": ' * 16_000,
]
WRONG += [
    [],
    {},
    [None],
    [[]],
    [3],
    ["x"],
    ["x", 3],
    ["\ud800"],
    [{}],
    {"A": 1},
    {"A": "x", "B": None},
    [["x"] * 3] * 3,
]
WRONG += [
    deep(200),
    deep(800),
    ["x"] * 100_000,
    {str(number): "x" for number in range(100_000)},
    [{"from": "human"}] * 20_000,
]
"""Values that no field or few may hold."""


def check(path: Path, format: str = "auto") -> Reading | DataError:
    """What scanning gives. What can be read can be written and read again; what cannot is named; both without delay."""
    try:
        with no_hang():
            found = scan(path, format)
    except DataError as error:
        found = error
    if isinstance(found, DataError):
        assert str(path) in str(found)
        check_message(str(found), 4000)
        return found
    for _, why in found.malformed:
        assert re.match(
            r"field ('|of images)|line [0-9]+: |expected an object|unknown fields|question and options", why
        ), why
        check_message(why, 2000)
    own = path.parent / "own.jsonl"
    write_jsonl(own, found.records)
    if found.records:
        assert read_records(own) == found.records
    return found


def check_message(message: str, limit: int) -> None:
    assert len(message) < limit
    message.encode()  # can be printed


def save(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_every_reader_is_damaged_here() -> None:
    assert {reader for _, reader in FORMATS.values()} - {FORMATS[name][1] for name in ROWS} == {
        FORMATS[name][1] for name in ("slake_zh", "slake_all", "medmcqa", "medmcqa_1")
    }


@pytest.mark.parametrize("name", ROWS)
def test_wrong_values_in_every_field(tmp_path: Path, monkeypatch, name: str) -> None:
    real = formats.load_rows
    for field in ROWS[name]:
        for value in WRONG:
            # Without the way through JSON, which takes most of the time and gives back the same.
            rows = [ROWS[name] | {field: value}]
            monkeypatch.setattr(
                formats, "load_rows", lambda path, *_, r=rows: real(path) if path.name == "own.jsonl" else iter(r)
            )
            reading = check(tmp_path / "x.json", name)
            assert [*reading.rows, *(index for index, _ in (*reading.malformed, *reading.unused))][:1] == [0]


@pytest.mark.parametrize("name", ROWS)
def test_missing_fields_and_whatever_format_is_named(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    for field in row:
        check(save(tmp_path / "x.json", [{key: value for key, value in row.items() if key != field}]))
    path = save(tmp_path / "x.json", [row, {}, [], "text", None])
    for other in FORMATS:
        check(path, other)


@pytest.mark.parametrize("name", ROWS)
def test_files_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    whole = json.dumps([ROWS[name]] * 2, indent=1).encode()
    lines = b"\n".join([json.dumps(ROWS[name]).encode()] * 3)
    for content, path in ((whole, tmp_path / "x.json"), (lines, tmp_path / "x.jsonl")):
        for size in range(0, len(content), max(1, len(content) // 40)):
            path.write_bytes(content[:size])
            found = check(path)
            assert isinstance(found, DataError) or path.suffix == ".jsonl"


BYTES = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [
        b"\0",
        b"\xff",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[" * 2000,
        b"\r",
        b"\n",
        b",",
        b"NaN",
        b"1e999",
        b"\xed\xa0\x80",
        b"\\ud800",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(ROWS)), st.booleans(), st.floats(0, 1), st.integers(0, 6), BYTES)
def test_files_with_other_bytes_in_them(
    tmp_path: Path, name: str, lines: bool, place: float, removed: int, added: bytes
) -> None:
    rows = [ROWS[name]] * 2
    content = ("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)).encode()
    position = int(place * len(content))
    path = tmp_path / "x.json"
    path.write_bytes(content[:position] + added + content[position + removed :])
    check(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(list(ROWS)))
def test_rows_of_any_json(tmp_path: Path, data: st.DataObject, name: str) -> None:
    fields = st.sampled_from(list(ROWS[name]))
    changed = ROWS[name] | data.draw(st.dictionaries(fields, JSON, max_size=3))
    check(save(tmp_path / "x.json", data.draw(st.sampled_from([[changed], changed, {"k": changed}, [changed, 1]]))))


def as_csv(path: Path) -> None:
    rows = [IMAGE_ROWS["pmc_vqa"]] * 3
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path) -> None:
    image = {"bytes": b"\x89PNG\r\n\x1a\n", "path": "a.png"}
    parquet.write_table(pyarrow.Table.from_pylist([{"image": image, "question": "Q?", "answer": "yes"}] * 3), path)


TABLES = [pytest.param(as_csv, "x.csv", id="csv"), pytest.param(as_parquet, "x.parquet", id="parquet")]


@pytest.mark.parametrize(("make", "name"), TABLES)
def test_tables_cut_off_or_changed_anywhere(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    path = tmp_path / name
    make(path)
    whole = path.read_bytes()
    assert len(check(path).records) == 3
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:position])
        found = check(path)
        assert isinstance(found, DataError) or name == "x.csv"
        for byte in (b"\0", b"\xff", b'"'):
            path.write_bytes(whole[:position] + byte + whole[position + 1 :])
            check(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'[{"question": ' + b"[" * 100_000,
        b"[" + b"9" * 200_000 + b"]",
        b'{"question": "Q?", "answer": ' + b"[" * 100_000 + b"\n" + json.dumps(OWN).encode(),
        b"{" * 200_000,
        b"\n" * 200_000,
        b'"' * 200_000,
        b"\xef\xbb\xbf" * 3,
        b'{"a": 1}\n' * 20_000,
        b"[" + b"{}," * 50_000 + b"{}]",
    ],
)
def test_monstrous_files(tmp_path: Path, content: bytes) -> None:
    for name in ("x.json", "x.jsonl", "x.csv", "x.parquet"):
        path = tmp_path / name
        path.write_bytes(content)
        check(path)
