"""Edits of one series, float32 [T] to float32 [T], in six categories (law: TempoPFN's offline augmentation).

Of the six, U{2..5} are drawn without replacement by weight and applied in the order of CATEGORIES. Where the published
code has an accident: the shock comes at its time and decays after it, not the reverse; segments between cuts are never
shorter than the least length; the boxcar repeats the edge instead of letting zeros in. `faithful` gives the published
shock and boxcar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic import frequency
from data_pipelines.synthetic.draws import moving_mean
from data_pipelines.synthetic.frequency import DAY

CATEGORIES = {
    "invariance": 0.6,
    "structure": 0.6,
    "seasonality": 0.5,
    "artefact": 0.3,
    "analytic": 0.4,
    "discrete": 0.6,
}
ANALYTIC, QUANTISE = 0.4, 0.4  # of the series that drew the category, and the edit
DIFFERENCES = {"first": (-1, 0, 1), "second": (1, -2, 1), "third": (-1, 2, 0, -2, 1), "fourth": (1, -4, 6, -4, 1)}
LEVELS = (5, 15)


@dataclass(frozen=True)
class Label:
    """Sampling interval in seconds and time of the first step."""

    interval: float
    start: np.datetime64


def draw_categories(rng: np.random.Generator, count: int) -> np.ndarray:
    """Categories of each series, bool [count, 6]: successive draws by weight, as a race of exponential clocks."""
    arrival = rng.standard_exponential((count, len(CATEGORIES))) / np.array(list(CATEGORIES.values()))
    rank = np.argsort(np.argsort(arrival, axis=1), axis=1)
    return rank < rng.integers(2, 6, (count, 1))


def edit(
    rng: np.random.Generator,
    x: np.ndarray,
    drawn: np.ndarray,
    label: Label | None,
    quantised: bool,
    faithful: bool = False,
) -> np.ndarray:
    """The edits of the categories drawn (bool [6]), then the optional change of size and noise.

    Without a label there is no calendar edit, and `quantised` allows the quantisation; else their alternative is taken.
    """
    chosen = dict(zip(CATEGORIES, drawn, strict=True))
    if chosen["invariance"]:
        x = x[::-1] if rng.random() < 0.5 else -x
    if chosen["structure"]:
        x = regime_change(rng, x) if rng.random() < 0.5 else shock(rng, x, faithful)
    if chosen["seasonality"]:
        x = calendar(rng, x, label) if label and rng.random() < 0.5 else swell(rng, x)
    if chosen["artefact"]:
        x = resample(rng, x, faithful)
    if chosen["analytic"] and rng.random() < ANALYTIC:
        x = calculus(rng, x)
    if chosen["discrete"]:
        if not quantised or rng.random() >= 0.6:
            x = censor(rng, x)
        elif rng.random() < QUANTISE:
            x = quantise(rng, x)
    if rng.random() < 0.5:
        x = x * np.float32(rng.uniform(0.95, 1.05))
    if rng.random() < 0.1:
        x = x + np.float32(0.01) * x.std() * rng.standard_normal(len(x), dtype=np.float32)
    return x


def regime_change(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """One to three cuts; a segment's deviations from its mean are scaled by U(.8, 1.25), that moves N(0, .15 sd)."""
    length = len(x)
    least = max(8, length // 32)
    n = min(int(rng.integers(1, 4)), length // least - 1)
    # Uniform over all cuts that leave room: cuts of what is left when every segment gives up its least length.
    cuts = np.sort(rng.integers(0, length - (n + 1) * least + 1, n)) + least * np.arange(1, n + 1)
    size = np.diff(cuts, prepend=0, append=length)
    segment = np.repeat(np.arange(n + 1), size)
    mean = np.add.reduceat(x, np.concatenate([[0], cuts]), dtype=np.float64) / size
    scale, shift = rng.uniform(0.8, 1.25, n + 1), rng.normal(0, 0.15 * _spread(x), n + 1)
    offset = mean * (1 - scale) + shift
    return x * scale.astype(np.float32)[segment] + offset.astype(np.float32)[segment]


def shock(rng: np.random.Generator, x: np.ndarray, faithful: bool = False) -> np.ndarray:
    """A jump of U(.5, 2) sd up or down that decays exponentially with a time constant of U(.03, .25) T.

    Faithful: the whole jump is there before its time already, and only its decay comes at it.
    """
    length = len(x)
    at = int(rng.integers(length // 16, length - length // 16))
    size = rng.choice((-1, 1)) * rng.uniform(0.5, 2) * _spread(x)
    since = np.arange(length - at, dtype=np.float32)
    x = x.copy()
    if faithful:
        x[:at] += np.float32(size)
    x[at:] += np.float32(size) * np.exp(since / np.float32(-max(1.0, rng.uniform(0.03, 0.25) * length)))
    return x


def calendar(rng: np.random.Generator, x: np.ndarray, label: Label) -> np.ndarray:
    """Deviations from the mean are scaled: weekends U(.7, .95), month ends U(1.05, 1.3), one or two points U(.8, 1.4).

    Steps longer than a day have no weekends.
    """
    days = frequency.times(int(label.interval), label.start, len(x)).astype("datetime64[D]")
    factor = np.ones(len(x), np.float32)
    if label.interval <= DAY:
        weekend = (days.astype(np.int64) + 3) % 7 >= 5  # 1970-01-01 was a Thursday
        factor[weekend] *= np.float32(rng.uniform(0.7, 0.95))
    month_end = days.astype("datetime64[M]") != (days + 1).astype("datetime64[M]")
    factor[month_end] *= np.float32(rng.uniform(1.05, 1.3))
    for at in rng.integers(0, len(x), rng.integers(1, 3)):
        factor[at] *= np.float32(rng.uniform(0.8, 1.4))
    mean = x.mean()
    return (x - mean) * factor + mean


def swell(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Deviations from the mean of a window of U(T/16, T/2) steps, scaled by U(.5, 1.8)."""
    width = int(rng.integers(max(8, len(x) // 16), len(x) // 2 + 1))
    begin = int(rng.integers(0, len(x) - width + 1))
    x = x.copy()
    window = x[begin : begin + width]
    mean = window.mean()
    window[:] = (window - mean) * np.float32(rng.uniform(0.5, 1.8)) + mean
    return x


def resample(rng: np.random.Generator, x: np.ndarray, faithful: bool = False) -> np.ndarray:
    """Every 2nd to 8th value; the others refilled by a line (.5), the last value (.2), or a line and a boxcar (.3).

    Faithful: the boxcar takes zeros from beyond the edges.
    """
    length = len(x)
    factor = int(rng.integers(2, max(2, min(8, length // 32)) + 1))
    first = int(rng.integers(0, factor))
    known, t = np.arange(first, length, factor), np.arange(length)
    kind = rng.random()
    if kind < 0.2:
        return x[known[np.clip((t - first) // factor, 0, len(known) - 1)]]
    filled = np.interp(t, known, x[known]).astype(np.float32)
    if kind < 0.7:
        return filled
    width = max(3, length // 128)
    return moving_mean(filled, width // 2, (width - 1) // 2, "constant" if faithful else "edge").astype(np.float32)


def calculus(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """A Gaussian blur, its first to fourth difference, or a running sum from either end, on the range of x."""
    kind = rng.choice(("blur", "sum", *DIFFERENCES))
    if kind == "sum":
        changed = np.cumsum(x, dtype=np.float64) if rng.random() < 0.5 else np.cumsum(x[::-1], dtype=np.float64)[::-1]
    else:
        reach, sd = int(rng.integers(5, 52)) // 2, rng.uniform(2, 20)
        bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sd) ** 2)
        changed = _filtered(x.astype(np.float64), bell / bell.sum())
        if kind != "blur":
            changed = _filtered(changed, np.array(DIFFERENCES[kind], np.float64))
    return rescaled(changed, x)


def quantise(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """The nearest of 5 to 15 levels: least, greatest and uniform ones in between.

    The published levels are the coordinates of one point of a scrambled Sobol sequence, which are independent uniforms.
    """
    low, high = x.min(), x.max()
    inner = rng.uniform(low, high, rng.integers(LEVELS[0], LEVELS[1] + 1) - 2)
    levels = np.sort(np.concatenate([[low, high], inner]).astype(np.float32))
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


def censor(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Nothing, a ceiling or a floor, a third each: at the higher or lower of two quantiles of uniform order."""
    kind, (low, high) = rng.integers(0, 3), np.sort(rng.random(2))
    if kind == 0:
        return x
    return np.minimum(x, np.quantile(x, high)) if kind == 1 else np.maximum(x, np.quantile(x, low))


def rescaled(changed: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`changed` moved to the range of x, float32; x's mean where it is flat."""
    low, high = changed.min(), changed.max()
    if not high - low > 1e-8 * max(abs(low), abs(high)):
        return np.full_like(x, x.mean())
    return (x.min() + (changed - low) * (float(np.ptp(x)) / (high - low))).astype(np.float32)


def _filtered(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of neighbours by weights of odd number, centred, x mirrored at its ends."""
    return np.correlate(np.pad(x, len(weights) // 2, mode="reflect"), weights)


def _spread(x: np.ndarray) -> float:
    return float(x.std()) or 1.0
