"""Plots of how scores are spread over tasks, or the configurations of a benchmark; SVG as in `plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from toto_train.evaluation.plots import ACCENT, INK, MUTED, STYLE, Ending, label_right, svg

DOTS = 150
"""Most values of a row that are drawn one by one."""
LARGEST = 15.0
"""Diameter of a disc, in points."""
CLOUD = 1500
"""Most points of a cloud; more would make the page heavy and look no different."""
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Spread:
    """One row of a plot of spreads."""

    label: str
    values: np.ndarray
    """[N], NaN and infinite ones are not drawn."""
    centre: float
    """Their mean, of whatever kind."""
    text: str
    """Written at the right."""
    colour: str = ACCENT
    strong: bool = False


def spreads(rows: Sequence[Spread], name: str, label: str) -> str:
    """Ratios, rows from the top: a dot at the mean, the middle half as a thick line, four fifths as a thin one."""
    with mpl.rc_context(STYLE):
        figure, axes = _rows(rows)
        for y, row in enumerate(rows):
            values = row.values[np.isfinite(row.values) & (row.values > 0)]
            if not len(values):
                continue
            low, first, third, high = np.quantile(values, [0.1, 0.25, 0.75, 0.9])
            axes.plot([low, high], [y, y], color=row.colour, linewidth=1.2, alpha=0.55)
            axes.plot([first, third], [y, y], color=row.colour, linewidth=5, alpha=0.32, solid_capstyle="butt")
            if len(values) <= DOTS:
                jitter = 0.22 * np.sin(2.4 * np.arange(len(values)))
                axes.plot(values, y + jitter, "o", color=row.colour, markersize=2.4, alpha=0.5, markeredgewidth=0)
            if math.isfinite(row.centre):
                axes.plot(row.centre, y, "o", color=row.colour, markersize=6.5, markeredgewidth=0)
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        _ratio_axis(axes, np.concatenate([row.values for row in rows]))
        axes.set_xlabel(label)
        return svg(figure, name, label)


def ranks(rows: Sequence[Spread], name: str, label: str) -> str:
    """How often each forecaster has each rank, as the area of a disc; a line marks its mean. Rows from the top."""
    with mpl.rc_context(STYLE):
        figure, axes = _rows(rows)
        counted = [np.unique(row.values, return_counts=True) for row in rows]
        most = max(count.max() for _, count in counted)
        for y, (row, (rank, count)) in enumerate(zip(rows, counted, strict=True)):
            for x, part in zip(rank, count / most, strict=True):
                size = LARGEST * math.sqrt(part)
                axes.plot(x, y, "o", color=row.colour, markersize=size, alpha=0.5, markeredgewidth=0)
            axes.plot([row.centre] * 2, [y - 0.36, y + 0.36], color=row.colour, linewidth=2)
        axes.set_xlim(0.6, len(rows) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(min(len(rows), 8), integer=True))
        axes.set_xlabel(label)
        return svg(figure, name, label)


def _rows(rows: Sequence[Spread]) -> tuple[Figure, Axes]:
    """Axes with a row each, named at the left, and its text at the right."""
    figure = Figure(figsize=(5.7, 0.62 + 0.29 * max(len(rows), 3)), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    for y, (tick, row) in enumerate(zip(axes.get_yticklabels(), rows, strict=True)):
        colour = INK if row.strong else MUTED
        tick.set(color=colour, fontweight="bold" if row.strong else "normal")
        at = ("axes fraction", "data")
        axes.annotate(row.text, (1.02, y), xycoords=at, color=colour, va="center", annotation_clip=False)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    return figure, axes


@dataclass(frozen=True)
class Mean:
    """A forecaster in the plot of sharpness."""

    label: str
    coverage: float
    """Share of values inside the central 80 %."""
    width: float
    """Of that band, over Seasonal Naive's."""
    colour: str


def sharpness(coverage: np.ndarray, width: np.ndarray, means: Sequence[Mean], name: str) -> str:
    """Each task or configuration by the share of values inside its central 80 % [N] and by the width of that band over
    Seasonal Naive's [N]; a ring for the mean of every forecaster."""
    known = np.isfinite(coverage) & np.isfinite(width) & (width > 0)
    coverage, width = coverage[known], width[known]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="x", visible=True)
        axes.axvline(0.8, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        if len(width):
            some = np.random.Generator(np.random.Philox(0)).permutation(len(width))[:CLOUD]
            alpha = max(0.25, 0.7 - len(some) / 2000)
            axes.plot(coverage[some], width[some], "o", color=ACCENT, markersize=3.6, alpha=alpha, markeredgewidth=0)
        marked = [mean for mean in means if math.isfinite(mean.coverage) and math.isfinite(mean.width)]
        for mean in marked:
            (ring,) = axes.plot(mean.coverage, mean.width, "o", markersize=10, markerfacecolor="none")
            ring.set(markeredgecolor=mean.colour, markeredgewidth=2)
        _ratio_axis(axes, width, "y", [mean.width for mean in marked])
        axes.set(xlim=(0, 1.02), xlabel="share of values inside the 80% band", ylabel="width of the band, naive = 1")
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20%", "40%", "60%", "80%", "100%"])
        label_right(axes, [Ending(_short(mean.label, 18), mean.coverage, mean.width, mean.colour) for mean in marked])
        return svg(figure, name, "sharpness against coverage")


def _ratio_axis(axes: Axes, values: np.ndarray, which: str = "x", marked: Sequence[float] = ()) -> None:
    """Logarithmic around 1, wide enough for all but the outermost hundredths, and for what is marked."""
    values = values[np.isfinite(values) & (values > 0)]
    low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (1, 1)
    low, high = min(low / 1.12, 0.8, *(v / 1.12 for v in marked)), max(high * 1.12, 1.25, *(v * 1.12 for v in marked))
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    ticks = [t for t in _RATIOS if low <= t <= high]
    while len(ticks) > 7:  # every other one, not without 1
        ticks = ticks[ticks.index(1) % 2 :: 2]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda v, _: f"{v:g}")


def _short(label: str, most: int = 26) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
