"""Drawn parameters of forecast_pfn and step against their tables.

Seeds are fixed. The hypotheses of a test share a significance of 1e-3 by Holm's rule. Power is stated as the deviation
that is found 4 times in 5.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import forecast_pfn, step
from data_pipelines.synthetic.frequency import DAY, MONTH

SIGNIFICANCE = 1e-3
FLAT = np.linspace(0, 1e-9, 4)  # days: a trend of 1


def assert_holm(p_values: dict[str, float]) -> None:
    """All hypotheses hold at a family-wise significance of 1e-3."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    refuted = [(name, p) for i, (name, p) in enumerate(ordered) if p < SIGNIFICANCE / (len(ordered) - i)]
    assert not refuted


def even(counts: np.ndarray | list[int]) -> float:
    return float(stats.chisquare(counts).pvalue)


class Noiseless(np.random.Generator):
    """Every Weibull draw is its median, 1."""

    def standard_exponential(self, size, dtype):
        return np.full(size, np.log(2), dtype)


# --- forecast_pfn

MINUTES = {"minute": 1.0, "hour": 0.2}
AMPLITUDES = {
    **dict.fromkeys((1, 60, 300, 600, 900, 1800), MINUTES),
    3600: {"minute": 0.2, "hour": 1.0},
    DAY: {"weekday": 1.0, "day_of_month": 0.2},
    7 * DAY: {"day_of_month": 0.3, "month": 0.3},
    MONTH: {"weekday": 0.1, "month": 0.5},
    3 * MONTH: {"month": 1.0},
    12 * MONTH: {"weekday": 0.2, "month": 1.0},
}


def test_amplitudes_of_the_calendar_follow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every feature of every frequency, the other features silent. Power: a KS D of .17."""
    periods = {"minute": 60, "hour": 24, "weekday": 7, "day_of_month": 30.5, "month": 12}
    p_values = {}
    for interval, features in AMPLITUDES.items():
        calendar = {name: np.zeros(len(FLAT), int) for name in features}
        for name, greatest in features.items():
            monkeypatch.setattr(
                forecast_pfn, "_waves", lambda rng, k, p, mine=periods[name]: np.full(int(p) + 2, float(p == mine))
            )
            rng = Noiseless(np.random.PCG64(interval))
            drawn = [forecast_pfn._configuration(rng, calendar, FLAT, interval)[0] - 2 for _ in range(250)]
            p_values[f"{interval} {name}"] = stats.kstest(drawn, "uniform", (0, greatest)).pvalue
    assert len(p_values) == 23
    assert_holm(p_values)


def test_waves_have_unit_coefficients_and_decay_in_half() -> None:
    """Energy is 1/2; the share of the first of ten harmonics against plain draws. Power: a KS D of .12."""
    rng, n, t = np.random.default_rng(3), 800, np.arange(24)
    made = np.array([forecast_pfn._waves(rng, 10, 24)[:24] for _ in range(n)])
    assert (made**2).mean(axis=1) == pytest.approx(0.5)
    first = np.abs(made @ np.exp(-2j * np.pi * t / 24) / 12) ** 2
    normal = rng.normal(size=(n, 2, 10)) / np.where(rng.random((n, 1, 1)) < 0.5, np.arange(1, 11), 1)
    expected = (normal[:, :, 0] ** 2).sum(axis=1) / (normal**2).sum(axis=(1, 2))
    assert stats.ks_2samp(first, expected).pvalue > SIGNIFICANCE


def test_noise_is_weibull_of_three_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = s (w - 1) has quantiles s (u - 1) and s (u^2 - 1) at 3/4 and 15/16 for u = 2^(1/shape), which gives both.

    Power: shares off by .12, a KS D of .12.
    """
    monkeypatch.setitem(forecast_pfn.AMPLITUDES, 7, {})
    rng, days = np.random.default_rng(4), np.linspace(0, 1e-9, 30_000)
    sizes, shapes = [], []
    for _ in range(400):
        x = forecast_pfn._configuration(rng, {}, days, 7) / 2 - 1
        middle, q, r = np.quantile(x, [0.5, 0.75, 0.9375])
        assert abs(middle) < 0.05
        u = r / q - 1
        sizes.append(q / (u - 1))
        shapes.append(1 / np.log2(u))
    counts = np.histogram(sizes, [0, 0.15, 0.6, 2])[0]
    assert_holm(
        {
            "sizes": stats.chisquare(counts, np.array([0.6, 0.3, 0.1]) * 400).pvalue,
            "shapes": stats.kstest(shapes, "uniform", (1, 4)).pvalue,
            "small": stats.kstest([s for s in sizes if s < 0.15], "uniform", (0, 0.1)).pvalue,
        }
    )


def test_trends_are_lines_times_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a day; with one part silenced the other shows. Power: a KS D of .1."""
    monkeypatch.setitem(forecast_pfn.AMPLITUDES, DAY, {})

    class Still(Noiseless):
        silent = 0.01

        def normal(self, loc, scale):
            drawn = super().normal(loc, scale)
            return loc if scale == self.silent else drawn

    days, n = np.linspace(0, 1, 3), 700
    Still.silent = 0.005
    rng = Still(np.random.PCG64(5))
    lines = np.array([forecast_pfn._configuration(rng, {}, days, DAY) - 1 for _ in range(n)])
    slopes = lines[:, 2] - lines[:, 0]
    Still.silent = 0.01
    powers = np.array([forecast_pfn._configuration(rng, {}, days, DAY) - 1 for _ in range(n)])
    bases = powers[:, 2] / powers[:, 0]
    growth = -np.log(powers[:, 0]) / np.log(bases)
    assert bases.max() == pytest.approx(1.01)
    assert_holm(
        {
            "slope": stats.kstest(slopes, "norm", (0, 0.01)).pvalue,
            "offset": stats.kstest((1 - lines[:, 0]) / slopes, "uniform", (-0.1, 0.6)).pvalue,
            "base": stats.kstest(bases[bases < 1.0099], stats.truncnorm(-np.inf, 1.98, 1, 0.005).cdf).pvalue,
            "clipped": stats.binomtest(int((bases >= 1.0099).sum()), n, float(stats.norm.sf(1.98))).pvalue,
            "growth offset": stats.kstest(growth, "uniform", (-0.1, 0.6)).pvalue,
        }
    )


# --- step


def test_segments_are_10_to_100_and_fill_the_series() -> None:
    """Power: one of 13 classes at .11 instead of .077; the share of cut first segments off by .15."""
    rows, starts, sizes = step._segments(np.random.default_rng(6), 4096, 3000)
    number = np.bincount(rows, minlength=3000)
    assert (np.bincount(rows, sizes) == 4096).all()
    assert (number.min(), number.max()) == (10, 100)
    first = sizes[starts == 0]
    most = 4096 // number
    assert (first <= most).all()
    few = number <= 15
    uncut = stats.randint(200, 801).cdf(most[few] - 1)  # smaller than the share of what is left
    p_cut = 2 * stats.norm.sf(abs((first[few] < most[few]).sum() - uncut.sum()) / np.sqrt((uncut * (1 - uncut)).sum()))
    assert_holm({"number": even(np.bincount((number - 10) // 7, minlength=13)), "cut": float(p_cut)})


def test_change_points_follow_their_pattern() -> None:
    """Numbers and sizes of all seven. Power: a KS D of .07, a number at twice its share."""
    table = [(0, 3, -0.1, 0.1), (5, 15, 1, 5), (5, 15, -5, -1), (3, 8, 3, 10), (3, 8, -10, -3), (8, 20, 0, 4)]
    table.append((5, 20, -3, 3))
    p_values = {}
    for pattern, (least, most, low, high) in enumerate(table):
        rng = np.random.default_rng(pattern)
        at, jumps = step._change_points(rng, np.full(1500, pattern), np.full(1500, 400))
        number = (jumps != 0).sum(axis=1)
        p_values[f"{pattern} number"] = even([(number == n).sum() for n in range(least, most + 1)])
        assert ((at >= 0) & (at < 400)).all()
        first = jumps[number > 0, 0]
        p_values[f"{pattern} size"] = stats.kstest(first, "uniform", (low, high - low)).pvalue
        if pattern == step.OSCILLATING:
            assert (np.sign(jumps[:, :8]) == [1, -1] * 4).all()
        if pattern in (step.SPIKE_UP, step.SPIKE_DOWN):  # out by one half of the points, back by half as much
            out, back = jumps[number == 4, 1], jumps[number == 4, 2]
            p_values[f"{pattern} out"] = stats.kstest(out / 0.7, "uniform", (low, high - low)).pvalue
            p_values[f"{pattern} back"] = stats.kstest(back / -0.5 / 0.49, "uniform", (low, high - low)).pvalue
    assert_holm(p_values)
