"""Figures of a report, drawn by matplotlib without its global state, as PNG files 1000 pixels wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from PIL import Image

from medgrpo.report.curves import Curve
from medgrpo.report.grids import BASE, MODES, Matrix, Point, Series

WIDTH = 8.0
"""Inches."""
DPI = 125
SMALL = 8.5
"""Points: names of columns, captions and legends."""
CHARACTER = 0.073
"""Width of a character of small text, in inches, about."""
CAPTION = 98
"""Characters in a line of a caption."""

GAP, MEAN = 0.15, 0.8
"""Of a heatmap: the space around its cells, and the width of the columns of means; a cell is 1 wide and 1 high."""

INK, GREY, PALE = "#222222", "#666666", "#ededed"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#000000")
"""Told apart by the colour-blind: Okabe and Ito's palette (2008), with a brown for its yellow, faint on white."""
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
OTHER = "other prompt"

MOST_BANDS = 6
"""Lines that may have interval bands: more of them hide each other."""

CURVES = {
    "reward": ("Reward in training", "mean reward"),
    "completions/mean_length": ("Length of completions in training", "mean length (tokens)"),
    "val/accuracy": ("Accuracy in validation", "accuracy (share right)"),
}
"""Title and unit by tag."""
LONGEST_NAME = 60
"""Characters of the name of a row or column."""


def draw_heatmap(matrix: Matrix) -> Figure:
    """Cells in percent, or percentage points of gain, with the row means beside them.

    The colours of accuracy span 0 to 100 % in every figure, those of gain are symmetric around 0.
    """
    gain = matrix.measure == "gain"
    known = [100 * value for row in matrix.values for value in row if value is not None]
    if gain:
        most = max([5.0, *map(abs, known)])
        colors, norm = colormaps["RdBu"], Normalize(-1.1 * most, 1.1 * most)
    else:
        colors, norm = colormaps["Blues"], Normalize(0, 100)
    rows, columns = len(matrix.rows), len(matrix.columns)
    beside = (columns + GAP + MEAN / 2, columns + GAP + 1.5 * MEAN)
    figure, axes = _figure(2.1 + 0.42 * rows)
    below_base = GAP if matrix.rows[0] == BASE and rows > 1 else 0.0
    for r, (name, values) in enumerate(zip(matrix.rows, matrix.values, strict=True)):
        top = r + (below_base if r else 0.0)
        for c, (column, value) in enumerate(zip(matrix.columns, values, strict=True)):
            face = PALE if value is None else colors(norm(100 * value))
            missing = {"hatch": "////", "edgecolor": "#bdbdbd"} if value is None else {"edgecolor": "white"}
            axes.add_patch(Rectangle((c, top), 1, 1, facecolor=face, linewidth=1, **missing))
            if column == name:
                axes.add_patch(
                    Rectangle((c, top), 1, 1, fill=False, edgecolor=INK, linewidth=2, zorder=3, clip_on=False)
                )
            if value is not None:
                _text(axes, c + 0.5, top + 0.5, _percent(value, gain), color=_on(face))
        for x, mean in zip(beside, (matrix.means[r], matrix.means_elsewhere[r]), strict=True):
            if mean is not None:
                _text(axes, x, top + 0.5, _percent(mean, gain), color=INK)
    axes.set_xlim(0, beside[1] + MEAN / 2)
    axes.set_ylim(rows + below_base, 0)
    names = [textwrap.fill(_name(name), 18, max_lines=2, placeholder=" …") for name in matrix.rows]
    axes.set_yticks([r + 0.5 + (below_base if r else 0.0) for r in range(rows)], names)
    longest = max(len(line) for name in names for line in name.split("\n"))
    room = (WIDTH - 0.6 - CHARACTER * longest) / (columns + GAP + 2 * MEAN)
    _name_columns(
        axes, [*(c + 0.5 for c in range(columns)), *beside], [*matrix.columns, "mean", "mean elsewhere"], room
    )
    axes.set_ylabel("trained on", color=GREY)
    _caption(axes, "tested on", _about(matrix))
    _plain(axes, matrix.title)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def draw_bars(points: Sequence[Point]) -> Figure:
    """Accuracy in percent by label (groups of bars) and prompt mode (colours), whiskers from low to high.

    Args:
        points: at least one; each label and mode once.
    """
    labels = list(dict.fromkeys(point.label for point in points))
    modes = [mode for mode in MODES if any(point.mode == mode for point in points)]
    width = min(0.8 / len(modes), 0.35)
    figure, axes = _figure(4.0)
    handles = []
    for m, mode in enumerate(modes):
        own = [point for point in points if point.mode == mode]
        left = [labels.index(point.label) + (m - (len(modes) - 1) / 2) * width for point in own]
        tops = [100 * point.accuracy for point in own]
        handles.append(axes.bar(left, tops, 0.9 * width, color=COLORS[MODES.index(mode)]))
        axes.errorbar(left, tops, _whiskers(own), fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for x, point in zip(left, own, strict=True):
            if len(points) <= 16:
                _text(axes, x, 100 * point.high + 1, _percent(point.accuracy), color=INK, va="bottom", fontsize=8)
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)", color=GREY)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    _name_columns(axes, range(len(labels)), labels, 0.85 * WIDTH / len(labels))
    _caption(axes, "trained on", f"Whiskers: 95 % intervals. {_questions(p.n for p in points)}")
    _legend(figure, handles, [mode or OTHER for mode in modes])
    _plain(axes, "Accuracy by prompt mode")
    return figure


def draw_steps(series: Sequence[Series]) -> Figure:
    """Accuracy in percent against the optimizer step, one line for each label and mode; bases are level lines.

    Args:
        series: at least one.
    """
    figure, axes = _figure(4.3)
    labels = [label for label in dict.fromkeys(each.label for each in series) if label != BASE]
    several_modes = len({each.mode for each in series}) > 1
    with_bands = len(series) <= MOST_BANDS
    handles = []
    for each in series:
        x, y = [p.step for p in each.points], [100 * p.accuracy for p in each.points]
        low, high = [100 * p.low for p in each.points], [100 * p.high for p in each.points]
        style = STYLES[MODES.index(each.mode) if several_modes else 0]
        if each.label == BASE:
            handles.append(axes.axhline(y[0], color=GREY, linestyle=style, linewidth=1.2))
            if with_bands:
                axes.axhspan(low[0], high[0], color=GREY, alpha=0.1, linewidth=0)
            continue
        number = labels.index(each.label)
        color, marker = COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]
        handles += axes.plot(x, y, color=color, linestyle=style, linewidth=1.6, marker=marker, markersize=4)
        if with_bands and len(x) > 1:
            axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
        elif with_bands:
            axes.errorbar(x, y, _whiskers(each.points), fmt="none", ecolor=color, capsize=3)
    axes.set_ylabel("accuracy (%)", color=GREY)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    bands = "Bands: 95 % intervals." if with_bands else "Intervals are left out: too many lines."
    counts = _questions(p.n for each in series for p in each.points)
    _caption(axes, "optimizer step", f"{bands} {counts}")
    _legend(figure, handles, [f"{s.label}, {s.mode or OTHER}" if several_modes else s.label for s in series])
    _plain(axes, "Accuracy by checkpoint")
    return figure


def draw_curves(curves: Sequence[Curve], tag: str) -> Figure:
    """The curves of one tag, values as logged, not smoothed.

    Args:
        curves: of all tags: a run has the same colour in the figures of all of them.
        tag: which at least one curve has.
    """
    names = list(dict.fromkeys(curve.name for curve in curves))
    drawn = [curve for curve in curves if curve.tag == tag]
    figure, axes = _figure(3.6)
    handles = []
    for curve in drawn:
        number = names.index(curve.name)
        color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
        marker = "o" if len(curve.steps) <= 20 else ""
        handles += axes.plot(
            curve.steps, curve.values, color=color, linestyle=style, linewidth=1.1, marker=marker, markersize=3
        )
    title, unit = CURVES.get(tag, (tag, tag))
    axes.set_ylabel(unit, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _caption(axes, "optimizer step", "Values as logged, not smoothed.")
    _legend(figure, handles, [curve.name for curve in drawn])
    _plain(axes, title)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG. A palette makes the file three times smaller; neither a date nor a version is in it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    return figure, figure.subplots()


def _percent(share: float, signed: bool = False) -> str:
    """One digit; a gain has its sign."""
    value = round(100 * share, 1) + 0.0  # -0.0 + 0.0 is 0.0
    return (f"{value:+.1f}" if signed and value else f"{value:.1f}").replace("-", "−")


def _on(face: str | tuple[float, ...]) -> str:
    """Black or white, whichever has the higher contrast to this background: 4.5 at least (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(face)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def _about(matrix: Matrix) -> str:
    unit = "Percentage points over the base." if matrix.measure == "gain" else "Percent of answers right."
    hatched = "not tested on the same questions" if matrix.measure == "gain" else "not tested"
    missing = f" Hatched: {hatched}." if any(None in row for row in matrix.values) else ""
    counts = _questions(n for row in matrix.counts for n in row if n)
    return f"{unit} Outlined: the {matrix.kind} trained on; elsewhere: without it.{missing} {counts}"


def _caption(axes: Axes, name: str, caption: str) -> None:
    """The name of the horizontal axis, and below it what one must know to read the figure."""
    axes.set_xlabel(f"{name}\n\n{textwrap.fill(caption, CAPTION)}", fontsize=SMALL, color=GREY)


def _questions(counts: Iterable[int]) -> str:
    counts = sorted(set(counts))
    span = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))
    return f"n = {span} questions each.".replace(" ", "\u00a0")


def _whiskers(points: Sequence[Point]) -> list[list[float]]:
    """[2][points] distances from the accuracy down to low and up to high, in percent."""
    down = [100 * max(0.0, p.accuracy - p.low) for p in points]
    return [down, [100 * max(0.0, p.high - p.accuracy) for p in points]]


def _text(axes: Axes, x: float, y: float, text: str, fontsize: float = 9.5, va: str = "center", **kwargs) -> Text:
    return axes.text(x, y, text, ha="center", va=va, fontsize=fontsize, **kwargs)


def _name_columns(axes: Axes, places: Iterable[float], names: Iterable[str], inches: float) -> None:
    """Names below columns of this width: on several lines, or slanted where a word is wider than its column."""
    names = list(map(_name, names))
    room = max(8, int(inches / CHARACTER))
    wrapped = [textwrap.fill(name, room, break_long_words=False, break_on_hyphens=False) for name in names]
    if all(_width(line) < 0.95 * inches for name in wrapped for line in name.split("\n")):
        axes.set_xticks(list(places), wrapped, fontsize=SMALL)
    else:
        wrapped = [textwrap.fill(name, 20, max_lines=2, placeholder=" …") for name in names]
        axes.set_xticks(list(places), wrapped, fontsize=SMALL, rotation=35, ha="right", rotation_mode="anchor")


def _width(text: str) -> float:
    """Inches of small text."""
    points, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=SMALL), ismath=False)
    return points / 72


def _name(name: str) -> str:
    """In one line, short, and of characters that can be drawn."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _legend(figure: Figure, handles: Sequence, names: Sequence[str]) -> None:
    """Below the figure, which grows by its height."""
    shown = [name if len(name) <= 40 else "…" + name[-39:] for name in map(_name, names)]
    columns = max(1, min(len(shown), int(0.95 * WIDTH / (CHARACTER * max(map(len, shown)) + 0.6))))
    legend = figure.legend(handles, shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL)
    figure.set_figheight(figure.get_figheight() + 0.177 * ceil(len(shown) / columns))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(axes: Axes, title: str) -> None:
    """Title at the left, no frame, and names taken literally: a dollar sign begins no formula."""
    heading = axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(False)
    axes.tick_params(colors=INK)
    for text in (heading, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)
