"""MASE and weighted quantile loss as sums over windows, pooled per task, with bootstrap intervals.

Everything is kept as plain sums per window: sums of tasks, of resampled series or of several processes are then
additions, and pooling equals gluonts' MASE and MeanWeightedSumQuantileLoss on the same windows.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from toto_train.evaluation.baselines import LEVELS

VERSION = 2
"""Of the sums and of Seasonal Naive: a higher one makes cached scores be computed anew."""
MEDIAN = 4
BANDS = (80, 60, 40, 20)
"""Percent that the central bands of a forecast promise to hold: between the quantiles k and 8 - k of the nine."""
METRICS = ("mase", "mwql")


@dataclass
class Sums:
    """Sums over the observed points (variates and steps) of each of W windows."""

    quantile_loss: np.ndarray
    """[W, 9] 2 |(y - q) (1[y <= q] - level)|."""
    absolute: np.ndarray
    """[W] |y|."""
    scaled_error: np.ndarray
    """[W] |y - median| / seasonal error, over points whose seasonal error is above 0."""
    scaled_points: np.ndarray
    """[W] how many points that were."""
    below: np.ndarray
    """[W, 9] points with y <= q."""
    points: np.ndarray
    """[W] observed points."""
    width: np.ndarray
    """[W, 4] upper less lower quantile of each of the BANDS."""

    @classmethod
    def zeros(cls, windows: int) -> Sums:
        wide = {"quantile_loss": len(LEVELS), "below": len(LEVELS), "width": len(BANDS)}
        return cls(**{f.name: np.zeros((windows, wide[f.name]) if f.name in wide else windows) for f in fields(cls)})

    def take(self, windows: np.ndarray) -> Sums:
        """The sums of some windows alone."""
        return Sums(**{f.name: getattr(self, f.name)[windows] for f in fields(self)})

    def mase(self, take: np.ndarray | slice = slice(None)) -> float:
        """Pooled over the windows `take`; NaN where nothing can be scaled."""
        return _ratio(self.scaled_error[take].sum(), self.scaled_points[take].sum())

    def mwql(self, take: np.ndarray | slice = slice(None)) -> float:
        """Pooled over the windows `take`; NaN where all labels are 0 or missing."""
        return _ratio(self.quantile_loss[take].mean(1).sum(), self.absolute[take].sum())

    def coverage(self, take: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Share of points at or below each quantile, [9]."""
        points = self.points[take].sum()
        return self.below[take].sum(0) / points if points else np.full(len(LEVELS), np.nan)


def sharpness(model: Sums, naive: Sums, take: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Width of the model's central bands over Seasonal Naive's, [4]; NaN where the latter have none."""
    mine, other = model.width[take].sum(0), naive.width[take].sum(0)
    return np.divide(mine, other, out=np.full(len(BANDS), np.nan), where=other > 0)


def window_sums(quantiles: np.ndarray, labels: np.ndarray, seasonal_error: np.ndarray) -> Sums:
    """quantiles [N, 9, V, H], labels [N, V, H] with NaN = missing, seasonal_error [N, V] -> sums of N windows."""
    axes = (1, 2)
    known = np.isfinite(labels)
    y = np.where(known, labels, 0).astype(np.float64)
    sums = Sums.zeros(len(labels))
    for k, level in enumerate(LEVELS):  # level by level: nine float64 copies of a wide batch would not fit
        q = quantiles[:, k].astype(np.float64)
        under = y <= q
        sums.quantile_loss[:, k] = (2 * np.abs((y - q) * (under - level))).sum(axes, where=known)
        sums.below[:, k] = (under & known).sum(axes)
    for k in range(len(BANDS)):
        sums.width[:, k] = (quantiles[:, 8 - k] - quantiles[:, k]).sum(axes, where=known, dtype=np.float64)
    scale = np.broadcast_to(seasonal_error[:, :, None], y.shape)
    scaled = known & (scale > 0)
    error = np.abs(y - quantiles[:, MEDIAN].astype(np.float64))
    sums.scaled_error[:] = np.divide(error, scale, out=np.zeros_like(y), where=scaled).sum(axes)
    sums.scaled_points[:] = scaled.sum(axes)
    sums.absolute[:] = np.abs(y).sum(axes)
    sums.points[:] = known.sum(axes)
    return sums


@dataclass(frozen=True)
class Interval:
    """An overall relative score with its bootstrap interval."""

    value: float
    low: float
    high: float
    excluded: tuple[str, ...]
    """Tasks left out, because one of the two scores is 0 or undefined there."""


@dataclass(frozen=True)
class Member:
    """The scored windows of one task."""

    source: str
    stratum: str
    """Source and frequency: tasks of one stratum (its terms) are cut from the same series."""
    windows: np.ndarray
    """[w] positions."""
    series: np.ndarray
    """[w] series of each window."""


def relative(model: float, baseline: float) -> float:
    """model / baseline; NaN unless both are above 0."""
    return model / baseline if model > 0 and baseline > 0 else float("nan")


def geometric_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Over the entries that are not NaN; NaN where there is none."""
    known = np.isfinite(values)
    total = np.log(values, out=np.zeros_like(values), where=known).sum(axis)
    count = known.sum(axis)
    return np.where(count > 0, np.exp(total / np.maximum(count, 1)), np.nan)


def overall(
    metric: str,
    model: Sums,
    baseline: Sums,
    members: dict[str, Member],
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    leave_out: Collection[str] = (),
) -> Interval:
    """Relative score over all tasks: model / baseline pooled per task, geometric mean over the tasks of a source, then
    over sources, so that a source cut into many frequencies and terms counts once.

    metric: 'mase' or 'mwql'; members: task -> its windows. `baseline` may be another model: a paired comparison.
    leave_out: tasks to leave out beside those without a ratio.

    The bootstrap resamples whole series, the same draw for model and baseline and for all terms of a stratum: windows
    of one series are no independent evidence. Where a task has one series its windows are resampled instead, it would
    seem certain otherwise. A task of one window adds no spread; where all have one, and with draws=0, the interval is
    NaN.
    """
    ratios: dict[str, list[float]] = {}
    sampled: dict[str, list[np.ndarray]] = {}
    excluded, spread = [], False
    strata: dict[str, list[np.ndarray]] = {}
    for member in members.values():
        strata.setdefault(member.stratum, []).append(member.series)
    for task, member in members.items():
        ratio = relative(getattr(model, metric)(member.windows), getattr(baseline, metric)(member.windows))
        if not np.isfinite(ratio) or task in leave_out:
            excluded.append(task)
            continue
        ratios.setdefault(member.source, []).append(ratio)
        if not draws:
            continue
        # every term of a stratum numbers the series alike and draws from the same stream: the same series, then
        known = np.unique(np.concatenate(strata[member.stratum]))
        cluster, count, stream = np.searchsorted(known, member.series), len(known), member.stratum
        if len(np.unique(member.series)) == 1:
            cluster, count, stream = np.arange(len(member.windows)), len(member.windows), task
        spread |= len(member.windows) > 1
        terms = np.stack([t for s in (model, baseline) for t in _terms(metric, s.take(member.windows))], 1)
        totals = np.zeros((count, 4))
        np.add.at(totals, cluster, terms)
        bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(stream.encode())]))
        sampled.setdefault(member.source, []).append(_resample(totals, draws, np.random.Generator(bits)))
    value, low, high = float(mean_over_sources(ratios)), np.nan, np.nan
    if spread:
        low, high = np.nanquantile(mean_over_sources(sampled), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), tuple(excluded))


def mean_over_sources(ratios: Mapping[str, Sequence[float | np.ndarray]]) -> np.ndarray:
    """Source -> ratios of its tasks, each a number or [draws]; geometric mean over tasks, then over sources."""
    if not ratios:
        return np.array(np.nan)
    return geometric_mean(np.stack([geometric_mean(np.stack([np.asarray(r) for r in of])) for of in ratios.values()]))


def _terms(metric: str, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a metric per window, [W] each."""
    if metric == "mase":
        return sums.scaled_error, sums.scaled_points
    return sums.quantile_loss.mean(1), sums.absolute


def _resample(totals: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
    """totals [S, 4] (model numerator, denominator, baseline numerator, denominator) -> ratios [draws]."""
    count = len(totals)
    block = max(1, 2**22 // count)  # bounds the [block, S] counts of a source with many series
    sums = np.concatenate(
        [
            random.multinomial(count, np.full(count, 1 / count), min(block, draws - at)) @ totals
            for at in range(0, draws, block)
        ]
    )
    ok = (sums > 0).all(1)
    ratio = (sums[:, 0] * sums[:, 3])[ok] / (sums[:, 1] * sums[:, 2])[ok]
    out = np.full(draws, np.nan)
    out[ok] = ratio
    return out


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")
