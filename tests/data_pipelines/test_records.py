"""Records of public archives keep their values, whatever wrote the file; a bad one says which record and why."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import grid
from data_pipelines.sources.files import FileSource

datasets = pytest.importorskip("datasets")
NAN = np.nan


def read(path, kind, **options):
    source, counts = FileSource(str(path), kind, **options), Counter()
    return [s for unit in source.units() for s in source.read(unit, counts)], counts


def same(series, values):
    np.testing.assert_array_equal(series.values, np.float32(values))
    assert series.values.dtype == np.float32


def write_arrow(folder, rows, **features):
    kinds = {"item_id": datasets.Value("string"), "freq": datasets.Value("string"), **features}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    dataset = datasets.Dataset.from_dict(columns)
    kept = datasets.Features({k: kinds.get(k, v) for k, v in dataset.features.items()})
    datasets.disable_progress_bars()
    dataset.cast(kept).save_to_disk(str(folder))


def test_a_gift_eval_folder_of_univariate_records(tmp_path):
    rows = [
        {"item_id": "a", "start": "2016-01-01 00:00:00", "freq": "15T", "target": [1.5, NAN, 3.0]},
        {"item_id": "b", "start": "2016-01-02", "freq": "15T", "target": [4.0]},
    ]
    write_arrow(tmp_path / "electricity" / "15T", rows)
    # uploads carry caches of datasets beside the data, with the same records
    data = next((tmp_path / "electricity" / "15T").glob("data-*.arrow"))
    (data.parent / "cache-1318815c7ce7bc45.arrow").write_bytes(data.read_bytes())
    (a, b), _ = read(tmp_path, "arrow", domain="general", licence="Apache-2.0")
    same(a, [[1.5, NAN, 3.0]])
    same(b, [[4.0]])
    assert (a.source, a.item_id, a.interval, a.start) == ("electricity_15T", "a", 900.0, "2016-01-01T00:00:00")
    assert (a.domain, a.licence, a.variate_names) == ("general", "Apache-2.0", ("v0",))


def test_boom_a_folder_an_item_multivariate_with_a_time_stamp_for_a_start(tmp_path):
    start = datasets.Value("timestamp[s]")
    for n, values in enumerate([[[1.0, 2.0, NAN], [4.0, 5.0, 6.0]], [[7.0, 8.0], [9.0, 10.0], [11.0, 12.0]]]):
        row = {"item_id": "0", "start": pd.Timestamp("2024-05-01 10:00"), "freq": "T", "target": values}
        write_arrow(tmp_path / f"ds-{n}-T", [row], start=start)
    (a, b), _ = read(tmp_path, "arrow", name="boom")
    same(a, [[1, 2, NAN], [4, 5, 6]])
    same(b, [[7, 8], [9, 10], [11, 12]])
    assert [(s.source, s.item_id) for s in (a, b)] == [("boom", "ds-0-T/0"), ("boom", "ds-1-T/0")]
    assert (a.interval, a.start, a.domain) == (60.0, "2024-05-01T10:00:00", "observability")


def test_covariates_of_the_past_are_further_variates_and_other_columns_are_left_out(tmp_path):
    rows = [
        {
            "item_id": "x",
            "start": "2020-01-01",
            "freq": "h",
            "target": [[1.0, 2.0]],
            "past_feat_dynamic_real": [[3.0, NAN], [5.0, 6.0]],
            "feat_static_cat": [7],
        }
    ]
    write_arrow(tmp_path / "d", rows, target=datasets.Sequence(datasets.Sequence(datasets.Value("float32")), length=1))
    (s,), _ = read(tmp_path, "arrow")
    same(s, [[1, 2], [3, NAN], [5, 6]])
    assert s.variate_names == ("v0", "feat0", "feat1")


def test_arrow_files_of_gluonts_in_both_formats(tmp_path):
    from gluonts.dataset.arrow import ArrowWriter

    entries = [
        {"item_id": "a", "start": "2020-01-01", "target": np.float32([[1, NAN, 3], [4, 5, 6]])},
        {"item_id": "b", "start": "2020-01-01", "target": np.float32([[7, 8], [9, 10]])},
    ]
    for stream in (True, False):
        file = tmp_path / f"{stream}" / "data.arrow"
        file.parent.mkdir()
        ArrowWriter(stream=stream).write_to_file(entries, file)
        (a, b), _ = read(file, "arrow", freq="5min")
        same(a, [[1, NAN, 3], [4, 5, 6]])
        same(b, [[7, 8], [9, 10]])
        assert (a.interval, a.start[:10], a.source) == (300.0, "2020-01-01", f"{stream}")


def test_a_data_set_that_gluonts_saved(tmp_path):
    from gluonts.dataset.common import ListDataset, MetaData, TrainDatasets
    from gluonts.dataset.jsonl import JsonLinesWriter

    entries = [
        {"start": "2021-03-04 05:00", "target": [1.0, NAN, 3.25], "item_id": "a"},
        {"start": "2021-03-04", "target": [5.0, 6.0]},
    ]
    train = ListDataset(entries, freq="30min")
    TrainDatasets(MetaData(freq="30T"), train).save(str(tmp_path / "solar"), JsonLinesWriter())
    (a, b), _ = read(tmp_path, "jsonl")
    same(a, [[1, NAN, 3.25]])
    same(b, [[5, 6]])
    assert (a.source, a.item_id, a.interval, a.start) == ("solar", "a", 1800.0, "2021-03-04T05:00:00")
    assert b.item_id == "data/1"


def test_json_lines_with_text_for_missing_values_and_a_step_by_option(tmp_path):
    lines = [
        {"start": "2020-01-01T00:00:00Z", "target": [[1, "NaN", None], [4, 1e300, -0.5]], "item_id": 7},
        {"target": [1, 2], "past_feat_dynamic_real": [[3, 4]], "feat_static_cat": [1]},
    ]
    with gzip.open(tmp_path / "web.jsonl.gz", "wt") as out:
        out.write("\n\n".join(map(json.dumps, lines)))
    (a, b), _ = read(tmp_path, "jsonl", freq="10")
    same(a, [[1, NAN, NAN], [4, np.inf, -0.5]])
    same(b, [[1, 2], [3, 4]])
    assert (a.item_id, a.start, a.interval) == ("7", "2020-01-01T00:00:00", 10.0)
    assert (b.item_id, b.start, b.variate_names) == ("web/1", None, ("v0", "feat0"))


def write_chronos(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, CHRONOS), file)


CHRONOS = pa.schema(
    [
        ("id", pa.string()),
        ("timestamp", pa.list_(pa.timestamp("ms"))),
        ("load", pa.list_(pa.float64())),
        ("price", pa.list_(pa.float32())),
        ("subset", pa.string()),
        ("events", pa.list_(pa.string())),
        ("altitude", pa.float32()),
    ]
)


def chronos_row(name, stamps, load, price):
    rest = {"subset": "x", "events": ["y"] * len(load), "altitude": 3.0}
    return {"id": name, "timestamp": list(stamps), "load": load, "price": price, **rest}


def test_a_chronos_corpus(tmp_path):
    hours = pd.date_range("2020-01-01", periods=4, freq="h").to_pydatetime()
    # yearly stamps of the M4 competition run beyond what nanoseconds can count
    years = np.array([f"{y}-01-01" for y in range(2200, 2300)], dtype="datetime64[ms]").tolist()
    rows = [
        chronos_row("a", hours, [1.0, NAN, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]),
        chronos_row("b", years, list(range(100)), [NAN] * 100),
        chronos_row("c", hours[[1, 0, 3]], [2.0, 1.0, 4.0], [1.0, 1.0, 1.0]),
    ]
    write_chronos(tmp_path / "corpus" / "train" / "0000.parquet", rows)
    (a, b, c), counts = read(tmp_path, "parquet", domain="general")
    same(a, [[1, NAN, 3, 4], [5, 6, 7, 8]])
    same(b, [np.arange(100), [NAN] * 100])
    same(c, [[1, 2, NAN, 4], [1, 1, NAN, 1]])
    assert counts == Counter(out_of_order=1, gap=1)
    assert [s.interval for s in (a, b, c)] == [3600.0, 365.25 * 86400, 3600.0]
    assert (a.source, a.item_id, a.start, a.variate_names) == ("corpus", "a", "2020-01-01T00:00:00", ("load", "price"))
    assert b.start == "2200-01-01T00:00:00"


def row(**changes):
    return {"item_id": "x", "start": "2020-01-01", "freq": "H", "target": [1.0, 2.0]} | changes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(freq="fortnight")], r"item x: unknown frequency code 'fortnight'; known units: .*source\.freq="),
        ([row(freq=None), row()], r"item x: no freq; name the step .*source\.freq="),
        ([row(target="1 2 3")], "column target is string; it must be a list of numbers"),
        ([row(target=["a", "b"])], "column target is list<.*string.*>; it must be a list of numbers"),
        ([row(target=2.0)], "column target is double"),
        ([row(target=[[1.0, 2.0], [3.0]])], r"item x: variates of different lengths \[1, 2\]"),
        ([row(target=[]), row()], "item x: target is empty"),
        ([row(start="noon")], "item x: start 'noon' is no time stamp"),
        ([row(past_feat_dynamic_real=[[1.0]])], "item x: past_feat_dynamic_real has 1 steps, target 2"),
    ],
)
def test_errors_name_the_file_the_record_and_the_way_out(tmp_path, rows, message):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, "parquet")
    assert "bad.parquet" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"target": [1], "freq": "H"}\n{"target": [1', "record 1 is no JSON"),
        ("[1, 2]", "record 0 is no object with a target"),
        ('{"start": "2020"}', "record 0 is no object with a target"),
        ('{"target": [1, 2]}', r"item bad/0: no freq; .*source\.freq="),
        ('{"target": [1, "high"], "freq": "H"}', "item bad/0: .*high"),
        ('{"target": [[1, 2], [3]], "freq": "H"}', "item bad/0: .*inhomogeneous"),
        ('{"target": {"a": 1}, "freq": "H"}', "item bad/0"),
    ],
)
def test_errors_in_json_lines(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, "jsonl")
    assert "bad.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([chronos_row("q", [pd.Timestamp(0)] * 2, [1.0], [1.0, 2.0])], "item q: load has 1 values for 2 stamps"),
        (
            [chronos_row("q", [pd.Timestamp(0)], [1.0], [1.0])],
            r"item q: a single time stamp has no step.*source\.freq=",
        ),
        ([chronos_row("q", [], [], [])], "item q: timestamp is empty"),
        (
            [chronos_row("q", [pd.Timestamp(t, unit="s") for t in (0, 1, 2, 3, 10**6)], [1.0] * 5, [1.0] * 5)],
            "item q: .*events",
        ),
    ],
)
def test_errors_in_chronos_corpora(tmp_path, rows, message):
    write_chronos(tmp_path / "bad.parquet", rows)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, "parquet")
    assert "bad.parquet" in str(error.value)


@pytest.mark.parametrize(
    ("codes", "seconds"),
    [
        ("T min 1min 1T", 60),
        ("15T 15min", 900),
        ("S s U 1000ms 1000L", 1),
        ("ms L", 1e-3),
        ("H h 60min", 3600),
        ("D B 24h", 86400),
        ("W W-SUN", 604800),
        ("M MS ME BM BME", 30.4375 * 86400),
        ("Q QS QE Q-DEC QE-DEC QS-OCT", 91.3125 * 86400),
        ("A Y AS YS YE A-DEC YE-DEC BY", 365.25 * 86400),
    ],
)
def test_frequency_codes_old_and_new(codes, seconds):
    assert {grid.freq_to_seconds(code) for code in codes.split()} == {seconds}


@pytest.mark.parametrize("code", ["", "m", "5", "0T", "fortnight", "T5", "see", "-H"])
def test_codes_that_are_none(code):
    with pytest.raises(ValueError, match="unknown frequency code"):
        grid.freq_to_seconds(code)


def test_folders_that_look_like_codes_name_a_data_set_only_below_one(tmp_path):
    for folder in ("ett1/H", "ett1/W", "Home"):
        write_arrow(tmp_path / folder, [row()])
    found, _ = read(tmp_path, "arrow")
    assert [s.source for s in found] == ["Home", "ett1_H", "ett1_W"]
    assert Path(tmp_path / "Home" / "dataset_info.json").exists()  # lies beside the data and is not read
