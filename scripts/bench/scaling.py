"""Ranks on one CPU: points a second of two processes over one, and what a rank sends in a step, by parallel mode.

Every process has one thread. The least that must be sent is that of the best ring for the mode as it is defined: a sum of
fp32 gradients once a step (ddp), or two gathers of the weights and a sum of the gradients every micro batch (fsdp2, hsdp
inside a group), and each matrix's update to its owner and back in bf16.
"""

from __future__ import annotations

import os
import re
import sys
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
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.optim.recipe import build_optimizer
from toto_train.parallel import build, replicas, trainer
from toto_train.ranks import free_port, join

ROOT = Path(__file__).parents[2]
MODES: dict[str, tuple[int, list[str]]] = {
    "ddp": (2, ["parallel=ddp"]),
    "fsdp2": (2, ["parallel=fsdp2"]),
    "fsdp2, bf16_master": (2, ["parallel=fsdp2", "parallel.precision=bf16_master"]),
    "hsdp 2 x 2": (4, ["parallel=hsdp", "parallel.shards=2"]),
}


class Watch(pl.Callback):
    """Times of steps, and the bytes this rank sends in one of them, by collective."""

    def __init__(self, traced: int):
        self.traced, self.ends = traced, list[float]()
        self.sent: dict[str, float] = {}
        self.profile: Any = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if module.position.step == self.traced and self.profile is None:
            self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.profile.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not module.whole_step(batch_idx):
            return
        self.ends.append(time.perf_counter())
        if module.position.step == self.traced + 1:
            self.profile.__exit__(None, None, None)


def _rank(rank: int, world: int, port: int, overrides: list[str], steps: int, out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    keep_freed_memory()
    config = config_from_overrides(overrides, ROOT / "configs")
    watch = Watch(steps)
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        depth = config.model.num_layers
        optimizer = build_optimizer(model.named_parameters(), config.optimizer, depth, replicas(config))
        module = TrainingModule(config, model, optimizer, Position(), ranks)
        trainer(config, ranks, steps + 1, callbacks=[watch], logger=False).fit(module, datamodule=RowDataModule(config))
    if rank == 0:
        events = [(e.name, e.input_shapes) for e in watch.profile.events()]
        torch.save((watch.ends, events), out)
