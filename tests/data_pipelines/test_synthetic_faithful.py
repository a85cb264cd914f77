"""The faithful families: each shows the accident of the published generator, the default law does not.

Seeds are fixed; tests are at a significance of 1e-3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import (
    audio,
    augmented,
    cauker,
    edits,
    forecast_pfn,
    fractal,
    frequency,
    gp,
    kernel,
    prior,
    rhythm,
    topology,
    volatility,
)
from data_pipelines.synthetic.chunk import Chunk

SIGNIFICANCE = 1e-3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_faithful_families_are_for_those_who_ask() -> None:
    """They are registered like any other, label their series, and no default mix has them."""
    names = [name for name in prior.FAMILIES if name.endswith(prior.FAITHFUL)]
    assert len(names) == 9
    assert not set(names) & set(prior.DEFAULT_WEIGHTS)
    for name in names:
        own = name.removesuffix(prior.FAITHFUL)
        assert own in prior.DEFAULT_WEIGHTS
        item = prior.generate(name, 0, 0, 128)
        assert item.source == f"synthetic_{name}"
        assert item.values.tobytes() != prior.generate(own, 0, 0, 128).values.tobytes()


@pytest.mark.parametrize(("length", "measured"), [(1000, 1024), (2048, 2048), (4096, 2048)])
def test_gp_jitter_is_white_noise_of_the_measured_variances(
    monkeypatch: pytest.MonkeyPatch, length: int, measured: int
) -> None:
    """With the process itself at zero. Power: a share of .5 off by .07 is found 4 times in 5."""
    monkeypatch.setattr(gp, "sample", lambda rng, monomials, length: np.zeros(length, np.float32))
    monkeypatch.setattr(gp, "PEAK_SPIKES", 0.0)
    second = np.diff(gp.generate(rng(1), length, 1500, faithful=True).astype(np.float64), 2, axis=1)  # no lines
    variance = (second**2).mean(axis=1) / 6
    levels = gp.JITTER[measured]
    nearest = Counter(min(levels, key=lambda v: abs(np.log((v + 1e-6) / (x + 1e-6)))) for x in variance)
    expected = np.array(list(levels.values())) / sum(levels.values()) * 1500
    assert stats.chisquare([nearest[v] for v in levels], expected).pvalue > SIGNIFICANCE
    own = np.diff(gp.generate(rng(1), length, 50).astype(np.float64), 2, axis=1)
    assert np.abs(own).max() < 1e-5


def test_gp_spikes_stand_a_step_before_the_peaks() -> None:
    wave = (2 + np.cos(2 * np.pi * (np.arange(1000) - 20) / 50)).astype(np.float32)
    for early in (False, True):
        row = wave.copy()
        gp._add_peak_spikes(rng(3), row, 50, early)
        highest = np.flatnonzero(np.abs(row - wave) > 0.9 * np.abs(row - wave).max())
        assert set(highest % 50) == {20 - early}


def test_cauker_roots_share_their_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roots of one kernel and no mean are the same path in a group, and another one in the next."""
    monkeypatch.setattr(cauker, "draw_parents", lambda rng: [np.zeros(0, np.int64)] * 6)
    monkeypatch.setattr(cauker, "draw_mean", lambda rng, length: np.zeros(length))
    monkeypatch.setattr(kernel, "draw_monomials", lambda rng, most: [(25,)])
    for faithful, distinct in ((True, 1), (False, 6)):
        groups = cauker.generate(rng(8), 64, 20, faithful)
        assert [len({row.tobytes() for row in group}) for group in groups] == [distinct] * 20
        assert len({group.tobytes() for group in groups}) == 20


@pytest.mark.parametrize("law", [volatility, fractal, rhythm, topology], ids=lambda law: law.__name__.rsplit(".")[-1])
def test_sounds_are_46_ms_behind_a_fade_in(law) -> None:
    """The first 50 samples are quiet, as measured of the published ones (.014 beside .38 later; of rhythms, which are
    struck at the beginning, not as quiet), and neighbours hardly differ. The default shows neither."""
    published, own = (law.generate(rng(4), 2048, 128, faithful) for faithful in (True, False))
    start, later = (np.abs(published[:, at]).mean() for at in (slice(0, 50), slice(441, None)))
    assert start < (0.3 if law is rhythm else 0.1) * later
    assert np.abs(own[:, :50]).mean() > 0.7 * np.abs(own[:, 441:]).mean()
    assert np.abs(published).max(axis=1) == pytest.approx(1, abs=1e-6)
    change = [np.median(np.diff(x).std(axis=1) / x.std(axis=1)) for x in (published, own)]
    assert change[0] < change[1] / 2
    assert audio.clock(rng(), 3, 1, 9.0, faithful=True)[0] == pytest.approx(np.arange(3) / 44_100)


def test_a_rejected_series_keeps_the_label_of_another_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try of every series is too large. Its second is at another frequency, any but its own, by evens."""
    tried: list[int] = []

    def configuration(rng: np.random.Generator, calendar: object, days: np.ndarray, interval: int) -> np.ndarray:
        tried.append(interval)
        return np.full(len(days), 1000.0 if len(tried) % 4 in (1, 2) else float(interval % 499))

    monkeypatch.setattr(forecast_pfn, "_configuration", configuration)
    monkeypatch.setattr(forecast_pfn, "_augment", lambda rng, x: x)
    monkeypatch.setattr(forecast_pfn, "MIXED", 0.0)
    made = forecast_pfn.generate(rng(1), 64, 600, faithful=True)
    first, second = np.array(tried).reshape(600, 4)[:, [0, 2]].T
    assert (made.intervals == first).all()
    assert (first != second).all()
    assert [v[0, 0] for v in made.values] == [i % 499 for i in second]
    counts = Counter(second[first == 3600].tolist())
    assert stats.chisquare([counts[i] for i in frequency.WEIGHTS if i != 3600]).pvalue > SIGNIFICANCE
    tried.clear()
    made = forecast_pfn.generate(rng(1), 64, 100)
    assert (np.array(tried).reshape(100, 4) == made.intervals[:, None]).all()


def test_a_tenth_of_the_chunks_mix_two_to_four_of_their_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Series k is k everywhere: what is no whole number is a mixture, and lies between its parents."""
    drawn: list[float] = []
    monkeypatch.setattr(
        forecast_pfn, "_configuration", lambda rng, calendar, days, i: np.full(len(days), len(drawn) // 2)
    )
    monkeypatch.setattr(forecast_pfn, "_augment", lambda rng, x: (drawn.extend([0.0, 0.0]), x)[1])
    sizes = Counter()
    generator = rng(2)
    for _ in range(400):
        drawn.clear()
        values = np.array([v[0, 0] for v in forecast_pfn.generate(generator, 32, 20, faithful=True).values])
        mixed = np.flatnonzero(np.abs(values - np.arange(20)) > 1e-4)
        sizes[len(mixed)] += 1
        if len(mixed):
            assert ((values[mixed] > mixed.min()) & (values[mixed] < mixed.max())).all()
    assert set(sizes) == {0, 2, 3, 4}
    assert stats.binomtest(400 - sizes[0], 400, 0.1).pvalue > SIGNIFICANCE


def test_a_faithful_shock_is_there_before_its_time() -> None:
    x = rng(5).normal(3, 2, 512).astype(np.float32)
    for seed in range(50):
        published, own = (edits.shock(rng(seed), x, faithful).astype(np.float64) - x for faithful in (True, False))
        at = int(np.flatnonzero(np.abs(own) > 1e-4)[0])
        assert published[: at + 1] == pytest.approx(own[at], abs=1e-5)
        assert published[at:] == pytest.approx(own[at:])
        assert abs(published[-1]) < abs(published[0])


def test_a_faithful_boxcar_lets_zeros_in() -> None:
    kinds = Counter()
    for seed in range(40):
        published, own = (edits.resample(rng(seed), np.full(2048, 8.0, np.float32), f) for f in (True, False))
        assert (own == 8).all()
        kinds[bool((published == 8).all())] += 1
        assert published[20:-20] == pytest.approx(8)
    assert 4 <= kinds[False] <= 20  # .3 of them


@pytest.mark.parametrize("law", [augmented.per_sample, augmented.batch])
def test_convolutions_pass_two_gates_and_sources_are_faithful(
    monkeypatch: pytest.MonkeyPatch, law: Callable[..., Chunk]
) -> None:
    """.09 of the edited series, not .3. Power: .09 against .13 is found 4 times in 5."""
    calls: Counter[str] = Counter()
    monkeypatch.setattr(augmented, "random_conv", lambda rng, x: calls.update(["conv"]) or x)
    monkeypatch.setattr(
        augmented, "edit", lambda rng, x, *a, faithful, **k: calls.update(["edit", f"faithful {faithful}"]) or 2 * x + 1
    )

    def noise(rng: np.random.Generator, length: int, count: int) -> Chunk:
        starts = np.full(count, np.datetime64("2000-01-01", "s"))
        return Chunk(list(rng.normal(size=(count, 1, length)).astype(np.float32)), np.ones(count), starts)

    for faithful, share in ((True, 0.09), (False, 0.3)):
        calls.clear()
        law(rng(1), 64, 800, {"ou": noise}, faithful=faithful)
        assert calls[f"faithful {faithful}"] == calls["edit"] >= 800
        assert stats.binomtest(calls["conv"], calls["edit"], share).pvalue > SIGNIFICANCE
    asked: list[str] = []

    def noted(name: str) -> prior.Family:
        return prior.Family(lambda *args: asked.append(name) or noise(*args), 1.0)

    monkeypatch.setattr(prior, "FAMILIES", {n: noted(n) for n in ("gp", "gp_faithful", "kernel")})
    prior._derived(law, prior.FAITHFUL)(rng(), 64, 64)
    assert set(asked) == {"gp_faithful", "kernel"}
    prior._derived(law)(rng(), 64, 64)
    assert "gp" in asked
