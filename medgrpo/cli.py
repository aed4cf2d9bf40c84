"""The console command ``medgrpo``: training and its kin are LightningCLI's, ``medgrpo data`` is for question files."""

from __future__ import annotations

import sys


def main() -> None:
    """Hand over to whoever has the command; each loads only what it needs."""
    if sys.argv[1:2] == ["data"]:
        from medgrpo.data_cli import main as data

        sys.exit(data(sys.argv[2:]))
    from medgrpo.trainer_cli import main as train

    train()


if __name__ == "__main__":
    main()
