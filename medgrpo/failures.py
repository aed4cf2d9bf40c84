"""The last words of a command: one line that a user can act on, said once for all ranks; a traceback is never lost.

Errors that the user can mend (`UserError`, and Lightning's for settings that do not go together) are told as they are.
Others are told by type and first line, with the whole traceback in a file; so is that of a user's own reward.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from medgrpo.rewards import RewardError
from medgrpo.types import UserError

MAX_SHOWN = 600
"""Characters of an error that nobody expected."""

SECONDS_FOR_OTHERS = 3.0
"""That the first rank, on whom the others depend for knowing it, waits for them to come to the same end."""

IN_WORKER = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback .*\n(?=[\w.]+(Error|Exception): )", re.DOTALL
)
"""What torch puts before an error of a process that prepares batches; the type follows, then the message."""

DEAD_WORKER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\)")
"""How torch begins when such a process has ended without an error."""


def stop(error: Exception, command: str) -> NoReturn:
    """Exit with status 1 and say why, on the first rank that comes here with these words and knows the cause."""
    of_reward = isinstance(error, RewardError)  # says itself on which rank; others are told, and know no more
    words = last_words(error, command)
    rank = _rank_to_speak(words, knows_why=not of_reward or error.__cause__ is not None)
    if rank is None:
        sys.exit(1)
    prefix = f"rank {rank}: " if rank and not of_reward else ""
    sys.exit(f"medgrpo: {prefix}{words}")


def last_words(error: Exception, command: str) -> str:
    """What the user reads; the traceback of an error that nobody expected is written beside."""
    error = _cause_for_users(error) or error
    text = IN_WORKER.sub("", str(error))
    if isinstance(error, RewardError):
        return text if error.__cause__ is None else f"{text}\n{_keep_traceback(error)}"
    if isinstance(error, UserError):
        return text if text == str(error) else text.split(": ", 1)[1].strip()
    if isinstance(error, MisconfigurationException):
        return " ".join(text.split())
    if isinstance(error, RuntimeError) and DEAD_WORKER.match(text):
        return (
            f"a process that prepares batches has died ({' '.join(text.split())}). Most often it is for want of "
            "memory: lower data.num_workers (0 prepares batches in the training process) or data.max_image_pixels, or "
            "give the machine more shared memory (/dev/shm; --shm-size of a container)"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    told = first if text != str(error) else f"{type(error).__name__}: {first}".removesuffix(": ")
    shown = told if len(told) <= MAX_SHOWN else told[:MAX_SHOWN] + " ..."
    return f"{command} stopped: {shown}\n{_keep_traceback(error)}"


def _cause_for_users(error: BaseException | None) -> UserError | None:
    """The error that a user can mend, where a parser of options has put its own around it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _keep_traceback(error: Exception) -> str:
    """Where the traceback is, or the traceback itself where nothing can be written."""
    text = "".join(traceback.format_exception(error))
    path = Path.cwd() / f"medgrpo_error_{os.getpid()}.txt"
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return text
    return f"The whole traceback is in {path}"


def _rank_to_speak(words: str, knows_why: bool) -> int | None:
    """This process's rank if it is to say it: the first that knows why, of those that say the same; None for others."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return 0
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    store = torch.distributed.distributed_c10d._get_default_store()  # no collective: others may never come
    # Without the name of the file, in which the ranks differ.
    key = "medgrpo/stopped/" + hashlib.sha256(words.splitlines()[0].encode()).hexdigest()
    try:
        is_first = knows_why and store.add(f"{key}/said", 1) == 1
        store.add(key, 1)
    except RuntimeError:  # the rank that keeps the store has gone
        return rank
    deadline = time.monotonic() + SECONDS_FOR_OTHERS
    while rank == 0 and store.add(key, 0) < world_size and time.monotonic() < deadline:
        time.sleep(0.05)
    return rank if is_first else None
