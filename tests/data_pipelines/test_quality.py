"""Every rejection has a name and a count."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.counts import Counts
from data_pipelines.leakage import Refused
from data_pipelines.quality import Rules, clean, reject, split_wide
from data_pipelines.series import Series

RULES = Rules(min_length=8, max_missing=0.5)


def make(*rows, **fields):
    return Series(np.array(rows, dtype=np.float32), 60.0, "s", "x", **fields)


RAMP = np.arange(8.0)
EMPTY = np.full(8, np.nan)
SPARSE = np.where(RAMP < 3, RAMP, np.nan)


def test_a_fit_series_passes_untouched():
    counts, series = Counts(), make(RAMP, RAMP + 1)
    assert clean(series, RULES, counts) is series
    assert (counts.series_read, counts.series_kept, counts.variates_kept) == (1, 1, 2)
    assert not counts.series_rejected
    assert not counts.variates_dropped


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([RAMP[:7]], "too_short"), ([EMPTY], "all_missing"), ([SPARSE], "too_missing"), ([np.ones(8)], "constant")],
)
def test_each_rule_rejects_under_its_name(rows, reason):
    counts = Counts()
    assert clean(make(*rows), RULES, counts) is None
    assert counts.series_rejected == {reason: 1}
    assert counts.variates_dropped == {reason: 1}
    assert counts.series_kept == 0


def test_unfit_variates_leave_their_group_and_the_rest_stays():
    counts = Counts()
    kept = clean(make(EMPTY, RAMP, np.ones(8), SPARSE, -RAMP, variate_names=tuple("abcde")), RULES, counts)
    assert kept.variate_names == ("b", "e")
    np.testing.assert_array_equal(kept.values, np.float32([RAMP, -RAMP]))
    assert counts.variates_dropped == {"all_missing": 1, "constant": 1, "too_missing": 1}
    assert not counts.series_rejected


def test_a_group_without_a_fit_variate_counts_under_the_commonest_reason():
    counts = Counts()
    assert clean(make(EMPTY, np.ones(8), np.zeros(8)), RULES, counts) is None
    assert counts.series_rejected == {"constant": 1}


def test_impossible_values_become_missing():
    counts = Counts()
    kept = clean(make([0, 1, np.inf, 3, -np.inf, 2e30, 6, 7]), RULES, counts)
    np.testing.assert_array_equal(np.isnan(kept.values[0]), [0, 0, 1, 0, 1, 1, 0, 0])
    assert counts.points_impossible == 3


@pytest.mark.parametrize("variates", [1, 32, 33, 38, 64, 65, 100])
def test_wide_groups_split_evenly_and_lose_nothing(variates):
    counts = Counts()
    series = make(*(RAMP + v for v in range(variates)))
    parts = list(split_wide(series, 32, counts))
    sizes = [p.variates for p in parts]
    assert len(parts) == -(-variates // 32)
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(np.concatenate([p.values for p in parts]), series.values)
    assert sum((p.variate_names for p in parts), ()) == series.variate_names
    assert len({p.item_id for p in parts}) == len(parts)
    assert counts.groups_split == (variates > 32)


@pytest.mark.parametrize(
    "setting", [{"min_length": 0}, {"max_missing": 1.5}, {"max_magnitude": 0}, {"max_magnitude": np.inf}]
)
def test_impossible_thresholds_are_refused(setting):
    with pytest.raises(ValueError, match=f"quality.{next(iter(setting))}"):
        Rules(**setting)


@pytest.mark.parametrize(
    "setting",
    [{"max_flat": 2}, {"max_leakage": -0.1}, {"near_duplicate": 1.1}, {"counters": "drop"}, {"max_missing": np.nan}],
)
def test_impossible_settings_of_the_other_rules_are_refused(setting):
    with pytest.raises(ValueError, match=f"quality.{next(iter(setting))}"):
        Rules(**setting)


def long(*rows, item="x", domain="observability", **fields):
    return Series(np.array(rows, dtype=np.float32), 60.0, "s", item, domain, **fields)


T = 1000
NOISE = np.random.default_rng(0).normal(50, 10, T)
TOTAL = np.random.default_rng(1).poisson(5, T).cumsum()


def test_flat_is_a_share_of_steps_between_observed_values():
    almost = np.zeros(T)
    almost[500:] = 1
    gaps = np.where(np.arange(T) % 2, np.nan, NOISE)  # no two neighbours are observed
    counts = Counts()
    assert clean(long(almost, gaps), Rules(), counts).variate_names == ("v1",)
    assert counts.variates_dropped == {"flat": 1}
    assert counts.examples["flat"][0].detail == "1 changes of value in 999 steps"
    assert clean(long(almost), Rules(max_flat=1), Counts()) is not None


RESETS = TOTAL - np.where(np.arange(T) >= 400, TOTAL[400], 0)


@pytest.mark.parametrize("row", [TOTAL, RESETS, np.where(np.arange(T) % 7 == 3, np.nan, RESETS), np.arange(T) / T])
def test_counters_of_observability_are_rejected(row):
    counts = Counts()
    assert clean(long(row), Rules(), counts) is None
    assert counts.series_rejected == {"counter": 1}
    for rules, domain in ((Rules(counters="keep"), "observability"), (Rules(), "general")):
        assert clean(long(row, domain=domain), rules, Counts()) is not None


SPIKES = np.where(np.arange(T) % 20 == 0, NOISE, 0)


@pytest.mark.parametrize(
    "row",
    [
        NOISE,
        SPIKES,
        np.arange(T) % 10,
        TOTAL - 10.0,
        TOTAL - np.where(np.arange(T) == 700, 30, 0),
        NOISE.cumsum() % 400,
    ],
    ids=["noise", "spikes", "saw", "below zero", "a fall", "cycles"],
)
def test_gauges_are_not_taken_for_counters(row):
    assert clean(long(row), Rules(), Counts()) is not None


def test_rates_are_those_of_prometheus():
    counts = Counts()
    row = RESETS.astype(np.float64)
    row[100] = np.nan
    kept = clean(long(NOISE, row, np.arange(T)), Rules(counters="rate"), counts)
    assert kept.variate_names == ("v0", "v1")  # a clock has a constant rate
    np.testing.assert_array_equal(kept.values[0], np.float32(NOISE))
    expected = np.diff(row, prepend=np.nan)
    expected[400] = row[400]
    np.testing.assert_array_equal(kept.values[1], np.float32(expected))
    assert (counts.variates_rated, counts.variates_dropped) == (1, {"constant": 1})


@pytest.mark.parametrize(("start", "kept"), [(0, True), (1e10, True), (1e12, False), (1e14, False)])
def test_counters_too_large_for_their_increases_are_dropped(start, kept):
    increases = np.random.default_rng(0).integers(500_000, 1_500_000, T)
    counts = Counts()
    found = clean(long(NOISE, start + increases.cumsum()), Rules(counters="rate"), counts)
    assert found.variates == 1 + kept
    if kept:
        np.testing.assert_allclose(found.values[1, 1:], increases[1:], rtol=0.01)
    else:
        assert counts.variates_dropped == {"counter": 1}
        assert "store the rate" in counts.examples["counter"][0].detail


@pytest.mark.parametrize("marker", [-999, -9999, 99999, 999999, 65535, -(2**31), 1e20])
def test_markers_of_missing_data_become_missing(marker):
    row = NOISE.copy()
    row[[5, 70, 71]] = marker
    counts = Counts()
    kept = clean(long(row), Rules(), counts)
    assert np.flatnonzero(np.isnan(kept.values[0])).tolist() == [5, 70, 71]
    assert counts.points_placeholder == 3
    assert "3 times" in counts.examples["placeholder"][0].detail
    series = long(row)
    assert clean(series, Rules(placeholders=False), Counts()) is series


def test_what_only_looks_like_a_marker_stays():
    rare, near, odd, only = NOISE.copy(), NOISE * 30, NOISE.copy(), np.where(np.arange(T) % 2, -999.0, -9999.0)
    rare[[5, 70]] = -999  # twice
    near[[5, 70, 71]] = 9999  # not far from values up to 2,500
    odd[[5, 70, 71]] = 12345
    series = long(rare, near, odd, only)
    assert clean(series, Rules(), Counts()) is series


@pytest.mark.parametrize(
    ("rule", "row", "detail"),
    [
        ("too_missing", np.where(np.arange(T) < 30, NOISE, np.nan), "97 % of 1,000 steps missing"),
        ("constant", np.full(T, 7), "7 at all 1,000 observed steps"),
        ("all_missing", np.full(T, np.nan), "all 1,000 steps missing"),
        ("too_short", NOISE[:10], "10 steps, at least 64 are needed"),
    ],
)
def test_examples_say_what_is_wrong(rule, row, detail):
    counts = Counts()
    assert clean(long(row, variate_names=("cpu",)), Rules(), counts) is None
    (example,) = counts.examples[rule]
    assert (example.source, example.item_id, example.variate, example.detail) == ("s", "x", "cpu", detail)
    assert len(example.values) <= 240


def test_pictures_keep_the_extremes_in_order():
    row = NOISE.copy()
    row[300], row[301], row[600:700] = 1e5, -1e5, np.nan
    counts = Counts()
    assert clean(long(row), Rules(), counts) is not None
    values = counts.kept_examples[0].values
    assert len(values) <= 240
    assert values.index(1e5) < values.index(-1e5)
    assert None in values
    assert clean(long(np.append(row[:64], np.inf)), Rules(), counts) is not None
    json.loads(counts.to_json())


def test_leakage_is_refused_and_counts_add_up():
    counts, refused = Counts(), Refused("list.csv", frozenset({("s", "bad")}))
    assert clean(long(NOISE, np.ones(T), item="bad"), Rules(), counts, refused) is None
    assert clean(long(NOISE, item="good"), Rules(), counts, refused) is not None
    assert counts.series_rejected == {"leakage": 1}
    assert counts.variates_dropped == {"leakage": 1, "constant": 1}
    assert counts.examples["leakage"][0].detail == "listed in list.csv"


def test_the_build_can_take_back_what_was_kept():
    counts, series = Counts(), long(NOISE, NOISE)
    kept = clean(series, Rules(), counts)
    assert (counts.lengths, counts.intervals, len(counts.kept_examples)) == ({"512-1023": 1}, {"60": 1}, 1)
    reject(counts, "near_duplicate", kept, "repeats s/y", kept=True)
    assert (counts.series_kept, counts.variates_kept, counts.lengths.total(), counts.kept_examples) == (0, 0, 0, [])
    assert (counts.series_rejected, counts.variates_dropped) == ({"near_duplicate": 1}, {"near_duplicate": 2})
    assert counts.series_read == counts.series_kept + counts.series_rejected.total()


def _series(seed):
    """Any of: fit, short, constant, counter, flat, full of markers, half missing; 1-3 variates."""
    rng = np.random.default_rng(seed)
    steps = int(rng.choice([40, 100, 300]))
    rows = [
        NOISE[:steps],
        np.ones(steps),
        TOTAL[:steps],
        np.arange(steps) > 3,
        np.where(rng.random(steps) < 0.1, 9999, 1),
    ]
    rows += [np.full(steps, np.nan), np.where(rng.random(steps) < 0.5, np.inf, NOISE[:steps])]
    return long(*(rows[k] for k in rng.integers(0, len(rows), rng.integers(1, 4))), item=f"{seed}")


def _counts(seeds, rules):
    counts = Counts()
    for seed in seeds:
        clean(_series(seed), rules, counts)
    return counts


def _merged(*parts):
    whole = Counts()
    for part in parts:
        whole.merge(part)
    return whole


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=40), min_size=3, max_size=3), st.sampled_from(["reject", "rate"]))
def test_counts_do_not_depend_on_the_division_of_the_work(parts, counters):
    rules = Rules(counters=counters)
    a, b, c = (_counts(part, rules) for part in parts)
    whole = _counts([seed for part in parts for seed in part], rules)
    assert _merged(_merged(a, b), c) == whole
    assert _merged(a, _merged(b, c)) == whole
    assert _merged(c, a, b) == whole
    assert Counts.from_json(whole.to_json()) == whole
    assert whole.series_read == whole.series_kept + whole.series_rejected.total()
    assert whole.variates_read == whole.variates_kept + whole.variates_dropped.total()
    assert whole.lengths.total() == whole.intervals.total() == whole.series_kept
    assert all(len(found) <= 4 for found in whole.examples.values())
    assert len(whole.kept_examples) <= 24
    assert "examples" not in whole.as_dict()
