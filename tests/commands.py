"""``medgrpo`` commands as documents show them, and how to set one up without running it."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from lightning.pytorch.cli import LightningCLI

from medgrpo.trainer_cli import MedGRPOCLI, main

COMMAND = re.compile(r"(?:[A-Z]+=\S+ )*medgrpo ((?:fit|validate|test|predict)\b.*)")


def arguments(lines: str) -> list[list[str]]:
    """Arguments of each line that is a ``medgrpo`` command, with or without variables before it."""
    return [shlex.split(match[1]) for line in lines.splitlines() if (match := COMMAND.fullmatch(line.strip()))]


def configs(args: list[str]) -> list[str]:
    """The files that a command names after ``--config``."""
    return [value for option, value in zip(args, args[1:], strict=False) if option == "--config"]


class Ready(BaseException):
    """Carries the CLI out of ``main`` when all is parsed and made, and nothing has run."""


def set_up(args: list[str], monkeypatch: pytest.MonkeyPatch) -> LightningCLI:
    """Everything that the command does before it loads a model or reads a record: trainer, model and data are made."""

    def stop(cli: LightningCLI) -> None:
        raise Ready(cli)

    for name in ("fit", "validate", "test", "predict"):
        monkeypatch.setattr(MedGRPOCLI, f"before_{name}", stop, raising=False)
    monkeypatch.setattr(sys, "argv", ["medgrpo", *args])
    with pytest.raises(Ready) as caught:
        main()
    return caught.value.args[0]
