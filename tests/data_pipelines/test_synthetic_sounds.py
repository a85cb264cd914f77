"""The laws rendered as sound: envelopes, filters and clocks against formulas, parameters against their tables.

Drawn quantities are tested at a significance of 1e-3 a test with fixed seeds, so a passing test always passes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage, signal, stats

from data_pipelines.synthetic import audio, fractal, prior, rhythm, topology, volatility
from data_pipelines.synthetic.draws import leaky_sums, moving_maximum, moving_mean, uniform

SIGNIFICANCE = 1e-3
AUDIO = ("volatility", "fractal", "rhythm", "topology")


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


def test_brown_noise_is_as_loud_as_pyo_makes_it() -> None:
    """Its one-pole filter of uniform noise at 20 Hz, run plainly, with the gain of 20."""
    rng = np.random.default_rng(0)
    shocks, keep, y, theirs = (
        rng.uniform(-0.99, 0.99, (200_000, 16)),
        np.exp(-2 * np.pi * 20 / audio.SAMPLE_RATE),
        0.0,
        [],
    )
    for shock in shocks:
        y = shock + (y - shock) * keep
        theirs.append(20 * y)
    ours = audio.brown(rng, 400, 4_000)
    # some 9,000 and 4,500 independent values: their standard deviations are known to 1 and 1.6 %
    assert ours.std() == pytest.approx(np.std(theirs[5_000:]), rel=0.06)
    assert np.corrcoef(ours[:, :-350].ravel(), ours[:, 350:].ravel())[0, 1] == pytest.approx(np.exp(-1), abs=0.06)


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
    keep = np.append(np.linspace(0, 1, 20), np.exp(-1 / np.array([0.1, 300.0, 1e4])))  # more than are made at once
    rows = np.random.default_rng(7).normal(size=(len(keep), 1000))
    expected = np.stack([signal.lfilter([1], [1, -k], row) for row, k in zip(rows, keep, strict=True)])
    alone = rows.astype(np.float32)
    leaky_sums(rows, keep)
    assert np.abs(rows - expected).max(axis=1) == pytest.approx(0, abs=1e-9)
    leaky_sums(alone, keep.astype(np.float32))
    assert (np.abs(alone - expected).max(axis=1) / expected.std(axis=1)).max() < 1e-4, "the rounding of keep included"


@pytest.mark.parametrize("window", [1, 2, 3, 10, 31, 64, 150])
def test_moving_mean_and_maximum_are_those_of_scipy(window: int) -> None:
    row = np.random.default_rng(8).normal(size=300).astype(np.float32)
    last = (window - 1) // 2  # where scipy's window must stand to end with the step
    assert np.array_equal(moving_maximum(row, window), ndimage.maximum_filter1d(row, window, origin=last))
    for ours, theirs in (("edge", "nearest"), ("constant", "constant")):
        before, after = window // 2, (window - 1) // 2
        centred = ndimage.uniform_filter1d(row.astype(np.float64), window, mode=theirs)
        assert np.abs(moving_mean(row, before, after, ours) - centred).max() < 1e-12
        trailing = ndimage.uniform_filter1d(row.astype(np.float64), window, mode=theirs, origin=last)
        assert np.abs(moving_mean(row, window - 1, 0, ours) - trailing).max() < 1e-12


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
