"""Ends what would never end. Speed is measured by ``scripts/bench_data.py``, not by tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 60
"""Seconds, a hundred times what the slowest case takes."""


@contextmanager
def no_hang() -> Iterator[None]:
    """Fail when the block does not come to an end."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
