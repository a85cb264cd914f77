"""Shards are a function of the set of series: not of files, processes, machines, kills or what was built before."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import assemble, store, workplace
from data_pipelines.assemble import leaves, write_shards
from data_pipelines.build import Options, build
from data_pipelines.parts import Part
from data_pipelines.quality import Rules
from data_pipelines.series import Series
from data_pipelines.shards import ShardSet, index_name, read_manifest
from data_pipelines.sources import Unit, series_parquet
from data_pipelines.verify import verify

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "build_shards.py"
SMALL = Options(shard_bytes=16_000, workers=1)


def noise(i: int, source: str = "s", variates: int = 1, length: int = 400, **fields) -> Series:
    values = np.random.default_rng([i, len(source)]).normal(size=(variates, length)).astype(np.float32)
    return Series(values, source=source, item_id=f"item {i}", **({"interval": 60.0, "licence": "MIT"} | fields))


CORPUS = [noise(i, "one" if i % 3 else "two/x", variates=40 if i % 20 == 7 else 1 + i % 3) for i in range(60)]


@dataclass(frozen=True)
class Listed:
    """A picklable source of series at hand, divided into units."""

    lists: dict[str, list[Series]]

    def units(self) -> list[Unit]:
        return [Unit(key, len(found), "1") for key, found in self.lists.items()]

    def read(self, unit: Unit, counts) -> list[Series]:
        return self.lists[unit.key]


def divided(series: list[Series], units: int, seed: int = 0) -> Listed:
    mixed = random.Random(seed).sample(series, len(series))
    return Listed({f"unit {k}": mixed[k::units] for k in range(units)})


def files(folder: Path, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name not in but}


def without_origins(folder: Path) -> dict:
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        del shard["origins"], shard["more_origins"]
    del manifest["sha256"]
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize(("units", "workers"), [(4, 2), (1, 1), (13, 2), (60, 1)])
def test_the_division_of_the_work_leaves_no_trace(tmp_path, units, workers):
    build(divided(CORPUS, 4), tmp_path / "a", {}, options=SMALL)
    options = Options(shard_bytes=SMALL.shard_bytes, workers=workers)
    build(divided(CORPUS, units, seed=units if units != 4 else 0), tmp_path / "b", {}, options=options)
    titled = ("report.html",)  # it names the folder
    same = titled if units == 4 else ("manifest.json", *titled)
    assert len(files(tmp_path / "a")) > 20
    assert files(tmp_path / "a", same) == files(tmp_path / "b", same)
    assert without_origins(tmp_path / "a") == without_origins(tmp_path / "b")
    assert verify(tmp_path / "b") == []


def test_all_options_of_one_folder_give_the_same_report(tmp_path):
    for workers in (1, 2):
        build(divided(CORPUS, 5), tmp_path / str(workers) / "set", {}, options=Options(workers=workers))
    assert files(tmp_path / "1" / "set") == files(tmp_path / "2" / "set")


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 2**60), st.integers(1, 100)), min_size=1),
    st.integers(1, 400),
    st.data(),
)
@settings(deadline=None)
def test_leaves_divide_by_prefix(pairs, limit, data):
    pairs.sort()
    high, size = np.array([h for h, _ in pairs], np.uint64), np.array([s for _, s in pairs], np.int64)
    found = list(leaves(high, size, limit))
    assert [first for _, first, _ in found] == [0, *(last for *_, last in found[:-1])]
    assert found[-1][2] == len(pairs)
    for bits, first, last in found:
        assert first < last
        mine = [format(int(h), "064b") for h in high[first:last]]
        assert all(h.startswith(bits) for h in mine)
        assert size[first:last].sum() <= limit or last - first == 1 or len(set(mine)) == 1
        if bits:  # it was divided because its parent did not fit
            above = [s for h, s in pairs if format(h, "064b").startswith(bits[:-1])]
            assert sum(above) > limit
            assert len(above) > 1
    names = [bits for bits, *_ in found]
    assert not any(a != b and b.startswith(a) for a in names for b in names)
    # what one series adds changes one leaf, which it may divide
    gone = data.draw(st.integers(0, len(pairs) - 1))
    rest = np.delete(high, gone)
    before = {(b, tuple(rest[f:last].tolist())) for b, f, last in leaves(rest, np.delete(size, gone), limit)}
    after = {(b, tuple(high[f:last].tolist())) for b, f, last in found}
    if len(set(high.tolist())) == len(pairs):
        touched = {b for b, _ in before ^ after}
        shortest = min(touched, key=len)
        assert all(b.startswith(shortest) for b in touched)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_one_series_more_or_less_changes_one_shard(tmp_path, seed):
    corpus = [noise(i) for i in range(100)]
    extra = noise(1000 + seed)
    build(divided(corpus, 3), tmp_path / "set", {}, options=SMALL)
    before = {s["name"]: s["sha256"] for s in read_manifest(tmp_path / "set")["shards"]}
    assert len(before) >= 10
    build(divided([*corpus, extra], 5, seed), tmp_path / "more", {}, options=SMALL)
    after = {s["name"]: s["sha256"] for s in read_manifest(tmp_path / "more")["shards"]}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    gone, new = changed & before.keys(), changed & after.keys()
    assert len(gone) <= 1  # the one it lies in now
    assert 1 <= len(new) <= 2  # or the two it was divided into
    bits = {name.split(".")[1] for name in changed}
    assert all(b.startswith(min(bits, key=len)) for b in bits)
    build(divided(corpus, 3), tmp_path / "more", {}, options=Options(shard_bytes=SMALL.shard_bytes, replace=True))
    assert {s["name"]: s["sha256"] for s in read_manifest(tmp_path / "more")["shards"]} == before


def command(folder: Path, out: Path, *more: str) -> list[str]:
    arguments = ["source=parquet", f"source.path={folder}", f"out={out}", "shard_mb=0.2", *more]
    return [sys.executable, str(SCRIPT), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def write_parquet(folder: Path, count: int, series: int = 4, length: int = 2000) -> None:
    for k in range(count):
        made = [noise(series * k + i, ("web", "db")[k % 2], length=length) for i in range(series)]
        series_parquet.write(folder / f"{k:03d}.parquet", made)


# a build with a pause before each piece and shard, and one between the two, so that kills meet every phase
SLOW = """
import os, runpy, sys, time
from data_pipelines import assemble, build, workplace
def slowly(module, name, seconds):
    was = getattr(module, name)
    def wrapped(*a, **k):
        print("at", name, flush=True)
        time.sleep(seconds)
        return was(*a, **k)
    setattr(module, name, wrapped)
slowly(build, "stage", 0.02)
slowly(assemble, "write_all", 0.2)
slowly(assemble, "write_shard", 0.02)
slowly(workplace, "publish", 0.2)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed(arguments: list[str], phase: str, times: int) -> None:
    """Run a slowed build and kill it when it comes to a phase for the nth time."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments[1:]], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    assert process.stdout is not None
    for line in process.stdout:
        times -= line == f"at {phase}\n"
        if not times:
            break
    assert not times, f"the build ended before {phase}"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    write_parquet(tmp_path / "in", 12)
    undisturbed = tmp_path / "whole" / "set"
    subprocess.run(command(tmp_path / "in", undisturbed), check=True, capture_output=True, cwd=ROOT, env=environment())
    out = tmp_path / "cut" / "set"
    slow = command(tmp_path / "in", out, "workers=1")
    parts = out.with_name(".set.partial") / "parts"
    read = {}
    for phase, times in (("stage", 4), ("stage", 3), ("write_all", 1), ("write_shard", 2), ("publish", 1)):
        killed(slow, phase, times)
        assert not out.exists()
        found = {f.name: f.stat().st_ino for f in parts.iterdir() if not f.name.endswith(".tmp")}
        assert found.items() >= read.items(), "a finished piece was read again"
        read = found
    assert len(read) == 12
    shards = out.with_name(".set.partial") / "shards"
    written = {f.name: f.stat().st_ino for f in shards.glob("*.tar")}
    end = subprocess.run(slow, check=True, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert "12 of 12 pieces were read by an interrupted build" in end.stderr
    assert {f.name: f.stat().st_ino for f in out.glob("*.tar")} == written, "a finished shard was written again"
    assert files(out) == files(undisturbed)
    assert [f.name for f in out.parent.iterdir()] == ["set"]
    assert verify(out) == []


def descendants(pid: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = file.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            child = int(file.parent.name)
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_killed_at_random_moments_with_workers_that_end_too(tmp_path):
    write_parquet(tmp_path / "in", 40, series=8, length=8000)
    first, out = tmp_path / "a" / "set", tmp_path / "b" / "set"
    arguments = command(tmp_path / "in", out, "workers=2")
    begun = time.monotonic()
    subprocess.run(command(tmp_path / "in", first), check=True, capture_output=True, cwd=ROOT, env=environment())
    took = time.monotonic() - begun
    rng, children = random.Random(5), []
    for _ in range(4):
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
        time.sleep(took * rng.uniform(0.4, 0.95))
        children += descendants(process.pid)
        process.kill()
        process.wait()
        if out.exists():
            break
    if not out.exists():
        subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, env=environment())
    assert files(out) == files(first)
    assert children, "no kill met a worker"
    deadline = time.monotonic() + 5
    while left := [pid for pid in children if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture
def memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()


def test_a_dataset_behind_a_url_is_the_local_one(tmp_path, memory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(divided(CORPUS, 3), tmp_path / "set", {}, options=SMALL)
    build(divided(CORPUS, 3), "memory://bucket/set", {}, options=SMALL)
    assert [f.name for f in tmp_path.iterdir()] == ["set"]  # no work is left behind
    here, there = ShardSet(tmp_path / "set"), ShardSet("memory://bucket/set")
    assert (there.manifest, there.fingerprint, there.sources) == (here.manifest, here.fingerprint, here.sources)
    names = {Path(f).name: memory.cat_file(f) for f in memory.find("/bucket/set")}
    assert names == files(tmp_path / "set")
    assert verify("memory://bucket/set") == []
    for source in here.sources:
        np.testing.assert_array_equal(here.index(source), there.index(source))
        for i in range(len(here.index(source))):
            np.testing.assert_array_equal(here.values(source, i), there.values(source, i))
            assert here.meta(source, i) == there.meta(source, i)
    with pytest.raises(ValueError, match="exists"):
        build(divided(CORPUS, 3), "memory://bucket/set", {}, options=SMALL)
    write_shards("memory://bucket/set", CORPUS[:4], {}, replace=True)
    left = {Path(f).name for f in memory.find("/bucket/set")} - {"report.html"}
    shards = {s["name"] for s in read_manifest("memory://bucket/set")["shards"]}
    assert left == shards | {index_name(s) for s in shards} | {"manifest.json", "index.npy"}


def test_an_upload_that_fails_leaves_no_manifest_and_goes_on(tmp_path, memory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = build(divided(CORPUS[:20], 2), "memory://b/set", {}, options=SMALL)
    options = Options(shard_bytes=SMALL.shard_bytes, workers=1, replace=True)
    sent, put = [], MemoryFileSystem.put_file

    def breaks(self, local, remote, **kwargs):
        sent.append(Path(remote).name)
        if len(sent) == 5:
            raise OSError("the network is gone")
        put(self, local, remote, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "put_file", breaks)
    with pytest.raises(OSError, match="network is gone"):
        build(divided(CORPUS, 3), "memory://b/set", {}, options=options)
    assert not memory.exists("/b/set/manifest.json")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        ShardSet("memory://b/set")
    manifest = build(divided(CORPUS, 3), "memory://b/set", {}, options=options)
    assert sent[-1] == "manifest.json"
    assert ShardSet("memory://b/set").manifest == manifest != old


def near(s: Series, item: str) -> Series:
    """Nearly the same: some steps at the end are others."""
    values = s.values.copy()
    values[:, -20:] += 1
    return Series(values, s.interval, s.source, item, licence=s.licence)


def test_near_duplicates_are_dropped_whatever_the_division(tmp_path):
    corpus = [noise(i, length=1000, variates=40 if i == 3 else 1) for i in range(12)]
    copies = [near(corpus[i], f"copy of {i}") for i in (2, 3, 5)]
    seen = set()
    for units in (1, 4, 15):
        out = tmp_path / str(units)
        manifest = build(divided([*corpus, *copies], units, units), out, {}, options=SMALL)
        assert manifest["quality"]["series_rejected"] == {"near_duplicate": 3}
        assert manifest["quality"]["series_kept"] == 12
        shards = ShardSet(out)
        kept = {shards.meta("s", i)["item_id"] for i in range(manifest["series"])}
        for i in (2, 5):
            assert len(kept & {f"item {i}", f"copy of {i}"}) == 1
        assert len({name.partition("/")[0] for name in kept} & {"item 3", "copy of 3"}) == 1
        assert manifest["series"] == 13
        seen.add(frozenset(kept))
        gone = {"item 2", "copy of 2", "item 5", "copy of 5"} - kept
        report = (out / "report.html").read_text()
        assert "near_duplicate" in report
        assert all(name in report for name in gone)
    assert len(seen) == 1
    everything = build(divided([*corpus, *copies], 4), tmp_path / "off", {}, Rules(near_duplicate=0), SMALL)
    assert everything["quality"]["series_kept"] == 15


def test_series_of_a_benchmark_are_refused(tmp_path):
    leaked = noise(4, length=1000)
    series_parquet.write(tmp_path / "benchmark" / "b.parquet", [near(leaked, "asked about"), noise(99, length=1000)])
    corpus = [noise(i, length=1000) for i in range(8)]
    rules = Rules(refuse=str(tmp_path / "benchmark"))
    options = Options(workers=2)
    manifest = build(divided(corpus, 3), tmp_path / "set", {}, rules, options)
    assert manifest["quality"]["series_rejected"] == {"leakage": 1}
    shards = ShardSet(tmp_path / "set")
    kept = {shards.meta("s", i)["item_id"] for i in range(manifest["series"])}
    assert kept == {s.item_id for s in corpus} - {"item 4"}
    assert "asked about" in (tmp_path / "set" / "report.html").read_text()


def test_the_manifest_says_what_each_shard_holds_and_where_it_is_from(tmp_path):
    corpus = [noise(i, licence=("MIT", "CC0")[i % 2], interval=(60.0, 3600.0, 0.5)[i % 3]) for i in range(60)]
    source = divided(corpus, 4)
    units = {s.item_id: unit for unit, found in source.lists.items() for s in found}
    of = {s.item_id: s for s in corpus}
    manifest = build(source, tmp_path / "set", {}, options=SMALL)
    shards = ShardSet(tmp_path / "set")
    names = [shards.shard_name("s", i) for i in range(60)]
    assert len(manifest["shards"]) > 5
    for shard in manifest["shards"]:
        mine = [of[shards.meta("s", i)["item_id"]] for i in range(60) if names[i] == shard["name"]]
        assert shard["series"] == len(mine) > 0
        for key, tally in (
            ("origins", [units[s.item_id] for s in mine]),
            ("licences", [s.licence for s in mine]),
            ("intervals", [f"{s.interval:.12g}" for s in mine]),
        ):
            assert shard[key] == {k: tally.count(k) for k in set(tally)}, key
        assert shard["points"] == sum(s.points for s in mine)
        assert shard["more_origins"] == 0
    many = build(divided(corpus, 60), tmp_path / "many", {}, options=Options(workers=1))
    (shard,) = many["shards"]
    assert (len(shard["origins"]), shard["more_origins"]) == (20, 40)


@pytest.mark.slow
def test_two_builds_of_one_folder_do_not_mix(tmp_path):
    with workplace.workplace(tmp_path / "set", False, {"one": 1}) as work:
        (work / "parts" / "mine").mkdir()
        with pytest.raises(ValueError, match=r"another build is writing .*set"):
            build(divided(CORPUS, 2), tmp_path / "set", {}, options=SMALL)
        assert (work / "parts" / "mine").is_dir()
    assert not (tmp_path / "set").exists()
    build(divided(CORPUS, 2), tmp_path / "set", {}, options=SMALL)


class Unlucky(Listed):
    """One unit cannot be read."""

    def read(self, unit, counts):
        if unit.key == "unit 2":
            raise ValueError("unit 2 is broken")
        return super().read(unit, counts)


def test_changed_settings_begin_anew_and_the_same_go_on(tmp_path, caplog):
    whole, out = divided(CORPUS, 3), tmp_path / "set"
    broken = Unlucky(whole.lists)
    with pytest.raises(ValueError, match="unit 2 is broken"):
        build(broken, out, {}, options=SMALL)
    assert not out.exists()
    build(whole, out, {}, options=SMALL)
    assert "2 of 3 pieces were read by an interrupted build" in caplog.text
    whole_bytes = files(out)
    for changed in (Rules(min_length=65), Rules()):
        caplog.clear()
        with pytest.raises(ValueError, match="unit 2 is broken"):
            build(broken, tmp_path / "b" / "set", {}, changed, SMALL)
        assert ("begun anew" in caplog.text) == (changed == Rules())
    build(whole, tmp_path / "b" / "set", {}, Rules(min_length=66), SMALL)
    assert "begun anew" in caplog.text
    assert "interrupted" not in caplog.text
    assert whole_bytes.keys() == files(tmp_path / "b" / "set").keys()


def test_what_a_changed_source_no_longer_holds_is_forgotten(tmp_path):
    out = tmp_path / "b" / "set"
    with pytest.raises(ValueError, match="unit 2 is broken"):
        build(Unlucky({"gone": [noise(500)], **divided(CORPUS, 3).lists}), out, {}, options=SMALL)
    build(divided(CORPUS, 3), out, {}, options=SMALL)
    build(divided(CORPUS, 3), tmp_path / "a" / "set", {}, options=SMALL)
    assert files(out) == files(tmp_path / "a" / "set")


@pytest.mark.parametrize("rules", [Rules(), Rules(near_duplicate=0)])
def test_one_name_in_two_units_is_refused(tmp_path, rules):
    for second in (noise(1), Series(noise(2).values, 60.0, "s", "item 1")):
        with pytest.raises(ValueError, match=r"series s/item 1 appears twice \(in (a and in b|b and in a)\); item ids"):
            build(Listed({"a": [noise(1)], "b": [second, noise(3)]}), tmp_path / "set", {}, rules, SMALL)
    assert not (tmp_path / "set").exists()


def test_more_pieces_than_a_process_may_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_OPEN", 16)  # as it is where the limit is that low from the start
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, limits[1]))
    try:
        manifest = build(divided([noise(i) for i in range(150)], 150), tmp_path / "set", {}, options=Options(workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert manifest["series"] == 150


@dataclass(frozen=True)
class Deadly(Listed):
    """Its process is killed, as for want of memory."""

    def read(self, unit: Unit, counts) -> list[Series]:
        if unit.key == "unit 2":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(unit, counts)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_explained(tmp_path):
    source = divided(CORPUS, 4)
    with pytest.raises(OSError, match="killed, perhaps for want of memory: run the same command again"):
        build(Deadly(source.lists), tmp_path / "set", {}, options=Options(workers=2))
    assert build(source, tmp_path / "set", {}, options=Options(workers=2))["series"] > 60


def test_a_work_folder_keeps_what_else_it_holds(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.txt").write_text("mine")
    build(divided(CORPUS, 2), tmp_path / "set", {}, options=Options(work=str(tmp_path / "scratch"), workers=1))
    assert [f.name for f in (tmp_path / "scratch").iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
    reason="needs a second file system",
)
def test_work_may_lie_on_another_disk(tmp_path):
    work = Path("/dev/shm") / f"toto-test-{os.getpid()}"
    try:
        build(divided(CORPUS, 2), tmp_path / "new" / "set", {}, options=Options(work=str(work), workers=1))
        assert list(work.iterdir()) == []
    finally:
        work.rmdir()
    assert verify(tmp_path / "new" / "set") == []
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["set"]
    assert not [f for f in files(tmp_path / "new" / "set") if f.startswith(".")]


def test_a_part_gives_back_what_was_split(tmp_path):
    out = tmp_path / "set"
    with workplace.workplace(out, False, {}) as work:
        with assemble.PartWriter(work / "parts" / "0") as part:
            wide = noise(7, variates=3)
            halves = [
                Series(wide.values[:2], 60.0, "s", "item 7/part1of2", variate_names=("v0", "v1"), licence="MIT"),
                Series(wide.values[2:], 60.0, "s", "item 7/part2of2", variate_names=("v2",), licence="MIT"),
            ]
            part.add(wide, halves)
        found = Part(work / "parts" / "0").group(0)
    np.testing.assert_array_equal(found.values, wide.values)
    assert (found.item_id, found.variate_names) == ("item 7", ("v0", "v1", "v2"))


# the peak of the largest process: of the workers as they end, of the parent at the end
PEAK = """
import json, re, sys
sys.path.insert(0, sys.argv[3])
from data_pipelines import build as module
from data_pipelines.build import Options, build
from data_pipelines.sources.files import FileSource
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
def note():
    with open(sys.argv[2] + ".peaks", "a") as file:
        file.write(f"{peak()}\\n")
def stage(job):
    was(job)
    note()
def write_shard(job):
    entry = write(job)
    note()
    return entry
from data_pipelines import assemble
was, write = module.stage, assemble.write_shard
module.stage, assemble.write_shard = stage, write_shard
if __name__ == "__main__":
    build(FileSource(sys.argv[1], "parquet"), sys.argv[2], {}, options=Options(workers=2, shard_bytes=4 * 2**20))
    note()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_ten_times_the_data_takes_about_the_same_memory(tmp_path):
    (tmp_path / "peak.py").write_text(PEAK)
    peaks = []
    for times in (1, 10):
        folder, out = tmp_path / f"in{times}", tmp_path / f"out{times}"
        write_parquet(folder, 8 * times, series=10, length=25_000)  # 1 MB a file
        arguments = [sys.executable, str(tmp_path / "peak.py"), str(folder), str(out), str(ROOT)]
        subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, env=environment())
        noted = [int(line) / 1024 for line in Path(f"{out}.peaks").read_text().split()]
        assert len(noted) > 8 * times  # the workers did note theirs
        assert read_manifest(out)["points"] == 2_000_000 * times
        peaks.append(max(noted))
    assert peaks[1] < 1.3 * peaks[0] + 20, peaks


@pytest.mark.slow
def test_ray_gives_the_bytes_of_this_machine(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install ray==2.60.0")
    write_parquet(tmp_path / "in", 3)
    local = tmp_path / "a" / "set"
    subprocess.run(
        command(tmp_path / "in", local, "workers=1"), check=True, capture_output=True, cwd=ROOT, env=environment()
    )
    far = command(Path("in"), Path("b/set"), "executor=ray", "workers=1")
    started: set[int] = set()
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(far, cwd=tmp_path, env=environment(), stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None:
            started |= set(descendants(process.pid))
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert process.returncode == 0, (tmp_path / "said").read_text()
        named = ("manifest.json", "report.html")  # they say source.path
        assert files(tmp_path / "b" / "set", named) == files(local, named)
        assert read_manifest(tmp_path / "b" / "set")["shards"] == read_manifest(local)["shards"]
        assert started, "nothing was started, so it did not run on Ray"
        deadline = time.monotonic() + 10
        while left := [pid for pid in started if alive(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    finally:
        for pid in {process.pid, *started}:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
