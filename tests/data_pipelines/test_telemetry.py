"""Telemetry: what it promises about loads, hosts, metrics and the accidents of measuring.

Seeds are fixed; thresholds are set at a significance of 1e-3 a test, which is the chance that a correct but different
stream of random numbers fails it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import telemetry, telemetry_load, telemetry_measured, telemetry_own
from data_pipelines.synthetic.telemetry_metrics import Hosts

SIGNIFICANCE = 1e-3


def hosts(rng: np.random.Generator, groups: int, each: int, length: int) -> Hosts:
    load = telemetry_load.generate(rng, length, groups)
    return telemetry._hosts(rng, load, np.repeat(np.arange(groups), each))


def test_telemetry_has_daily_rhythm() -> None:
    """Most request and utilisation series resemble themselves a day later more than half a day later."""
    chunk = telemetry.generate(np.random.default_rng(5), 2048, 512)
    closer = 0
    seen = 0
    for values, interval, names in zip(chunk.values, chunk.intervals, chunk.variate_names, strict=True):
        day = int(86_400 / interval)
        if day > 1000 or not names[0].startswith(("requests", "utilisation")):
            continue
        x = np.nan_to_num((values[0] - np.nanmean(values[0])) / (np.nanstd(values[0]) + 1e-9))
        seen += 1
        closer += np.mean(x[day:] * x[:-day]) > np.mean(x[day // 2 :] * x[: -(day // 2)]) + 0.1
    assert seen > 50
    # Of the groups, 1 in 12 has no rhythm and noise hides more; 65 % is far from chance.
    assert stats.binomtest(closer, seen, 0.65, alternative="less").pvalue > SIGNIFICANCE


def test_telemetry_hosts_of_a_fleet_share_their_load() -> None:
    chunk = telemetry.generate(np.random.default_rng(6), 2048, 192)
    own, other, previous = [], [], None
    for values, names in zip(chunk.values, chunk.variate_names, strict=True):
        if len(names) < 2 or not all(n.startswith("requests") for n in names):
            continue
        x = np.nan_to_num(values - np.nanmean(values, axis=1, keepdims=True))
        own.append(np.corrcoef(x[0], x[1])[0, 1])
        if previous is not None:
            other.append(np.corrcoef(x[0], previous)[0, 1])
        previous = x[0]
    assert stats.mannwhitneyu(own, other, alternative="greater").pvalue < SIGNIFICANCE


def test_telemetry_shows_what_monitoring_shows() -> None:
    """Gaps, saturation, counts and group sizes all occur, at the rates the law states."""
    chunks_made = [telemetry.generate(np.random.default_rng(s), 1024, 256) for s in (1, 2)]
    values = [v for c in chunks_made for v in c.values]
    names = [n for c in chunks_made for n in c.variate_names]
    sizes = Counter(len(v) for v in values)
    expected = np.array(list(telemetry.GROUP_SIZES.values())) * len(values)
    assert stats.chisquare([sizes[k] for k in telemetry.GROUP_SIZES], expected).pvalue > SIGNIFICANCE
    kinds = Counter(n[0].rsplit("_", 1)[0] for n in names)
    expected = np.array([m.weight for m in telemetry.METRICS]) * len(values)
    assert stats.chisquare([kinds[m.name] for m in telemetry.METRICS], expected).pvalue > SIGNIFICANCE
    flat = np.concatenate([v[:1] for v in values])
    with_gaps = np.isnan(flat).any(axis=1).mean()
    assert 0.15 < with_gaps < 0.45
    is_kind = np.array([n[0].rsplit("_", 1)[0] for n in names])
    utilisation = flat[is_kind == "utilisation"]
    assert ((utilisation == 100) | (utilisation == 1)).sum(axis=1).max() > 100  # a gauge at its limit
    errors = flat[is_kind == "errors"]
    assert (errors[np.isfinite(errors)] == 0).mean() > 0.2
    assert np.nanmax(errors) > 50
    assert np.nanmin(flat) >= 0


def test_telemetry_intervals_and_replicas() -> None:
    load = telemetry_load.generate(np.random.default_rng(2), 1024, 512)
    expected = np.array(list(telemetry_load.INTERVALS.values())) * 512
    observed = [(load.intervals == i).sum() for i in telemetry_load.INTERVALS]
    assert stats.chisquare(observed, expected).pvalue > SIGNIFICANCE
    assert (load.replicas >= 1).all()
    assert (load.replicas == np.round(load.replicas)).all()
    assert load.demand.mean(axis=1) == pytest.approx(1, abs=1e-3)
    assert (load.demand > 0).all()


# --- metrics with a life of their own


def test_a_raw_counter_only_falls_to_restart() -> None:
    """It never falls but to what arrived in one step; restarts are Poisson with a mean that is itself Poisson(1)."""
    made = telemetry_own.counter(np.random.default_rng(1), hosts(np.random.default_rng(0), 200, 1, 1024))
    assert (made >= 0).all()
    falls = np.diff(made) < 0
    after = made[:, 1:][falls]
    assert (after <= 0.05 * made.max(axis=1).repeat(falls.sum(axis=1))).all()
    resets = falls.sum(axis=1)
    observed = np.array([(resets == 0).sum(), (resets == 1).sum(), (resets > 1).sum()])
    none = np.exp(np.exp(-1) - 1)
    expected = np.array([none, none * np.exp(-1)])
    assert stats.chisquare(observed, 200 * np.append(expected, 1 - expected.sum())).pvalue > SIGNIFICANCE


def test_some_gauges_never_change() -> None:
    """One in four of one in four draws no step; Poisson(4) draws none in another e^-4 of that quarter."""
    made = telemetry_own.gauge(np.random.default_rng(1), hosts(np.random.default_rng(0), 100, 4, 256))
    constant = (np.ptp(made, axis=1) == 0).sum()
    assert stats.binomtest(int(constant), 400, 0.25 * (0.25 + 0.75 * np.exp(-4))).pvalue > SIGNIFICANCE
    assert (made >= 0).all()


def test_rare_events_are_rare_and_worse_in_incidents() -> None:
    group = hosts(np.random.default_rng(0), 300, 1, 1024)
    made = telemetry_own.events(np.random.default_rng(1), group)
    active = made > made.min(axis=1, keepdims=True)
    assert np.median(active.mean(axis=1)) < 0.1
    sick = group.incident > 0.2
    assert active[sick].mean() > 2 * active[~sick].mean()


def test_availability_is_cut_at_the_top() -> None:
    made = telemetry_own.availability(np.random.default_rng(1), hosts(np.random.default_rng(0), 200, 1, 512))
    full = np.where(made.max(axis=1) > 1, 100, 1)[:, None]
    assert (made <= full).all()
    assert (made >= 0).all()
    assert ((made == full).mean(axis=1) > 0.02).mean() > 0.3
    assert np.median(stats.skew(made[np.ptp(made, axis=1) > 0], axis=1)) < -0.5


def test_cycles_of_a_fleet_share_their_period() -> None:
    """The strongest line of two hosts of a group is the same one (to 10 %) far more often than of strangers'."""
    made = telemetry_own.cycles(np.random.default_rng(1), hosts(np.random.default_rng(0), 120, 2, 1024))
    spectrum = np.abs(np.fft.rfft(np.diff(made) / (np.diff(made).std(axis=1, keepdims=True) + 1e-9)))
    line = np.log(spectrum[:, 1:].argmax(axis=1) + 1.0).reshape(-1, 2)
    alike = (np.abs(line[:, 0] - line[:, 1]) < 0.1).sum()
    strangers = (np.abs(line[:, 0] - np.roll(line[:, 1], 1)) < 0.1).sum()
    assert alike > 40
    assert stats.binomtest(int(alike), 120, (strangers + 3) / 120, alternative="greater").pvalue < SIGNIFICANCE


def test_bursts_of_a_group_come_together() -> None:
    made = telemetry_own.bursts(np.random.default_rng(1), hosts(np.random.default_rng(0), 150, 2, 1024))
    rank = stats.rankdata(made, axis=1)
    rank = (rank - rank.mean(axis=1, keepdims=True)) / (rank.std(axis=1, keepdims=True) + 1e-9)
    first, second = rank[::2], rank[1::2]
    own = (first * second).mean(axis=1)
    other = (first * np.roll(second, 1, axis=0)).mean(axis=1)
    assert stats.mannwhitneyu(own, other, alternative="greater").pvalue < SIGNIFICANCE


def test_incidents_cascade() -> None:
    """Half of the hosts see an incident at once, 1 in 10 never, the others up to 29 steps later."""
    incident = np.zeros((2000, 64), dtype=np.float32)
    incident[:, 10] = 1
    seen = telemetry._delayed(np.random.default_rng(3), incident)
    assert set(seen.sum(axis=1)) <= {0.0, 1.0}
    assert stats.binomtest(int((seen.sum(axis=1) == 0).sum()), 2000, 0.1).pvalue > SIGNIFICANCE
    delay = seen.argmax(axis=1)[seen.sum(axis=1) > 0] - 10
    assert delay.min() == 0
    assert delay.max() < 30
    assert stats.binomtest(int((delay == 0).sum()), len(delay), 0.5 + 0.5 / 30).pvalue > SIGNIFICANCE


# --- measuring


def test_most_rows_have_limited_resolution() -> None:
    """Rounded rows hold whole multiples of a power of ten between 1e-6 and 1 standard deviation."""
    rng = np.random.default_rng(4)
    values = (rng.standard_normal((400, 500)) * 10 ** rng.uniform(-3, 6, (400, 1))).astype(np.float32)
    before = values.copy()
    telemetry_measured.quantise(rng, values)
    changed = (values != before).any(axis=1)
    assert stats.binomtest(int(changed.sum()), 400, 0.85).pvalue > SIGNIFICANCE
    error = np.abs(values - before).max(axis=1)[changed]
    deviation = before.std(axis=1)[changed]
    unit = 10 ** np.round(np.log10(2 * error))  # the greatest error of 500 roundings is just under half a unit
    assert (unit <= deviation).all()
    assert (unit >= 9e-7 * deviation).all()
    coarse = unit > 1e-3 * deviation  # finer ones touch the rounding of float32
    multiples = values[changed][coarse] / unit[coarse, None]
    assert coarse.sum() > 50
    assert np.abs(multiples - np.round(multiples)).max() < 1e-2


def test_a_constant_stays_what_it_is() -> None:
    values = np.full((50, 100), 123.456, dtype=np.float32)
    telemetry_measured.quantise(np.random.default_rng(5), values)
    telemetry_measured.smooth(np.random.default_rng(5), values)
    assert values == pytest.approx(123.456, rel=1e-6)


def test_averages_look_back_only() -> None:
    """The mean over a window that ends now: what comes later changes nothing before it."""
    rng = np.random.default_rng(6)
    values = rng.standard_normal((300, 120)).astype(np.float32)
    other = values.copy()
    other[:, 60:] += 5
    telemetry_measured.smooth(np.random.default_rng(7), values)
    telemetry_measured.smooth(np.random.default_rng(7), other)
    np.testing.assert_allclose(values[:, :60], other[:, :60], atol=1e-4)
    assert (values[:, 60:] != other[:, 60:]).all()


def test_outages_leave_half_of_a_series() -> None:
    values = np.ones((400, 1024), dtype=np.float32)
    telemetry_measured.lose(np.random.default_rng(8), values, np.repeat(np.arange(200), 2))
    missing = np.isnan(values)
    assert missing.mean(axis=1).max() <= 0.52
    pairs = missing.reshape(200, 2, -1)
    together = (pairs.all(axis=1).sum(axis=1) > 1).sum()  # one collector's outage is a gap of both hosts
    # 1 in 7 groups, 1 + Poisson(1) outages of 2 steps and more
    assert stats.binomtest(int(together), 200, 1 / 7).pvalue > SIGNIFICANCE
