"""Tables of any clock become series on a regular grid, and bad tables say what is wrong with them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources import batches, rows, tables


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


@pytest.mark.parametrize(
    ("form", "freq", "interval"), [("%Y%m%d", "D", 86400.0), ("%Y%m", "MS", 2629800.0), ("%Y", "YS", 31557600.0)]
)
@pytest.mark.parametrize("text", [False, True])
def test_numbers_that_are_dates(form, freq, interval, text, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_ROWS", 16)  # what a number means shows in all batches together
    stamps = pd.date_range("1969-10-01", periods=90, freq=freq)
    written = stamps.strftime(form) if text else stamps.strftime(form).astype(int)
    counts = Counter()
    (s,) = tables.from_frame(pd.DataFrame({"date": written, "v": range(90)}), "s", "x", counts)
    assert (s.interval, s.start[:10], s.length) == (interval, str(stamps[0])[:10], 90)
    assert counts.total() == 0


@pytest.mark.parametrize(
    "numbers", [[1898, 1899, 1900, 1901], [202411, 202412, 202413, 202414], [20260130 + np.arange(4)]]
)
def test_numbers_that_are_no_dates_are_seconds(numbers):
    stamps = np.ravel(numbers)
    (s,) = tables.from_frame(pd.DataFrame({"time": stamps, "v": range(4)}), "s", "x")
    assert (s.interval, s.start) == (1.0, pd.Timestamp(stamps[0], unit="s").isoformat())


@pytest.mark.parametrize("stamp", ["13/01/2024", "1.2.2024 10:00", "02-03-24"])
def test_dates_that_may_begin_with_the_day_or_the_month_are_refused(tmp_path, stamp):
    with pytest.raises(ValueError, match=f"row 2 holds '{stamp}', which may begin with the day or the month; write it"):
        read_csv(tmp_path, f"time,v\n2024-01-12,1\n{stamp},2\n")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_blank_lines_before_the_header(tmp_path, separator):
    lines = ["", "", "time,v", *(f"2024-01-0{d},{d}" for d in range(1, 5)), ""]
    (s,), _ = read_csv(tmp_path, "\n".join(lines).replace(",", separator))
    assert (s.variate_names, s.length, s.values[0, 3]) == (("v",), 4, 4)


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


def test_other_encodings_say_what_to_do(tmp_path):
    for text in ("time,température\n2024-01-01,1\n", "time,city,v\n2024-01-01,Orléans,1\n"):
        (tmp_path / "web.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"web\.csv: cannot be read.*save it as UTF-8"):
            list(tables.read(tmp_path / "web.csv", "shop"))


def test_a_named_column_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no item column 'host'; there are"):
        read_csv(tmp_path, "time,v\n0,1\n60,2\n", item="host")


def write_interleaved(file, items, steps, variates=2, seed=0):
    """A long table sorted by time: every item's rows are all over the file."""
    rng = np.random.default_rng(seed)
    columns = {
        "item": np.tile([f"pod-{i}" for i in range(items)], steps),
        "ts": np.repeat(1_700_000_000 + 60 * np.arange(steps), items),
        **{f"v{v}": rng.normal(size=items * steps).astype(np.float32) for v in range(variates)},
    }
    if file.suffix == ".parquet":
        pq.write_table(pa.table(columns), file, row_group_size=5000)
    else:
        pyarrow.csv.write_csv(pa.table(columns), file)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_beyond_memory_gives_the_series_of_one_within(tmp_path, monkeypatch, suffix):
    file = tmp_path / f"pods{suffix}"
    write_interleaved(file, items=50, steps=400)
    monkeypatch.setattr(batches, "CSV_BLOCK", 2**16)
    counts = Counter()
    whole = {s.item_id: s for s in tables.read(file, "s", counts)}
    assert len(whole) == 50
    assert list(whole) == sorted(whole)
    monkeypatch.setattr(rows, "SPILL_BYTES", 2**15)
    spilled_counts = Counter()
    spilled = list(tables.read(file, "s", spilled_counts))
    order = [s.item_id for s in spilled]
    assert order != sorted(order)  # several partitions, so it did leave memory
    assert sorted(order) == sorted(whole)
    assert spilled_counts == counts
    for s in spilled:
        np.testing.assert_array_equal(s.values, whole[s.item_id].values)
        assert (s.interval, s.start) == (60.0, whole[s.item_id].start)
    assert [s.item_id for s in tables.read(file, "s")] == order
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(whole["pods/pod-3"].values[0], rng.normal(size=20_000).astype(np.float32)[3::50])


def test_a_spilled_table_keeps_the_order_of_duplicates_and_the_common_step(tmp_path, monkeypatch):
    lines = [f"{i},{60 * t},{t}" for t in range(40) for i in "abc"] + ["a,60,-1", "b,0,-2", "z,0,5", "a,60,-3"]
    (tmp_path / "t.csv").write_text("item,time,v\n" + "\n".join(lines))
    monkeypatch.setattr(rows, "SPILL_BYTES", 64)
    counts = Counter()
    found = {s.item_id: s for s in tables.read(tmp_path / "t.csv", "s", counts)}
    assert found["t/a"].values[0, :3].tolist() == [0, -3, 2]
    assert found["t/b"].values[0, :3].tolist() == [-2, 1, 2]
    assert (found["t/z"].interval, found["t/z"].length) == (60.0, 1)
    assert counts == {"out_of_order": 3, "duplicate": 3, "gap": 0}


def test_no_temporary_file_stays(tmp_path, monkeypatch):
    import tempfile

    write_interleaved(tmp_path / "t.csv", items=20, steps=50)
    monkeypatch.setattr(rows, "SPILL_BYTES", 1024)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    half = tables.read(tmp_path / "t.csv", "s")
    next(half)
    assert len(list(tmp_path.glob("toto-rows-*"))) == 1
    half.close()
    assert [f.name for f in tmp_path.iterdir()] == ["t.csv"]
    (tmp_path / "bad.csv").write_text((tmp_path / "t.csv").read_text() + "pod-0,1700000000,high,1\n")
    monkeypatch.setattr(batches, "CSV_BLOCK", 4096)
    with pytest.raises(ValueError, match="row 1001 holds 'high'"):
        list(tables.read(tmp_path / "bad.csv", "s"))
    assert not list(tmp_path.glob("toto-rows-*"))


PEAK = """
import json, re, sys
from data_pipelines.sources import batches, rows, tables
rows.SPILL_BYTES, batches.CSV_BLOCK, batches.BATCH_ROWS = 4 * 2**20, 2**19, 8192
points = sum(s.values.size for s in tables.read(sys.argv[1], "s"))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]  # ru_maxrss counts the parent's too
print(json.dumps([points, int(peak)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_ten_times_as_long_takes_about_the_same_memory(tmp_path, suffix):
    peaks = []
    for times in (1, 10):
        file = tmp_path / f"pods-{times}{suffix}"
        write_interleaved(file, items=500, steps=300 * times, variates=8)
        found = subprocess.run([sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, check=True)
        points, kilobytes = json.loads(found.stdout)
        assert points == 500 * 300 * times * 8
        peaks.append(kilobytes / 1024)
    # in memory the longer table's rows alone would be 63 MiB, the float64 columns of pandas 100
    assert peaks[1] - peaks[0] < 20, peaks


def test_a_wide_table_of_any_length_needs_no_partition(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SPILL_BYTES", 64)
    (s,), _ = read_csv(tmp_path, "time,a,b\n" + "".join(f"{t},{t},\n" for t in range(100)))
    np.testing.assert_array_equal(s.values, [np.arange(100), [np.nan] * 100])


@pytest.mark.parametrize(
    ("later", "expected"),
    [("99.5,1", 99.5), ("100,1.5", 100.0)],
    ids=["stamps", "values"],
)
def test_decimals_that_begin_far_down_a_file_are_read(tmp_path, monkeypatch, later, expected):
    monkeypatch.setattr(batches, "CSV_BLOCK", 64)
    (s,), _ = read_csv(tmp_path, "time,v\n" + "".join(f"{t},{t}\n" for t in range(99)) + f"{later}\n")
    assert s.values[0, -1] == float(later.split(",")[1])
    assert s.length == round(expected) + 1


def test_the_unit_of_stamps_is_told_by_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CSV_BLOCK", 64)
    stamps = np.arange(200) * 10**9  # the first batch alone looks like seconds
    (s,), _ = read_csv(tmp_path, "time,v\n" + "".join(f"{t},1\n" for t in stamps))
    assert (s.interval, s.length) == (10**6, 200)


def test_numbers_as_people_write_them(tmp_path):
    text = "time,a,b,c\n 0, 1.5 ,True,NA\n10,-inf,false,\n20,1e39,TRUE,nan\n"
    (s,), _ = read_csv(tmp_path, text)
    np.testing.assert_array_equal(s.values, np.float32([[1.5, -np.inf, np.inf], [1, 0, 1], [np.nan] * 3]))


def test_columns_of_one_name_and_of_none(tmp_path):
    (s,), _ = read_csv(tmp_path, "\ufeff,time,v,v\n0,0,1,2\n1,60,3,4\n")
    assert s.variate_names == ("v", "v.1")
    np.testing.assert_array_equal(s.values, np.float32([[1, 3], [2, 4]]))


def test_types_of_parquet_columns(tmp_path):
    frame = pd.DataFrame(
        {
            "id": pd.Categorical(["b", "a", "b", "a"]),
            "time": pd.to_datetime(["2024-01-01", "2024-01-01", "2024-01-02", "2024-01-02"]).tz_localize("CET"),
            "flag": [True, False, False, True],
            "count": pd.array([1, None, 3, 4], dtype="Int64"),
            "text": ["1", None, "2.5", "x"],
        }
    )
    frame.loc[3, "text"] = "4"
    frame.to_parquet(tmp_path / "t.parquet")
    a, b = tables.read(tmp_path / "t.parquet", "s")
    np.testing.assert_array_equal(a.values, np.float32([[0, 1], [np.nan, 4], [np.nan, 4]]))
    np.testing.assert_array_equal(b.values, np.float32([[1, 0], [1, 3], [1, 2.5]]))
    assert (a.item_id, a.start) == ("t/a", "2023-12-31T23:00:00")
    frame.assign(when=frame["time"]).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(ValueError, match="column 'when' holds time stamps, but another column is the time"):
        list(tables.read(tmp_path / "u.parquet", "s"))


def test_the_row_of_an_error_counts_from_the_top_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CSV_BLOCK", 64)
    text = "id,time,v\n" + "".join(f"a,{t},1\n" for t in range(100))
    for line, message in [
        ("a,x,1\n", "row 101 holds 'x', which is no time stamp"),
        ("a,100,x\n", "row 101 holds 'x', which is no number"),
        (",100,1\n", "row 101 names no item"),
        ("a,,1\n", "row 101 holds None, which is no time stamp"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_csv(tmp_path, text + line)
