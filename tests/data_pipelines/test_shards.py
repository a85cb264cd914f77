"""Datasets on disk: what is written is read back, by us and by webdataset; damage is found and named."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset

from data_pipelines import store
from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.shards import INDEX, ShardSet, manifest_sha256
from data_pipelines.verify import verify


def make(source: str, i: int, variates: int = 1, length: int = 50, **fields) -> Series:
    rng = np.random.default_rng([i, len(source)])
    values = rng.standard_normal((variates, length)).astype(np.float32)
    values[0, i % length] = np.nan
    fields = {"interval": 60.0, "start": "2024-01-01T00:00:00", "licence": "MIT"} | fields
    return Series(values, source=source, item_id=f"item {i}", **fields)


def interleaved() -> list[Series]:
    """Three sources in turn, with names that need care in files and widths that differ."""
    return [make(("web/cpu", "web_cpu", "plain")[i % 3], i, variates=1 + i % 4, length=40 + i) for i in range(30)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", interleaved(), {"made": "by a test"}, shard_bytes=8000)
    return tmp_path / "set"


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def by_item(source: str) -> dict[str, Series]:
    return {s.item_id: s for s in interleaved() if s.source == source}


def test_series_come_back_by_source(dataset):
    shards = ShardSet(dataset)
    assert shards.sources == ("plain", "web/cpu", "web_cpu")
    for source in shards.sources:
        expected = by_item(source)
        index = shards.index(source)
        assert index.dtype == INDEX
        assert sorted(shards.meta(source, i)["item_id"] for i in range(len(index))) == sorted(expected)
        assert index["shard"].max() > 0, "the test wants several shards a source"
        for i in range(len(index)):
            read = shards.series(source, i)
            s = expected[read.item_id]
            np.testing.assert_array_equal(read.values, s.values)
            assert (read.item_id, read.interval, read.start) == (s.item_id, s.interval, s.start)
            assert (read.variate_names, read.domain, read.licence) == (s.variate_names, s.domain, s.licence)
            assert index[i]["points"] == s.points


def test_more_shards_than_may_stay_open(dataset, monkeypatch):
    monkeypatch.setattr(store, "_OPEN", 1)
    shards = ShardSet(dataset)
    for i in [*range(10), *range(10)]:
        np.testing.assert_array_equal(
            shards.values("plain", i), by_item("plain")[shards.meta("plain", i)["item_id"]].values
        )
    assert len(store._open) == 1


def test_a_shard_holds_one_source_and_the_manifest_counts(dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    series = interleaved()
    assert manifest["series"] == 30
    assert manifest["points"] == sum(s.points for s in series)
    assert manifest["missing"] == 30
    assert manifest["licences"] == {"MIT": 30}
    assert manifest["config"] == {"made": "by a test"}
    assert sum(manifest["sources"]["plain"]["variate_counts"].values()) == 10
    assert len({s["name"] for s in manifest["shards"]}) == len(manifest["shards"])
    assert verify(dataset) == []


def test_same_series_give_the_same_bytes(dataset, tmp_path):
    write_shards(tmp_path / "again", interleaved(), {"made": "by a test"}, shard_bytes=8000)
    assert files(dataset) == files(tmp_path / "again")
    assert ShardSet(dataset).fingerprint == ShardSet(tmp_path / "again").fingerprint


def test_webdataset_reads_the_tars(dataset):
    urls = [str(f) for f in sorted(dataset.glob("plain.*.tar"))]
    assert len(urls) > 1
    samples = {s["json"]["item_id"]: s for s in webdataset.WebDataset(urls, shardshuffle=False).decode()}
    assert len(samples) == 10
    shards = ShardSet(dataset)
    assert list(samples) == [shards.meta("plain", i)["item_id"] for i in range(10)]
    for item, s in by_item("plain").items():
        np.testing.assert_array_equal(samples[item]["npy"], s.values)


def test_globs_choose_sources(dataset):
    assert ShardSet(dataset, include=["web*"], exclude=["*/*"]).sources == ("web_cpu",)
    with pytest.raises(ValueError, match=r"'db.*' matches no source; there are: plain, web/cpu, web_cpu"):
        ShardSet(dataset, include=["plain", "db*"])
    with pytest.raises(ValueError, match="leaves no source"):
        ShardSet(dataset, exclude=["*"])


def test_an_opened_set_travels_to_another_process(dataset):
    shards = ShardSet(dataset)
    before = shards.values("plain", 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shards)).values("plain", 3), before)


def test_write_refuses_to_overwrite_unless_told(dataset, tmp_path):
    with pytest.raises(ValueError, match="exists"):
        write_shards(dataset, interleaved(), {})
    write_shards(dataset, [make("new", 0)], {}, replace=True)
    assert ShardSet(dataset).sources == ("new",)
    assert [f.name for f in tmp_path.iterdir()] == ["set"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="no dataset"):
        write_shards(tmp_path / "photos", interleaved(), {}, replace=True)


def test_duplicates_and_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="series a/item 1 appears twice"):
        write_shards(tmp_path / "set", [make("a", 1), make("b", 1), make("a", 1)], {})
    with pytest.raises(ValueError, match="no series"):
        write_shards(tmp_path / "set", [], {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old(dataset):
    def breaks():
        yield make("new", 0)
        raise RuntimeError("source went away")

    before = files(dataset)
    with pytest.raises(RuntimeError):
        write_shards(dataset, breaks(), {}, replace=True)
    assert files(dataset) == before


def test_killed_while_writing_leaves_nothing_under_the_name(tmp_path):
    code = f"""
import numpy as np, time
from data_pipelines.series import Series
from data_pipelines.assemble import write_shards
def series():
    for i in range(10**6):
        yield Series(np.ones((1, 100), np.float32), 1.0, "s", str(i))
        time.sleep(0.01)
write_shards({str(tmp_path / "set")!r}, series(), {{}}, shard_bytes=2000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    deadline = time.time() + 20
    while not (written := [f for f in tmp_path.glob(".set.partial/parts/*/data") if f.stat().st_size]):
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert written[0].exists()
    assert not (tmp_path / "set").exists()
    write_shards(tmp_path / "set", interleaved(), {})
    assert [f.name for f in tmp_path.iterdir()] == ["set"]


def test_interrupted_between_the_renames_the_old_comes_back(dataset):
    dataset.rename(dataset.with_name(".set.old"))
    with pytest.raises(ValueError, match="exists"):
        write_shards(dataset, interleaved(), {})
    assert verify(dataset) == []


def test_missing_and_truncated_shards_are_found_when_opened(dataset, tmp_path):
    shard = sorted(dataset.glob("*.tar"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-700])
    with pytest.raises(ValueError, match=f"{shard.name} has {len(whole) - 700} bytes, the manifest says {len(whole)}"):
        ShardSet(dataset)
    assert any(shard.name in p for p in verify(dataset))
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        ShardSet(dataset)
    assert any(shard.name in p for p in verify(dataset))


def test_reads_that_come_in_pieces(dataset, monkeypatch):
    whole, part = ShardSet(dataset).values("plain", 0), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: part(file, [buffers[0].cast("B")[:100]], at))
    np.testing.assert_array_equal(ShardSet(dataset).values("plain", 0), whole)  # as beyond 2 GiB


def test_a_shard_cut_after_opening_is_an_error_not_a_crash(dataset):
    shards = ShardSet(dataset)
    shard = dataset / shards.shard_name("plain", 0)
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ValueError, match=shard.name):
        shards.values("plain", 0)


@pytest.mark.parametrize("where", [100, 700, -1500])
def test_verify_finds_a_flipped_byte_and_names_the_shard(dataset, where):
    shard = sorted(dataset.glob("*.tar"))[2]
    data = bytearray(shard.read_bytes())
    data[where] ^= 1
    shard.write_bytes(data)
    problems = verify(dataset)
    assert len(problems) == 1
    assert shard.name in problems[0]


@pytest.mark.parametrize("remote", [False, True])
def test_verify_finds_a_byte_flipped_anywhere(tmp_path, remote):
    write_shards(tmp_path / "set", interleaved()[:6], {"made": "by a test"}, shard_bytes=8000)
    rng = np.random.default_rng(0)
    memory = fsspec.filesystem("memory")
    where = "memory://flipped/set" if remote else tmp_path / "set"
    whole = files(tmp_path / "set")
    try:
        for name, data in whole.items():
            memory.pipe_file(f"/flipped/set/{name}", data)
        assert verify(where) == []
        for name, data in whole.items():
            for at in rng.integers(0, len(data), 3 if remote else 25).tolist():
                flipped = bytearray(data)
                flipped[at] ^= 1 << int(rng.integers(8))
                if remote:
                    memory.pipe_file(f"/flipped/set/{name}", bytes(flipped))
                else:
                    (tmp_path / "set" / name).write_bytes(flipped)
                problems = verify(where)
                assert len(problems) == 1, (name, at, problems)
                assert f"{where}/{name}" in problems[0]
            memory.pipe_file(f"/flipped/set/{name}", data)
            (tmp_path / "set" / name).write_bytes(data)
        memory.rm_file("/flipped/set/plain.tar")
        if remote:
            assert verify(where) == [f"{where}/plain.tar is missing; copy the dataset again or rebuild it"]
    finally:
        memory.store.clear()


def test_verify_finds_counts_that_are_wrong(dataset):
    file = dataset / "manifest.json"
    whole = file.read_text()
    for keys in (("series",), ("sources", "plain", "points"), ("shards", 0, "missing")):
        manifest = json.loads(whole)
        place = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] += 1
        manifest["sha256"] = manifest_sha256(manifest)
        file.write_text(json.dumps(manifest))
        (problem,) = verify(dataset)
        assert re.search("counts (of|in)", problem)


def test_verify_finds_an_index_of_another_shard(dataset):
    one, two = sorted(dataset.glob("*.index.npy"))[:2]
    shutil.copy(one, two)
    problems = verify(dataset)
    assert two.name in problems[0]


def test_verify_names_dull_series(tmp_path, caplog):
    flat = Series(np.full((1, 9), 3, np.float32), 1.0, "a", "flat")
    empty = Series(np.full((1, 9), np.nan, np.float32), 1.0, "a", "empty")
    write_shards(tmp_path / "set", [flat, empty], {})
    assert verify(tmp_path / "set") == []
    assert "series a/flat is constant" in caplog.text
    assert "series a/empty has no observed value" in caplog.text


def test_verify_refuses_other_types_with_file_and_fix(dataset):
    shard = dataset / ShardSet(dataset).shard_name("plain", 0)
    manifest = json.loads((dataset / "manifest.json").read_text())
    (entry,) = (s for s in manifest["shards"] if s["name"] == shard.name)
    shard.write_bytes(shard.read_bytes().replace(b"'<f4'", b"'<i4'"))
    entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()  # what a writer of such files would have noted
    manifest["sha256"] = manifest_sha256(manifest)
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = verify(dataset)
    assert re.search(f"{shard.name}.*int32.*must be float32.*rebuild", problem)


def test_folders_that_are_no_datasets(dataset, tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        ShardSet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        ShardSet(tmp_path)
    file = dataset / "manifest.json"
    file.write_text(file.read_text().replace('"schema": 2', '"schema": 99'))
    with pytest.raises(ValueError, match="schema 99, this version reads 2"):
        ShardSet(dataset)
    file.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        ShardSet(dataset)
