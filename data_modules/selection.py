"""Which records of question files a data module keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_modules.formats import Format, read_records
from data_modules.labels import task_of
from data_modules.rows import find_files
from medgrpo.types import DataError, Record


@dataclass(frozen=True)
class Selection:
    """Records by modality and question type."""

    modality: str
    """The one that is kept, and that files which name none are taken to be of; empty keeps all."""
    task: str
    """Likewise for the question type."""
    modalities: frozenset[str]
    """Names that are kept, the empty one for an unknown modality."""
    tasks: frozenset[str]
    """Names that are kept; empty keeps all."""

    def read(self, paths: Sequence[str], format: Format, option: str, may_be_empty: bool = False) -> list[list[Record]]:
        """The records that are kept, of each file or folder.

        Args:
            paths: of the files and folders.
            format: of the files.
            option: that names the paths.
            may_be_empty: whether keeping none is no error.

        Raises:
            DataError: malformed files, an id that is there twice, or nothing left.
        """
        kept: list[list[Record]] = []
        found: list[Record] = []
        origin: dict[str, str] = {}
        for path in paths:
            kept.append([])
            for file in find_files(path):
                records = self._label(read_records(file, format))
                for record in records:
                    if record.id in origin:
                        raise DataError(
                            f"{option}: record id {record.id!r} is in {origin[record.id]} and in {file}. "
                            "List each file once; rename files that have the same name, or make one of them with "
                            "`medgrpo data convert`."
                        )
                origin |= {record.id: file for record in records}
                found += records
                kept[-1] += [record for record in records if self._wanted(record)]
        if not any(kept) and not may_be_empty:
            have = sorted({(record.modality or "unknown", record.task or "unknown") for record in found})
            raise DataError(
                f"{option}: none of {len(found)} records is left after the filters. Files: {list(paths)}; "
                f"(modality, task) in them: {have}; kept: {self._filters()}"
            )
        return kept

    def _label(self, records: Sequence[Record]) -> list[Record]:
        labels = {"modality": self.modality, "task": self.task}
        missing = {n: label for n, label in labels.items() if label and not any(getattr(r, n) for r in records)}
        return [replace(record, **missing) for record in records] if missing else list(records)

    def _wanted(self, record: Record) -> bool:
        return (
            self.modality in ("", record.modality)
            and self.task in ("", task_of(record.task))
            and record.modality in self.modalities
            and (not self.tasks or (task_of(record.task) or record.task) in self.tasks)
        )

    def _filters(self) -> str:
        names = {
            "modality": [self.modality] if self.modality else sorted(self.modalities - {""}),
            "task": [self.task] if self.task else sorted(self.tasks) or "any",
        }
        return ", ".join(f"{name} {value}" for name, value in names.items())


def subset(records: list[Record], limit: int | None, seed: int) -> list[Record]:
    """``limit`` of the records, drawn at random, in their order; all of them when there are no more."""
    if limit is None or limit >= len(records):
        return records
    chosen = np.random.default_rng(seed).choice(len(records), limit, replace=False)
    return [records[index] for index in sorted(chosen.tolist())]
