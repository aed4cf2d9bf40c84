"""The console command ``medgrpo``: training and its kin are LightningCLI's, ``medgrpo data`` is for question files,
``medgrpo grade``, ``compare`` and ``report`` for saved predictions, ``medgrpo export`` for trained weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def main() -> None:
    """Hand over to whoever has the command; each loads only what it needs."""
    first = sys.argv[1:2]
    if first == ["data"]:
        from medgrpo.data_cli import main as data

        _exit(lambda: data(sys.argv[2:]))
    if first and first[0] in ("grade", "compare", "report"):
        from medgrpo.eval_cli import main as evaluate

        _exit(lambda: evaluate(sys.argv[1:]))
    if first == ["export"]:
        from medgrpo.export_cli import main as export

        _exit(lambda: export(sys.argv[2:]))
    from medgrpo.trainer_cli import main as train

    train()


def _exit(command: Callable[[], int]) -> NoReturn:
    try:
        sys.exit(command())
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
