"""Real training steps on one CPU, one thread a process, and what a profile of them tells: bytes held and bytes sent."""

from __future__ import annotations

import collections
import ctypes
import itertools
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.checkpoint import Position
from toto_train.cli import config_from_overrides
from toto_train.config import Config
from toto_train.data.loader import RowDataModule
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.parallel import build, make_optimizer, trainer
from toto_train.ranks import free_port, join

ROOT = Path(__file__).parents[2]
ELEMENT = {"float": 4, "double": 8, "c10::BFloat16": 2, "int": 4, "long int": 8, "unsigned char": 1, "bool": 1}


@dataclass(frozen=True)
class Measured:
    """Of rank 0. events: a Chrome trace of one step, in which `sent` and `held` look; with memory it begins before the
    model is made."""

    ends: list[float]
    """When each step ended, seconds."""
    events: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """Median of the steps but the first two."""
        return float(np.median(np.diff(self.ends[1:])))


def config(overrides: list[str]) -> Config:
    return config_from_overrides(overrides, ROOT / "configs")


@contextmanager
def job(length: int, rows: int, micro: int) -> Iterator[list[str]]:
    """Overrides of a run in fp32 on series with gaps, whose batches need both masks."""
    with tempfile.TemporaryDirectory() as folder:
        values = np.random.default_rng(0).normal(size=(64, 1, 2 * length)).cumsum(-1).astype(np.float32)
        values[:, :, length // 4 : length // 2] = np.nan
        values[:, :, length + length // 4 : length + length // 2] = np.nan
        series = [Series(x, 60.0, "walk", str(i), "synthetic") for i, x in enumerate(values)]
        write_shards(Path(folder) / "shards", series, {"benchmark": True})
        yield [
            "data=shards", f"data.mixture.corpus.path={folder}/shards", "data.workers=0", f"data.length={length}",
            f"global_rows={rows}", f"micro_rows={micro}", "validate_every=0", "parallel.device=cpu",
            "validation.context=512", "heldout.context=512", "schedule.max_steps=1000", "schedule.warmup_steps=0",
            "schedule.decay_steps=0", "optimizer.normuon.orthogonalize_dtype=bf16", "parallel.precision=fp32",
        ]  # fmt: skip


def measure(overrides: list[str], world: int, steps: int, memory: bool = False) -> Measured:
    """Train so many steps in `world` processes, and one more in which rank 0 is profiled."""
    with tempfile.TemporaryDirectory() as made:
        arguments = (world, free_port(), [*overrides, f"parallel.devices={world}"], steps, Path(made), memory)
        mp.start_processes(_rank, arguments, nprocs=world, start_method="fork")
        events = json.loads((Path(made) / "0.json").read_text())["traceEvents"]
        return Measured(torch.load(Path(made) / "0.pt"), events)


def _rank(rank: int, world: int, port: int, overrides: list[str], steps: int, folder: Path, memory: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    keep_freed_memory()
    if memory:
        count_all_threads()
    c = config(overrides)
    trace = profile(activities=[ProfilerActivity.CPU], record_shapes=not memory, profile_memory=memory)
    watch = _Watch(steps, nullcontext() if memory else trace)
    with join(c, "cpu") as ranks, trace if memory else nullcontext():
        model = build(c, ranks)
        module = TrainingModule(c, model, make_optimizer(c, model), Position(), ranks)
        trainer(c, ranks, steps + 1, callbacks=[watch], logger=False).fit(module, datamodule=RowDataModule(c))
    trace.export_chrome_trace(str(folder / f"{rank}.json"))
    torch.save(watch.ends[:steps], folder / f"{rank}.pt")


def count_all_threads() -> None:
    """Have torch's sum of allocated bytes take in what gloo's threads free. The profiler does not see all they do: a
    message whose last reference is theirs would stay in the sum for good, while its memory is given out again."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


class _Watch(pl.Callback):
    """Times of steps; the one after them is inside `around`."""

    def __init__(self, steps: int, around: Any):
        self.steps, self.around, self.ends, self.inside = steps, around, list[float](), False

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if module.position.step == self.steps and not self.inside:
            self.inside = True
            self.around.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.whole_step(batch_idx):
            self.ends.append(time.perf_counter())
            if self.inside:
                self.around.__exit__(None, None, None)


def sent(events: list[dict[str, Any]]) -> tuple[float, int]:
    """(bytes, calls) of the collectives of a gloo trace, with groups of two: what the best ring sends.

    gloo writes a reduce-scatter as an all-reduce, which sends twice as much; it is counted as what was asked for.
    """
    found = collections.Counter()
    calls = 0
    for event in events:
        name = event.get("name", "")
        if name.startswith("gloo:") or name == "c10d::_reduce_scatter_base_":
            at = 1 if name.startswith("c10d") else 0
            size = math.prod(event["args"]["Input Dims"][at]) * ELEMENT[event["args"]["Input type"][at]]
            found[name.split(":")[-1]] += size
            calls += name.startswith("gloo:")
    scattered = found["_reduce_scatter_base_"]
    return (found["all_reduce"] - scattered) + scattered / 2 + found["all_gather"] + found["all_to_all"] / 2, calls


def held(events: list[dict[str, Any]]) -> dict[str, int]:
    """Most bytes of tensors in the forward passes, backward passes and update of a trace, in all its steps but the
    first."""
    forward, backward = (sorted(_spans(events, name)) for name in ("forward", "backward"))
    updates = sorted(_spans(events, "Optimizer.step#NorMuonAdamW.step"))
    live = sorted((e["ts"], e["args"]["Total Allocated"]) for e in events if e.get("name") == "[memory]")
    times, sizes = np.array([t for t, _ in live]), np.array([size for _, size in live])

    def most(spans: list[tuple[float, float]]) -> int:
        return max(int(sizes[(times >= a) & (times <= b)].max(initial=0)) for a, b in spans)

    steps = [
        {
            "forward": most([s for s in forward if before < s[0] < end]),
            "backward": most([s for s in backward if before < s[0] < end]),
            "update": most([(max(s[1] for s in backward if s[0] < end), end)]),
        }
        for (_, before), (_, end) in itertools.pairwise(updates)
    ]
    return {moment: max(step[moment] for step in steps) for moment in steps[0]}


def _spans(events: list[dict[str, Any]], name: str) -> Iterator[tuple[float, float]]:
    return ((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == name and e.get("ph") == "X")
