"""``medgrpo export``: a checkpoint as an adapter or a whole model that others can load, with a model card."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medgrpo.types import UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="medgrpo export", description=__doc__, allow_abbrev=False)
    root.add_argument("checkpoint", metavar="CKPT", help="NAME.ckpt, or the folder NAME beside it")
    root.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not be there, or be empty")
    root.add_argument(
        "--merge", action="store_true", help="merge the adapter into its base: a whole model, safetensors"
    )
    root.add_argument(
        "--base", metavar="MODEL", help="base model; must be given when it was a local folder in training"
    )
    root.add_argument(
        "--evaluation", nargs="+", default=[], metavar="DIR", help="folders of `medgrpo test`, for the model card"
    )
    return root


def main(args: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 1 after bad input.
    """
    parsed = parser().parse_args(args)
    from medgrpo.export import export  # loads torch and transformers

    try:
        export(
            Path(parsed.checkpoint),
            Path(parsed.out),
            merge=parsed.merge,
            base=parsed.base,
            evaluations=[Path(folder) for folder in parsed.evaluation],
        )
    except UserError as error:
        print(f"medgrpo: {error}", file=sys.stderr)
        return 1
    return 0
