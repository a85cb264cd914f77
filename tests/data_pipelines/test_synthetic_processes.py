"""The Ornstein-Uhlenbeck paths and the laws rendered as sound.

What can be proved is compared with a plain loop or a formula; drawn quantities are tested at a significance of 1e-3 a
test with fixed seeds, so a passing test always passes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal, stats

from data_pipelines.synthetic import audio, forecast_pfn, fractal, ou, prior, rhythm, topology, volatility
from data_pipelines.synthetic.draws import leaky_sums, uniform

SIGNIFICANCE = 1e-3
AUDIO = ("volatility", "fractal", "rhythm", "topology")


# --- Ornstein-Uhlenbeck


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


# --- sound


def test_an_envelope_falls_early_and_rises_late() -> None:
    since = np.array([[0, 0.05, 0.1, 0.45, 0.8, 2.0]], np.float32)
    falling = audio.envelope(since, [(0, 1.2), (0.1, 0.8), (0.8, 0.0)])[0]
    expected = [1.2, 0.8 + 0.4 * 0.5**10, 0.8, 0.8 * 0.5**10, 0, 0]
    assert falling == pytest.approx(expected, abs=1e-6)
    rising = audio.envelope(since, [(0, -0.5), (np.array([[0.8]]), 0.0)])[0]
    assert rising == pytest.approx([-0.5 + 0.5 * (s / 0.8) ** 10 if s < 0.8 else 0 for s in since[0]], abs=1e-6)


def test_ticks_and_waves() -> None:
    seconds = np.linspace(0, 9.9, 1000)[None]
    since = audio.since_tick(seconds, np.array([[0.7]]))
    assert since.min() >= 0
    assert since.max() < 0.7001
    assert since[0] == pytest.approx([math.fmod(s, 0.7) for s in seconds[0]], abs=1e-5)
    cycles = np.array([[0, 0.25, 0.75, 1.5]])
    assert audio.rising(cycles)[0].tolist() == [-1, -0.5, 0.5, 0]
    assert audio.square(cycles)[0].tolist() == [1, 1, -1, -1]


def test_the_follower_is_a_one_pole_filter_of_the_rectified_sine() -> None:
    seconds = np.array([[3.0], [7.0]]) + np.arange(600) / volatility.RATE
    carrier, cutoff = np.array([[1.5], [4.0]]), np.array([[1.0], [3.0]])
    made = volatility.follower(seconds, carrier, cutoff)
    for row in range(2):
        keep = math.exp(-2 * math.pi * cutoff[row, 0] / volatility.RATE)
        level, expected = 0.0, []
        for s in np.concatenate([seconds[row, 0] - np.arange(2000, 0, -1) / volatility.RATE, seconds[row]]):
            level = keep * level + (1 - keep) * abs(math.sin(2 * math.pi * carrier[row, 0] * s))
            expected.append(level)
        assert made[row] == pytest.approx(expected[2000:], abs=1e-4)


def test_the_low_pass_is_a_resonant_biquad() -> None:
    """Gain 1 at frequency 0, Q at the corner, 0 at the fastest frequency; elsewhere scipy's response of the filter."""
    corner, q = 0.05, 2.5
    at = np.array([0.0, corner, 0.5, 0.01, 0.2])
    gain = fractal.low_pass(np.exp(-2j * np.pi * at), np.array([[corner]]), np.array([[q]]))[0]
    w, alpha = 2 * np.pi * corner, np.sin(2 * np.pi * corner) / (2 * q)
    b = (1 - np.cos(w)) / 2 * np.array([1, 2, 1])
    _, expected = signal.freqz(b, [1 + alpha, -2 * np.cos(w), 1 - alpha], 2 * np.pi * at)
    assert np.abs(gain[:3]) == pytest.approx([1, q, 0], abs=1e-5)
    assert np.abs(gain - expected).max() < 1e-5


def test_leaky_sums_are_a_filter() -> None:
    rows = np.random.default_rng(7).normal(size=(2, 200))
    expected = [signal.lfilter([1], [1, -keep], row) for row, keep in zip(rows, (0.3, 0.99), strict=True)]
    leaky_sums(rows, np.array([0.3, 0.99]))
    assert np.abs(rows - expected).max() < 1e-12


# Uniform parameters of each sound, as its table lists them; per layer or filter where there are several.
RANGES = {
    "volatility": {(0.1, 0.5), (0.2, 0.5), (1, 5), (1, 4), (0.3, 1), (0.5, 1), (0.05, 0.2), (20, 80)},
    "fractal": {(20, 2000), (0.5, 3), (0.5, 0.8)},
    "rhythm": {(2, 8), (0.001, 0.01), (0.05, 0.3), (50, 800), (0.2, 0.5)},
    "topology": {(0.2, 1), (0.2, 0.5), (3, 12), (0.02, 0.1), (0.2, 0.6), (1, 3), (-0.6, -0.2), (0.3, 0.8)}
    | {(20, 50), (0.05, 0.15), (2, 5), (0.4, 0.8)},
}


@pytest.mark.parametrize("module", [volatility, fractal, rhythm, topology], ids=AUDIO)
def test_sounds_draw_from_their_table(monkeypatch: pytest.MonkeyPatch, module) -> None:
    """Ranges exactly; of 640 series, how many have a 4th, 5th, ... layer or filter, to a significance of 1e-3 each."""
    drawn: dict[tuple[float, float], list[int]] = {}

    def recorded(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
        drawn.setdefault((low, high), []).append(n)
        return uniform(rng, low, high, n)

    monkeypatch.setattr(module, "uniform", recorded)
    module.generate(np.random.default_rng(11), 64, 640)
    name = module.__name__.rsplit(".", 1)[1]
    assert set(drawn) == RANGES[name]
    shares = {"fractal": (1, 1, 1, 3 / 4, 2 / 4, 1 / 4), "rhythm": (1, 1, 1, 2 / 3, 1 / 3)}.get(name, (1,))
    per_layer = drawn[max(RANGES[name])]  # the tone of a layer, the corner of a filter, or a single draw
    assert len(per_layer) == len(shares)
    assert all(stats.binomtest(n, 640, share).pvalue > SIGNIFICANCE for n, share in zip(per_layer, shares, strict=True))


@pytest.mark.parametrize("family", AUDIO)
def test_sounds_are_as_loud_at_the_start_as_later(family: str) -> None:
    """Paired test over 512 series: 8 % less would be found; the published fade-in begins at a 20th of it."""
    values = np.abs(np.concatenate(prior.FAMILIES[family].generate_chunk(np.random.default_rng(8), 1024, 512).values))
    assert values.max(axis=1) == pytest.approx(1, abs=1e-6)
    start, later = values[:, :64].mean(axis=1), values[:, 480:544].mean(axis=1)
    assert stats.ttest_rel(start, later).pvalue > SIGNIFICANCE


def test_layers_of_a_rhythm_repeat_with_the_beat() -> None:
    """The loudness a beat later is more alike than one a good third of a beat later."""
    seed, length, count = 9, 4096, 64
    values = np.abs(rhythm.generate(np.random.default_rng(seed), length, count))
    rng = np.random.default_rng(seed)
    audio.clock(rng, length, count, rhythm.RATE)
    beat = uniform(rng, 2, 8, count)[:, 0]
    closer = 0
    for row in range(count):
        loud = np.convolve(values[row], np.ones(41) / 41, "same")
        loud -= loud.mean()

        def alike(lag: int, loud: np.ndarray = loud) -> float:
            return float((loud[lag:] * loud[:-lag]).mean())

        period = rhythm.RATE / beat[row]
        closer += alike(round(period)) > alike(round(0.37 * period))
    assert closer >= 60


# --- a mended law


def test_spikes_of_forecast_pfn_never_vanish() -> None:
    rng = np.random.default_rng(10)
    assert all(forecast_pfn._spikes(rng, 256).any() for _ in range(2000))
