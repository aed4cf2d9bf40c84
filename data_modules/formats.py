"""Question files -> `Record`: which reader a file needs, what is checked for all of them, and our own JSONL."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from data_modules.exam_readers import FORMATS as EXAM_FORMATS
from data_modules.exam_readers import medmcqa_base
from data_modules.fields import MAX_TEXT, Row, Unused, label, paths, show, text, texts, with_options
from data_modules.labels import labels_of_file, modality_of
from data_modules.readers import FORMATS as IMAGE_FORMATS
from data_modules.rows import load_rows, printable
from medgrpo.types import LETTERS, MODALITIES, DataError, Record

Format = Literal[
    "auto",
    "jsonl",
    "med_r1",
    "medvlm_r1",
    "medical_multimodal_evaluation",
    "omnimedvqa",
    "pubmedvision",
    "vqa_rad",
    "vqa_rad_hub",
    "path_vqa",
    "adaptllm",
    "slake",
    "slake_zh",
    "slake_all",
    "pmc_vqa",
    "gpqa",
    "mmlu_pro",
    "mmmu",
    "medvlthinker",
    "medmcqa",
    "medmcqa_0",
    "medmcqa_1",
    "medqa",
    "medqa_hf",
    "pubmedqa",
    "pubmedqa_hub",
    "pubmedqa_data",
    "open_medical_r1",
    "medxpertqa",
]

HEAD = 20
"""Rows that ``auto`` looks at."""

MAX_NAME = 4000
"""Characters of an id or of the path of an image; Linux takes no longer paths."""

MAX_LISTED = 20
"""Problems of one file that an error spells out; the rest are counted."""


class UnknownFormat(DataError):
    """A file whose rows have the fields of no format: perhaps it holds no questions."""


@dataclass(frozen=True)
class Reading:
    """What one file gave."""

    records: list[Record]
    """In file order; ``id`` is the row's own, else the file's stem and the index."""
    malformed: list[tuple[int, str]]
    """Index of a row that could not be read, and why: field, what was expected, what was got."""
    unused: list[tuple[int, str]]
    """Index of a row that is left out on purpose, and why."""
    rows: list[int] = field(default_factory=list)
    """For each record the index of its row, which may have given several."""


def scan(
    path: str | Path,
    format: Format = "auto",
    save_images: str | Path | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Reading:
    """Read a question file and keep count of what gives no record.

    Args:
        path: JSON list, JSON lines, CSV, Parquet, or a folder written by ``datasets.Dataset.save_to_disk``.
        format: a name of `FORMATS`; ``auto`` decides by the fields of the first rows.
        save_images: folder for images that are stored inside the file (Parquet and such); None writes none, and the
            records name the paths that the images would have below it.
        progress: wraps the rows, e.g. ``tqdm``.

    Raises:
        DataError: the file as a whole cannot be read.
        UnknownFormat: ``auto`` knows no format with the fields of its rows.
    """
    path = Path(path)
    rows = load_rows(path, Path(save_images) if save_images else None)
    head = list(islice(rows, HEAD))
    if not head:
        raise DataError(f"{path}: expected a list or lines of records, got no record")
    name = _detect(path, head) if format == "auto" else format
    rows = chain(head, rows)
    if name == "medmcqa":
        rows = list(rows)
        name = _medmcqa(path, rows)
    _, read = FORMATS[name]
    modality, task = labels_of_file(path)
    reading, seen = Reading([], [], []), {}
    for index, row in enumerate(rows if progress is None else progress(rows)):
        try:
            records = _read(read, row, modality, task, place_id(path, index))
            repeated = [record.id for record in records if record.id in seen]
            if repeated and name == "jsonl":
                raise DataError(f"field 'id': {repeated[0][:80]!r} is also the id of record {seen[repeated[0]]}")
            if repeated:  # a publication's slip, which costs no record
                records = [replace(r, id=f"{r.id}~{index}") if r.id in repeated else r for r in records]
        except Unused as reason:
            reading.unused.append((index, str(reason)))
        except DataError as error:
            reading.malformed.append((index, str(error)))
        else:
            seen |= {record.id: index for record in records}
            reading.records.extend(records)
            reading.rows.extend(index for _ in records)
    return reading


def place_id(path: Path, index: int) -> str:
    """Id of the record of a row that has none of its own; those of several records go on with a number."""
    return f"{printable(path.stem)}-{index}"


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
    """Write one record per line, readable by `read_records`: all or nothing.

    Empty fields are left out, but for modality and task: where these are missing, the name of the file speaks.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                kept = {name: value for name, value in vars(record).items() if value or name in ("modality", "task")}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(read: Callable, row: Any, modality: str, task: str, place: str) -> list[Record]:
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"expected an object with fields, got {show(row)}")
    found = read(row, modality, task)
    records = [found] if isinstance(found, Record) else found
    for record in records:
        _check(record)
    if all(record.id for record in records):
        return records
    ends = [""] if len(records) == 1 else [f"-{number}" for number in range(len(records))]
    # As `dataclasses.replace`, in a third of its time, which counts for hundreds of thousands of records.
    return [r if r.id else Record(**(vars(r) | {"id": place + end})) for r, end in zip(records, ends, strict=True)]


_FIELDS = tuple(f.name for f in fields(Record))
_FIELD_SET = frozenset(_FIELDS)


def _jsonl(row: Row, modality: str, task: str) -> Record:
    """Our own JSON lines: the fields of `Record`, of which only ``question`` and ``answer`` must be there."""
    if not row.keys() <= _FIELD_SET:
        raise DataError(f"unknown fields {_listed(row.keys() - _FIELD_SET)}; expected {list(_FIELDS)}")
    question = text(row, "question")
    options = () if row.get("options") is None else texts(row, "options")
    named = modality if row.get("modality") is None else label(row, "modality")
    if named and named not in MODALITIES:
        named = modality_of(named)
        if not named:
            expected, got = ", ".join(MODALITIES), str(row["modality"])[:80]
            raise DataError(f"field 'modality': expected one of {expected} or nothing, got {got!r}")
    closed, extra = row.get("closed", False), row.get("metadata", {})
    if not isinstance(closed, bool):
        raise DataError(f"field 'closed': expected true or false, got {show(closed)}")
    if not isinstance(extra, dict):
        raise DataError(f"field 'metadata': expected an object of texts, got {show(extra)}")
    for name in extra:
        text({"metadata": name}, "metadata")
        text(extra, name)
    return Record(
        id=text(row, "id") if "id" in row else "",
        problem=text(row, "problem") if "problem" in row else with_options(question, options),
        question=question,
        options=options,
        answer=text(row, "answer"),
        images=paths(row, "images") if "images" in row else (),
        modality=named,
        task=task if row.get("task") is None else label(row, "task"),
        dataset=label(row, "dataset") if "dataset" in row else "",
        closed=closed,
        metadata=extra,
    )


FORMATS: dict[str, tuple[frozenset[str], Callable[[Row, str, str], Record | list[Record]]]] = {
    "jsonl": (frozenset({"question", "answer"}), _jsonl),
    **IMAGE_FORMATS,
    **EXAM_FORMATS,
}
"""Name of a format -> fields that tell its rows, and its reader."""

_BY_FIELDS = sorted(FORMATS, key=lambda name: -len(FORMATS[name][0]))
"""The most specific first; of those with the same fields the first of the table."""


def _detect(path: Path, head: Sequence[Any]) -> str:
    """The format of most of the first rows, so that one bad row is its own error and not the file's."""
    names = [set(row) for row in head if isinstance(row, dict)]
    found = Counter(name for name in map(_format_of, names) if name)
    if found:
        return max(found, key=found.__getitem__)
    if not names:
        got = head[0] if isinstance(head[0], DataError) else f"expected an object with fields, got {show(head[0])}"
        raise DataError(f"{path}: record 0: {got}")
    raise UnknownFormat(
        f"{path}: record 0 has fields {_listed(names[0])}, which is no known format. Where the names of the fields are "
        f"not those of the publication, rename them or write our own JSONL: {', '.join(_FIELDS)}. "
        f"Else name the format (`format`): {', '.join(FORMATS)}."
    )


def _format_of(names: set[str]) -> str:
    return next((name for name in _BY_FIELDS if FORMATS[name][0] <= names), "")


def _listed(names: Iterable[str]) -> list[str]:
    """Names for an error, none of them long."""
    return [name[:40] for name in sorted(names)[:20]]


def _medmcqa(path: Path, rows: Sequence[Any]) -> str:
    try:
        return medmcqa_base(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _check(record: Record) -> None:
    """Raise for what no reader may let through, whatever the file's format."""
    if not record.question.strip():
        raise DataError("field 'question': expected text before the options, got nothing")
    if record.options and not 2 <= len(record.options) <= len(LETTERS):
        raise DataError(f"field 'options': expected 2 to {len(LETTERS)} options, got {len(record.options)}")
    if not all(map(str.strip, record.options)):
        empty = [letter for letter, option in zip(LETTERS, record.options, strict=False) if not option.strip()]
        raise DataError(f"field 'options': expected text, got nothing for {', '.join(empty)}")
    if len(record.id) > MAX_NAME:
        raise DataError(f"field 'id': expected at most {MAX_NAME} characters, got {len(record.id)}")
    for image in record.images:
        if len(image) > MAX_NAME:
            raise DataError(f"field of images: expected paths of at most {MAX_NAME} characters, got {len(image)}")
    if not record.answer.strip():
        raise DataError("field 'answer': expected text, got nothing")
    if len(record.problem) > MAX_TEXT:
        raise DataError(f"question and options: expected at most {MAX_TEXT} characters, got {len(record.problem)}")
    if record.options and (len(record.answer) != 1 or record.answer not in record.letters):
        raise DataError(f"field 'answer': expected a letter of {record.letters}, got {record.answer[:80]!r}")
