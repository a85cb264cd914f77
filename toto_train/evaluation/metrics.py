"""MASE and weighted quantile loss as sums over windows, pooled per source, with bootstrap intervals.

Everything is kept as plain sums per window: sums of sources, of resampled series or of several processes are then
additions, and pooling equals gluonts' MASE and MeanWeightedSumQuantileLoss on the same windows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields

import numpy as np

from toto_train.evaluation.baselines import LEVELS

MEDIAN = 4
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

    @classmethod
    def zeros(cls, windows: int) -> Sums:
        wide = {"quantile_loss", "below"}
        return cls(**{f.name: np.zeros((windows, len(LEVELS)) if f.name in wide else windows) for f in fields(cls)})

    def put(self, indices: np.ndarray, part: Sums) -> None:
        """Write the sums of some windows at their positions."""
        for f in fields(self):
            getattr(self, f.name)[indices] = getattr(part, f.name)

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
    """An overall relative score: geometric mean over sources, with its bootstrap interval."""

    value: float
    low: float
    high: float
    excluded: tuple[str, ...]
    """Sources left out, because one of the two scores is 0 or undefined there."""


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
    members: dict[str, tuple[np.ndarray, np.ndarray]],
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Geometric mean over sources of the pooled model score / the pooled baseline score, with its interval.

    metric: 'mase' or 'mwql'. members: source -> (positions of its windows [w], series of each [w]).

    The bootstrap resamples whole series inside each source, model and baseline together: windows of one series are
    no independent evidence. A source of one series resamples its windows instead, it would seem certain otherwise.
    draws=0 leaves the interval NaN.
    """
    ratios, sampled, excluded = [], [], []
    for source, (windows, series) in members.items():
        ratio = relative(getattr(model, metric)(windows), getattr(baseline, metric)(windows))
        if not np.isfinite(ratio):
            excluded.append(source)
            continue
        ratios.append(ratio)
        if not draws:
            continue
        cluster = np.unique(series, return_inverse=True)[1]
        cluster = cluster if cluster.max() else np.arange(len(windows))
        terms = np.stack([t[windows] for s in (model, baseline) for t in _terms(metric, s)], 1)
        totals = np.zeros((cluster.max() + 1, 4))
        np.add.at(totals, cluster, terms)
        bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(source.encode())]))
        sampled.append(_resample(totals, draws, np.random.Generator(bits)))
    value, low, high = float(geometric_mean(np.array(ratios))), np.nan, np.nan
    if ratios and draws:
        low, high = np.nanquantile(geometric_mean(np.stack(sampled)), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), tuple(excluded))


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
