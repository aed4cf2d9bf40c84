"""Question files -> `Record`: which reader a file needs, what is checked for all of them, and our own JSONL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from data_modules.fields import Row, Unused, label, paths, show, text, texts, with_options
from data_modules.labels import labels_of_file, modality_of
from data_modules.readers import med_r1, medvlm_r1
from data_modules.rows import load_rows
from medgrpo.types import LETTERS, MODALITIES, DataError, Record

Format = Literal["auto", "med_r1", "medvlm_r1", "jsonl"]

MAX_LISTED = 20
"""Problems of one file that an error spells out; the rest are counted."""


@dataclass(frozen=True)
class Reading:
    """What one file gave."""

    records: list[Record]
    """In file order; ``id`` is the row's own, else the file's stem and the index."""
    malformed: list[tuple[int, str]]
    """Index of a row that could not be read, and why: field, what was expected, what was got."""
    unused: list[tuple[int, str]]
    """Index of a row that is left out on purpose, and why."""


def scan(path: str | Path, format: Format = "auto", save_images: str | Path | None = None) -> Reading:
    """Read a question file and keep count of what gives no record.

    Args:
        path: JSON list, JSON lines, CSV, Parquet, or a folder written by ``datasets.Dataset.save_to_disk``.
        format: ``auto`` decides by the fields of the first row.
        save_images: folder for images that are stored inside the file (Parquet and such); None writes none, and the
            records name the paths that the images would have below it.

    Raises:
        DataError: the file as a whole cannot be read, or is of no known format.
    """
    path = Path(path)
    rows = load_rows(path, Path(save_images) if save_images else None)
    head = list(islice(rows, 1))
    if not head:
        raise DataError(f"{path}: expected a list or lines of records, got no record")
    read = _READERS[_detect(path, head[0]) if format == "auto" else format]
    modality, task = labels_of_file(path)
    reading, seen = Reading([], [], []), {}
    for index, row in enumerate(chain(head, rows)):
        try:
            for record in _read(read, row, modality, task):
                record = record if record.id else replace(record, id=f"{path.stem}-{index}")
                if record.id in seen:
                    raise DataError(f"field 'id': {record.id!r} is also the id of record {seen[record.id]}")
                seen[record.id] = index
                reading.records.append(record)
        except Unused as reason:
            reading.unused.append((index, str(reason)))
        except DataError as error:
            reading.malformed.append((index, str(error)))
    return reading


def read_records(path: str | Path, format: Format = "auto") -> list[Record]:
    """As `scan`, for a file that must be whole.

    Raises:
        DataError: as `scan`, and for malformed rows: each with its index, field, what was expected and what was got.
    """
    reading = scan(path, format)
    if reading.malformed:
        total = len(reading.records) + len(reading.malformed) + len(reading.unused)
        problems = [f"record {index}: {why}" for index, why in reading.malformed]
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "\n  ".join(problems[:MAX_LISTED])
        raise DataError(f"{path}: {len(problems)} bad of {total} records:\n  {listed}{more}")
    return reading.records


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write one record per line, readable by `read_records`."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def _read(read: Callable, row: Any, modality: str, task: str) -> Sequence[Record]:
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"expected an object with fields, got {show(row)}")
    found = read(row, modality, task)
    records = [found] if isinstance(found, Record) else found
    for record in records:
        _check(record)
    return records


def _jsonl(row: Row, modality: str, task: str) -> Record:
    unknown = sorted(set(row) - {field.name for field in fields(Record)})
    if unknown:
        raise DataError(f"unknown fields {unknown}; expected {[field.name for field in fields(Record)]}")
    question = text(row, "question")
    options = texts(row, "options") if row.get("options") else ()
    named = text(row, "modality") if row.get("modality") else modality
    if named and not modality_of(named):
        raise DataError(f"field 'modality': expected one of {', '.join(MODALITIES)} or nothing, got {named!r}")
    closed, extra = row.get("closed", False), row.get("metadata") or {}
    if not isinstance(closed, bool):
        raise DataError(f"field 'closed': expected true or false, got {show(closed)}")
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise DataError(f"field 'metadata': expected an object of texts, got {show(extra)}")
    return Record(
        id=text(row, "id") if "id" in row else "",
        problem=text(row, "problem") if "problem" in row else with_options(question, options),
        question=question,
        options=options,
        answer=text(row, "answer"),
        images=paths(row, "images"),
        modality=modality_of(named),
        task=label(row, "task") or task,
        dataset=label(row, "dataset"),
        closed=closed,
        metadata=extra,
    )


_READERS: dict[str, Callable[[Row, str, str], Record | list[Record]]] = {
    "med_r1": med_r1,
    "medvlm_r1": medvlm_r1,
    "jsonl": _jsonl,
}


def _detect(path: Path, row: Any) -> str:
    names = set(row) if isinstance(row, dict) else set()
    if {"image", "options"} <= names or {"solution", "options"} <= names:
        return "medvlm_r1"
    if {"problem", "solution"} <= names:
        return "med_r1"
    if {"question", "answer"} <= names:
        return "jsonl"
    raise DataError(
        f"{path}: record 0 has fields {sorted(names)}, which is no known format. Expected image, problem, solution "
        "(Med-R1); image, question, options, answer or solution (MedVLM-R1); or id, question, options, answer (JSONL)."
    )


def _check(record: Record) -> None:
    """Raise for what no reader may let through, whatever the file's format."""
    if not record.question:
        raise DataError("field 'question': expected text before the options, got nothing")
    if record.options and not 2 <= len(record.options) <= len(LETTERS):
        raise DataError(f"field 'options': expected 2 to {len(LETTERS)} options, got {len(record.options)}")
    empty = [letter for letter, option in zip(record.letters, record.options, strict=True) if not option.strip()]
    if empty:
        raise DataError(f"field 'options': expected text, got nothing for {', '.join(empty)}")
    if record.options and (len(record.answer) != 1 or record.answer not in record.letters):
        raise DataError(f"field 'answer': expected a letter of {record.letters}, got {record.answer[:80]!r}")
