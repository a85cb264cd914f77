"""Tables of any clock become series on a regular grid, and bad tables say what is wrong with them."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources import tables


def read_csv(tmp_path, text, **options):
    file = tmp_path / "web.csv"
    file.write_text(text)
    counts = Counter()
    return list(tables.read(file, "shop", counts, **options)), counts


def test_a_wide_csv_is_one_group(tmp_path):
    (s,), counts = read_csv(
        tmp_path, "time,cpu,mem\n2024-01-01 00:00,1,10\n2024-01-01 00:05,2,\n2024-01-01 00:10,3,30\n"
    )
    np.testing.assert_array_equal(s.values, np.float32([[1, 2, 3], [10, np.nan, 30]]))
    assert (s.interval, s.start, s.variate_names) == (300.0, "2024-01-01T00:00:00", ("cpu", "mem"))
    assert (s.source, s.item_id, s.domain) == ("shop", "web", "observability")
    assert counts.total() == 0


def test_a_long_csv_is_one_series_an_item_each_with_its_own_clock(tmp_path):
    rows = [f"a,{60 * i},{i}" for i in range(5)] + [f"b,{600 * i},{-i}" for i in range(4)] + ["c,0,7"]
    series, _ = read_csv(tmp_path, "item_id,timestamp,value\n" + "\n".join(rows))
    assert [(s.item_id, s.interval, s.length) for s in series] == [
        ("web/a", 60, 5),
        ("web/b", 600, 4),
        ("web/c", 60, 1),
    ]
    np.testing.assert_array_equal(series[1].values, np.float32([[0, -1, -2, -3]]))


def test_rows_out_of_order_are_sorted_gaps_are_nan_and_of_duplicates_the_last_wins(tmp_path):
    (s,), counts = read_csv(tmp_path, "ts,y\n0,0\n120,2\n60,1\n120,22\n240,4\n")
    np.testing.assert_array_equal(s.values, np.float32([[0, 1, 22, np.nan, 4]]))
    assert counts == {"out_of_order": 1, "duplicate": 1, "gap": 1}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1.0, 15.0, 60.0, 3600.0]), st.integers(60, 200))
def test_jittered_stamps_fall_into_the_slots_they_belong_to(seed, interval, length):
    rng = np.random.default_rng(seed)
    kept = np.unique(np.r_[0, rng.choice(length, size=int(0.9 * length), replace=False), length - 1])
    seconds = 1.7e9 + interval * (kept + rng.uniform(-0.1, 0.1, len(kept)))
    frame = pd.DataFrame({"time": seconds, "v": kept}).sample(frac=1, random_state=seed % 2**32)
    (s,) = tables.from_frame(frame, "s", "x")
    assert (s.interval, s.length) == (interval, length)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(s.values[0])), kept)


@pytest.mark.parametrize(("freq", "days"), [("MS", 30.4375), ("QS", 91.3125), ("YS", 365.25), ("W", 7), ("D", 1)])
def test_calendar_frequencies_have_no_gaps(freq, days):
    dates = pd.date_range("1990-01-01", periods=60, freq=freq)
    counts = Counter()
    (s,) = tables.from_frame(pd.DataFrame({"date": dates, "v": np.arange(60.0)}), "s", "x", counts)
    assert s.interval == days * 86400
    np.testing.assert_array_equal(s.values[0], np.arange(60))
    assert counts.total() == 0


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000, 1_000_000_000])
def test_epoch_numbers_of_any_unit(scale):
    frame = pd.DataFrame({"timestamp": (1_700_000_000 + 10 * np.arange(4)) * scale, "v": range(4)})
    (s,) = tables.from_frame(frame, "s", "x")
    assert (s.interval, s.start) == (10.0, "2023-11-14T22:13:20")


def test_time_zones_become_utc():
    stamps = ["2024-03-31T00:00:00+01:00", "2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"]
    (s,) = tables.from_frame(pd.DataFrame({"time": stamps, "v": [0, 1, 2]}), "s", "x")
    assert (s.start, s.length) == ("2024-03-30T23:00:00", 3)


def test_parquet_with_a_time_index_and_columns_under_other_names(tmp_path):
    index = pd.date_range("2024-01-01", periods=3, freq="h", name="clock")
    pd.DataFrame({"pod": ["a", "a", "a"], "rps": [1.0, 2.0, 3.0]}, index=index).to_parquet(tmp_path / "t.parquet")
    assert not tables.is_series_file(tmp_path / "t.parquet")
    (s,) = tables.read(tmp_path / "t.parquet", "s", time="clock", item="pod")
    assert (s.item_id, s.variate_names, s.interval) == ("t/a", ("rps",), 3600.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"web\.csv: no time column among \['a', 'b'\].*source\.time="),
        ("time,v\nyesterday,1\n", r"column 'time': row 1 holds 'yesterday', which is no time stamp"),
        ("time,v\n0,1\n60,high\n", r"column 'v': row 2 holds 'high', which is no number"),
        ("time,v\n0,1\n", "no item has two different time stamps"),
        ("time\n0\n60\n", "no value column"),
        ("time,v\n", "no rows"),
        ("", "cannot be read as a table"),
        ("id,time,v\na,0,1\n,60,2\n", "column 'id': row 2 names no item"),
        ("time,v\n" + "".join(f"{t},1\n" for t in [0, 1, 2, 3, 10**6]), "events"),
    ],
)
def test_errors_name_the_file_the_column_and_the_row(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_csv(tmp_path, text)
    assert "web.csv" in str(error.value)


def test_a_named_column_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no item column 'host'; there are"):
        read_csv(tmp_path, "time,v\n0,1\n60,2\n", item="host")
