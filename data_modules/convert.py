"""Question files of any format -> one JSONL file of ours, with a manifest, and nothing left out silently.

Beside ``NAME.jsonl`` stand ``NAME.manifest.json`` (sources, options and hashes of everything) and, when rows were left
out, ``NAME.dropped.jsonl`` (one line per row: file, index, why). The same sources give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_modules.formats import Format, Reading, UnknownFormat, place_id, scan, write_jsonl
from data_modules.image_hashes import ImageHash
from data_modules.rows import STORED, find_files, printable
from medgrpo.types import DataError, Record

_ORIGIN = re.compile(r"#[0-9]+$")
"""How ``source`` in the metadata of a converted record ends; a field of this name in other files ends otherwise."""


@dataclass(frozen=True)
class Dropped:
    """A row that gives no record, or a whole file."""

    file: str
    index: int | None
    """Of the row in the file, from 0; None for the file."""
    kind: str
    """``malformed``, ``unused``, ``duplicate``, ``image``, or ``file`` for one that holds no questions."""
    reason: str


@dataclass
class Conversion:
    """What came of the sources."""

    records: list[Record] = field(default_factory=list)
    """In the order of the files and of the rows in them."""
    dropped: list[Dropped] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Name, SHA-256, bytes and number of records of each file."""
    unwritten: int = 0
    """Images that are stored inside the files and were not written to a folder."""

    def summary(self) -> str:
        """What was read, and what was left out and why."""
        lines = [f"{len(self.records)} records from {len(self.sources)} files"]
        lines += [f"  {s['records']:>8}  {s['file']}" for s in self.sources]
        for what, dropped in (
            ("files", [file for file in self.dropped if file.index is None]),
            ("rows", [row for row in self.dropped if row.index is not None]),
        ):
            if not dropped:
                continue
            lines.append(f"{len(dropped)} {what} left out:")
            reasons = Counter((row.kind, _general(row)) for row in dropped)
            lines += [f"  {count:>8}  {kind}: {reason}" for (kind, reason), count in reasons.most_common(MAX_REASONS)]
            if len(reasons) > MAX_REASONS:
                lines.append(f"            and {len(reasons) - MAX_REASONS} other reasons")
        if self.unwritten:
            lines.append(f"{self.unwritten} images are stored inside the files: --save_images DIR writes them")
        return "\n".join(lines)


MAX_REASONS = 20
"""Reasons that a summary spells out; all rows are in the ``dropped`` file."""


def read_sources(*groups: Sequence[str | Path], format: Format = "auto") -> list[list[tuple[str, Reading]]]:
    """Every question file of some groups of paths, e.g. training and test; folders are searched.

    Returns:
        For each group, a name for each file that tells it from all others, and what it gave.

    Raises:
        DataError: a path without question files, or a file that cannot be read as a whole.
    """
    files = [list(dict.fromkeys(file for source in group for file in find_files(source))) for group in groups]
    names = dict(zip(*_named(sum(files, [])), strict=True))
    return [[(names[file], scan(file, format)) for file in group] for group in files]


def all_records(readings: Iterable[tuple[str, Reading]]) -> list[Record]:
    """The records of all files, with ids that are unique among them.

    Raises:
        DataError: malformed rows: these files should go through ``medgrpo data convert`` first.
    """
    records, seen = [], Counter()
    for name, reading in readings:
        if reading.malformed:
            index, why = reading.malformed[0]
            raise DataError(
                f"{name}: {len(reading.malformed)} malformed records, e.g. record {index}: {why}. "
                "`medgrpo data convert` leaves such records out and lists them."
            )
        records += reading.records
        seen.update(record.id for record in reading.records)
    numbers: Counter[str] = Counter()
    for position, record in enumerate(records):
        if seen[record.id] > 1:
            numbers[record.id] += 1
            while (id := f"{record.id}~{numbers[record.id]}") in seen:  # as `convert` names a copy
                numbers[record.id] += 1
            records[position] = replace(record, id=id)
    return records


def convert(
    sources: Sequence[str | Path],
    format: Format = "auto",
    save_images: Path | None = None,
    keep_duplicates: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Conversion:
    """Read sources and give every record an id that depends on its content alone.

    Args:
        sources: files, or folders that are searched in the order of names.
        format: of all of them; auto looks at the first rows of each, and leaves out a file in a folder whose fields are
            those of no format, such as lists of organs among the images.
        save_images: folder for images that are stored inside the files.
        keep_duplicates: False leaves out a record whose images, question, options and answer have all come before;
            what it says of modality, task and dataset goes to the first one, if that says nothing.
        progress: wraps the rows of each file, e.g. ``tqdm``.

    Raises:
        DataError: a path without question files, a file that cannot be read as a whole, or a named one of no format.
    """
    files, names = _named([file for source in sources for file in find_files(source)])
    named, unwritten = set(map(Path, sources)), set()
    result, seen, copies = Conversion(), {}, Counter()
    for file, name in zip(files, names, strict=True):
        try:
            reading = scan(file, format, save_images, progress)
        except UnknownFormat as error:
            if file in named:
                raise
            reason = str(error).removeprefix(f"{file}: ").partition(", which")[0]
            result.dropped.append(Dropped(name, None, "file", f"no known format: {reason}"))
            continue
        kept, dropped = 0, []
        stores_images = file.is_dir() or file.suffix.lower() == ".parquet"
        for record, index in zip(reading.records, reading.rows, strict=True):
            origin = f"{name}#{index}"
            key = content_id(record)
            if key in seen and not keep_duplicates:
                first = result.records[seen[key]]
                result.records[seen[key]] = _completed(first, record)
                dropped.append(Dropped(name, index, "duplicate", f"same content as {first.metadata['source']}"))
                continue
            copies[key] += 1
            id = key if copies[key] == 1 else f"{key}~{copies[key]}"
            seen.setdefault(key, len(result.records))
            own = {} if _is_given(record.id, place_id(file, index), key) else {"source_id": record.id}
            published = record.metadata.get("source")
            if published and not _ORIGIN.search(published):
                own["published_source"] = published
            result.records.append(replace(record, id=id, metadata={**record.metadata, **own, "source": origin}))
            if stores_images and save_images is None:
                unwritten.update(filter(STORED.fullmatch, record.images))
            kept += 1
        dropped += [Dropped(name, index, "malformed", why) for index, why in reading.malformed]
        dropped += [Dropped(name, index, "unused", why) for index, why in reading.unused]
        result.dropped += sorted(dropped, key=lambda row: row.index)
        result.sources.append({"file": name, **file_digest(file), "records": kept})
    result.unwritten = len(unwritten)
    return result


def _is_given(id: str, place: str, key: str) -> bool:
    """Whether an id is not the publication's: that of the row's place, or of a record that was converted before."""
    return id in (place, key) or id.startswith((f"{place}-", f"{key}~"))


def _completed(record: Record, other: Record) -> Record:
    """With the labels of the other where this one has none, as Med-R1's files by modality and by task have."""
    labels = {name: getattr(record, name) or getattr(other, name) for name in ("modality", "task", "dataset")}
    return replace(record, **labels)


def drop_missing_images(conversion: Conversion, hashes: Mapping[str, ImageHash]) -> None:
    """Leave out the records of which an image is missing or unreadable."""
    kept, lost = [], Counter()
    for record in conversion.records:
        errors = [hashes[image].error for image in record.images if hashes[image].error]
        if errors:
            file, index = record.metadata["source"].rsplit("#", 1)
            conversion.dropped.append(Dropped(file, int(index), "image", errors[0]))
            lost[file] += 1
        else:
            kept.append(record)
    conversion.records = kept
    conversion.sources = [s | {"records": s["records"] - lost[s["file"]]} for s in conversion.sources]


def content_id(record: Record) -> str:
    """16 hexadecimal digits of a hash of images, question, options and answer."""
    content = [list(record.images), record.problem, record.question, list(record.options), record.answer]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_name(out: Path) -> None:
    """Raise `DataError` for a name that is not that of JSON lines, by which the file is read again."""
    if out.suffix.lower() != ".jsonl":
        raise DataError(f"{out}: expected a name that ends in .jsonl, by which the file is read again")


def save(
    out: Path,
    conversion: Conversion,
    options: Mapping[str, Any],
    hashes: Mapping[str, ImageHash] | None = None,
) -> None:
    """Write the records, the manifest and the list of what was left out.

    Raises:
        DataError: nothing is left to write, or it cannot be written; or ``out`` is not named as JSON lines.
    """
    check_name(out)
    if not conversion.records:
        raise DataError(f"nothing is left to write to {out}:\n{conversion.summary()}")
    _make_folder(out.parent)
    dropped = out.with_suffix(".dropped.jsonl")
    dropped.unlink(missing_ok=True)
    if conversion.dropped:
        lines = [json.dumps(vars(row), ensure_ascii=False) + "\n" for row in conversion.dropped]
        write_text(dropped, "".join(lines))
    write_jsonl(out, conversion.records)
    used = {image for record in conversion.records for image in record.images}
    manifest = {
        "options": dict(options),
        "sources": conversion.sources,
        "records": len(conversion.records),
        "dropped": dict(sorted(Counter(row.kind for row in conversion.dropped).items())),
        "output": {"file": out.name, **file_digest(out)},
        "images": {image: hashes[image].sha256 for image in sorted(used)} if hashes is not None else None,
    }
    write_text(out.with_suffix(".manifest.json"), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """All or nothing; the folder is made.

    Raises:
        DataError: it cannot be written.
    """
    _make_folder(path.parent)
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made a folder: {error.strerror}") from error


def file_digest(path: Path) -> dict[str, Any]:
    """SHA-256 and bytes of a file; of a folder, those of its files in the order of their names."""
    digest, size = hashlib.sha256(), 0
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _named(files: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Each file once, and the shortest ends of their paths that tell them apart."""
    files = list(dict.fromkeys(files))
    for depth in range(1, max((len(file.parts) for file in files), default=0)):
        names = [printable("/".join(file.parts[-depth:])) for file in files]
        if len(set(names)) == len(names):
            return files, names
    return files, [printable(str(file)) for file in files]


def _general(row: Dropped) -> str:
    """A reason without what only one row has, so that equal ones count together."""
    if row.kind == "duplicate":
        return "same content"
    if row.kind == "image":  # the reference or file, what is wrong, and in brackets what the decoder says
        return row.reason.partition(": ")[2].partition(" (")[0]
    return re.sub(r"^line [0-9]+: ", "", row.reason.split(", got ")[0])[:160]
