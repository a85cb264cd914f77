"""Benchmark data is found in a corpus, however it was cut, moved or scaled, and strangers are not accused."""

import csv
import importlib.util
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.counts import Counts
from data_pipelines.leakage import Index, Overlap, Refused, read_list, read_series
from data_pipelines.quality import Rules, clean
from data_pipelines.series import Series
from data_pipelines.sources import series_parquet

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
_spec = importlib.util.spec_from_file_location("leakage_script", ROOT / "scripts" / "leakage.py")
script = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the series beside the project are absent (../shared/data)"
)


def make(values, source="corpus", item="x"):
    return Series(np.atleast_2d(np.asarray(values, np.float32)), 300.0, source, item, "observability")


def metric(seed, steps=288 * 10):
    """Looks like a metric: a day, a drift, noise that remembers, bursts; two decimals."""
    rng, t = np.random.default_rng(seed), np.arange(steps)
    noise = np.convolve(rng.standard_normal(steps + 9), np.ones(10) / 10, "valid")
    day = 20 * np.sin(2 * np.pi * (t / 288 + rng.random())) + rng.normal(0, 0.2, steps).cumsum()
    return np.round(60 + day + 4 * noise + rng.pareto(3, steps) * (rng.random(steps) < 0.02) * 10, 2)


BENCHMARK = [make(metric(k), "bench", f"item{k}") for k in range(20)]
INDEX = Index.build(BENCHMARK)


@pytest.mark.parametrize(
    ("copy", "least"),
    [
        (lambda x: x, 1.0),
        (lambda x: x[577:1441], 0.3),
        (lambda x: np.concatenate([metric(100, 137), x]), 0.4),
        (lambda x: np.concatenate([metric(101, 3000), x, metric(102, 3001)]), 0.12),
        (lambda x: np.float32(0.01) * x.astype(np.float32) + np.float32(3), 0.95),
        (lambda x: np.float32(1024) * x[333:].astype(np.float32) - np.float32(77), 0.4),
        (lambda x: (x - x.mean()) / x.std(), 0.95),
        (lambda x: np.where(np.arange(len(x)) % 500 == 7, np.nan, x), 0.8),
    ],
    ids=["exact", "cropped", "shifted", "inside a longer one", "scaled", "cropped and scaled", "z-scored", "gaps"],
)
def test_copies_are_found(copy, least):
    for k, s in enumerate(BENCHMARK):
        raw, scaled, item = INDEX.match(make(copy(s.values[0])))
        assert max(raw, scaled) >= least
        assert item == ("bench", f"item{k}")


@pytest.mark.parametrize("offset", [1, 15, 16, 31, 32, 33, 1000])
def test_any_offset_is_found(offset):
    """About half of the windows begin at multiples of 32, which other offsets do not share; the limit is 0.1."""
    for s in BENCHMARK:
        assert INDEX.match(make(s.values[0][offset:]))[0] > 0.4


def strangers():
    rng, t = np.random.default_rng(9), np.arange(2000)
    for k in range(100):
        yield metric(1000 + k)
        yield rng.standard_normal(2000).cumsum()
        yield np.sin(2 * np.pi * t / rng.uniform(4, 400))
        yield rng.poisson(rng.uniform(0.5, 20), 2000)
        yield (rng.random(2000) < rng.uniform(0.1, 0.9)).astype(float)
        yield np.sin(2 * np.pi * t / 288) * 20 + rng.normal(0, 3, 2000)


def test_strangers_are_not_accused():
    """300 series against 300 of the same laws and the metrics, 96,000 pairs: no two windows in common, no alarm."""
    everyone = [make(x) for x in strangers()]
    half = [s for k, s in enumerate(everyone) if k // 6 % 2]
    index = Index.build([*half, *BENCHMARK])
    shares = [max(index.match(s)[:2]) for k, s in enumerate(everyone) if not k // 6 % 2]
    assert len(shares) == 300
    assert max(shares) == 0


def test_one_window_in_common_is_an_accident():
    only = Overlap(8, 4, Counter({3: 1}), Counter({3: 2}))
    assert (only.raw_share, only.scaled_share, only.best) == (0, 0.5, 3)
    assert INDEX.match(make(np.ones(500))) == (0, 0, None)
    assert Index.build([]).match(BENCHMARK[0]) == (0, 0, None)


def test_the_first_item_that_holds_a_window_owns_it():
    index = Index.build([*BENCHMARK[:2], make(BENCHMARK[0].values, "bench", "again")])
    assert index.match(BENCHMARK[0])[2] == ("bench", "item0")
    assert len(index.raw) == len(Index.build(BENCHMARK[:2]).raw)


def test_a_build_refuses_what_a_folder_of_benchmarks_holds(tmp_path):
    series_parquet.write(tmp_path / "a" / "bench.parquet", BENCHMARK)
    refused = pickle.loads(pickle.dumps(Refused.open(tmp_path)))
    counts = Counts()
    leaked = make(BENCHMARK[3].values[0][100:] * np.float32(2), item="leaked")
    assert clean(leaked, Rules(), counts, refused) is None
    assert clean(make(metric(500), item="own"), Rules(), counts, refused) is not None
    assert counts.series_rejected == {"leakage": 1}
    (example,) = counts.examples["leakage"]
    assert example.detail.endswith("of its windows occur up to scale and offset in benchmark series bench/item3")
    assert clean(leaked, Rules(max_leakage=1), Counts(), refused) is not None


def run(capsys, *args):
    assert script.main(list(args)) == 0
    return capsys.readouterr().out


def test_the_command_lists_what_a_build_then_refuses(tmp_path, capsys):
    corpus = [
        make(metric(500), "web", "own"),
        make(BENCHMARK[0].values[0][50:], "web", "cut, and named with a comma"),
        make(BENCHMARK[1].values * np.float32(3), "db", "scaled"),
        make(metric(501), "quiet", "own"),
    ]
    write_shards(tmp_path / "corpus", corpus, {})
    series_parquet.write(tmp_path / "one" / "a.parquet", BENCHMARK[:10])
    write_shards(tmp_path / "two", BENCHMARK[10:], {})
    out = tmp_path / "list.csv"
    against = f"against={tmp_path / 'one'},{tmp_path / 'two'}"
    said = run(capsys, f"corpus={tmp_path / 'corpus'}", against, f"out={out}")
    assert f"2 of 4 series have more than 10 % of their windows in 20 benchmark series: {out}" in said
    assert f"quality.refuse={out}" in said
    assert any(line.split()[:3] == ["quiet", "1", "0"] and line.endswith("-") for line in said.splitlines())
    rows = list(csv.DictReader(out.open()))
    assert [(r["source"], r["item_id"], r["benchmark_item"]) for r in rows] == [
        ("db", "scaled", "item1"),
        ("web", "cut, and named with a comma", "item0"),
    ]
    assert float(rows[0]["raw_share"]) == 0
    assert float(rows[0]["scaled_share"]) > 0.9
    refused = Refused.open(out)
    kept = [s.item_id for s in corpus if clean(s, Rules(), Counts(), refused)]
    assert kept == ["own", "own"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "list.csv", "one", "two"]
    said = run(capsys, f"corpus={tmp_path / 'one'}", f"against={tmp_path / 'two'}", f"out={out}")
    assert "0 of 10 series" in said
    assert len(out.read_text().splitlines()) == 1


def test_a_part_of_a_split_group_stands_for_the_group(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("source,item_id\ns,wide/part2of3\ns,spare/parts\n")
    assert read_list(file) == {("s", "wide/part2of3"), ("s", "wide"), ("s", "spare/parts")}


def test_benchmarks_are_read_in_their_own_layout(tmp_path):
    write_shards(tmp_path / "corpus", BENCHMARK, {})
    series = BENCHMARK[0]
    record = {"start": "2024-01-01", "target": (2 * series.values[0] + 1).tolist()}
    gluonts = tmp_path / "gluonts" / "shop" / "test"
    gluonts.mkdir(parents=True)
    (gluonts / "data.json").write_text(json.dumps(record))
    (gluonts / "metadata.json").write_text("{}")
    table = pa.table({"item_id": ["x"], "start": ["2024"], "freq": ["H"], "target": [record["target"]]})
    (tmp_path / "arrow" / "shop").mkdir(parents=True)
    with pa.ipc.new_file(tmp_path / "arrow" / "shop" / "data-00000.arrow", table.schema) as file:
        file.write_table(table)
    for folder in ("gluonts", "arrow"):
        script.main([f"{k}={tmp_path / v}" for k, v in {"corpus": "corpus", "against": folder, "out": "l.csv"}.items()])
        assert read_list(tmp_path / "l.csv") == {(series.source, series.item_id)}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"corpus": "nowhere"}, "corpus=nowhere does not exist"),
        ({"against": ","}, "against= names no folder"),
        ({"against": "{tmp}/empty"}, "against=.*holds neither a dataset"),
        ({"corpus": "{tmp}/sets"}, "the datasets in it are train: give one"),
        ({"corpus": "{tmp}/broken"}, "corpus: .*bad.parquet"),
        ({"max_leakage": "1"}, "max_leakage=1.0 is a share"),
        ({"out": "{tmp}/list.txt"}, "out=.*must end in .csv"),
        ({"out": "{tmp}/no/list.csv"}, "out=.*is no folder"),
    ],
)
def test_mistakes_are_named(tmp_path, args, message):
    series_parquet.write(tmp_path / "good" / "a.parquet", BENCHMARK[:1])
    write_shards(tmp_path / "sets" / "train", BENCHMARK[:1], {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.parquet").write_bytes(b"no parquet")
    given = {"corpus": "{tmp}/good", "against": "{tmp}/good", "out": "{tmp}/list.csv"} | args
    with pytest.raises(ValueError, match=message):
        script.main([f"{k}={v.format(tmp=tmp_path)}" for k, v in given.items()])
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def test_lists_that_are_none_are_named(tmp_path):
    (tmp_path / "list.csv").write_text("name\nx\n")
    with pytest.raises(ValueError, match=r"quality\.refuse=.*no column item_id and source"):
        Refused.open(tmp_path / "list.csv")
    with pytest.raises(ValueError, match=r"quality\.refuse=.*cannot be read"):
        Refused.open(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"quality\.refuse=.*does not exist"):
        Refused.open(tmp_path / "none")


@needs_shared
@pytest.mark.slow
def test_unrelated_real_sources_are_not_accused_and_known_copies_are_found():
    names = ("planetlab_vm_cpu", "asd_app_servers", "occupancy_room_1min", "twitter_anomaly", "skforecast_datasets")
    files = {n: SHARED / f"{n}.parquet" for n in (*names, "tsibbledata_fpp3", "netman_kpi", "mba_ecg_250hz")}
    index = Index.build(s for n in names for s in read_series(files[n], "against"))
    found = {}
    for name in files.keys() - set(names):
        for s in read_series(files[name], "corpus"):
            raw, scaled, item = index.match(s)
            if max(raw, scaled) > 0.02:
                found[s.item_id] = item[1]
    assert found == {
        "elecdemand": "vic_electricity",
        "aus_retail/Victoria|Cafes, restaurants and takeaway food services": "expenditures_australia",
    }


@needs_shared
@pytest.mark.slow
def test_real_series_are_found_cropped_and_scaled():
    rng, found, tried = np.random.default_rng(0), 0, 0
    for name in ("asd_app_servers", "beijing_multisite_air", "twitter_anomaly", "netman_kpi", "gefcom2012"):
        series = list(read_series(SHARED / f"{name}.parquet", "against"))
        index = Index.build(series)
        for s in series:
            start = int(rng.integers(1, s.length // 2))
            copy = np.float32(rng.uniform(0.1, 10)) * s.values[:, start:] + np.float32(s.values[0, 0] * 2)
            tried += 1
            found += index.match(make(copy))[1] > 0.1
    assert found == tried == 32
