"""Sections that the reports of local tasks and of leaderboards share: tiles, ranks, calibration, sharpness, forecasts.

An item is a task there, a configuration here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

import numpy as np
import pandas as pd

from toto_train.evaluation import distributions, plots, tables
from toto_train.evaluation.distributions import Mean, Spread
from toto_train.evaluation.examples import RANKS, Example
from toto_train.evaluation.metrics import BANDS
from toto_train.evaluation.page import fixed, percent
from toto_train.evaluation.plots import series_colour

CURVES = 300
"""Most thin lines in the plot of calibration."""


def tile(title: str, value: str, note: str, strip: str = "") -> str:
    """A number of the headline; strip: a bar below it."""
    return f'<div class="card"><h3>{title}</h3><p class="big">{value}</p>{strip}<p class="note">{note}</p></div>'


def facts_card(facts: Mapping[str, str]) -> str:
    """What was run, label by label."""
    if not facts:
        return ""
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<section><h2>Run</h2><dl class="card facts">{cells}</dl></section>'


def ranks_card(ranks: pd.DataFrame, colours: Mapping[str, int], strong: str, metric: str) -> str:
    """How often each forecaster (column) has which rank in the items (rows), in order of the mean; `strong` stands out,
    those without a colour are grey."""
    mean, count = ranks.mean().sort_values(kind="stable"), len(ranks.columns)
    rows = [
        Spread(
            name,
            ranks[name].to_numpy(float),
            float(mean[name]),
            f"{mean[name]:.2f} · {(count - mean[name]) / (count - 1):.0%}" if count > 1 else f"{mean[name]:.2f}",
            series_colour(colours.get(name)),
            name == strong,
        )
        for name in map(str, mean.index)
    ]
    plot = distributions.ranks(rows, "ranks", f"rank by {metric}, 1 is best")
    caption = "<figcaption>Ranks<i>how often which; mean rank, duels won</i></figcaption>"
    return f'<figure class="card">{caption}{plot}</figure>'


def ratios_card(groups: Mapping[str, tuple[np.ndarray, float]], metric: str, every: str) -> str:
    """The model's ratio in every item: group -> ratios of its items and their mean; every: 'task, by domain'."""
    rows = [Spread(name, values, mean, fixed(mean)) for name, (values, mean) in groups.items()]
    rows.sort(key=lambda row: row.centre if math.isfinite(row.centre) else math.inf)
    plot = distributions.spreads(rows, "ratios", f"{metric}, Seasonal Naive = 1")
    caption = f"<figcaption>Where it is better<i>every {every}</i></figcaption>"
    return f'<figure class="card">{caption}{plot}</figure>'


@dataclass(frozen=True)
class Bands:
    """What a forecaster's quantiles hold and how wide they are, for each of N items."""

    coverage: np.ndarray
    """[N, 9] share of values at or below each quantile."""
    width: np.ndarray
    """[N, 4] width of each of BANDS over Seasonal Naive's."""
    colour: int | None = None

    def mean(self) -> np.ndarray:
        """[9] over items, NaN where there is none."""
        known = np.isfinite(self.coverage).all(1)
        return self.coverage[known].mean(0) if known.any() else np.full(self.coverage.shape[1], np.nan)

    def held(self) -> np.ndarray:
        """[4] share of values inside each band, the mean over items."""
        mean = self.mean()
        return np.array([mean[8 - k] - mean[k] for k in range(len(BANDS))])

    def widths(self) -> np.ndarray:
        """[4] geometric mean of the widths over the items that have all of them."""
        known = (np.isfinite(self.width) & (self.width > 0)).all(1)
        return np.exp(np.log(self.width[known]).mean(0)) if known.any() else np.full(len(BANDS), np.nan)


def bands(everyone: Mapping[str, Bands], noun: str) -> str:
    """Calibration beside sharpness: narrow bands are worth something only where they hold what they promise.

    The model comes first; noun: what an item is.
    """
    model = next(iter(everyone.values()))
    some = np.random.Generator(np.random.Philox(0)).permutation(len(model.coverage))[:CURVES]
    others = [(name, of.mean(), series_colour(of.colour)) for name, of in list(everyone.items())[1:]]
    curves = plots.calibration(model.mean(), list(model.coverage[some]), "cal", others)
    means = [
        Mean(n, float(of.held()[0]), float(of.widths()[0]), series_colour(of.colour)) for n, of in everyone.items()
    ]
    inside = model.coverage[:, 8] - model.coverage[:, 0]
    cloud = distributions.sharpness(inside, model.width[:, 0], means, "sharp")
    coverage = tables.coverage_table({name: of.mean() for name, of in everyone.items()})
    return (
        '<section><h2>Calibration and sharpness</h2><p class="lead">How often the truth fell below each predicted '
        f"quantile, the mean over {noun}s, and each {noun} as a thin grey line: on the diagonal the bands are honest, "
        "flatter than it they are too narrow. Sharp bands are narrow ones; of two that are honest the sharper is "
        f'better.</p><div class="pair calibration"><figure class="card">{curves}</figure>'
        f'<div class="card scroll">{coverage}</div></div>'
        '<div class="pair calibration below"><figure class="card"><figcaption>Sharpness'
        f"<i>a dot is a {noun}, a ring a mean</i></figcaption>{cloud}</figure>"
        f'<div class="card scroll">{_widths(everyone)}<p class="note">Widths are added up over all points of a {noun} '
        f"and divided by those of Seasonal Naive; the mean is geometric. {noun.capitalize()}s without a ratio do not "
        "count.</p></div></div></section>"
    )


def _widths(everyone: Mapping[str, Bands]) -> str:
    """What each central band holds, and how wide it is."""
    over = "".join(f'<th colspan="2" class="group" title="{escape(n)}">{escape(n)}</th>' for n in everyone)
    held, width = ({name: getattr(of, what)() for name, of in everyone.items()} for what in ("held", "widths"))
    rows = "".join(
        f"<tr><th>{band}%</th>"
        + "".join(f'<td class="group">{percent(held[n][k])}</td><td>{fixed(width[n][k])}</td>' for n in everyone)
        + "</tr>"
        for k, band in enumerate(BANDS)
    )
    columns = '<th class="group">holds</th><th>width</th>' * len(everyone)
    return (
        f'<table class="bands"><thead><tr><th></th>{over}</tr><tr><th>central band</th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def forecasts(examples: Sequence[Example], lead: str, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """A row of plots for each item; notes: item -> what stands behind its name."""
    if not examples:
        return ""
    rows = []
    for task in dict.fromkeys(e.task for e in examples):
        shown = {e.rank: (n, e) for n, e in enumerate(examples) if e.task == task}
        cards = []
        for n, e in (shown[rank] for rank in RANKS if rank in shown):
            variate = "" if e.variate == e.item_id else f" <i>{escape(e.variate)}</i>"
            cards.append(
                f'<figure class="card"><figcaption><span class="rank {e.rank}">{e.rank}</span>'
                f'<span class="item">{escape(e.item_id)}{variate}</span>'
                f'<span class="num">{fixed(e.loss)}</span></figcaption>{plots.forecast(e, f"f{n}")}</figure>'
            )
        note = f" <i>{escape(notes[task])}</i>" if task in notes else ""
        rows.append(f'<h3>{escape(task)}{note}</h3><div class="triple">{"".join(cards)}</div>')
    key = (
        '<p class="key"><span class="k-past">history</span><span class="k-ink">what came</span>'
        '<span class="k-accent">median</span><span class="k-band">10% to 90%</span></p>'
    )
    return f'<section><h2>Forecasts</h2><p class="lead">{lead}</p>{key}{"".join(rows)}</section>'
