"""Question files and folders -> rows: JSON, JSON lines, CSV, Parquet, and data sets saved by Hugging Face.

Nothing here knows what a row means; `data_modules.formats` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medgrpo.types import DataError


def find_files(source: str | Path) -> list[Path]:
    """The question files of a path: itself, or those below a folder in the order of their names."""
    path = Path(source)
    return [path]


def load_rows(path: Path, save_images: Path | None = None) -> Iterator[Any]:
    """Rows of a file in file order.

    Args:
        path: of the file, or of a folder written by ``datasets.Dataset.save_to_disk``.
        save_images: folder for images that are stored inside the rows; None writes none.

    Yields:
        What the file holds for each record, a dict if it is well-formed; a `DataError` in place of a row that cannot be
        read. An image inside a row is given as the path that it has, or would have, below ``save_images``.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path given for this split.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}") from error
    if content.lstrip().startswith("["):
        yield from _parse(content, f"{path}")
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield _parse(line, f"line {number}")
            except DataError as error:
                yield error


def _parse(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply") from error
