"""Ranks on one CPU: points a second of two processes over one, and what a rank sends in a step, by parallel mode.

Every process has one thread. The least that must be sent is that of the best ring for the mode as it is defined: a sum
of fp32 gradients once a step (ddp), or two gathers of the weights and a sum of the gradients every micro batch (fsdp2,
hsdp inside a group), and each matrix's update to its owner and back in bf16.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.multiprocessing as mp
from table import Row, main
from torch.profiler import ProfilerActivity, profile

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.checkpoint import Position
from toto_train.cli import config_from_overrides
from toto_train.config import Config
from toto_train.data.loader import RowDataModule
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.parallel import build, make_optimizer, trainer
from toto_train.ranks import free_port, join

ROOT = Path(__file__).parents[2]
MODES: dict[str, tuple[int, list[str]]] = {
    "ddp": (2, ["parallel=ddp"]),
    "fsdp2": (2, ["parallel=fsdp2"]),
    "fsdp2, bf16_master": (2, ["parallel=fsdp2", "parallel.precision=bf16_master"]),
    "hsdp 2 x 2": (4, ["parallel=hsdp", "parallel.shards=2"]),
}


ELEMENT = {"float": 4, "double": 8, "c10::BFloat16": 2, "int": 4, "long int": 8, "unsigned char": 1, "bool": 1}
MIB = 2**20


class Watch(pl.Callback):
    """Times of steps; a trace of the one after them."""

    def __init__(self, steps: int, trace: Path):
        self.steps, self.trace, self.ends = steps, trace, list[float]()
        self.profile: Any = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if module.position.step == self.steps and self.profile is None:
            self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.profile.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.whole_step(batch_idx):
            self.ends.append(time.perf_counter())
            if self.profile is not None:
                self.profile.stop()
                self.profile.export_chrome_trace(str(self.trace))


def _rank(rank: int, world: int, port: int, overrides: list[str], steps: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    keep_freed_memory()
    config = config_from_overrides(overrides, ROOT / "configs")
    watch = Watch(steps, folder / f"{rank}.json")
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        optimizer = make_optimizer(config, model)
        module = TrainingModule(config, model, optimizer, Position(), ranks)
        trainer(config, ranks, steps + 1, callbacks=[watch], logger=False).fit(module, datamodule=RowDataModule(config))
    torch.save(watch.ends[:steps], folder / f"{rank}.pt")


def measure_mode(overrides: list[str], world: int, steps: int) -> tuple[float, float, int]:
    """(seconds a step, bytes that rank 0 sends in a step, collectives in it)."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        job = (world, free_port(), [*overrides, f"parallel.devices={world}"], steps, folder)
        mp.start_processes(_rank, job, nprocs=world, start_method="fork")
        ends = torch.load(folder / "0.pt")
        events = json.loads((folder / "0.json").read_text())["traceEvents"]
    return float(np.median(np.diff(ends[1:]))), *sent(events)


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


def least(config: Config) -> float:
    """Bytes that a rank of a pair must send in a step, as the mode is defined; momenta travel in bf16."""
    with torch.device("meta"):
        model = Toto(config.model)
    layers = sum(p.numel() for p in model.layers.parameters())
    every = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    if config.parallel.mode == "ddp":
        return 4 * every + 2 * matrices / 2  # half of the gradients twice round the ring; the updates that one owns
    weight = 2 if config.parallel.precision == "bf16_master" else 4
    micro = (weight * (every + layers) + 4 * every) / 2  # the root's weights stay after the forward
    between = 4 * every / 2 if config.parallel.mode == "hsdp" else 0
    return config.accumulation * (micro + between) + 2 * 2 * matrices / 4  # there, and back: what others own of a half


def measure(quick: bool) -> list[Row]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    steps, model = (8, "nano") if quick else (12, "tiny")
    length = 1024
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(64, 1, 2 * length)).cumsum(-1).astype(np.float32)
        series = [Series(x, 60.0, "walk", str(i), "synthetic") for i, x in enumerate(values)]
        write_shards(Path(folder) / "shards", series, {"benchmark": True})
        job = [
            f"model={model}", "data=shards", f"data.mixture.corpus.path={folder}/shards", "data.workers=0",
            f"data.length={length}", "global_rows=16", "micro_rows=4", "validate_every=0", "parallel.device=cpu",
            "validation.context=512", "heldout.context=512", "schedule.max_steps=1000", "schedule.warmup_steps=0",
            "schedule.decay_steps=0", "optimizer.normuon.orthogonalize_dtype=bf16", "parallel.precision=fp32",
        ]  # fmt: skip
        alone = {low: measure_mode([*job, f"parallel.precision={low}"], 1, steps)[0] for low in ("fp32", "bf16")}
        slots = 16 * 32 * length / 1e6
        rows = []
        for mode, (world, overrides) in MODES.items():
            seconds, sends, calls = measure_mode([*job, *overrides], world, steps)
            config = config_from_overrides([*job, *overrides, f"parallel.devices={world}"], ROOT / "configs")
            if world == 2:
                one = "fp32" if config.parallel.precision == "fp32" else "bf16"
                target = ">= 1.5" if config.parallel.mode == "ddp" else ">= 1"
                rows.append(Row(f"{mode}, {model}: two processes", slots / seconds, slots / alone[one],
                                f"one process, {one}", "Mpoints/s", target))  # fmt: skip
            rows.append(Row(f"{mode}, {model}: sent in a step, {calls} collectives", sends / MIB, least(config) / MIB,
                            "the least for the mode", "MiB a rank", "<= 1.05"))  # fmt: skip
    return rows


if __name__ == "__main__":
    main(__doc__, measure)
