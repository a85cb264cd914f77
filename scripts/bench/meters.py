"""Meters: what measuring, guarding and reporting cost a training step on one thread of a CPU.

Both sides train the same nano model on the same rows, in turns within one process; time is what this process spent on
a CPU, so others on the machine matter less. With: every meter, losses by stratum, the guard's search for spikes, and a
report every ten steps. Without: nothing but the step. Measuring communication happens on one step in a thousand: what
that step takes longer, by the clock and on two ranks, is spread over the thousand.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch._dynamo
import torch.distributed
import torch.multiprocessing as mp
from table import Row, main

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.callbacks import communication
from toto_train.callbacks.communication import Communication
from toto_train.callbacks.losses import Losses
from toto_train.callbacks.meters import Meters
from toto_train.callbacks.reads import Reads
from toto_train.callbacks.validation import Validation
from toto_train.checkpoint import Position
from toto_train.cli import config_from_overrides
from toto_train.config import Config
from toto_train.data.loader import RowDataModule
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.parallel import build, make_optimizer, trainer
from toto_train.ranks import Ranks, free_port, join

ROOT = Path(__file__).parents[2]


class Watch(pl.Callback):
    """Times at the ends of steps."""

    def __init__(self, now: Any):
        self.now, self.ends = now, list[float]()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.whole_step(batch_idx):
            self.ends.append(self.now())


def train(config: Config, ranks: Ranks, steps: int, now: Any, callbacks: list[pl.Callback]) -> list[float]:
    """Seconds of each step but the first two, which warm up."""
    model = build(config, ranks)
    optimizer = make_optimizer(config, model)
    module, watch = TrainingModule(config, model, optimizer, Position(), ranks), Watch(now)
    made = trainer(config, ranks, steps + 2, callbacks=[*callbacks, watch], logger=False)
    made.fit(module, datamodule=RowDataModule(config))
    return np.diff(watch.ends[1:]).tolist()


def meters(config: Config, folder: Path, labels: RowDataModule, first: bool = True) -> list[pl.Callback]:
    every = config.logger.every_steps
    return [
        sampling := Communication(range(0)),
        Meters(config, folder / "metrics.csv", 0, Validation(None), sampling, first),
        Reads(folder / "sources.csv", labels.order, 0, every, first),
        Losses(folder / "losses.csv", labels.rows.labels, 0, every, first),
    ]


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keep_freed_memory()


def overhead(job: list[str], folder: Path, rounds: int, steps: int) -> tuple[float, float]:
    """(with, without) in seconds a step: medians of the steps that are reported and of the others, as often as they
    come."""
    sides: dict[bool, list[list[float]]] = {True: [], False: []}
    every = 10
    for turn in range(2 * rounds):
        measured = turn % 4 in (0, 3)  # with, without, without, with: what drifts hits both
        config = config_from_overrides(
            [*job, f"guards.spike={6 if measured else 0}", f"logger.every_steps={every}"], ROOT / "configs"
        )
        callbacks = meters(config, folder, RowDataModule(config)) if measured else []
        sides[measured].append(train(config, Ranks(torch.device("cpu")), steps, time.process_time, callbacks))

    def mean(side: list[list[float]]) -> float:
        reported = [(number % every == 0, took) for of in side for number, took in enumerate(of, start=3)]
        often, rarely = (statistics.median(t for r, t in reported if r is kind) for kind in (False, True))
        return (often * (every - 1) + rarely) / every

    return mean(sides[True]), mean(sides[False])


def _rank(rank: int, world: int, port: int, job: list[str], steps: int, folder: Path) -> None:
    quiet()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    communication.FIRST = steps // 2
    config = config_from_overrides([*job, "parallel=ddp", f"parallel.devices={world}"], ROOT / "configs")
    with join(config, "cpu") as ranks:
        sampling = Communication(range(0))
        took = train(config, ranks, steps, time.perf_counter, [sampling])
    if rank == 0:
        measured = took[communication.FIRST - 2]
        torch.save((measured, statistics.median(took)), folder / "sampled.pt")


def measure(quick: bool) -> list[Row]:
    quiet()
    rounds, steps = (4, 20) if quick else (20, 50)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        values = np.random.default_rng(0).normal(size=(64, 1, 2048)).cumsum(-1).astype(np.float32)
        series = [Series(x, 60.0, f"walk{i % 8}", str(i), "synthetic") for i, x in enumerate(values)]
        write_shards(folder / "shards", series, {"benchmark": True})
        job = [
            "model=nano", "data=shards", f"data.mixture.corpus.path={folder}/shards", "data.workers=0",
            "data.variates=8", "data.length=1024", "global_rows=16", "micro_rows=8", "validate_every=0",
            "parallel.device=cpu", "parallel.precision=fp32", "validation.context=512", "heldout.context=512",
            "schedule.max_steps=100000", "schedule.warmup_steps=0", "schedule.decay_steps=0", "guards.window=16",
            "data.lanes=2",
        ]  # fmt: skip
        with_meters, without = overhead(job, folder, rounds, steps)
        mp.start_processes(_rank, (2, free_port(), job, 16, folder), nprocs=2, start_method="fork")
        measured, plain = torch.load(folder / "sampled.pt")
    spread = plain + (measured - plain) / communication.EVERY
    return [
        Row("nano: a step with all meters", 1000 * with_meters, 1000 * without, "without any", "ms of CPU", "<= 1.01"),
        Row("nano, two ranks: measuring communication, spread over its steps", 1000 * spread, 1000 * plain,
            "a step", "ms", "<= 1.005"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, measure)
