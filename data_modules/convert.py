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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_modules.formats import Format, Reading, scan, write_jsonl
from data_modules.image_hashes import ImageHash
from data_modules.rows import find_files
from medgrpo.types import DataError, Record


@dataclass(frozen=True)
class Dropped:
    """A row that gives no record."""

    file: str
    index: int
    kind: str
    """``malformed``, ``unused``, ``duplicate`` or ``image``."""
    reason: str


@dataclass
class Conversion:
    """What came of the sources."""

    records: list[Record] = field(default_factory=list)
    """In the order of the files and of the rows in them."""
    dropped: list[Dropped] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Name, SHA-256, bytes and counts of each file."""

    def summary(self) -> str:
        """What was read, and what was left out and why."""
        lines = [f"{len(self.records)} records from {len(self.sources)} files"]
        lines += [f"  {s['records']:>8}  {s['file']}" for s in self.sources]
        if self.dropped:
            lines.append(f"{len(self.dropped)} rows left out:")
            reasons = Counter((row.kind, _general(row.reason)) for row in self.dropped)
            lines += [f"  {count:>8}  {kind}: {reason}" for (kind, reason), count in reasons.most_common(MAX_REASONS)]
            if len(reasons) > MAX_REASONS:
                lines.append(f"            and {len(reasons) - MAX_REASONS} other reasons")
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
    taken: Counter[str] = Counter()
    for position, record in enumerate(records):
        if seen[record.id] > 1:
            taken[record.id] += 1
            records[position] = replace(record, id=f"{record.id}~{taken[record.id]}")
    return records


def convert(
    sources: Sequence[str | Path],
    format: Format = "auto",
    save_images: Path | None = None,
    keep_duplicates: bool = False,
    progress: Callable[[list[Path]], Iterable[Path]] | None = None,
) -> Conversion:
    """Read sources and give every record an id that depends on its content alone.

    Args:
        sources: files, or folders that are searched in the order of names.
        format: of all of them; auto looks at the first row of each.
        save_images: folder for images that are stored inside the files.
        keep_duplicates: False leaves out a record whose images, question, options and answer have all come before;
            what it says of modality, task and dataset goes to the first one, if that says nothing.
        progress: wraps the list of files, e.g. ``tqdm``.
    """
    files, names = _named([file for source in sources for file in find_files(source)])
    result, seen = Conversion(), {}
    for file, name in zip(files if progress is None else progress(files), names, strict=True):
        reading = scan(file, format, save_images)
        kept = 0
        for record, index in zip(reading.records, reading.rows, strict=True):
            origin = f"{name}#{index}"
            key = content_id(record)
            if key in seen and not keep_duplicates:
                first = result.records[seen[key]]
                result.records[seen[key]] = _completed(first, record)
                result.dropped.append(Dropped(name, index, "duplicate", f"same content as {first.metadata['source']}"))
                continue
            id = key if key not in seen else f"{key}~{origin}"
            seen.setdefault(key, len(result.records))
            own = {} if record.id == f"{file.stem}-{index}" else {"source_id": record.id}
            result.records.append(replace(record, id=id, metadata={**record.metadata, **own, "source": origin}))
            kept += 1
        result.dropped += [Dropped(name, index, "malformed", why) for index, why in reading.malformed]
        result.dropped += [Dropped(name, index, "unused", why) for index, why in reading.unused]
        result.sources.append({"file": name, **file_digest(file), "records": kept})
    return result


def _completed(record: Record, other: Record) -> Record:
    """With the labels of the other where this one has none, as Med-R1's files by modality and by task have."""
    labels = {name: getattr(record, name) or getattr(other, name) for name in ("modality", "task", "dataset")}
    return replace(record, **labels)


def drop_missing_images(conversion: Conversion, hashes: Mapping[str, ImageHash]) -> None:
    """Leave out the records of which an image is missing or unreadable."""
    kept = []
    for record in conversion.records:
        errors = [hashes[image].error for image in record.images if hashes[image].error]
        if errors:
            file, index = record.metadata["source"].rsplit("#", 1)
            conversion.dropped.append(Dropped(file, int(index), "image", errors[0]))
        else:
            kept.append(record)
    conversion.records = kept


def content_id(record: Record) -> str:
    """16 hexadecimal digits of a hash of images, question, options and answer."""
    content = [list(record.images), record.problem, record.question, list(record.options), record.answer]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def save(
    out: Path,
    conversion: Conversion,
    options: Mapping[str, Any],
    hashes: Mapping[str, ImageHash] | None = None,
) -> None:
    """Write the records, the manifest and the list of what was left out.

    Raises:
        DataError: nothing is left to write.
    """
    if not conversion.records:
        raise DataError(f"nothing is left to write to {out}:\n{conversion.summary()}")
    out.parent.mkdir(parents=True, exist_ok=True)
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
    """All or nothing; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def file_digest(path: Path) -> dict[str, Any]:
    """SHA-256 and bytes of a file; of a folder, those of its files in the order of their names."""
    digest, size = hashlib.sha256(), 0
    for file in [path] if path.is_file() else _files_below(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _files_below(folder: Path) -> Iterator[Path]:
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))


def _named(files: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Each file once, and the shortest ends of their paths that tell them apart."""
    files = list(dict.fromkeys(files))
    for depth in range(1, max((len(file.parts) for file in files), default=0)):
        names = ["/".join(file.parts[-depth:]) for file in files]
        if len(set(names)) == len(names):
            return files, names
    return files, [str(file) for file in files]


def _general(reason: str) -> str:
    """A reason without what only one row has, so that equal ones count together."""
    return re.sub(r"^(image|same content as) .*?([:]|$)", r"\1\2", reason.split(", got ")[0])[:160]
