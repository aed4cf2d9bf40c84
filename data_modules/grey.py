"""Grey values of any depth -> 8 bits: a window that someone chose, or everything from the least to the greatest."""

from __future__ import annotations

import numpy as np


def windowed(
    values: np.ndarray, center: float, width: float, function: str = "LINEAR_EXACT", shown: np.ndarray | None = None
) -> np.ndarray:
    """Show the values around ``center`` between black and white, all below black and all above white.

    Args:
        values: any shape.
        center: in the unit of ``values``, Hounsfield units for CT.
        width: likewise.
        function: how DICOM PS3.3 C.11.2.1 maps the window: ``LINEAR_EXACT`` from center - width / 2 to center +
            width / 2; ``LINEAR``, DICOM's default, whose ends are whole numbers: from center - width / 2 to center +
            width / 2 - 1; or ``SIGMOID``.
        shown: False where a value is no measurement and stays black; None shows all.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a width for which the function is not defined, or another function.
    """
    if function == "LINEAR" and not width >= 1:
        raise ValueError(f"window: expected a width of at least 1, got {width}")
    if not width > 0:
        raise ValueError(f"window: expected a width above 0, got {width}")
    values = values.astype(np.float32)
    if function == "SIGMOID":
        grey = 127.5 + 127.5 * np.tanh(2 * (values - center) / width)  # 255 / (1 + exp(-4 (x - c) / w))
    elif function == "LINEAR" and width == 1:
        grey = np.where(values > center - 0.5, 255.0, 0.0)
    elif function == "LINEAR":
        grey = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    elif function == "LINEAR_EXACT":
        grey = ((values - center) / width + 0.5) * 255
    else:
        raise ValueError(f"VOI LUT Function: expected LINEAR, LINEAR_EXACT or SIGMOID, got {function!r}")
    return _masked(grey, shown)


def stretched(values: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
    """Show the least value as black and the greatest as white; equal values are black.

    Args:
        values: any shape.
        shown: False where a value is no measurement: it is not counted and stays black; None shows all.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a value that is not finite.
    """
    values = values.astype(np.float32)
    counted = values if shown is None else values[shown]
    if not counted.size:
        return np.zeros(values.shape, np.uint8)
    low, high = counted.min(), counted.max()
    if not np.isfinite(high - low):
        raise ValueError(f"expected finite grey values, got {low} to {high}")
    return _masked((values - low) * (255 / max(high - low, 1e-12)), shown)


def _masked(grey: np.ndarray, shown: np.ndarray | None) -> np.ndarray:
    if shown is not None:
        grey = np.where(shown, grey, 0)
    return grey.clip(0, 255).round().astype(np.uint8)
