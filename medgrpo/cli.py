"""The console command ``medgrpo``: training and its kin are LightningCLI's, ``medgrpo data`` is for question files."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Hand over to whoever has the command; each loads only what it needs."""
    if sys.argv[1:2] == ["data"]:
        from medgrpo.data_cli import main as data

        try:
            sys.exit(data(sys.argv[2:]))
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
    from medgrpo.trainer_cli import main as train

    train()


if __name__ == "__main__":
    main()
