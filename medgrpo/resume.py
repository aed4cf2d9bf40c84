"""Files of answers that a stopped run goes on with: what the answers depend on, and who writes where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_modules.base import MedicalVQADataModule
from medgrpo.policy import Policy
from medgrpo.policy_module import PolicyModule
from medgrpo.types import DataError, SettingsError

BLOCK = 2**16
"""Bytes that are looked at together."""

NUM_BLOCKS = 1024
"""Of a file of weights: the whole of one up to 64 MiB, evenly spaced parts of a larger one."""


def settings_of(
    module: PolicyModule, data: MedicalVQADataModule, ckpt_path: str | None, names: Iterable[str]
) -> dict[str, Any]:
    """What answers depend on, as JSON values by the name of the option.

    Args:
        module: whose policy answers.
        data: whose questions are asked.
        ckpt_path: checkpoint whose weights answer, if any.
        names: of further options of the module.

    Raises:
        SettingsError: a checkpoint's name that does not say which it is.
    """
    if ckpt_path in ("best", "last", "hpc"):
        raise SettingsError(
            f"ckpt_path: expected the path of a checkpoint, got {ckpt_path!r}, which is another one later on"
        )
    policy = module.policy
    paths = {"model_name_or_path": policy.model_name_or_path, "adapter": policy.adapter, "ckpt_path": ckpt_path}
    weights = {name: fingerprint(path) for name, path in paths.items() if path and os.path.exists(path)}
    if module.num_tokens and ckpt_path is None:
        weights["in memory"] = _sums(policy)
    return {
        "model.policy.model_name_or_path": real_path(policy.model_name_or_path),
        "model.policy.adapter": real_path(policy.adapter),
        "ckpt_path": real_path(ckpt_path),
        "weights": weights,
        **{f"model.policy.{name}": getattr(policy, name) for name in ("quantize", "min_pixels", "max_pixels")},
        **{f"model.{name}": getattr(module, name) for name in names},
        "data.prompt": data.prompt,
        "data.image_root": real_path(data.image_root),
        **{f"data.{name}": _listed(getattr(data, name)) for name in ("resize", "window", "frames_per_volume")},
    }


def fingerprint(path: str) -> str:
    """16 hex digits that change with the weights in a folder or checkpoint, but not with where it is or when it was
    copied: from the size of each file and `NUM_BLOCKS` parts of it.

    Both ends would not do: a safetensors file begins with names, and that of a whole model ends with a vision tower
    that may not have trained.
    """
    folder = Path(path)
    files = (
        [folder] if folder.is_file() else [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".bin")]
    )
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if folder.is_dir() else ''} {size}".encode())
        with file.open("rb") as opened:
            for start in (*range(0, size, max(BLOCK, size // NUM_BLOCKS)), max(0, size - BLOCK)):
                opened.seek(start)
                digest.update(opened.read(BLOCK))
    return digest.hexdigest()[:16]


def _sums(policy: Policy) -> str:
    """Of weights that were trained in this process, for which there is no file."""
    trained = (p.detach().double() for p in policy.parameters() if p.requires_grad)
    sums = [(p.sum().item(), p.abs().sum().item()) for p in trained]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


def read_about(file: Path, option: str) -> Any:
    """What a JSON file says of the answers beside it; None without it.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return json.loads(file.read_bytes()) if file.is_file() else None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: expected JSON that says how the answers beside it were made ({error}): set a new {option}"
        ) from error


def check_settings(path: Path, before: Any, settings: dict[str, Any], has_rows: bool, option: str) -> None:
    """Refuse to go on with a file whose answers were made otherwise.

    Args:
        path: of the answers.
        before: settings that they were made with, from `read_about`.
        settings: of this run.
        has_rows: whether there are answers yet.
        option: that names another place.

    Raises:
        DataError: nothing says how they were made.
        SettingsError: the settings that changed, with both values.
    """
    if not has_rows:
        return
    if not isinstance(before, dict):
        raise DataError(f"{path} has rows, but nothing beside it says how they were made: set a new {option}")
    changed = [f"{n} was {before.get(n)}, is {settings[n]}" for n in settings if before.get(n) != settings[n]]
    if changed:
        raise SettingsError(
            f"{path} was made with other settings: {'; '.join(changed)}. Go on with those settings, or set a new "
            f"{option}"
        )


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Says what to change when a file cannot be written.

    Raises:
        SettingsError: with the system's reason, such as a full disk.
    """
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{option}: {path} cannot be written ({error.strerror}): make room or allow it, and the same command goes "
            f"on; or set a new {option}"
        ) from error


def mend(file: Path) -> None:
    """Make a file of lines that can be appended to: what follows the last newline is of a run that died there."""
    file.touch()
    with file.open("rb+") as opened:
        opened.truncate(opened.read().rfind(b"\n") + 1)


def real_path(name: str | None) -> str | None:
    """A path without links: ``last.ckpt`` is another checkpoint later on. A Hub id stays as it is."""
    return os.path.realpath(name) if name and os.path.exists(name) else name


def _listed(value: Any) -> Any:
    """As it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value
