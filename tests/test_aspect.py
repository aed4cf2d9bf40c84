"""Pixels that are not square are made so, in the direction of the coarser spacing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_modules.aspect import square_size, squared
from medgrpo.types import DataError


@pytest.mark.parametrize(
    ("across", "down", "expected"),
    [
        (1.0, 1.0, (100, 40)),
        (1.0, 5.0, (100, 200)),  # a coronal slice of 1 mm columns and 5 mm slices
        (0.8, 0.4, (200, 40)),
        (0.5, 0.504, (100, 40)),  # within the tolerance
        (0.0, 3.0, (100, 40)),
        (-1.0, 3.0, (100, 40)),
        (float("nan"), 3.0, (100, 40)),
        (float("inf"), 3.0, (100, 40)),
    ],
)
def test_the_finer_spacing_is_kept(across: float, down: float, expected: tuple[int, int]) -> None:
    assert square_size((100, 40), across, down, 10**6) == expected
    assert squared(Image.new("RGB", (100, 40)), across, down, 10**6).size == expected


@given(st.floats(0.05, 10), st.floats(0.05, 10))
def test_the_result_has_the_proportions_of_the_body(across: float, down: float) -> None:
    width, height = square_size((300, 200), across, down, 10**9)
    assert width >= 300
    assert height >= 200
    assert (width / height) / (300 * across / (200 * down)) == pytest.approx(1, rel=0.015)


def test_a_spacing_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"100 x 40 pixels of 1 x 1e\+06 would be 100 x 40000000 .* max_image_pixels=1000000"
    ):
        square_size((100, 40), 1.0, 1e6, 10**6)
