"""Synthetic families: purity, laws and proportions.

Seeds are fixed, so a passing test always passes; thresholds are set at a significance of 1e-3 a test, which is the
chance that a correct but different stream of random numbers (another seed, another numpy) fails it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import draws, forecast_pfn, frequency, kernel, prior
from data_pipelines.synthetic.chunk import CHUNK, keyed_generator
from data_pipelines.synthetic.step import PATTERNS

SIGNIFICANCE = 1e-3
LENGTH = 512
PURITY_LENGTH = 128
FAMILIES = list(prior.FAMILIES)


def chunks(family: str, length: int, number: int) -> list[np.ndarray]:
    """The values of the first `number` chunks, [V, T] each."""
    make = prior.FAMILIES[family].generate_chunk
    return [v for c in range(number) for v in make(keyed_generator(7, family, c), length, CHUNK).values]


def rows(family: str, length: int, number: int) -> np.ndarray:
    return np.concatenate(chunks(family, length, number))


# --- purity


@pytest.mark.parametrize("family", FAMILIES)
def test_a_series_is_a_function_of_its_key(family: str) -> None:
    wanted = [64, 3, 65]  # chunks alternate, so the cached one is never the right one twice
    alone = [prior.generate(family, 11, i, PURITY_LENGTH) for i in wanted]
    in_order = {i: prior.generate(family, 11, i, PURITY_LENGTH) for i in sorted(set(wanted))}
    for item, index in zip(alone, wanted, strict=True):
        twin = in_order[index]
        assert item.values.tobytes() == twin.values.tobytes()
        assert (item.interval, item.start, item.item_id) == (twin.interval, twin.start, twin.item_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_index_and_seed_change_the_series(family: str) -> None:
    keys = [(1, 0), (1, 1), (1, CHUNK), (2, 0), (-1, 0)]
    made = {prior.generate(family, seed, index, PURITY_LENGTH).values.tobytes() for seed, index in keys}
    assert len(made) == len(keys)


def test_another_process_makes_the_same_bytes_in_another_order() -> None:
    """Under another hash seed and another number of BLAS threads. It loads numpy alone, for a quick start."""
    code = (
        "import hashlib, sys; from data_pipelines.synthetic import prior\n"
        f"print(*(hashlib.sha256(prior.generate(f, 5, i, {PURITY_LENGTH}).values.tobytes()).hexdigest()"
        " for f in reversed(list(prior.FAMILIES)) for i in (70, 66)))\n"
        "slow = {'numba', 'scipy', 'pandas', 'pyarrow', 'torch'} & set(sys.modules)\n"
        "assert not slow, f'a family imported {slow}'"
    )
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONHASHSEED": "3", "OPENBLAS_NUM_THREADS": "3", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = [
        hashlib.sha256(prior.generate(f, 5, i, PURITY_LENGTH).values.tobytes()).hexdigest()
        for f in FAMILIES
        for i in (66, 70)
    ]
    assert done.stdout.split() == here[::-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_are_known_without_the_series(family: str) -> None:
    count = prior.FAMILIES[family].count
    for number in (0, 5):
        made = [prior.generate(family, 9, number * count + row, 32).variates for row in range(count)]
        assert prior.widths(family, 9, number).tolist() == made


def test_the_caller_may_write_to_a_series() -> None:
    first = prior.generate("sawtooth", 1, 0, PURITY_LENGTH)
    first.values[:] = 0
    assert prior.generate("sawtooth", 1, 0, PURITY_LENGTH).values.any()


# --- records


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [prior.SHORTEST, 257, 2048])
def test_values_are_finite_and_labels_are_set(family: str, length: int) -> None:
    for index in range(CHUNK):
        item = prior.generate(family, 3, index, length)
        assert item.values.dtype == np.float32
        assert item.length == length
        observed = np.isfinite(item.values)
        assert not np.isinf(item.values).any()
        if family == "telemetry":
            assert observed.mean() > 0.4
        else:
            assert observed.all()
        assert item.domain == "synthetic"
        assert item.source == f"synthetic_{family}"
        assert item.licence == "Apache-2.0"
        assert item.item_id == f"3-{index:08d}"
        assert item.start is not None
        assert 1700 <= int(item.start[:4]) < 2200


def test_frequencies_follow_their_weights() -> None:
    """Chi-square over the frequencies that fit; at 4096 steps quarters and years do not."""
    intervals, starts = frequency.draw(np.random.default_rng(1), 4096, 4000)
    usable = {k: w for k, w in frequency.WEIGHTS.items() if k < 3 * frequency.MONTH}
    observed = np.array([(intervals == k).sum() for k in usable])
    assert observed.sum() == 4000
    expected = np.array(list(usable.values())) / sum(usable.values()) * 4000
    assert stats.chisquare(observed, expected).pvalue > SIGNIFICANCE
    ends = [frequency.times(int(i), s, 4096)[-1] for i, s in zip(intervals[:200], starts[:200], strict=True)]
    assert max(ends) < np.datetime64("2201-01-01")


# --- laws


def test_sinewave_periods_are_uniform_from_10_to_200() -> None:
    """KS on the periods of series that are dominated by one component, read off the spectrum.

    The strongest of k components has the same period law as any other, so no selection is needed. Resolution of the
    spectrum (T = 4096, so .2 to 5 % of a period) is far below what 1,024 series resolve.
    """
    values = rows("sinewave", 4096, 16)
    t = np.arange(4096)
    detrended = values - np.polynomial.polynomial.polyval(t, np.polynomial.polynomial.polyfit(t, values.T, 1))
    spectrum = np.abs(np.fft.rfft(detrended * np.hanning(4096), n=4 * 4096))
    spectrum[:, : 4 * 15] = 0  # slower than any component
    periods = 4 * 4096 / spectrum.argmax(axis=1)
    assert stats.kstest(periods, "uniform", (10, 190)).pvalue > SIGNIFICANCE


def test_sinewave_noise_is_in_seven_of_ten() -> None:
    """The tenth difference wipes out sines of period 10 and more (factor .62^10 or less) but multiplies white noise."""
    values = rows("sinewave", 2048, 16).astype(np.float64)
    rough = np.diff(values, 10).std(axis=1) / values.std(axis=1)
    assert stats.binomtest(int((rough > 0.2).sum()), len(rough), 0.7).pvalue > SIGNIFICANCE


def test_sawtooth_has_two_to_seven_periods() -> None:
    """KS: drops per series, spread by a uniform phase, against the law of floor(N + phase)."""
    values = rows("sawtooth", 4096, 16)
    jump = np.abs(np.diff(values)) > 0.25  # the least amplitude is .5, the steepest ramp .006 a step
    counts = jump.sum(axis=1)
    rng = np.random.default_rng(0)
    law = np.floor(rng.uniform(2, 7, 200_000) * 4095 / 4096 + rng.random(200_000))
    expected = np.array([(law == k).mean() for k in range(2, 8)]) * len(counts)
    observed = np.array([(counts == k).sum() for k in range(2, 8)])
    assert observed.sum() == len(counts)
    assert stats.chisquare(observed, expected / expected.sum() * len(counts)).pvalue > SIGNIFICANCE


def test_anomaly_spikes_stand_at_a_period_from_100_to_299() -> None:
    values = rows("anomaly", 4096, 8)
    baseline = np.median(values, axis=1, keepdims=True)
    clean, one_sided = [], 0
    for row in values - baseline:
        at = np.flatnonzero(row)
        one_sided += len(set(np.sign(row[at]))) == 1
        gaps = np.diff(at)
        if len(set(gaps.tolist())) == 1:
            clean.append(gaps[0])
            assert at[0] == gaps[0] // 2
    assert one_sided == len(values)
    assert stats.binomtest(len(clean), len(values), 0.5).pvalue > SIGNIFICANCE
    assert stats.kstest(np.array(clean) + np.random.default_rng(0).random(len(clean)), "uniform", (100, 200)).pvalue > (
        SIGNIFICANCE
    )


def test_spike_counts_and_signs() -> None:
    """4 to 6 evenly spaced spikes, in 1 of 20 a burst of 2 or 3; up or down by evens."""
    values = rows("spike", 4096, 16)
    away = values - np.median(values, axis=1, keepdims=True)
    far = np.abs(away) > 0.5 * np.abs(away).max(axis=1, keepdims=True)
    counts = (np.diff(far.astype(int), axis=1, prepend=0) == 1).sum(axis=1)
    observed = Counter(counts.tolist())
    burst = sum(observed[k] for k in (1, 2, 3))  # neighbours of a burst may touch and count as one
    assert set(observed) <= {1, 2, 3, 4, 5, 6}
    expected = np.array([0.05, *[0.95 / 3] * 3]) * len(values)
    assert stats.chisquare([burst, *(observed[k] for k in (4, 5, 6))], expected).pvalue > SIGNIFICANCE
    upward = int((away[np.arange(len(away)), np.abs(away).argmax(axis=1)] > 0).sum())
    assert stats.binomtest(upward, len(values), 0.5).pvalue > SIGNIFICANCE


def test_step_is_a_staircase_of_both_directions() -> None:
    """Ends below or above the start by evens (the patterns are symmetric), and its jumps are rare and large."""
    values = rows("step", 4096, 8)
    weights = sum(p.weight for p in PATTERNS)
    assert weights == pytest.approx(3.3)
    rises = int((values[:, -1] > values[:, 0]).sum())
    assert stats.binomtest(rises, len(values), 0.5).pvalue > SIGNIFICANCE
    change = np.abs(np.diff(values))
    typical, largest = np.median(change, axis=1), change.max(axis=1)
    assert np.median(largest / typical) > 100


def test_forecast_pfn_repeats_by_the_calendar() -> None:
    """Hourly series: the hour of the day explains more of the detrended values than the same number of wrong bins."""
    rng = np.random.default_rng(3)
    chunk = forecast_pfn.generate(rng, 2400, 128)
    right, wrong = [], []
    for value, interval in zip(chunk.values, chunk.intervals, strict=True):
        if interval != 3600:
            continue
        x = value[0] - np.convolve(np.pad(value[0], 36, mode="edge"), np.ones(73) / 73, "valid")
        for period, into in ((24, right), (25, wrong)):
            folded = x[: len(x) // period * period].reshape(-1, period)
            into.append(folded.mean(axis=0).var() / folded.var())
    assert len(right) >= 15
    assert stats.wilcoxon(right, wrong, alternative="greater").pvalue < SIGNIFICANCE


def test_forecast_pfn_spikes_never_vanish() -> None:
    rng = np.random.default_rng(10)
    assert all(forecast_pfn._spikes(rng, 256).any() for _ in range(2000))


def test_forecast_pfn_stays_in_its_bounds() -> None:
    values = rows("forecast_pfn", LENGTH, 4)
    assert np.abs(values).max() <= forecast_pfn.LARGEST
    assert np.ptp(values, axis=1).max() <= forecast_pfn.LARGEST


@pytest.mark.parametrize("monomial", [(0,), (2, 25), (31,), (22, 32)])
def test_kernel_paths_have_the_variance_of_their_kernel(monomial: tuple[int, ...]) -> None:
    """Chi-square at three steps over 600 paths: periodic 24; periodic 96 x RBF 1; white; dot product x white."""
    length, n = 100, 600
    rng = np.random.default_rng(4)
    paths = np.array([kernel.sample(rng, [monomial], length) for _ in range(n)])
    x = np.linspace(0, 1, length)
    variance = {(31,): np.full(length, 0.1), (22, 32): 1 + x**2}.get(monomial, np.ones(length))
    for step in (1, 50, 99):
        p = stats.chi2.cdf((paths[:, step] ** 2).sum() / variance[step], n)
        assert SIGNIFICANCE / 6 < p < 1 - SIGNIFICANCE / 6


def test_autoregression_has_unit_variance_and_its_memory() -> None:
    paths = draws.autoregression(np.random.default_rng(1), np.full((4000, 1), 5.0), 40)
    for step in (0, 39):
        p = stats.chi2.cdf((paths[:, step].astype(np.float64) ** 2).sum(), 4000)
        assert SIGNIFICANCE / 4 < p < 1 - SIGNIFICANCE / 4
    correlation = np.corrcoef(paths[:, 10], paths[:, 15])[0, 1]
    assert abs(np.arctanh(correlation) - np.arctanh(np.exp(-1))) < 3.3 / np.sqrt(4000 - 3)


# --- the mix


@pytest.mark.parametrize("weights", [{"step": 1, "spike": 2, "anomaly": 0.5, "sawtooth": 0}, {"kernel": 3.0}])
def test_proportions_are_exact_all_along(weights: dict[str, float]) -> None:
    shares = {k: w / sum(weights.values()) for k, w in weights.items()}
    made = dict.fromkeys(weights, 0)
    for n, (family, index) in enumerate(prior.turns(weights, 700), start=1):
        assert index == made[family]
        made[family] += 1
        assert all(abs(made[k] - n * shares[k]) < 1 for k in weights)
    assert all(made[k] == round(700 * shares[k]) for k in weights)


def test_a_mix_yields_the_single_series() -> None:
    items = list(prior.series({"sawtooth": 2, "telemetry": 1}, 9, LENGTH, seed=4))
    assert Counter(i.source for i in items) == {"synthetic_sawtooth": 6, "synthetic_telemetry": 3}
    assert len({(i.source, i.item_id) for i in items}) == 9
    for item in items:
        family, index = item.source.removeprefix("synthetic_"), int(item.item_id.rsplit("-", 1)[1])
        assert prior.generate(family, 4, index, LENGTH).values.tobytes() == item.values.tobytes()


# --- errors


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'telemtry'; did you mean 'telemetry'\?"):
        prior.generate("telemtry", 0, 0, LENGTH)
    with pytest.raises(ValueError, match="did you mean 'sawtooth'"):
        prior.series({"sawtoth": 1}, 1, LENGTH, 0)
    with pytest.raises(ValueError, match="at least 32 steps, got 8"):
        prior.generate("step", 0, 0, 8)
    with pytest.raises(ValueError, match="index must not be negative, got -1"):
        prior.generate("step", 0, -1, LENGTH)
    for weights in ({"step": -1.0, "spike": 2.0}, {"step": 0.0}, {}, {"step": float("nan")}):
        with pytest.raises(ValueError, match="weights must be finite"):
            prior.series(weights, 1, LENGTH, 0)
