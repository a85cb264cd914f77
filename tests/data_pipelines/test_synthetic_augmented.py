"""Pools of other families' series, mixtures of them and the cascades of augmentations.

Mixtures are of unit impulses, which show their weights. Seeds are fixed; tests are at a significance of 1e-3.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import augmented, prior, sources, tsmixup
from data_pipelines.synthetic.chunk import Chunk, keyed_generator

SIGNIFICANCE = 1e-3
LENGTH = 512


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(seed: int = 0, length: int = LENGTH) -> np.ndarray:
    return rng(seed).normal(3, 2, length).astype(np.float32)


def labelled(values: np.ndarray) -> Chunk:
    """Row k as series k, k seconds a step."""
    n = len(values)
    return Chunk(list(values[:, None]), np.arange(n, dtype=float), np.full(n, np.datetime64("2000-01-01", "s")))


def impulses(_: np.random.Generator, length: int, count: int) -> Chunk:
    """Row k is 1 at step k: a mixture shows its weights."""
    return labelled(np.eye(count, length, dtype=np.float32))


def fits(observed: list[int], shares: np.ndarray) -> bool:
    return stats.chisquare(observed, shares / shares.sum() * sum(observed)).pvalue > SIGNIFICANCE


# --- pools


def test_a_pool_draws_families_by_weight() -> None:
    """Chi-square over 4,000 series: the share of one family off by a fifth is found with probability .95."""
    names = list(sources.WEIGHTS)

    def law(number: int):
        return lambda rng, length, count: labelled(np.full((count, length), number, np.float32))

    pool = sources.draw(rng(), 2, 4000, {name: law(k) for k, name in enumerate(names)} | {"telemetry": law(99)})
    seen = Counter(pool.values[:, 0].astype(int).tolist())
    assert fits([seen[k] for k in range(len(names))], np.array(list(sources.WEIGHTS.values())))
    few = sources.draw(rng(), 2, 50, {"ou": law(1), "unlisted": law(2)})
    assert (few.values == 1).all()


@pytest.mark.parametrize("width", [1, 4, 6])
def test_every_variate_is_a_series(width: int) -> None:
    """Whether as wide as said (6) or not, and with the label of its series."""
    asked = []

    def law(_: np.random.Generator, length: int, count: int) -> Chunk:
        asked.append(count)
        first = sum(asked) - count
        values = [
            np.full((width, length), first + k, np.float32) + np.arange(width)[:, None] / 10 for k in range(count)
        ]
        label = np.arange(first, first + count, dtype=float)
        return Chunk(values, label, np.full(count, np.datetime64("2000-01-01", "s")))

    pool = sources.draw(rng(), 2, 50, {"cauker": law})
    assert pool.values[:, 0] == pytest.approx([k // width + k % width / 10 for k in range(50)])
    assert pool.intervals.tolist() == [k // width for k in range(50)]
    assert sum(asked) < 50 / width + len(asked)


def test_scalers() -> None:
    x = noise()
    pool = sources.Pool(np.stack([x, np.full_like(x, 5)]), np.ones(2), np.zeros(2, "datetime64[s]"))
    low, middle, high = np.quantile(x, (0.25, 0.5, 0.75))
    assert pool.scaled(0, "none").tolist() == x.tolist()
    assert np.abs(pool.scaled(0, "robust") - (x - middle) / (high - low)).max() < 1e-5
    assert pool.scaled(0, "minmax").min() == pytest.approx(-1)
    assert pool.scaled(0, "minmax").max() == pytest.approx(1)
    assert pool.scaled(0, "mean").mean() == pytest.approx(0, abs=1e-5)
    assert np.median(pool.scaled(0, "median")) == pytest.approx(0, abs=1e-5)
    assert all(np.isfinite(pool.scaled(1, scaler)).all() for scaler in sources.SCALERS)


# --- TSMixup


def test_tsmixup_draws_parents_and_weights() -> None:
    """Chi-square of K over 4,096 series, KS of the weights: with K parents each is Beta(1.5, 1.5 (K - 1))."""
    drawn = [tsmixup.draw_mixture(rng(seed), 64) for seed in range(64)]
    weights = np.concatenate([w for _, w in drawn])
    assert weights.sum(axis=1) == pytest.approx(1, abs=1e-6)
    size = (weights > 0).sum(axis=1)
    assert fits([(size == k).sum() for k in (1, 2, 3)], np.ones(3))
    for k in (2, 3):
        of_k = weights[size == k][:, 0]
        assert stats.kstest(of_k, "beta", (1.5, 1.5 * (k - 1))).pvalue > SIGNIFICANCE
    for parents, _ in drawn:
        assert parents[:, 0].tolist() == list(range(64))
        assert all(len(set(row)) == 3 for row in parents.tolist())


def test_tsmixup_adds_mean_scaled_parents() -> None:
    chunk = tsmixup.generate(rng(), 64, 64, {"ou": impulses})
    for row, (value,) in enumerate(chunk.values):
        weights = value / 64  # the mean magnitude of an impulse in 64 steps is 1/64
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert weights[row] > 0
        assert 1 <= (weights > 0).sum() <= 3
    assert chunk.intervals.tolist() == list(range(64))  # labels are those of the first parent


# --- cascades


def test_concentrations_are_log_uniform() -> None:
    generator = rng()
    logs = np.log([augmented.draw_concentration(generator) for _ in range(1000)])
    assert stats.kstest(logs, "uniform", (np.log(0.1), np.log(50))).pvalue > SIGNIFICANCE


def test_mixtures_have_2_to_10_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of impulses, so that weights show: one kind keeps the row, the other leaves it out and moves half the time."""
    monkeypatch.setattr(augmented, "draw_concentration", lambda _: 5.0)  # no weight is too small to see
    generator, kept, left_out, moving = rng(), Counter(), Counter(), 0
    eye = np.eye(64, dtype=np.float32)
    pool = sources.Pool(eye, np.ones(64), np.zeros(64, "datetime64[s]"))
    for _ in range(1800):
        weights = augmented._with_others(generator, eye[5], pool, 5, "none")
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert weights[5] > 0
        kept[int((weights > 0).sum())] += 1
        weights = augmented._of_others(generator, np.tile(eye, 2), 7).reshape(2, 64).T
        assert (weights[7] == 0).all()
        left_out[int((weights > 0).any(axis=1).sum())] += 1
        moving += not np.allclose(weights[:, 0], weights[:, 1], atol=1e-3)
    for sizes in (kept, left_out):
        assert fits([sizes[k] for k in range(2, 11)], np.ones(9))
    assert stats.binomtest(moving, 1800, 0.5).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("cascade", [augmented.per_sample, augmented.batch])
def test_gates_open_with_their_probabilities(monkeypatch: pytest.MonkeyPatch, cascade) -> None:
    """Binomial over 1,280 series: .06 off is found with probability .9."""
    calls: Counter[str] = Counter()

    def counted(name: str, at: int):
        def passed(*args: object) -> object:
            calls[name] += 1
            return args[at]

        return passed

    monkeypatch.setattr(augmented, "edit", lambda _, x, *a, **k: x + 1000)  # always a change, so no second try
    monkeypatch.setattr(augmented, "random_conv", counted("conv", 1))
    monkeypatch.setattr(augmented, "_with_others", counted("mixture", 1))
    monkeypatch.setattr(augmented, "_of_others", lambda rng, series, row: counted("mixture", 0)(series[row]))
    for seed in range(20):
        cascade(rng(seed), 32, 64, {"sawtooth": prior.FAMILIES["sawtooth"].generate_chunk})
    assert stats.binomtest(calls["conv"], 1280, augmented.RANDOM_CONV).pvalue > SIGNIFICANCE
    assert stats.binomtest(calls["mixture"], 2560, augmented.MIXUP).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("family", ["augmented", "augmented_batch"])
def test_what_is_kept_is_neither_its_source_nor_constant(family: str) -> None:
    chunk = prior.FAMILIES[family].generate_chunk(keyed_generator(1, family, 0), 1024, 64)
    values = np.concatenate(chunk.values)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert (np.ptp(values, axis=1) > 0).all()
    assert len({v.tobytes() for v in values}) == 64
    x = noise()
    assert not augmented.changed(x, x + np.float32(0.04) * np.float32(stats.iqr(x)))
    assert augmented.changed(x, x + np.float32(0.06) * np.float32(stats.iqr(x)))
    assert not augmented.changed(x, np.zeros_like(x))


def test_a_series_that_cannot_be_edited_is_replaced_by_another() -> None:
    """A pool of constants and one wave: the wave's label is on every series that is kept."""

    def law(_: np.random.Generator, length: int, count: int) -> Chunk:
        values = np.zeros((count, length), np.float32)
        values[::2] = np.sin(np.arange(length))
        return labelled(values)

    chunk = augmented.per_sample(rng(), 64, 64, {"ou": law})
    assert (np.ptp(np.concatenate(chunk.values), axis=1) > 0).mean() > 0.95
