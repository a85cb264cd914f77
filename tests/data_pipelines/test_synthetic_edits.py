"""The edits of the augmentation cascades, on series from which the edit can be read off: ramps, polynomials, noise.

Seeds are fixed; statistical tests are at a significance of 1e-3.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from data_pipelines.synthetic import edits, random_conv

SIGNIFICANCE = 1e-3
LENGTH = 512


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramp(length: int = LENGTH) -> np.ndarray:
    return np.arange(length, dtype=np.float32)


def noise(seed: int = 0, length: int = LENGTH) -> np.ndarray:
    return rng(seed).normal(3, 2, length).astype(np.float32)


def fits(observed: list[int], shares: np.ndarray) -> bool:
    return stats.chisquare(observed, shares / shares.sum() * sum(observed)).pvalue > SIGNIFICANCE


def test_categories_follow_successive_draws_by_weight() -> None:
    """Against numpy's choice without replacement, and the shares measured of the published code (to .02)."""
    drawn = edits.draw_categories(rng(), 6000)
    assert fits([(drawn.sum(axis=1) == n).sum() for n in range(2, 6)], np.ones(4))
    weights = np.array(list(edits.CATEGORIES.values()))
    other = rng(1)
    picked = [other.choice(6, other.integers(2, 6), replace=False, p=weights / weights.sum()) for _ in range(6000)]
    patterns = [Counter(map(tuple, drawn.tolist())), Counter(tuple(np.isin(range(6), p).tolist()) for p in picked)]
    table = [[counts[key] for key in sorted(patterns[0] | patterns[1])] for counts in patterns]
    assert stats.chi2_contingency(table).pvalue > SIGNIFICANCE
    assert np.abs(drawn.mean(axis=0) - (0.65, 0.64, 0.60, 0.42, 0.53, 0.65)).max() < 0.02


def test_a_regime_change_is_affine_in_each_segment() -> None:
    """On a ramp: one slope a segment, U(.8, 1.25), and one odd step at each cut; a segment's mean hardly moves."""
    generator, number, slopes = rng(), Counter(), []
    for _ in range(600):
        y = edits.regime_change(generator, ramp()).astype(np.float64)
        at = np.flatnonzero(np.abs(np.diff(y, 2)) > 1e-3)
        assert (np.diff(at)[::2] == 1).all()
        cuts = [0, *(at[1::2] + 1), LENGTH]
        number[len(cuts) - 2] += 1
        for begin, end in pairwise(cuts):
            assert end - begin >= LENGTH // 32
            segment = y[begin:end]
            assert np.ptp(np.diff(segment)) < 1e-3
            slopes.append(segment[1] - segment[0])
            assert abs(segment.mean() - (begin + end - 1) / 2) < 5 * 0.15 * ramp().std()
    assert fits([number[k] for k in (1, 2, 3)], np.ones(3))
    assert stats.kstest(slopes, "uniform", (0.8, 0.45)).pvalue > SIGNIFICANCE


def test_a_shock_begins_at_its_time_and_decays() -> None:
    x, generator, sizes, constants, signs = noise(), rng(), [], [], 0
    for _ in range(800):
        effect = edits.shock(generator, x).astype(np.float64) - x
        at = int(np.flatnonzero(np.abs(effect) > 1e-4)[0])
        assert LENGTH // 16 <= at < LENGTH - LENGTH // 16
        signs += effect[at] > 0
        sizes.append(abs(effect[at]) / x.std())
        constants.append(8 / np.log(effect[at] / effect[at + 8]) / LENGTH)
        assert effect[at + 20] == pytest.approx(effect[at] * np.exp(-20 / (constants[-1] * LENGTH)), abs=1e-4)
    assert stats.kstest(sizes, "uniform", (0.5, 1.5)).pvalue > SIGNIFICANCE
    assert stats.kstest(constants, "uniform", (0.03, 0.22)).pvalue > SIGNIFICANCE
    assert stats.binomtest(signs, 800, 0.5).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(("interval", "step"), [(86_400, "D"), (3600, "h"), (604_800, "7D")])
def test_the_calendar_is_that_of_pandas(interval: int, step: str) -> None:
    stamps = pd.date_range("2023-11-20", periods=LENGTH, freq=step)
    label = edits.Label(float(interval), np.datetime64("2023-11-20", "s"))
    x, generator = noise(), rng()
    for _ in range(20):
        factor = (edits.calendar(generator, x, label) - x.mean()) / (x - x.mean())
        weekend = np.asarray(stamps.dayofweek >= 5) & (interval <= 86_400)
        end = np.asarray(stamps.is_month_end)
        groups = [~weekend & ~end, weekend & ~end, ~weekend & end]
        plain, dip, bump = (float(np.median(factor[g])) if g.any() else None for g in groups)
        assert plain == pytest.approx(1, abs=1e-4)
        assert dip is None or 0.7 <= dip <= 0.95
        assert bump is None or 1.05 <= bump <= 1.3
        apart = sum(int((np.abs(factor[g] - np.median(factor[g])) > 1e-2).sum()) for g in groups if g.any())
        assert apart <= 2  # the single points


def test_a_swell_scales_a_window_around_its_mean() -> None:
    x, generator, scales = noise(), rng(), []
    for _ in range(400):
        y = edits.swell(generator, x)
        moved = np.flatnonzero(np.abs(y - x) > 1e-4)
        begin, end = moved[0], moved[-1] + 1
        assert end - begin <= LENGTH // 2
        scales.append(np.polyfit(x[begin:end], y[begin:end], 1)[0])
        assert y[begin:end].mean() == pytest.approx(x[begin:end].mean(), abs=0.1)
    assert stats.kstest(scales, "uniform", (0.5, 1.3)).pvalue > SIGNIFICANCE


def test_resampling_keeps_every_kth_value() -> None:
    x, generator, kinds = noise(), rng(), Counter()
    for _ in range(600):
        y = edits.resample(generator, x)
        kept = np.flatnonzero(y == x)
        if len(kept) < LENGTH // 16:
            kinds["boxcar"] += 1
            assert np.abs(np.diff(y)).mean() < np.abs(np.diff(x)).mean()
            continue
        step = np.bincount(np.diff(kept)).argmax()
        assert 2 <= step <= 8
        held = y[kept[1:-1] + 1] == x[kept[1:-1]]
        kinds["hold" if held.all() else "line"] += 1
        if not held.any():
            middle = (y[kept[2] - 1] - x[kept[1]]) / (x[kept[2]] - x[kept[1]])
            assert middle == pytest.approx((step - 1) / step, abs=1e-3)
    assert fits([kinds[k] for k in ("line", "hold", "boxcar")], np.array([0.5, 0.2, 0.3]))


def test_calculus_keeps_the_range_and_differentiates() -> None:
    """On a polynomial of degree 4, the n-th difference of the blur is one of degree 4 - n away from the edges."""
    t = np.linspace(-1, 1, LENGTH)
    x = (t**4 + t**3 - t**2).astype(np.float32)
    for seed in range(60):
        kind = rng(seed).choice(("blur", "sum", *edits.DIFFERENCES))
        y = edits.calculus(rng(seed), x)
        assert y.dtype == np.float32
        assert (y.min(), y.max()) == pytest.approx((x.min(), x.max()), abs=1e-5)
        if kind == "sum":
            sums = np.cumsum(x, dtype=np.float64), np.cumsum(x[::-1], dtype=np.float64)[::-1]
            assert min(np.abs(y - edits.rescaled(s, x)).max() for s in sums) < 1e-5
        else:
            degree = 4 - ["blur", *edits.DIFFERENCES].index(kind)
            inside, at = y[60:-60].astype(np.float64), t[60:-60]
            error = np.abs(inside - np.polyval(np.polyfit(at, inside, degree), at)).max()
            assert error < 0.02 * np.ptp(x)
            if degree:
                lower = np.abs(inside - np.polyval(np.polyfit(at, inside, degree - 1), at)).max()
                assert lower > 5 * error


def test_quantisation_takes_the_nearest_of_5_to_15_levels() -> None:
    x, generator, number = ramp(4000), rng(), Counter()
    for _ in range(440):
        y = edits.quantise(generator, x)
        levels = np.unique(y)
        number[len(levels)] += 1
        assert (levels[0], levels[-1]) == (x[0], x[-1])
        assert np.abs(np.abs(y - x) - np.abs(x[:, None] - levels).min(axis=1)).max() < 1e-3
    # Two levels closer than a step of the ramp are one here, in about 1 of 40 series.
    assert max(number) <= 15
    assert fits([number[k] for k in range(6, 16)], np.ones(10))


def test_censoring_cuts_at_quantiles() -> None:
    """The higher of two uniforms is Beta(2, 1), the lower Beta(1, 2)."""
    x, generator, kinds, orders = np.sort(noise(length=1001)), rng(), Counter(), {"above": [], "below": []}
    for _ in range(900):
        y = edits.censor(generator, x)
        kind = "above" if y[-1] < x[-1] else "below" if y[0] > x[0] else "none"
        kinds[kind] += 1
        if kind == "above":
            orders[kind].append((y == x).sum() / 1001)
            assert (y == np.minimum(x, y[-1])).all()
        elif kind == "below":
            orders[kind].append(1 - (y == x).sum() / 1001)
            assert (y == np.maximum(x, y[0])).all()
    assert fits([kinds[k] for k in ("none", "above", "below")], np.ones(3))
    assert stats.kstest(orders["above"], "beta", (2, 1)).pvalue > SIGNIFICANCE
    assert stats.kstest(orders["below"], "beta", (1, 2)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("padding", random_conv.PADDINGS)
def test_convolution_is_the_naive_sum(padding: str) -> None:
    x, kernel, dilation = noise(length=100), rng().normal(size=7).astype(np.float32), 5
    reach = 3 * dilation
    padded = np.pad(x, reach, mode=padding)
    expected = [sum(kernel[j] * padded[t + j * dilation] for j in range(7)) for t in range(100)]
    assert random_conv.convolved(x, kernel, dilation, padding) == pytest.approx(expected, abs=1e-4)


def test_random_convolutions_keep_the_range() -> None:
    x, generator = noise(), rng()
    for _ in range(100):
        y = random_conv.random_conv(generator, x)
        assert y.dtype == np.float32
        flat = np.ptp(y) == 0
        assert flat or (y.min(), y.max()) == pytest.approx((x.min(), x.max()), abs=1e-4)
    normalised = np.mean([abs(np.abs(random_conv.draw_kernel(generator, 9)).sum() - 1) < 1e-5 for _ in range(1000)])
    assert stats.binomtest(round(1000 * normalised), 1000, 0.8).pvalue > SIGNIFICANCE


def test_the_cascade_applies_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits run in their order, only those drawn; the batch stream has neither calendar nor quantisation."""
    order: list[str] = []
    for name in ("regime_change", "shock", "calendar", "swell", "resample", "calculus", "quantise", "censor"):
        monkeypatch.setattr(edits, name, lambda _, x, *a, name=name: order.append(name) or x)
    label = edits.Label(3600.0, np.datetime64("2000-01-01", "s"))
    everything, nothing = np.ones(6, bool), np.zeros(6, bool)
    ranks = ("regime_change shock", "calendar swell", "resample", "calculus", "quantise censor")
    seen: Counter[str] = Counter()
    generator = rng()
    for _ in range(2000):
        order.clear()
        edits.edit(generator, noise(), everything, label, quantised=True)
        at = [next(i for i, names in enumerate(ranks) if name in names.split()) for name in order]
        assert at == sorted(set(at))
        seen.update(order)
    for name, p in {"shock": 0.5, "calendar": 0.5, "calculus": 0.4, "quantise": 0.6 * 0.4, "censor": 0.4}.items():
        assert stats.binomtest(seen[name], 2000, p).pvalue > SIGNIFICANCE
    assert seen["resample"] == 2000
    order.clear()
    for _ in range(200):
        edits.edit(generator, noise(), nothing, label, quantised=True)
    assert not order
    for _ in range(200):
        edits.edit(generator, noise(), everything, None, quantised=False)
    assert not {"calendar", "quantise"} & set(order)
