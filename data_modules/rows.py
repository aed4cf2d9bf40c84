"""Question files and folders -> rows: JSON, JSON lines, CSV, Parquet, and data sets saved by Hugging Face.

Nothing here knows what a row means; `data_modules.formats` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from data_modules.tables import table_rows
from medgrpo.types import DataError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""Endings of question files, in any letter case."""

LIST_NAMES = ("data", "questions", "records", "rows", "examples", "annotations")
"""Names under which an object that is a whole file keeps the list of its records."""

BATCH_SIZE = 32
"""Rows of a Parquet file or saved data set in memory at once; each may hold several images."""

_IMAGES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"II*\0", "tif"),
    (0, b"MM\0*", "tif"),
    (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (128, b"DICM", "dcm"),
)
"""Where the mark of an image format stands, the mark, and the ending that the format goes by."""

STORED = re.compile(rf"[0-9a-f]{{32}}\.({'|'.join(sorted({ending for _, _, ending in _IMAGES}))})")
"""Name that an image gets which is stored inside a row."""

_BLANK = b" \t\r\n\xef\xbb\xbf"
"""White space, and the byte order mark that may begin a UTF-8 file."""

_NOT_TEXT = (
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"PAR1", "Parquet: name it .parquet"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
)


_NOT_A_FILE = "expected a file or folder, got a pipe or device: save what it gives to a file first"


def find_files(source: str | Path) -> list[Path]:
    """The question files of a path: itself, or those below a folder in the order of their names.

    A folder written by ``datasets.Dataset.save_to_disk`` counts as one file. Hidden files, and what ``medgrpo data
    convert`` writes beside its output, are left out; links to folders are not followed.

    Raises:
        DataError: no such path; no question file below it; a link to a file elsewhere, or a folder of several splits,
            which must be named one by one.
    """
    path = Path(source)
    try:
        if path.is_file() or _is_saved(path):
            return [path]
        if not path.is_dir():
            raise DataError(f"{path}: {_NOT_A_FILE if path.exists() else 'no such file or folder'}")
        found = list(_files_below(path))
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise DataError(
            f"{path}: expected question files ({', '.join(SUFFIXES)}) or saved data sets below it, got none"
        )
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _files_below(path: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error  # `os.walk` would pass over a folder that cannot be read

    allowed = _link_targets(path)
    for folder, folders, names in os.walk(path, onerror=stop):
        here = Path(folder)
        if "dataset_dict.json" in names:
            raise _several_splits(here)
        if _is_saved(here):
            yield here
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        for file in [here / name for name in wanted if not name.endswith((".manifest.json", ".dropped.jsonl"))]:
            if not any(file.resolve().is_relative_to(target) for target in allowed):
                raise DataError(f"{file}: is a link that leads out of {path}; name the file itself, or remove the link")
            yield file


def printable(name: str) -> str:
    """A name of a file, with what is not Unicode in it spelled out, so that it can be printed and written."""
    return name.encode("utf-8", "backslashreplace").decode()


def _link_targets(folder: Path) -> list[Path]:
    """Where links in a folder may lead: into itself; from a snapshot in the Hub's cache also to the blobs beside it."""
    real = folder.resolve()
    return [real, *(above.parent / "blobs" for above in real.parents if above.name == "snapshots")]


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _several_splits(folder: Path) -> DataError:
    names = sorted(entry.name for entry in folder.iterdir() if _is_saved(entry))
    return DataError(f"{folder}: holds several splits; name the folder of one of them: {', '.join(names)}")


def load_rows(path: Path, save_images: Path | None = None) -> Iterator[Any]:
    """Rows of a file in file order.

    Args:
        path: of the file, or of a folder written by ``datasets.Dataset.save_to_disk``.
        save_images: folder for images that are stored inside the rows; None writes none.

    Yields:
        What the file holds for each record, a dict if it is well-formed; a `DataError` in place of a row that cannot be
        read. An image inside a row is given as the path that it has, or would have, below ``save_images``; the name
        that the file gives to the image of a field ``image`` becomes a field ``image_file``.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    kind = path.suffix.lower()
    try:
        if not path.exists():
            raise DataError(f"{path}: cannot be read: No such file or folder. Check the path given for this split.")
        if not path.is_file() and not path.is_dir():
            raise DataError(f"{path}: {_NOT_A_FILE}")
        if path.is_dir():
            yield from _with_paths(_saved_rows(path), save_images)
        elif kind == ".parquet":
            yield from _with_paths(_parquet_rows(path), save_images)
        elif kind in (".csv", ".tsv"):
            with path.open("rb") as file:
                _check_start(path, file.read(4))
            yield from table_rows(path, "," if kind == ".csv" else "\t")
        else:
            yield from _json_rows(path)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read or written: {error.strerror or error}") from error


def _json_rows(path: Path) -> Iterator[Any]:
    """A list; an object per line; or one object: a record, records by key, or a list of records under a usual name."""
    with path.open("rb") as file:
        _check_start(path, file.read(4))
        file.seek(0)
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip(_BLANK))
        number, first = next(lines, (0, b""))
        begin = first.lstrip(_BLANK)
        if begin and begin[:1] not in b"[{":
            raise DataError(f"{path}: expected a JSON list, or an object per line, got {begin[:20]!r}")
        if begin.startswith(b"{"):
            row, (later, second) = _line(number, first), next(lines, (0, b""))
            is_row = isinstance(row, dict) or (second.lstrip().startswith(b"{") and not first.rstrip().endswith(b"["))
            if second and is_row:
                yield row
                yield _line(later, second)
                yield from (_line(*line) for line in lines)
                return
            if isinstance(row, dict):
                yield from _of_object(path, row)
                return
        file.seek(0)
        content = _parse(file.read(), f"{path}") if begin else []
    yield from content if isinstance(content, list) else _of_object(path, content)


def _of_object(path: Path, content: dict[str, Any]) -> Iterator[Any]:
    lists = {name: value for name, value in content.items() if isinstance(value, list) and value}
    lists = {name: value for name, value in lists.items() if isinstance(value[0], dict)}
    if not lists.keys() & set(LIST_NAMES):
        lists = {}
    if len(lists) > 1:
        raise DataError(f"{path}: expected one list of records, got several: {', '.join(lists)}; make a file of each")
    if lists:
        yield from next(iter(lists.values()))
    elif 2 * sum(isinstance(value, dict) for value in content.values()) > len(content):
        for key, row in content.items():
            yield row | {"pubid": key} if isinstance(row, dict) else row
    else:
        yield content


def _check_start(path: Path, start: bytes) -> None:
    for mark, what in _NOT_TEXT:
        if start.startswith(mark):
            raise DataError(f"{path}: expected JSON or CSV as UTF-8 text, got {what}")
    if b"\0" in start:
        raise DataError(f"{path}: expected JSON or CSV as UTF-8 text, got NUL bytes: save it as UTF-8")


def _line(number: int, line: bytes) -> Any:
    try:
        return _parse(line, f"line {number}")
    except DataError as error:
        return error


def _parse(content: bytes, where: str) -> Any:
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8 text, got byte {error.object[error.start]:#04x}") from error
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply") from error
    if isinstance(found, DataError):
        raise DataError(f"{where}: {found}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | DataError:
    """An object; the error of a field that it has twice stands in its place, so that only its record is lost."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return DataError(f"field {name[:80]!r}: expected once, got it several times")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    def rows() -> Iterator[dict[str, Any]]:
        # Without a buffer, or with pre_buffer, Arrow keeps the images of the whole file.
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_SIZE):
                yield from batch.to_pylist()

    return _checked_arrow(path, rows())


def _saved_rows(path: Path) -> Iterator[dict[str, Any]]:
    import datasets

    if (path / "dataset_dict.json").is_file():
        raise _several_splits(path)
    if not _is_saved(path):
        raise DataError(f"{path}: is a folder; expected a file, or a folder with state.json and dataset_info.json")

    def rows() -> Iterator[dict[str, Any]]:
        # The Arrow format hands images over as they are stored, not decoded.
        for table in datasets.load_from_disk(str(path)).with_format("arrow").iter(BATCH_SIZE):
            table.validate(full=True)  # the file is mapped as it is: a bad offset in it would end the process
            yield from table.to_pylist()

    return _checked_arrow(path, rows())


def _checked_arrow(path: Path, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same rows. What the libraries raise for a broken file is of every kind."""
    count = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"[:300]
            raise DataError(f"{path}: cannot be read after record {count}: is it whole? {what}") from error
        if row is None:
            return
        count += 1
        yield row


def _with_paths(rows: Iterable[dict[str, Any]], folder: Path | None) -> Iterator[Any]:
    for row in rows:
        try:
            yield _without_images(row, folder)
        except DataError as error:
            yield error


def _without_images(row: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    found, files = {}, {}
    for name, value in row.items():
        found[name] = (
            [_path(item, name, folder) for item in value] if isinstance(value, list) else _path(value, name, folder)
        )
        if _is_image(value) and value["bytes"] and value["path"]:
            files[f"{name}_file"] = value["path"]
    return files | found


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def _path(value: Any, name: str, folder: Path | None) -> Any:
    """The value, or for an image in it the path below ``folder``, where it is written unless it is there."""
    if _is_image(value):
        if not value["bytes"]:
            return value["path"]
        value = value["bytes"]
    if not isinstance(value, bytes):
        return value
    endings = [ending for start, mark, ending in _IMAGES if value[start : start + len(mark)] == mark]
    if not endings:
        raise DataError(f"field {name!r}: expected an image, got bytes that begin with {value[:8]!r}")
    path = f"{hashlib.sha256(value).hexdigest()[:32]}.{endings[0]}"
    if folder and not (folder / path).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{uuid4().hex}.tmp"
        try:
            temporary.write_bytes(value)
            os.replace(temporary, folder / path)
        finally:
            temporary.unlink(missing_ok=True)
    return path
