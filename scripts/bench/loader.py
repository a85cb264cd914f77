"""Loader: rows a second beside peers, loader workers, their memory, time to the first batch, streaming.

python scripts/bench/loader.py [--quick] [--json FILE]

Everything reads the same 1,000 series of a little over 4,096 steps, 2 % of their values missing; `mixed` has as many
variates in groups of 1 to 32. Points are observed values. Rates are medians over rounds in which all sides take turns;
a first round and the batches that workers had ready before a round are left out. All files are in the page cache.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch
from loader_peers import PEERS, Peer, Side, serve
from table import Row, main

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.shards import INDEX_FILE, MANIFEST
from toto_train.config import Config, DataConfig, MixtureEntry, ScheduleConfig
from toto_train.data.loader import RowLoader
from toto_train.data.rows import Batch, Rows
from toto_train.module import keep_freed_memory

ROOT = Path(__file__).parents[2]
MB = 1e6
RATE = "Mpoints/s"
PREFETCH = DataConfig().prefetch


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    length: int = 4096
    series: int = 1000
    rounds: int = 9
    seconds: float = 1.0
    """Of one side in one round."""
    shards: int = 10_000
    """Of the large corpus."""
    per_shard: int = 100
    """Series in each of them."""
    drawn: int = 3000
    """Batches a worker makes before its memory is taken."""
    starts: int = 5
    """Fresh processes that fetch a first batch."""
    latency: float = 0.02
    """Seconds the web server waits before each answer."""


QUICK = Sizes(rounds=5, seconds=0.15, drawn=300, starts=1)


@dataclass(frozen=True)
class Corpus:
    """Series and the dataset folder that holds them."""

    name: str
    folder: Path
    series: list[Series]

    @classmethod
    def write(cls, folder: Path, name: str, widths: Sequence[int], length: int) -> Corpus:
        """Random walks of `length` to 9/8 of it, 2 % of each variate missing."""
        random, series = np.random.default_rng(len(widths)), []
        for i, width in enumerate(widths):
            values = random.standard_normal((width, int(random.integers(length, length * 9 // 8 + 1))), np.float32)
            values.cumsum(1, out=values)
            for variate in values:
                variate[random.choice(len(variate), length // 50, replace=False)] = np.nan
            series.append(Series(values, 60.0, name, str(i)))
        write_shards(folder / name, series, {}, shard_bytes=4 * 2**20)
        return cls(name, folder / name, series)

    @cached_property
    def variates(self) -> list[np.ndarray]:
        return [variate for s in self.series for variate in s.values]


def mixed_widths(variates: int) -> list[int]:
    """Widths of univariate and multivariate series that have about so many variates in all."""
    cycle = [1, 1, 1, 2, 3, 4, 1, 8, 1, 16, 1, 32]
    return cycle * max(1, variates // sum(cycle))


def settings(path: str | Path, length: int, workers: int = 0) -> Config:
    """A run whose batches are one row [1, 32, length]."""
    mixture = {"set": MixtureEntry(path=str(path))}
    data = DataConfig(mixture=mixture, length=length, workers=workers, prefetch=PREFETCH)
    return Config(global_rows=1, micro_rows=1, data=data, schedule=ScheduleConfig(max_steps=10**9))


def ours(config: Config, kind: type[RowLoader] = RowLoader) -> Side:
    skip = 1 + config.data.workers * PREFETCH
    return Side(iter(kind(config, Rows(config))), lambda batch: int(batch["points"]), skip)


class Ready(RowLoader):
    """The same batch again and again, copied: what is left is the way from worker to loader."""

    @cached_property
    def ready(self) -> Batch:
        return super().batch(0)

    def batch(self, number: int, out: Batch | None = None) -> Batch:
        if out is None:
            return self.ready
        for name, array in self.ready.items():
            out[name][...] = array
        return out


class Idle(Ready):
    """Workers that make one batch, and then nothing."""

    def __init__(self, config: Config, rows: Rows):
        super().__init__(config, rows)
        self.numbers = range(config.data.workers)


def medians(sides: Mapping[str, Side], sizes: Sizes) -> dict[str, float]:
    """Mpoints/s of each."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(sizes.rounds + 1):
        for name, side in sides.items():
            rates[name].append(rate(side, sizes.seconds))
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


def rate(side: Side, seconds: float) -> float:
    """Mpoints/s of a round; counting the points of a batch takes no part in it."""
    for _ in range(side.skip):
        next(side.batches)
    points, spent = 0, 0.0
    while spent < seconds:
        begin = time.perf_counter()
        batch = next(side.batches)
        spent += time.perf_counter() - begin
        points += side.points(batch)
        del batch  # or the next could not have its memory
    return points / spent / 1e6


def one_process(corpus: Corpus, sizes: Sizes, peers: Sequence[Peer] = PEERS) -> list[Row]:
    """Rows with masks and ids, made in the training process."""
    sides = {"ours": ours(settings(corpus.folder, sizes.length))}
    names: dict[Peer, str] = {}
    for peer in peers:
        try:
            sides[peer.name] = peer.make(corpus.folder, corpus.variates, sizes.length)
            names[peer] = peer.name
        except ImportError as error:
            names[peer] = f"{(error.name or str(error)).partition('.')[0]} is missing: {peer.missing}"
    found = medians(sides, sizes)
    what = f"rows [32, {sizes.length}], {corpus.name}"
    return [Row(what, found["ours"], found.get(peer.name), names[peer], RATE, peer.target) for peer in peers]


def two_workers(corpus: Corpus, sizes: Sizes) -> list[Row]:
    """One of the two targets is enough: the second cannot be met where copying takes most of the time."""
    one, two = (settings(corpus.folder, sizes.length, workers) for workers in (1, 2))
    found = medians({"two": ours(two), "one": ours(one), "copying": ours(two, Ready)}, sizes)
    name = "2 workers, either of these rows met is enough"
    return [
        Row(name, found["two"], found["copying"], "2 workers that send a ready batch", RATE, ">= 0.8"),
        Row(name, found["two"], found["one"], "1 worker", RATE, ">= 1.7"),
    ]


def memory(folder: Path, series: int, sizes: Sizes) -> Row:
    """Private memory of a worker that has made many batches, above that of an idle one of the same parent."""
    config = settings(folder, sizes.length, workers=2)
    idle = private(Idle(config, Rows(config)), 1)
    used = private(RowLoader(config, Rows(config)), 2 * sizes.drawn)
    return Row(f"private memory of a worker, {series:,} series", (used - idle) / MB, 150, "limit", "MB", "<= 1")


def private(loader: RowLoader, batches: int) -> int:
    """USS of the largest worker after so many batches of all."""
    before = set(multiprocessing.active_children())
    stream = iter(loader)
    for _ in range(batches):
        next(stream)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == loader.workers
    return max(psutil.Process(worker.pid).memory_full_info().uss for worker in workers)


def multiplied(small: Path, out: Path, times: int) -> Path:
    """A dataset of `times` as many shards, each a hard link to the one shard of `small`: writing them takes longer."""
    manifest = json.loads((small / MANIFEST).read_text())
    [shard] = manifest["shards"]
    index = np.load(small / INDEX_FILE)
    out.mkdir()
    names = [f"{shard['name'].removesuffix('.tar')}.{k:07b}.tar" for k in range(times)]
    for name in names:
        os.link(small / shard["name"], out / name)
    counts = ("series", "variates", "points", "missing")
    for of in (manifest, *manifest["sources"].values()):
        of |= {key: of[key] * times for key in counts if key in of}
    manifest["shards"] = [shard | {"name": name} for name in names]
    (out / MANIFEST).write_text(json.dumps(manifest))
    index = np.tile(index, times)
    index["shard"] = np.arange(times).repeat(len(index) // times)
    np.save(out / INDEX_FILE, index)
    return out


FIRST_BATCH = """
import json, sys, time
begin = time.perf_counter()
from toto_train.data.rows import Batch, Rows
from toto_train.module import keep_freed_memory
import pickle
config = pickle.load(sys.stdin.buffer)
there = time.perf_counter()
points = int(Rows(config).batch(range(config.micro_rows))["points"])
print(json.dumps({"imports": there - begin, "first": time.perf_counter() - there, "points": points}))
"""


def first_batch(config: Config, times: int) -> dict[str, float]:
    """Median seconds of imports, then of Rows and its first batch, in fresh processes."""
    found = []
    for _ in range(times):
        run = subprocess.run(
            [sys.executable, "-c", FIRST_BATCH],
            input=pickle.dumps(config),
            stdout=subprocess.PIPE,
            check=True,
            cwd=ROOT,
        )
        found.append(json.loads(run.stdout.splitlines()[-1]))
        assert found[-1]["points"] > 0
    return {key: statistics.median(f[key] for f in found) for key in found[0]}


def large(folder: Path, sizes: Sizes) -> list[Row]:
    """Memory and the first batch with many shards and a long index."""
    small = Corpus.write(folder, "small", [1] * sizes.per_shard, sizes.length)
    path = multiplied(small.folder, folder / "large", sizes.shards)
    series = sizes.shards * sizes.per_shard
    found = first_batch(settings(path, sizes.length), sizes.starts)
    what = f"{sizes.shards:,} shards, {series:,} series"
    return [
        memory(path, series, sizes),
        Row(f"first batch, {what}", found["first"], 2.0, "limit", "s", "<= 1"),
        Row("imports before it", found["imports"], None, "no limit", "s", "<= 1"),
    ]


@contextmanager
def server(folder: Path, latency: float) -> Iterator[str]:
    """URL of the folder on a web server in another process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(str(folder), latency, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def streaming(corpus: Corpus, sizes: Sizes) -> list[Row]:
    """The dataset read from a web server on this machine, whose work takes its share of the cores."""
    what = f"{1e3 * sizes.latency:.0f} ms a request"
    with server(corpus.folder.parent, sizes.latency) as url:
        far = settings(f"{url}/{corpus.folder.name}", sizes.length, workers=2)
        near = settings(corpus.folder, sizes.length, workers=2)
        try:
            sides = {"far": ours(far), "near": ours(near)}
        except (ValueError, OSError) as error:
            return [Row(f"streaming, {what}", 0, None, f"not yet: {error}", RATE, ">= 0")]
        found = medians(sides, sizes)
        first = {name: first_batch(c, sizes.starts)["first"] for name, c in (("far", far), ("near", near))}
        return [
            Row(f"streaming over http, {what}, 2 workers", found["far"], found["near"], "local disk", RATE, ">= 0"),
            Row(f"first batch over http, {what}", first["far"], first["near"], "local disk", "s", ">= 0"),
        ]


def everything(sizes: Sizes) -> list[Row]:
    keep_freed_memory()  # as a run on a CPU does
    torch.set_num_threads(1)  # copies of peers' tensors would fight over the cores with whatever else runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single = Corpus.write(folder, "univariate", [1] * sizes.series, sizes.length)
        mixed = Corpus.write(folder, "mixed", mixed_widths(sizes.series), sizes.length)
        return [
            *one_process(single, sizes),
            *one_process(mixed, sizes),
            *two_workers(single, sizes),
            memory(single.folder, sizes.series, sizes),
            *large(folder, sizes),
            *streaming(single, sizes),
        ]


def measure(quick: bool) -> list[Row]:
    return everything(QUICK if quick else Sizes())


if __name__ == "__main__":
    main(__doc__, measure)
