"""The regime-switching Ornstein-Uhlenbeck paths.

What can be proved is compared with a plain loop or a formula; drawn quantities are tested at a significance of 1e-3 a
test with fixed seeds, so a passing test always passes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import ou

SIGNIFICANCE = 1e-3


def test_the_recursion_is_a_plain_euler_loop() -> None:
    rng = np.random.default_rng(0)
    start, normal = rng.normal(size=3), rng.normal(size=(3, 300))
    theta, mu, sigma = rng.normal(1, 2, (3, 300)), rng.normal(size=(3, 300)), rng.normal(size=(3, 300))
    made = ou.euler(start, theta, mu, sigma, normal, 0.01)
    for row in range(3):
        x = start[row]
        for t in range(300):
            assert made[row, t] == pytest.approx(x, rel=1e-12, abs=1e-12)
            x += theta[row, t] * (mu[row, t] - x) * 0.01 + sigma[row, t] * math.sqrt(0.01) * normal[row, t]


@pytest.mark.parametrize("stay", [(0.5, 0.5), (0.9, 0.6), (0.85, 0.999), (0.0, 0.0)])
def test_regimes_are_a_plain_loop_over_coins(stay: tuple[float, float]) -> None:
    made = ou.regimes(np.random.default_rng(2), 400, np.tile(stay, (20, 1)))
    rng = np.random.default_rng(2)
    states, coins = rng.integers(0, 2, 20), rng.random((20, 400), dtype=np.float32)
    for row, state in enumerate(states):
        for t in range(400):
            assert made[row, t] == bool(state)
            state = 1 - state if coins[row, t] >= stay[state] else state


def test_regimes_have_their_transition_matrix() -> None:
    """Binomial over 50,000 steps from each state: .004 off is found with probability .9 at .97, .008 at .9."""
    states = ou.regimes(np.random.default_rng(1), 500, np.tile([0.9, 0.97], (400, 1)))
    before, after = states[:, :-1], states[:, 1:]
    for state, stay in ((False, 0.9), (True, 0.97)):
        kept = after[before == state] == state
        assert stats.binomtest(int(kept.sum()), len(kept), stay).pvalue > SIGNIFICANCE
    assert stats.binomtest(int(states[:, 0].sum()), 400, 0.5).pvalue > SIGNIFICANCE
    # No memory beyond the last state: two steps stay with the square of the matrix.
    matrix = np.array([[0.9, 0.1], [0.03, 0.97]])
    twice = states[:, 2::3][states[:, :-2:3]]
    assert stats.binomtest(int(twice.sum()), len(twice), (matrix @ matrix)[1, 1]).pvalue > SIGNIFICANCE


def test_parameters_follow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """KS of every base value over 2,000 series, binomial of every share; .08 of a distribution is found."""
    n, rows, seen = 2000, {"trends": [], "seasons": []}, {}

    def counted(name: str):
        def nothing(_: np.random.Generator, count: int, length: int) -> np.ndarray:
            rows[name].append(count)
            return np.zeros((count, length), np.float32)

        return nothing

    def alternating(_: np.random.Generator, length: int, stay: np.ndarray) -> np.ndarray:
        seen["stay"] = stay
        return np.tile([False, True], (len(stay), length // 2))

    def euler(start, theta, mu, sigma, normal, dt) -> np.ndarray:
        seen.update(start=start, theta=theta, mu=mu, sigma=sigma, normal=normal[:, 0])
        assert dt == 0.01
        return np.zeros(theta.shape)

    for name, replacement in (("trends", counted("trends")), ("seasons", counted("seasons")), ("regimes", alternating)):
        monkeypatch.setattr(ou, name, replacement)
    monkeypatch.setattr(ou, "euler", euler)
    ou.paths(np.random.default_rng(12), 2, n)
    laws = {
        "theta": (stats.uniform(1, 4), stats.uniform(0.05, 0.45)),
        "mu": (stats.norm(-2, 1), stats.norm(2, 1)),
        "sigma": (stats.lognorm(0.3, scale=0.3), stats.lognorm(0.5, scale=1.5)),
        "stay": (stats.uniform(0.85, 0.149), stats.uniform(0.85, 0.149)),
    }
    for name, of_regimes in laws.items():
        for regime, law in enumerate(of_regimes):
            assert stats.kstest(seen[name][:, regime], law.cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(seen["start"], stats.norm(0, 2).cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(seen["normal"], "norm").pvalue > SIGNIFICANCE
    for number, share in zip(rows["trends"], (0.2, 0.2, 0.7, 0.7, 0.3, 0.3), strict=True):
        assert stats.binomtest(number, n, share).pvalue > SIGNIFICANCE
    of_theta, again, of_mu, of_mu_again, of_sigma, of_sigma_again = rows["seasons"]
    assert of_theta == again == 0
    assert (of_mu, of_sigma) == (of_mu_again, of_sigma_again)  # one coin for both regimes
    assert stats.binomtest(of_mu, n, 0.6).pvalue > SIGNIFICANCE
    assert stats.binomtest(of_sigma, n, 0.3).pvalue > SIGNIFICANCE


def test_seasons_have_the_published_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The period of a sine is that of its curvature over its value; chi-square of the five, KS of their jitter."""
    monkeypatch.setattr(ou, "chance", lambda rng, p, n: np.zeros((n, 1), bool))  # one sine a series
    y = ou.seasons(np.random.default_rng(13), 400, 40_000)[:, ::100].astype(np.float64)
    curvature = np.diff(y, 2, axis=1)
    rate = np.arccos(1 + (curvature * y[:, 1:-1]).sum(axis=1) / (2 * (y[:, 1:-1] ** 2).sum(axis=1)))  # radians a unit
    ratio = 2 * np.pi / rate[:, None] / ou.PERIODS
    which = np.abs(ratio - 1).argmin(axis=1)
    assert stats.chisquare(np.bincount(which, minlength=5)).pvalue > SIGNIFICANCE
    assert stats.kstest(ratio[np.arange(400), which], "uniform", (0.95, 0.1)).pvalue > SIGNIFICANCE
    largest = np.abs(y[which == 0]).max(axis=1)  # of the weekly ones, which reach their amplitude many times
    assert stats.kstest(largest, "uniform", (0.5, 2.5)).pvalue > SIGNIFICANCE


def decay_rate(start: np.ndarray, middle: np.ndarray, end: np.ndarray) -> np.ndarray:
    """r of a + b exp(-r t) from three values 20 apart."""
    return -np.log((end - middle) / (middle - start)) / 20


@pytest.mark.parametrize(
    ("name", "low", "high", "measure"),
    [
        ("linear", -0.01, 0.01, lambda y: y[:, -1] / 40),
        ("sine", 1, 5, lambda y: np.abs(y).max(axis=1)),
        ("exponential", -0.005, 0.005, lambda y: decay_rate(y[:, 0], y[:, 400], y[:, 800])),
        ("logistic", 0.01, 0.1, lambda y: decay_rate(1 / y[:, 0], 1 / y[:, 400], 1 / y[:, 800])),
    ],
)
def test_trends_draw_what_they_say(name, low, high, measure) -> None:
    """KS over 1,500 trends: .09 in the distribution function is found with probability .98."""
    t = np.linspace(0, 40, 801, dtype=np.float32)
    y = ou._drift(np.random.default_rng(2), name, 1500, t, 40.0).astype(np.float64)
    assert stats.kstest(measure(y), "uniform", (low, high - low)).pvalue > SIGNIFICANCE


def test_a_piecewise_trend_has_two_to_four_slopes() -> None:
    t = np.linspace(0, 40, 401, dtype=np.float32)
    y = ou._drift(np.random.default_rng(3), "piecewise", 600, t, 40.0).astype(np.float64)
    slopes = np.diff(y, axis=1) / 0.1
    assert np.abs(y[:, 0]).max() < 1e-6
    assert np.abs(slopes).max() < 0.0201
    bent = np.abs(np.diff(slopes, axis=1)) > 1e-4
    bends = (np.diff(bent.astype(int), axis=1, prepend=0) == 1).sum(axis=1)  # a cut shows at one or two neighbours
    assert set(bends) <= {0, 1, 2, 3}
    # Where two cuts meet or two slopes agree a bend is lost: about 1 in 50.
    assert np.abs(np.bincount(bends, minlength=4)[1:] / 600 - 1 / 3).max() < 0.08


class Naive:
    """The law as its table reads: one series, one parameter, one step at a time."""

    def __init__(self, rng: np.random.Generator, length: int, slow: tuple[float, float] = (0.05, 0.5)):
        self.rng, self.length, self.span = rng, length, 0.01 * (length - 1)
        self.t, self.slow = 0.01 * np.arange(length), slow

    def trend(self) -> np.ndarray:
        rng, t, span = self.rng, self.t, self.span
        kind = rng.choice(7, p=[0.3, 0.15, 0.15, 0.1, 0.15, 0.1, 0.05])
        if kind == 0:
            y = 0 * t
        elif kind == 1:
            y = rng.uniform(-0.01, 0.01) * t
        elif kind == 2:
            y = rng.uniform(-5, 5) * (1 - np.exp(-rng.uniform(-0.005, 0.005) * t))
        elif kind == 3:
            y = rng.uniform(5, 20) / (1 + np.exp(-rng.uniform(0.01, 0.1) * (t - rng.uniform(0.3, 0.7) * span)))
        elif kind == 4:
            y = rng.uniform(1, 5) * np.sin(2 * np.pi * (t / (rng.uniform(0.1, 0.5) * span) + rng.random()))
        elif kind == 5:
            segments = rng.integers(2, 5)
            cuts = np.concatenate([[0], np.sort(rng.uniform(0, span, segments - 1)), [span]])
            levels = np.concatenate([[0], np.cumsum(rng.uniform(-0.02, 0.02, segments) * np.diff(cuts))])
            y = np.interp(t, cuts, levels)
        else:
            y = np.polyval(rng.uniform(-1e-6, 1e-6, 3), t)
        for _ in range(rng.integers(0, 3)):
            at = rng.uniform(min(2, span / 4), span - min(2, span / 4))
            y = y + rng.uniform(1, 5) / (1 + np.exp(np.clip(-50 * (t - at), -80, 80)))
        return y

    def season(self) -> np.ndarray:
        rng, y = self.rng, 0 * self.t
        for period in rng.choice([7, 30, 90, 365.25, 182.625], rng.integers(1, 3), replace=False):
            size = rng.uniform(0.5, 3) + rng.uniform(-0.001, 0.001) * self.t
            y += size * np.sin(2 * np.pi * (self.t / (period * rng.uniform(0.95, 1.05)) + rng.random()))
        return y

    def series(self) -> np.ndarray:
        rng, n = self.rng, self.length
        stay = rng.uniform(0.85, 0.999, 2)
        base = [
            (rng.uniform(1, 5), rng.normal(-2, 1), 0.3 * math.exp(rng.normal(0, 0.3))),
            (rng.uniform(*self.slow), rng.normal(2, 1), 1.5 * math.exp(rng.normal(0, 0.5))),
        ]
        seasonal = (False, rng.random() < 0.6, rng.random() < 0.3)
        values = []
        for regime in range(2):
            for k, share in enumerate((0.2, 0.7, 0.3)):
                y = base[regime][k] + (self.trend() if rng.random() < share else 0 * self.t)
                values.append(y + (self.season() if seasonal[k] else 0))
        state, x, out = int(rng.integers(2)), rng.normal(0, 2), []
        for t, (normal, coin) in enumerate(zip(rng.normal(size=n), rng.random(n), strict=True)):
            out.append(x)
            theta, mu, sigma = (values[3 * state + k][t] for k in range(3))
            x += theta * (mu - x) * 0.01 + sigma * 0.1 * normal
            state = state if coin < stay[state] else 1 - state
        scaled = rng.uniform(-100, 100) + rng.uniform(0.1, 50) * np.array(out)
        return scaled + rng.uniform(0, 0.1) * rng.normal(size=n)


def summaries(values: np.ndarray) -> dict[str, np.ndarray]:
    x = values.astype(np.float64)
    z = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    t = np.linspace(-1, 1, x.shape[1])
    change = np.abs(np.diff(z, axis=1))
    return {
        "level": x.mean(axis=1),
        "size": np.log(x.std(axis=1)),
        "greatest": np.log(np.abs(x).max(axis=1)),
        "kurtosis": (z**4).mean(axis=1),
        "skewness": (z**3).mean(axis=1),
        "memory of 1": (z[:, 1:] * z[:, :-1]).mean(axis=1),
        "memory of 24": (z[:, 24:] * z[:, :-24]).mean(axis=1),
        "memory of 100": (z[:, 100:] * z[:, :-100]).mean(axis=1),
        "trend": (z @ t) ** 2,
        "greatest change": np.log(change.max(axis=1)),
        "change of volatility": np.log(np.quantile(change, 0.9, axis=1) / np.quantile(change, 0.3, axis=1)),
    }


def least_p(left: np.ndarray, right: np.ndarray) -> float:
    """Holm's smallest adjusted p-value of KS tests on the summaries."""
    a, b = summaries(left), summaries(right)
    return min(stats.ks_2samp(a[name], b[name]).pvalue for name in a) * len(a)


def test_paths_have_the_law_of_a_naive_loop() -> None:
    """KS, 1,000 series against 2,000, 11 summaries: .1 of a distribution is found with probability .7, .12 with .95.

    Reference against reference passes; one whose slow regime reverts four times faster is found.
    """
    length, n = 384, 1000
    rng = np.random.default_rng(4)
    reference = np.array([Naive(rng, length).series() for _ in range(n)])
    again = np.array([Naive(rng, length).series() for _ in range(n)])
    other = np.array([Naive(rng, length, slow=(0.2, 2.0)).series() for _ in range(n)])
    ours = ou.generate(np.random.default_rng(5), length, n)
    assert least_p(reference, again) > SIGNIFICANCE
    assert least_p(ours, np.concatenate([reference, again])) > SIGNIFICANCE
    assert least_p(ours, other) < SIGNIFICANCE


def test_paths_are_bounded_where_theta_runs_away() -> None:
    values = ou.generate(np.random.default_rng(6), 30_000, 64)  # sines of theta have the time to explode
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= 100 + 50 * ou.LARGEST + 1
    assert (np.ptp(values, axis=1) > 0).all()
