"""Figures: what is written in them, and that they are pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot, rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from medgrpo.report.curves import Curve
from medgrpo.report.figures import (
    _on,
    draw_bars,
    draw_curves,
    draw_heatmap,
    draw_steps,
    save,
)
from medgrpo.report.grids import Matrix, Point, Series
from medgrpo.types import MODALITIES

ACCURACY = Matrix(
    title="Accuracy, trained on one modality, tested on each",
    kind="modality",
    measure="accuracy",
    mode="think",
    rows=("base", "ct", "mri"),
    columns=("ct", "mri", "oct"),
    values=((0.3, 0.5, 0.31), (0.9, 0.4, 0.2), (0.5, 0.8127, None)),
    counts=((10, 12, 1500), (10, 12, 1500), (10, 12, 0)),
    runs=("base", "ct", "mri"),
)
GAIN = replace(
    ACCURACY,
    title="Gain over the base",
    measure="gain",
    rows=("ct", "mri"),
    values=((0.6, -0.1, -0.11), (0.0, 0.3127, None)),
    counts=((10, 12, 1500), (10, 12, 0)),
    runs=("ct", "mri"),
)


def point(label: str, mode: str = "think", step: int = 0, accuracy: float = 0.5) -> Point:
    return Point(label, mode, step, accuracy, accuracy - 0.1, accuracy + 0.05, 40, "run")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def patches(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_cells_show_percent_and_the_means_stand_beside_them() -> None:
    figure = draw_heatmap(ACCURACY)
    base, ct, mri = ["30.0", "50.0", "31.0"], ["90.0", "40.0", "20.0"], ["50.0", "81.3"]
    assert texts(figure) == [*base, "37.0", *ct, "50.0", "30.0", *mri, "65.6", "50.0"]
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["base", "ct", "mri"]
    assert [text.get_text().split() for text in axes.get_xticklabels()][:4] == [["ct"], ["mri"], ["oct"], ["mean"]]
    assert axes.get_title(loc="left") == ACCURACY.title
    caption = " ".join(axes.get_xlabel().split())
    assert caption.startswith("tested on Percent of answers right.")
    assert caption.endswith("Hatched: not tested. n = 10 to 1,500 questions each.")


def test_gains_have_signs() -> None:
    figure = draw_heatmap(GAIN)
    assert texts(figure) == ["+60.0", "−10.0", "−11.0", "+13.0", "−10.5", "0.0", "+31.3", "+15.6", "0.0"]
    assert "Percentage points over the base." in figure.axes[0].get_xlabel()


def test_a_value_that_rounds_to_zero_has_no_sign() -> None:
    assert texts(draw_heatmap(replace(GAIN, values=((-0.0001, 0.0002, None),) * 2)))[:2] == ["0.0", "0.0"]


def test_each_cell_stands_in_its_place_and_the_missing_one_is_hatched() -> None:
    figure = draw_heatmap(ACCURACY)
    cells = [patch for patch in patches(figure) if patch.get_fill()]
    assert [patch.get_x() for patch in cells] == [0, 1, 2] * 3
    assert [patch.get_y() for patch in cells] == [0] * 3 + [1.15] * 3 + [2.15] * 3  # the base stands apart
    assert [bool(patch.get_hatch()) for patch in cells] == [False] * 8 + [True]
    shown = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert shown["90.0"] == (0.5, pytest.approx(1.65))
    assert shown["81.3"] == (1.5, pytest.approx(2.65))


def test_the_diagonal_is_outlined() -> None:
    outlines = [patch for patch in patches(draw_heatmap(ACCURACY)) if not patch.get_fill()]
    assert [patch.get_xy() for patch in outlines] == [(0, 1.15), (1, 2.15)]
    outlines = [patch for patch in patches(draw_heatmap(GAIN)) if not patch.get_fill()]
    assert [patch.get_xy() for patch in outlines] == [(0, 0), (1, 1)]


def test_colours_of_gain_are_symmetric_and_those_of_accuracy_are_the_same_in_every_figure() -> None:
    def faces(matrix: Matrix, *row: float) -> list[tuple[float, ...]]:
        matrix = replace(matrix, rows=("ct",), values=(row,), counts=((1, 1, 1),), runs=("ct",))
        return [to_rgb(patch.get_facecolor()) for patch in patches(draw_heatmap(matrix)) if patch.get_fill()]

    loss, none, gain = faces(GAIN, -0.2, 0.0, 0.2)
    assert min(none) > 0.95  # white
    assert loss[0] > loss[2] + 0.2  # red
    assert gain[2] > gain[0] + 0.2  # blue
    assert faces(GAIN, -0.2, 0.0, 0.1)[:2] == [loss, none]
    assert faces(ACCURACY, 0.5, 0.1, 0.1)[0] == faces(ACCURACY, 0.5, 1.0, 0.9)[0]


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_numbers_can_be_read_on_every_colour(face: tuple[float, float, float]) -> None:
    def luminance(color: tuple[float, float, float]) -> float:  # WCAG 2.1
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(face), luminance(to_rgb(_on(face)))))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_bars_have_the_height_of_the_accuracy_and_whiskers_from_low_to_high() -> None:
    points = [point("base", "think", accuracy=0.25), point("ct", "think", accuracy=0.5), point("ct", "nothink")]
    figure = draw_bars([*points[:2], replace(points[2], accuracy=0.75, low=0.5, high=0.875)])
    assert [patch.get_height() for patch in patches(figure)] == [25.0, 50.0, 75.0]
    assert texts(figure) == ["25.0", "50.0", "75.0"]
    (segments, *_), (last, *_) = (c.lines[2] for c in figure.axes[0].containers if hasattr(c, "lines"))
    assert [tuple(y for _, y in segment) for segment in segments.get_segments()] == [
        pytest.approx((15, 30)),
        pytest.approx((40, 55)),
    ]
    assert [tuple(y for _, y in segment) for segment in last.get_segments()] == [pytest.approx((50, 87.5))]
    assert legend(figure) == ["think", "nothink"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["base", "ct"]


def test_steps_have_a_line_for_each_series_and_a_level_one_for_the_base() -> None:
    base = Series("base", "think", (point("base", accuracy=0.3),))
    ct = Series("ct", "think", (point("ct", step=50, accuracy=0.4), point("ct", step=100, accuracy=0.6)))
    figure = draw_steps([base, ct])
    level, line = figure.axes[0].lines
    assert list(level.get_ydata()) == [30.0, 30.0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([50, 100], [40.0, 60.0])
    (band,) = figure.axes[0].collections
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(50, 30.0), (50, 45.0), (100, 50.0), (100, 65.0)}
    assert legend(figure) == ["base", "ct"]


def test_many_lines_have_no_bands_and_say_so() -> None:
    series = [Series(m, "think", (point(m, step=1), point(m, step=2))) for m in MODALITIES]
    axes = draw_steps(series).axes[0]
    assert len(axes.lines) == 8
    assert not axes.collections
    assert "Intervals are left out" in axes.get_xlabel()


def test_lines_of_steps_all_look_different() -> None:
    labels = [*MODALITIES, "all modalities", "text"]
    series = [Series(name, mode, (point(name, mode, 1),)) for name in labels for mode in ("think", "nothink")]
    figure = draw_steps(series)
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == len(series) == 20
    assert legend(figure)[:2] == ["ct, think", "ct, nothink"]


def test_a_run_has_one_colour_in_the_curves_of_all_tags() -> None:
    """The second figure lacks the first run."""
    curves = [
        Curve("a", "reward", (1, 2), (0.5, 0.75)),
        Curve("b", "reward", (1, 2), (0.25, 0.5)),
        Curve("b", "completions/mean_length", (1, 2), (30.0, 20.0)),
    ]
    first, second = (draw_curves(curves, tag) for tag in ("reward", "completions/mean_length"))
    lines, (line,) = first.axes[0].lines, second.axes[0].lines
    assert [list(each.get_ydata()) for each in lines] == [[0.5, 0.75], [0.25, 0.5]]
    assert list(line.get_ydata()) == [30.0, 20.0]
    assert lines[1].get_color() == line.get_color() != lines[0].get_color()
    assert [figure.axes[0].get_ylabel() for figure in (first, second)] == ["mean reward", "mean length (tokens)"]
    assert all(figure.axes[0].get_xlabel().startswith("optimizer step") for figure in (first, second))
    assert (legend(first), legend(second)) == (["a", "b"], ["b"])


def test_twenty_curves_look_different() -> None:
    lines = draw_curves([Curve(f"run{i}", "reward", (1, 2), (0.0, i)) for i in range(20)], "reward").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_a_long_legend_takes_nothing_from_the_panel() -> None:
    def height(runs: int) -> float:  # of the panel, in inches
        figure = draw_curves(
            [Curve(f"run{i:03d} of a long name", "reward", (1, 2), (0.0, i)) for i in range(runs)], "reward"
        )
        figure.draw_without_rendering()
        return figure.axes[0].get_position().height * figure.get_figheight()

    assert height(40) == pytest.approx(height(2), abs=0.15)


NAMES = ("A task with a very long name", "$x_1$ and $", "_hidden", "100 %", "a\\b")
HOSTILE = ("w" * 5000, "a\0b\nc", "word " * 500, "\u202eabc", "")
TAG = "own/$tag_1$ $\\bad$"
WIDE = replace(
    ACCURACY,
    kind="task",
    rows=NAMES,
    columns=NAMES,
    values=((0.5,) * 5,) * 5,
    counts=((1,) * 5,) * 5,
    runs=NAMES,
)
EIGHT = replace(
    ACCURACY,
    rows=("base", *MODALITIES),
    columns=MODALITIES,
    values=tuple(tuple((3 * r + 5 * c) % 64 / 63 for c in range(8)) for r in range(9)),
    counts=((100,) * 8,) * 9,
    runs=("base", *MODALITIES),
)
PICTURES: dict[str, Callable[[], Figure]] = {
    "eight": lambda: draw_heatmap(EIGHT),
    "one row": lambda: draw_heatmap(replace(GAIN, rows=("ct",), values=GAIN.values[:1], counts=((1, 1, 1),))),
    "odd names": lambda: draw_heatmap(WIDE),
    "hostile names": lambda: draw_heatmap(replace(WIDE, columns=HOSTILE, rows=HOSTILE)),
    "bars": lambda: draw_bars([point(name, mode) for name in NAMES for mode in ("think", "nothink", "")]),
    "one bar": lambda: draw_bars([point("ct")]),
    "one step": lambda: draw_steps([Series("ct", "", (point("ct", "", 7),))]),
    "base only": lambda: draw_steps([Series("base", "", (point("base", ""),))]),
    "curves": lambda: draw_curves([Curve(name, "reward", (1, 2), (0.0, float("nan"))) for name in NAMES], "reward"),
    "one value": lambda: draw_curves([Curve("run", TAG, (5,), (1.0,))], TAG),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
@pytest.mark.filterwarnings("error")
def test_pictures_are_small_readable_files(draw: Callable[[], Figure], tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    save(draw(), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1000
        assert 250 <= image.height <= 1000
        assert not image.info.keys() & {"Software", "Creation Time"}
        assert len(set(image.convert("L").tobytes())) > 10
    assert path.stat().st_size < 100_000


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(draw_heatmap(EIGHT), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_state_of_matplotlib_is_left_alone() -> None:
    before = dict(rcParams)
    for draw, data in ((draw_heatmap, EIGHT), (draw_bars, [point("ct")])):
        draw(data)
    assert pyplot.get_fignums() == []
    assert dict(rcParams) == before
