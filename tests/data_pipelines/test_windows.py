"""Windows anchored at extrema tell copies from strangers, whatever the offset, scale or cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import windows
from data_pipelines.windows import PAD, W, anchors, near_duplicates, raw_hashes, scaled_hashes, sketch


def walk(seed, steps=2000, variates=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((variates, steps)).cumsum(axis=1).astype(np.float32)


def share(part, whole):
    return np.isin(part, whole).mean()


def naive_anchors(row):
    """The definition, step by step."""
    steps, reach = len(row), windows.REACH
    extrema = []
    for i in range(reach, steps - W + 1):
        before, after = row[i - reach : i], row[i + 1 : i + 1 + reach]
        for sign in (1, -1):
            lower = [sign * x for x in (*before, *after) if not np.isnan(x)]
            left = [sign * x for x in before if not np.isnan(x)]
            if not np.isnan(row[i]) and all(sign * row[i] >= x for x in lower) and all(sign * row[i] > x for x in left):
                extrema.append(i)
    grid = [g for g in range(0, steps - W + 1, W) if not any(g - W <= i < g + W for i in extrema)]
    return sorted(set(extrema) | set(grid))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([2, 20, 10**6]))
def test_anchors_are_extrema_and_multiples_where_none_is_near(steps, variates, seed, levels):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (variates, steps)).cumsum(axis=1).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    expected = [v * steps + i for v in range(variates) for i in naive_anchors(values[v])]
    assert anchors(values).tolist() == expected


def test_windows_with_gaps_or_few_changes_are_not_hashed():
    steps = np.repeat(np.arange(40.0, dtype=np.float32), 8)[None]  # 3 or 4 changes a window
    assert not len(raw_hashes(steps))
    gaps = walk(0)
    gaps[:, ::20] = np.nan
    assert not len(raw_hashes(gaps))
    spikes = np.random.default_rng(0).random((1, 2000), np.float32)
    spikes[:, ::30] = 1e6  # beside the spike all else is rounded to one level
    assert len(raw_hashes(spikes)) > 30
    assert len(scaled_hashes(spikes)) < 3
    assert not len(raw_hashes(np.full((2, 31), np.inf, np.float32)))
    assert not len(raw_hashes(np.tile(np.float32([1, np.inf]), 50)[None]))


def test_hashes_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    values = walk(1, 5000, 3)
    expected = windows.hashes(values)
    monkeypatch.setattr(windows, "_CHUNK", 7)
    for a, b in zip(expected, windows.hashes(values), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.diff(a) > 0).all()


def test_the_hash_is_fixed():
    """Sketches of an interrupted build are compared with those of its continuation."""
    ramp = (np.arange(96) ** 2 % 97).astype(np.float32)[None]
    assert [int(h) for h in raw_hashes(ramp)[:2]] == [7627026259498504560, 9454016484405686015]
    assert [int(h) for h in scaled_hashes(ramp)[:2]] == [613603961613102020, 4848948944558745919]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 500), st.integers(0, 500))
def test_a_crop_shares_its_windows_wherever_it_begins(seed, start, cut):
    values = walk(seed)
    crop = values[:, start : 2000 - cut]
    assert share(raw_hashes(crop), raw_hashes(values)) > 0.7  # multiples of W are elsewhere, extrema are not


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 100))
def test_a_scaled_copy_shares_its_scaled_windows(seed, a, b, start):
    values = walk(seed)
    copy = np.float32(a) * values[:, start:] + np.float32(b * a)
    assert copy.dtype == np.float32
    assert share(scaled_hashes(copy), scaled_hashes(values)) > 0.6


def test_negative_zero_is_zero():
    values = np.random.default_rng(0).integers(-2, 3, (1, 500)).astype(np.float32)
    np.testing.assert_array_equal(raw_hashes(values), raw_hashes(np.where(values == 0, np.float32(-0.0), values)))


def strangers():
    rng, t = np.random.default_rng(5), np.arange(3000.0)
    yield from (walk(seed, 3000) for seed in range(40))
    yield from (np.sin(2 * np.pi * t / period)[None] for period in rng.uniform(4, 400, 40))
    yield from (rng.poisson(rate, (1, 3000)) for rate in rng.uniform(0.5, 20, 40))
    yield from (rng.standard_normal((1, 3000)) for _ in range(40))


def test_strangers_share_nothing():
    """False alarms among 160 synthetic series, 12,720 pairs of them: no window in common as it is, none scaled."""
    for kind in range(2):
        sets = [windows.hashes(np.asarray(x, np.float32))[kind] for x in strangers()]
        everything = np.concatenate(sets)
        assert len(everything) > 5000
        assert len(np.unique(everything)) == len(everything)


def sketches(*series):
    return np.array([sketch(raw_hashes(np.asarray(x, np.float32))) for x in series])


def test_sketches_hold_the_smallest_and_are_padded():
    many, few = sketch(np.arange(1000, dtype=np.uint64)), sketch(np.arange(5, dtype=np.uint64))
    assert (np.diff(many) > 0).all()
    np.testing.assert_array_equal(few[5:], np.full(27, PAD))
    assert many[0] == few[few != PAD].min() or many[0] < few[0]
    np.testing.assert_array_equal(sketch(np.arange(1000, dtype=np.uint64)[::-1]), many)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x[:, : int(0.95 * x.shape[1])],
        lambda x: np.where(np.arange(x.shape[1]) // (x.shape[1] // 100) == 40, x + 1, x),  # 1 % in a row
        lambda x: np.concatenate([x, walk(99, 100)], axis=1),
    ],
    ids=["exact", "truncated to 95 %", "1 % changed", "5 % longer"],
)
def test_near_duplicates_are_found(change):
    series = [walk(k) for k in range(20)]
    found = near_duplicates(sketches(*series, *map(change, series)), 0.7)
    np.testing.assert_array_equal(found, [-1] * 20 + list(range(20)))


def test_single_changes_break_a_window_each():
    """1 % of the values changed here and there leave about half of the windows: found at 0.35, not at 0.9."""
    series, rng = [walk(k, 5000) for k in range(20)], np.random.default_rng(0)
    changed = [np.where(rng.random(x.shape) < 0.01, x * 1.01, x) for x in series]
    assert (near_duplicates(sketches(*series, *changed), 0.35)[20:] == np.arange(20)).mean() >= 0.9
    assert (near_duplicates(sketches(*series, *changed), 0.9) < 0).all()


def test_hosts_with_the_same_day_and_their_own_noise_are_no_duplicates():
    rng, t = np.random.default_rng(0), np.arange(288 * 14)
    day = 50 + 30 * np.sin(2 * np.pi * t / 288)
    hosts = [np.round(day + rng.normal(0, 2, t.shape), 1)[None] for _ in range(100)]
    assert (near_duplicates(sketches(*hosts), 0.1) == -1).all()


def test_short_or_flat_series_duplicate_nothing():
    assert (near_duplicates(sketches(walk(0, 100), walk(0, 100), np.ones((1, 999)), np.ones((1, 999))), 0.5) < 0).all()
    assert near_duplicates(np.empty((0, 32), np.uint64), 0.5).shape == (0,)


def test_in_a_chain_every_second_one_stays():
    long = walk(3, 8000)
    chain = [long[:, 400 * k : 400 * k + 4000] for k in range(6)]  # neighbours resemble each other by 0.8
    found = near_duplicates(sketches(*chain), 0.72)
    kept = np.flatnonzero(found < 0)
    assert found[0] == -1
    assert set(found[found >= 0]) <= set(kept)
    assert len(kept) > 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=14), max_size=10), st.floats(0.05, 1))
def test_near_duplicates_match_their_definition(sets, threshold):
    """Sets small enough that a sketch holds them whole, and few enough that no hash is crowded."""
    sets = [np.unique(np.array(s, np.uint64)) for s in sets][:8]
    expected: list[int] = []
    for i, mine in enumerate(sets):
        alike = [
            j
            for j in range(i)
            if expected[j] < 0
            and min(len(mine), len(sets[j])) >= windows.MIN_HASHES
            and len(np.intersect1d(mine, sets[j])) / len(np.union1d(mine, sets[j])) >= threshold
        ]
        expected.append(alike[0] if alike else -1)
    rows = np.array([sketch(s) for s in sets]).reshape(-1, 32)
    assert near_duplicates(rows, threshold).tolist() == expected


def test_a_hash_that_very_many_share_costs_little():
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(1, 2**63, (20_000, 32), np.uint64), axis=1)
    rows[:, :2] = [[0, 1]]  # in every row: 200 million pairs
    rows[12_345] = rows[11_111]
    found = near_duplicates(rows, 0.7)
    assert found[12_345] == 11_111
    assert (found >= 0).sum() == 1


def test_mix_is_a_bijection_on_samples():
    x = np.fromiter(itertools.islice(itertools.count(), 100_000), np.uint64)
    assert len(np.unique(windows.mix(x))) == len(x)
