"""Plots of the pages as inline SVG that follows the page: its fonts, its light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import isotonic_regression

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.examples import Example
from toto_train.evaluation.page import COLOURS

# Matplotlib wants a colour now, the page knows it later: these stand in for CSS variables.
INK, MUTED, GRID, ACCENT, SECOND = "#010203", "#010204", "#010205", "#010206", "#010207"
SERIES = tuple(f"#0103{k:02x}" for k in range(COLOURS))
"""One colour a forecaster or run; the first is the accent."""
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", SECOND: "second"}
_VARIABLES |= {colour: f"c{k + 1}" for k, colour in enumerate(SERIES)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "text.color": MUTED,
    "text.parse_math": False,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "path.simplify_threshold": 0.3,
}
_BANDS = ((0, 8, 0.13), (1, 7, 0.13), (2, 6, 0.15), (3, 5, 0.17))
"""Lower and upper quantile and the opacity of each nested band."""


def training_curve(x: np.ndarray, loss: np.ndarray, rate: np.ndarray | None, unit: str, name: str) -> str:
    """Training loss (raw and smoothed) over `x` in `unit`, with the learning rate below; arrays [N], NaN = absent."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.7, 3.0), layout="constrained")
        if rate is None:
            top, low = figure.subplots(), None
        else:
            top, low = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        known = np.isfinite(loss)
        x_loss, y = x[known], loss[known]
        smooth = _smooth(y)
        thin = slice(None, None, -max(1, len(y) // 1500))  # backwards, so that the last point stays
        x_loss, y, smooth = x_loss[thin][::-1], y[thin][::-1], smooth[thin][::-1]
        top.plot(x_loss, y, color=ACCENT, alpha=0.22, linewidth=0.9)
        top.plot(x_loss, smooth, color=ACCENT, linewidth=1.9)
        if len(y):
            _fit_y(top, smooth, y)
            top.set_xlim(x_loss[0], x_loss[-1])
            label_right(top, [Ending(f"{smooth[-1]:.3f}", x_loss[-1], smooth[-1], ACCENT)])
        top.yaxis.set_major_locator(MaxNLocator(5))
        top.set_ylabel("training loss")
        if low is not None and rate is not None:
            has = np.isfinite(rate)
            low.fill_between(x[has], 0, rate[has], color=SECOND, alpha=0.25, linewidth=0)
            low.plot(x[has], rate[has], color=SECOND, linewidth=1.2)
            low.set_ylim(bottom=0)
            low.set_yticks([])
            low.grid(False)
            low.set_ylabel("rate")
        (low or top).set_xlabel(unit)
        (low or top).xaxis.set_major_formatter(FuncFormatter(lambda v, _: short_number(v)))
        return svg(figure, name, "training loss and learning rate")


def validation_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], unit: str, name: str) -> str:
    """One panel per validation measure: label -> (x [N], value [N]); the best value is marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.7, 3.0), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (label, (x, y)) in zip(panels, curves.items(), strict=True):
            axes.plot(x, y, color=ACCENT, linewidth=1.7, marker="o", markersize=3.2)
            best = int(np.argmin(y))
            axes.plot(x[best], y[best], "o", markersize=7.5, markerfacecolor="none", markeredgecolor=SECOND)
            axes.set_title(label, loc="left", fontsize=9.5, color=INK, pad=10)
            axes.margins(x=0.05, y=0.12)
            label_right(axes, [Ending(f"{y[best]:.3f}", x[best], y[best], SECOND)])
            axes.set_xlabel(unit)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short_number(v)))
        return svg(figure, name, "validation scores")


def run_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], measure: str, unit: str, name: str) -> str:
    """One line a run, its name and last or best value at the right: label -> (x [N], value [N]) in the runs' order.

    A run without values keeps its colour. Training loss is smoothed; of another measure the lowest value is marked.
    """
    loss, endings = measure == "training loss", []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.7, 3.4), layout="constrained")
        axes = figure.subplots()
        late = []
        for k, (label, (x, y)) in enumerate(curves.items()):
            if not len(y):
                continue
            colour, dash = SERIES[k % COLOURS], "-" if k < COLOURS else (0, (4, 1.5))
            shown = _smooth(y) if loss else y
            thin = slice(None, None, -max(1, len(y) // 1500))
            marker = "none" if loss or len(y) > 60 else "o"
            axes.plot(x[thin], shown[thin], color=colour, linestyle=dash, linewidth=1.6, marker=marker, markersize=2.8)
            at = len(y) - 1 if loss else int(np.argmin(y))
            if not loss:
                axes.plot(x[at], y[at], "o", markersize=7, markerfacecolor="none", markeredgecolor=colour)
            short = label if len(label) <= 20 else f"{label[:19]}…"
            endings.append(Ending(f"{short}  {shown[at]:.3f}", x[-1], shown[-1], colour))
            late.append(shown[len(y) // 20 :])
        _fit_y(axes, np.concatenate(late), np.concatenate([y for _, y in curves.values()]), room=0.1 if loss else 0.3)
        axes.margins(x=0.01)
        axes.set(xlabel=unit, ylabel=measure)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short_number(v)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        label_right(axes, endings)
        return svg(figure, name, f"{measure} of each run")


def series_colour(k: int | None) -> str:
    """Of the k-th forecaster or run; None is what all are measured by, or one of many."""
    return MUTED if k is None else SERIES[k % COLOURS]


def calibration(
    mean: np.ndarray, tasks: Sequence[np.ndarray], name: str, peers: Sequence[tuple[str, np.ndarray, str]] = ()
) -> str:
    """Observed against nominal coverage: mean over tasks [9], each task [9]; peers: name, mean [9], colour."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for coverage in tasks:
            axes.plot(LEVELS, coverage, color=MUTED, alpha=max(0.12, 0.35 - len(tasks) / 400), linewidth=0.8)
        endings = []
        for label, coverage, colour in peers:
            axes.plot(LEVELS, coverage, color=colour, linewidth=1.2)
            endings.append(Ending(label, LEVELS[-1], float(coverage[-1]), colour))
        axes.plot(LEVELS, mean, color=ACCENT, linewidth=2, marker="o", markersize=4.5)
        endings.append(Ending("this model" if peers else "mean", LEVELS[-1], float(mean[-1]), ACCENT))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="quantile level", ylabel="share of values below", aspect="equal")
        ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
        label_right(axes, endings)
        return svg(figure, name, "coverage of each quantile level")


def forecast(example: Example, name: str) -> str:
    """History, what came, the median and nested bands of the nine quantiles."""
    horizon = len(example.label)
    history = example.context[-min(len(example.context), max(2 * horizon, 16)) :]
    past, ahead = np.arange(-len(history), 0), np.arange(horizon)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 2.1), layout="constrained")
        axes = figure.subplots()
        at = np.unique(np.append(ahead[:: max(1, horizon // 300)], horizon - 1))  # more would be finer than the screen
        for low, high, alpha in _BANDS:
            band = example.quantiles[low, at], example.quantiles[high, at]
            axes.fill_between(at, *band, color=ACCENT, alpha=alpha, linewidth=0)
        axes.axvline(-0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        for x, y, color, width in ((past, history, MUTED, 1.0), (ahead, example.label, INK, 1.2)):
            axes.plot(x, y, color=color, linewidth=width)
            alone = _alone(y)
            axes.plot(x[alone], y[alone], "o", color=color, markersize=1.6)
        axes.plot(ahead, example.quantiles[4], color=ACCENT, linewidth=1.7)
        shown = np.concatenate([history, example.label, example.quantiles[4]])
        _fit_y(axes, shown, example.quantiles, room=0.6)
        axes.set_xlim(-len(history), horizon - 1)
        axes.set_xticks(
            [-len(history), 0, horizon - 1],
            [
                f"−{duration(len(history) * example.interval)}",
                "forecast",
                f"+{duration(horizon * example.interval)}",
            ],
        )
        first, _, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short_number(v)))
        return svg(figure, name, f"{example.rank} forecast of {example.task}")


def short_number(value: float) -> str:
    """1234567 -> '1.23 M'."""
    for size, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size * 0.9999:
            return f"{value / (1e3 if sign == 'k' else size):.3g} {sign}"
    return f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """7200 -> '2 h'."""
    for unit, size, least in (("y", 31_557_600, 1), ("d", 86_400, 2), ("h", 3_600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


@dataclass(frozen=True)
class Ending:
    """A label in the right margin for the point (x, y) of a line."""

    text: str
    x: float
    y: float
    colour: str


def label_right(axes: Axes, endings: Sequence[Ending]) -> None:
    """Write the labels beside the axes, each as near to the height of its point as the others let it, and lead there.

    Call it last: limits are fixed here.
    """
    endings = sorted((e for e in endings if np.isfinite(e.y)), key=lambda e: e.y)
    if not endings:
        return
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    assert isinstance(axes.figure, Figure)
    axes.figure.draw_without_rendering()  # lays out, so that heights are known
    gap = 1.35 * mpl.rcParams["font.size"] / 72 * axes.figure.dpi / axes.get_window_extent().height
    heights = axes.transAxes.inverted().transform(axes.transData.transform([(e.x, e.y) for e in endings]))[:, 1]
    steps = gap * np.arange(len(endings))
    apart = isotonic_regression(heights - steps).x
    for ending, height in zip(endings, np.clip(apart, 0, max(0.0, 1 - steps[-1])) + steps, strict=True):
        axes.annotate(
            ending.text,
            (ending.x, ending.y),
            (1.045, height),
            textcoords="axes fraction",
            color=ending.colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": ending.colour,
                "linewidth": 0.7,
                "linestyle": (0, (1.5, 2)),
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 4,
            },
        )


def _smooth(values: np.ndarray) -> np.ndarray:
    """Gaussian mean over about a fiftieth of the run; centred, so that it does not trail a falling loss."""
    return gaussian_filter1d(values, max(1.0, len(values) / 100), mode="nearest") if len(values) else values


def _alone(values: np.ndarray) -> np.ndarray:
    """Observed steps between two missing ones, which a line would not show: [T] -> bool [T]."""
    known = np.pad(np.isfinite(values), 1)
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _fit_y(axes: Axes, core: np.ndarray, extra: np.ndarray, room: float = 0.25) -> None:
    """All of `core`, and of `extra` no more than `room` heights beyond it: one spike must not flatten the rest."""
    core, extra = core[np.isfinite(core)], extra[np.isfinite(extra)]
    if not len(core):
        return
    low, high = float(core.min()), float(core.max())
    height = (high - low) or abs(high) or 1.0
    if len(extra):
        low, high = (
            max(min(low, float(extra.min())), low - room * height),
            min(max(high, float(extra.max())), high + room * height),
        )
    axes.set_ylim(low - 0.06 * height, high + 0.1 * height)


def svg(figure: Figure, name: str, label: str) -> str:
    """Markup to put into HTML: no prolog, no metadata, ids of its own, CSS variables for colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg class="plot" role="img" aria-label="{escape(label)}" {view[0]}>', svg, count=1)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
