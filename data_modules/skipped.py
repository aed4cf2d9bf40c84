"""Training records whose images break during a run: what was put in their place, said once and kept in a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "skipped_images.jsonl"
"""In the run's folder, once there is something to list."""


@dataclass(frozen=True)
class Skipped:
    """One record left out of one batch."""

    id: str
    reason: str
    """Why its images cannot be used; names the file."""
    instead: str
    """Id of the record that took its place."""


class SkippedImages:
    """What one rank has skipped: a warning for each record, a line in the file for each time.

    Args:
        folder: of the run; made when there is something to write.
        rank: of this process.
    """

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.path = Path(folder) / FILE
        self.rank = rank
        self.count = 0
        """Times that a record was skipped."""
        self.ids: set[str] = set()

    def add(self, skipped: Iterable[Skipped], epoch: int) -> None:
        """Say and write what a batch of the epoch was made without."""
        for one in skipped:
            if one.id not in self.ids:
                warnings.warn(
                    f"skipped: {one.reason}. Record {one.instead} takes its place. Mend the image, or take the record "
                    "out of data.train; data.on_bad_image=error stops at such images",
                    stacklevel=2,
                )
            self.ids.add(one.id)
            self.count += 1
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"epoch": epoch, "rank": self.rank, **asdict(one)})
            with self.path.open("a", encoding="utf-8") as file:  # at once: a run may be killed; ranks share the file
                file.write(line + "\n")

    def summary(self) -> str:
        """One line; empty when nothing was skipped."""
        if not self.count:
            return ""
        return (
            f"rank {self.rank} skipped {len(self.ids)} records with broken images, {self.count} times in all: see "
            f"{self.path}"
        )
