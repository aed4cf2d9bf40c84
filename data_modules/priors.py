"""What training records tell about a test record before any model sees it: is its image known, is its answer likely."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from data_modules.leaks import path_key
from medgrpo.blind import OptionPrior
from medgrpo.types import Record


class Training:
    """What test records are compared with.

    Args:
        records: that were trained on.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.images = {path_key(image) for record in records for image in record.images}
        self.records = records

    @cached_property
    def prior(self) -> OptionPrior:
        """Learned when it is first asked."""
        return OptionPrior(self.records)

    def has_seen(self, record: Record) -> bool | None:
        """Whether it shows one of the training images, by path; None without an image."""
        return not self.images.isdisjoint(map(path_key, record.images)) if record.images else None

    def guess(self, record: Record) -> str | None:
        """The letter that a lookup of option texts picks, blind to image and question; None without options."""
        return record.letters[self.prior.pick(record.options)] if record.options else None
