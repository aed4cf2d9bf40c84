"""CSV and the like -> rows, with every broken row an error of its own."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medgrpo.types import DataError


def table_rows(path: Path, delimiter: str) -> Iterator[Any]:
    """Rows of a table with a header; every cell is text as written, also ``N/A`` and ``None``.

    A row of several lines must be quoted by the rules. If it is not, there is a stray quote in its first line, which
    becomes an error; the other lines are read again as rows of their own.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        names = None
        for cells in _cells(lines, delimiter):
            where = f"line {lines.number}"
            try:
                _check_cells(lines.row, cells, delimiter, names and len(names))
            except DataError as error:
                if names is None:
                    raise DataError(f"{path}: {where}: {error}") from error
                yield DataError(f"{where}: {error}")
                lines.give_back()
                continue
            if names is not None:
                yield dict(zip(names, cells, strict=True))
                continue
            names = [name.strip() for name in cells]
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise DataError(f"{path}: {where}: expected each column once, got {twice[0][:80]!r} several times")


class _Lines:
    """Lines of a file. Those of the row read last are in ``row``; all but the first of them can be read again."""

    def __init__(self, file: Iterator[str]) -> None:
        self.file = file
        self.row: list[str] = []
        self.number = 1
        """Of the first line of the row, from 1."""
        self._again: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.row.append(self._again.pop() if self._again else next(self.file))
        return self.row[-1]

    def next_row(self) -> None:
        """Begin another row."""
        self.number += len(self.row)
        self.row = []

    def give_back(self) -> None:
        """Have all lines of the row but the first read again."""
        self._again += self.row[:0:-1]
        self.row = self.row[:1]


def _cells(lines: _Lines, delimiter: str) -> Iterator[list[str] | csv.Error]:
    """The rows that are not empty; the error of one that cannot be read."""
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.next_row()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells = error
        if cells is None:
            return
        if cells:
            yield cells


def _check_cells(lines: list[str], cells: list[str] | csv.Error, delimiter: str, count: int | None) -> None:
    """Raise for a row of other than ``count`` cells, bytes that are not UTF-8, or a quote that joins rows."""
    broken = cells if isinstance(cells, csv.Error) else None
    if broken is None and len(lines) > 1:
        try:
            next(csv.reader(lines, delimiter=delimiter, strict=True))
        except csv.Error as error:
            broken = error
    if broken is not None:
        raise DataError(f"{broken}. Is there a quote that is never closed?") from broken
    for line in lines:
        if line.isascii():
            continue
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) & 0xFF
            raise DataError(f"expected UTF-8 text, got byte {byte:#04x}") from error
    if count is not None and len(cells) != count:
        raise DataError(f"expected {count} cells, got {len(cells)}")
