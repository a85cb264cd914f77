"""Files -> quality -> shards, by function and by command, and the data that ships with the project."""

import json
import math
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_pipelines.build import build
from data_pipelines.quality import Rules
from data_pipelines.quickstart import SPLITS, build_quickstart, read_splits
from data_pipelines.series import Series
from data_pipelines.shards import ShardSet, read_manifest
from data_pipelines.sources import Unit, series_parquet
from data_pipelines.verify import verify

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "quickstart"
command = runpy.run_path(str(ROOT / "scripts" / "build_shards.py"))["main"]


@dataclass(frozen=True)
class Listed:
    """A source of series that are at hand."""

    lists: dict[str, list[Series]]

    def units(self):
        return [Unit(key, len(found), "1") for key, found in self.lists.items()]

    def read(self, unit, counts):
        yield from self.lists[unit.key]


def wave(source, item, variates=1, length=128, interval=60.0):
    rows = np.sin(np.arange(length) / 5 + np.arange(variates)[:, None]).astype(np.float32)
    return Series(rows, interval, source, item, licence="MIT")


def by_item(folder, source):
    """item id -> series of a source of a dataset."""
    data = ShardSet(folder)
    found = [data.series(source, i) for i in range(len(data.index(source)))]
    assert len({s.item_id for s in found}) == len(found)
    return {s.item_id: s for s in found}


def write_csvs(folder, names, rows=100):
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        file = folder / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("time,load\n" + "".join(f"{60 * t},{rng.integers(100)}\n" for t in range(rows)))


def test_what_is_written_is_what_was_read_and_the_manifest_counts_the_rest(tmp_path):
    flat = Series(np.ones((1, 128), np.float32), 60.0, "a", "flat")
    manifest = build(
        Listed({"u": [wave("a", "x"), flat, wave("a", "short", length=10), wave("b", "wide", 40)]}),
        tmp_path / "d",
        {"k": 1},
    )
    assert manifest == read_manifest(tmp_path / "d")
    assert verify(tmp_path / "d") == []
    assert manifest["quality"]["series_rejected"] == {"constant": 1, "too_short": 1}
    assert (manifest["quality"]["series_read"], manifest["quality"]["groups_split"]) == (4, 1)
    assert (manifest["config"]["k"], manifest["config"]["quality"]["min_length"]) == (1, 64)
    (x,) = by_item(tmp_path / "d", "a").values()
    np.testing.assert_array_equal(x.values, wave("a", "x").values)
    wide = by_item(tmp_path / "d", "b")
    assert sorted(wide) == ["wide/part1of2", "wide/part2of2"]
    for k, part in enumerate(sorted(wide)):
        np.testing.assert_array_equal(wide[part].values, wave("b", "wide", 40).values[20 * k : 20 * k + 20])


def test_nothing_left_is_an_error_that_says_why_and_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"all 2 series were rejected \(too_short 2\)"):
        build(Listed({"u": [wave("a", "x", length=9), wave("a", "y", length=9)]}), tmp_path / "d", {})
    with pytest.raises(ValueError, match="holds no series"):
        build(Listed({"u": []}), tmp_path / "d", {}, Rules())
    assert not list(tmp_path.iterdir())


def test_csv_command_takes_each_folder_as_a_source(tmp_path, capsys):
    write_csvs(tmp_path / "in", ["eu/web1", "eu/web2", "us/web1"])
    assert command([f"source.path={tmp_path}/in", "source=csv", f"out={tmp_path}/out"]) == 0
    assert "2 sources, 3 series" in capsys.readouterr().out
    assert ShardSet(tmp_path / "out").sources == ("eu", "us")
    named = [f"source.path={tmp_path}/in", "source=csv", f"out={tmp_path}/out", "source.name=fleet", "replace=true"]
    assert command(named) == 0
    found = by_item(tmp_path / "out", "fleet")
    assert sorted(found) == ["eu/web1", "eu/web2", "us/web1"]
    assert {s.domain for s in found.values()} == {"observability"}


def test_parquet_command_tells_series_files_from_tables(tmp_path, capsys):
    series_parquet.write(tmp_path / "in" / "a.parquet", [wave("alpha", "x", 3)])
    stamps = pd.date_range("2024-01-01", periods=100, freq="5min")
    pd.DataFrame({"timestamp": stamps, "cpu": np.arange(100) % 9}).to_parquet(tmp_path / "in" / "b.parquet")
    assert command(["source=parquet", f"source.path={tmp_path}/in", f"out={tmp_path}/out"]) == 0
    data = ShardSet(tmp_path / "out")
    assert data.sources == ("alpha", "in")
    assert data.series("alpha", 0).licence == "MIT"
    assert data.series("in", 0).interval == 300.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source=csv", "source.path={tmp}/none", "out={tmp}/o"], "does not exist"),
        (["source=csv", "source.path={tmp}/empty", "out={tmp}/o"], "holds no csv files"),
        (["source=csv", "out={tmp}/o"], "needs source.path="),
        (["source=excel", "source.path={tmp}", "out={tmp}/o"], "source=excel is not one of"),
        (["source=csv", "source.path={tmp}/bad.csv", "out={tmp}/o"], "no time column"),
        (["source=csv", "source.path={tmp}/short.csv", "out={tmp}/o"], "too_short 1"),
        (["source=csv", "source.path={tmp}/good.csv", "out={tmp}/taken"], "exists"),
        (
            ["source=csv", "source.path={tmp}/good.csv", "out={tmp}/o", "executor=dask"],
            "executor=dask is not one of local, ray",
        ),
        (
            ["source=csv", "source.path={tmp}/good.csv", "out={tmp}/o", "source.domain=x"],
            "source.domain=x is not one of",
        ),
        (["source=csv", "source.pth=x", "out={tmp}/o"], "did you mean 'source.path'"),
    ],
)
def test_the_command_explains_what_went_wrong(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    write_csvs(tmp_path, ["good"])
    write_csvs(tmp_path, ["short"], rows=5)
    with pytest.raises((ValueError, SystemExit)) as stop:
        command([a.format(tmp=tmp_path) for a in arguments])
    assert message in str(stop.value) + capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def small_quickstart(folder):
    for source in ("a", "b", "c", "d"):
        series_parquet.write(folder / f"{source}.parquet", [wave(source, "x")])
    (folder / "splits.yaml").write_text("validation: [b]\nheldout: [c]\n")
    return folder


def test_quickstart_splits_by_source_and_takes_whatever_file_lies_there(tmp_path):
    folder = small_quickstart(tmp_path / "q")
    made = build_quickstart(folder, tmp_path / "out", synthetic_count=64, synthetic_length=128)
    real = {
        split: {s for s in made[split]["sources"] if made[split]["sources"][s]["licences"] == {"MIT": 1}}
        for split in SPLITS
    }
    assert real == {"train": {"a", "d"}, "validation": {"b"}, "heldout": {"c"}}
    assert made["train"]["domains"]["synthetic"] > 32
    assert "synthetic" not in made["heldout"]["domains"]
    assert all(verify(tmp_path / "out" / split) == [] for split in SPLITS)


def test_quickstart_refuses_before_it_builds_anything(tmp_path):
    folder = small_quickstart(tmp_path / "q")
    (tmp_path / "out" / "heldout").mkdir(parents=True)
    with pytest.raises(ValueError, match="heldout exists"):
        build_quickstart(folder, tmp_path / "out", synthetic_count=0)
    for text, message in (
        ("validation: [b]\nheldout: [nowhere]\n", "'nowhere'.* in no file"),
        ("validation: [b]\nheldout: [b]\n", "in both splits"),
        ("validation: [b]\n", "must map validation and heldout"),
    ):
        (folder / "splits.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            build_quickstart(folder, tmp_path / "new", synthetic_count=0)
    assert not (tmp_path / "new").exists()


def test_the_same_series_make_the_same_bytes(tmp_path):
    folder = small_quickstart(tmp_path / "q")
    for out in ("one", "two"):
        build_quickstart(folder, tmp_path / out, synthetic_count=64, synthetic_length=128)
    manifests = [(tmp_path / out / "train" / "manifest.json").read_bytes() for out in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert json.loads(manifests[0])["shards"]


def test_the_shipped_data_is_small_documented_and_enough_to_evaluate_on():
    files = sorted(QUICKSTART.glob("*.parquet"))
    assert sum(f.stat().st_size for f in files) < 6 * 2**20
    documented = (ROOT / "docs" / "data.md").read_text()
    heldout, windows, intervals = read_splits(QUICKSTART)["heldout"], 0, set()
    horizons = {300.0: 48, 3600.0: 48, 86400.0: 30, 604800.0: 8}
    for file in files:
        for s in series_parquet.read(file):
            assert f"`{s.source}`" in documented, s.source
            assert s.licence != "unknown", s.source
            if s.source in heldout:
                intervals.add(s.interval)
                windows += min(20, math.ceil(0.1 * s.length / horizons[s.interval]))
    assert len(heldout) >= 5
    assert len(intervals) >= 4
    assert windows >= 200
