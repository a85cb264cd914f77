"""Every rejection has a name and a count."""

import numpy as np
import pytest

from data_pipelines.quality import Counts, Rules, clean, split_wide
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


@pytest.mark.parametrize("setting", [{"min_length": 0}, {"max_missing": 1.5}, {"max_magnitude": 0}])
def test_impossible_thresholds_are_refused(setting):
    with pytest.raises(ValueError, match=f"quality.{next(iter(setting))}"):
        Rules(**setting)
