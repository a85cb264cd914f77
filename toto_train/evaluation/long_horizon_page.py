"""report.html of the long-horizon study: r and error against the horizon for each model, published r beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from toto_train.evaluation.page import fixed, seconds, swatch, write_page
from toto_train.evaluation.plots import MUTED, STYLE, Ending, label_right, series_colour, svg

Scores = dict[str, dict[int, dict[str, float]]]
"""Way of decoding -> horizon -> r and mase."""
Times = dict[str, dict[int, float]]
"""Way of decoding -> horizon -> seconds a series."""
Curve = Mapping[int, float]
"""Horizon -> value."""


def write_report(
    path: Path,
    lead: str,
    contexts: Mapping[str, int],
    found: Mapping[str, Scores],
    times: Mapping[str, Times],
    published: Mapping[str, Curve],
) -> Path:
    """Write the page to the file `path`: what all have in common, then a section a model."""
    lead += " Published r, dashed, is not measured here: context and block of it are not known."
    sections = [f'<section><p class="lead">{lead}</p></section>']
    if len(found) > 1:
        blocks = {name: list(ways.items())[-1] for name, ways in found.items()}
        note = next(iter(blocks.values()))[0]
        r, mase = ({name: _curve(of, kind) for name, (_, of) in blocks.items()} for kind in ("r", "mase"))
        cards = _card("Pearson r with the truth", note, r, "r", published) + _card("MASE", note, mase, "m")
        sections.append(f'<section><h2>Side by side</h2><div class="pair">{cards}</div></section>')
    for n, (model, ways) in enumerate(found.items()):
        r, mase = ({way: _curve(of, kind) for way, of in ways.items()} for kind in ("r", "mase"))
        cards = _card("Pearson r with the truth", "1 is exact", r, f"r{n}", published)
        cards += _card("MASE", "scaled by the mean step", mase, f"m{n}")
        sections.append(
            f'<section><h2>{escape(model)}</h2><p class="lead">{contexts[model]:,} steps of history.</p>'
            f'<div class="pair">{cards}</div>{_table(ways, times[model], published)}</section>'
        )
    return write_page(path, f"{', '.join(found)} at long horizons", sections)


def _curve(of: Mapping[int, Mapping[str, float]], kind: str) -> dict[int, float]:
    return {horizon: score[kind] for horizon, score in of.items()}


def _card(title: str, note: str, curves: Mapping[str, Curve], name: str, published: Mapping[str, Curve] = {}) -> str:
    caption = f"<figcaption>{escape(title)}<i>{escape(note)}</i></figcaption>"
    return f'<figure class="card">{caption}{plot(curves, title, name, published)}</figure>'


def plot(curves: Mapping[str, Curve], label: str, name: str, published: Mapping[str, Curve]) -> str:
    """A line a curve against the horizon, octaves equally wide; published ones dashed and grey. Names at the right."""
    endings = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.7, 3.6), layout="constrained")
        axes = figure.subplots()
        for k, (title, curve) in enumerate(curves.items()):
            colour, (x, y) = series_colour(k), _arrays(curve)
            axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=3.6)
            endings.append(Ending(f"{_short(title)}  {y[-1]:z.3f}", x[-1], y[-1], colour))
        for title, curve in published.items():
            x, y = _arrays(curve)
            axes.plot(x, y, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), marker="o", markersize=2.4)
            endings.append(Ending(f"{_short(title)}  {y[-1]:.3f}", x[-1], y[-1], MUTED))
        horizons = sorted({h for curve in [*curves.values(), *published.values()] for h in curve})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(horizons))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(horizons, [f"{h:,}" for h in horizons], rotation=40 if len(horizons) > 6 else 0)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("horizon")
        axes.margins(y=0.08)
        label_right(axes, endings)
        return svg(figure, name, f"{label} by horizon")


def _arrays(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    return np.array([*curve], float), np.array([*curve.values()], float)


def _table(ways: Scores, times: Times, published: Mapping[str, Curve]) -> str:
    """Every figure by horizon; the published ones are marked."""
    horizons = [*next(iter(ways.values()))]
    rows = []
    for k, (way, of) in enumerate(ways.items()):
        rows.append(_row(f"{swatch(k)}{escape(way)}", [fixed(of[h]["r"]) for h in horizons]))
    for name, curve in published.items():
        shown = [fixed(curve[h]) if h in curve else "" for h in horizons]
        if any(shown):
            rows.append(_row(f"{swatch(None)}{escape(name)} <i>published</i>", shown))
    body = _part("Pearson r", rows, len(horizons))
    each = [(f"{swatch(k)}{escape(way)}", way) for k, way in enumerate(ways)]
    body += _part("MASE", [_row(h, [fixed(ways[w][k]["mase"]) for k in horizons]) for h, w in each], len(horizons))
    body += _part("time a series", [_row(h, [seconds(times[w][k]) for k in horizons]) for h, w in each], len(horizons))
    heads = "".join(f"<th>{h:,}</th>" for h in horizons)
    return (
        '<div class="card scroll below"><table class="horizons"><thead><tr><th>horizon</th>'
        f"{heads}</tr></thead>{body}</table></div>"
    )


def _part(title: str, rows: Sequence[str], count: int) -> str:
    return f'<tbody><tr class="group"><th colspan="{count + 1}">{title}</th></tr>{"".join(rows)}</tbody>'


def _row(head: str, cells: Sequence[str]) -> str:
    return f"<tr><th>{head}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _short(label: str, most: int = 20) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
