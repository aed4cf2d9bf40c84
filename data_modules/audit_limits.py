"""Limits that an audit may not exceed, so that it can guard a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medgrpo.types import SettingsError


def check_limits(json: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """What a data set may not exceed.

    Args:
        json: from `Audit.to_json`.
        limits: greatest value allowed, by dotted key, e.g. ``{"leak.path": 0, "groups.modality.ct.leak.path": 0}``.

    Returns:
        One line for each value above its limit.

    Raises:
        SettingsError: a key that the audit does not have, or that has no value in this one.
    """
    values = _numbers(json)
    unknown = [key for key in limits if values.get(key) is None]
    if unknown:
        known = [
            key for key, value in values.items() if value is not None and not key.startswith(("counts.", "groups."))
        ]
        reasons = [
            f"{key} was not measured (it needs train and test, records with options, image hashes or a text-only model)"
            if key in values
            else f"{key} is no figure of an audit"
            for key in unknown
        ]
        raise SettingsError(
            f"limit: {'; '.join(reasons)}. Expected one of {', '.join(known)}, "
            "one of those that every group has, e.g. groups.modality.ct.leak.path, or one of counts"
        )
    # "not <=", so that a limit or value that is no number does not pass.
    return [
        f"{key} is {values[key]:.10g}, above the limit of {limit:.10g}"
        for key, limit in limits.items()
        if not values[key] <= limit
    ]


def _numbers(json: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Numbers and missing numbers below a JSON object, by dotted key."""
    found: dict[str, float | None] = {}
    for name, value in json.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[prefix + name] = value
    return found
