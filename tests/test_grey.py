"""Windows: the formulas of DICOM PS3.3 C.11.2.1, by hand and against pydicom."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels import apply_windowing

from data_modules.grey import stretched, windowed


def test_a_window_by_hand() -> None:
    # Soft tissue, 40 +- 200: -160 black, 240 white, 40 in the middle: 127.5 -> 128 (to even), 140: 0.75 * 255 = 191.25
    values = np.array([-1000, -160, -60, 40, 140, 240, 3000])
    assert windowed(values, 40, 400).tolist() == [0, 0, 64, 128, 191, 255, 255]
    # LINEAR: (40 - 39.5) / 399 + 0.5 = 0.50125 -> 127.82; the last white value is 240 - 1
    assert windowed(values, 40, 400, "LINEAR").tolist() == [0, 0, 64, 128, 192, 255, 255]
    assert windowed(np.array([238, 239]), 40, 400, "LINEAR").tolist() == [254, 255]
    # SIGMOID: 255 / (1 + exp(-4 * 100 / 400)) = 186.4
    assert windowed(np.array([-60, 40, 140, 99999]), 40, 400, "SIGMOID").tolist() == [69, 128, 186, 255]
    assert windowed(np.array([0.2, 0.5, 0.8]), 0.5, 0.6).tolist() == [0, 128, 255]
    assert windowed(np.array([9, 10]), 10, 1, "LINEAR").tolist() == [0, 255]
    assert windowed(values, 40, 400, shown=values < 200).tolist() == [0, 0, 64, 128, 191, 0, 0]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in pydicom's sigmoid
@given(st.floats(-2000, 2000), st.floats(2, 4000), st.sampled_from(("LINEAR", "LINEAR_EXACT", "SIGMOID")))
def test_pydicom_agrees(center: float, width: float, function: str) -> None:
    dataset = pydicom.Dataset()
    dataset.PhotometricInterpretation, dataset.VOILUTFunction = "MONOCHROME2", function
    dataset.BitsStored, dataset.PixelRepresentation = 8, 0  # output from 0 to 255
    dataset.WindowCenter, dataset.WindowWidth = f"{center:.6f}", f"{width:.6f}"
    values = np.arange(-3000, 3000, 37)
    expected = apply_windowing(values, dataset)
    grey = windowed(values, dataset.WindowCenter, dataset.WindowWidth, function)
    assert np.abs(grey - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("width", "function", "message"),
    [
        (0, "LINEAR_EXACT", "above 0, got 0"),
        (-5, "SIGMOID", "above 0"),
        (0.5, "LINEAR", "at least 1, got 0.5"),
        (float("nan"), "LINEAR", "at least 1"),
        (9, "CUBIC", "got 'CUBIC'"),
    ],
)
def test_windows_that_mean_nothing_are_refused(width: float, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windowed(np.zeros(3), 0, width, function)


def test_stretching_counts_what_is_shown() -> None:
    values = np.array([-2000, 100, 2100, 4100])
    assert stretched(values[1:]).tolist() == [0, 128, 255]
    assert stretched(values, values > -2000).tolist() == [0, 0, 128, 255]
    assert stretched(np.full(3, 700)).tolist() == [0, 0, 0]
    assert stretched(values, values > 9999).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="finite"):
        stretched(np.array([0, np.nan]))
