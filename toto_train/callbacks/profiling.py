"""A trace of a few steps, and what the device's memory held in them: files in the run folder's profile/."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from toto_train.config_run import ProfileConfig
from toto_train.module import TrainingModule

log = logging.getLogger(__name__)

ENTRIES = 200_000
"""Allocations that a memory snapshot remembers."""


def started(activities: Iterable[ProfilerActivity], **options: Any) -> profile:
    """A running profiler, whose own log lines (on every start and stop) stay away."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    running = profile(activities=activities, **options)
    running.start()
    return running


class Profiling(pl.Callback):
    """Every rank writes its trace-rank<r>.json, for chrome://tracing or ui.perfetto.dev, with spans named data,
    forward, backward, optimizer and, inside it, exchange; with `memory`, on CUDA, its memory-rank<r>.pickle, for
    pytorch.org/memory_viz. Those of an earlier start are replaced.
    """

    def __init__(self, config: ProfileConfig, folder: Path, start_step: int):
        self.config, self.folder = config, folder
        self.steps = range(start_step + config.start, start_step + config.start + config.steps)
        self._profile: Any = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.steps and self.steps[0] == self._step(module):
            self._start(module)  # before the first batch is fetched

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if not self.steps or not module.whole_step(batch_idx):
            return
        if self._profile is None and self._step(module) == self.steps[0]:
            self._start(module)
        elif self._step(module) == self.steps.stop:
            self._finish(module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._finish(module)  # the run was shorter than the trace

    @staticmethod
    def _step(module: pl.LightningModule) -> int:
        assert isinstance(module, TrainingModule)
        return module.position.step

    def _start(self, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        cuda = module.ranks.device.type == "cuda"
        with module.set_aside():
            if self.config.memory and cuda:
                torch.cuda.memory._record_memory_history(max_entries=ENTRIES)
            elif self.config.memory:
                log.warning("profile.memory=true: a memory snapshot is of CUDA memory, and this run is on a CPU")
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            self._profile = started(activities, record_shapes=True)

    def _finish(self, module: pl.LightningModule) -> None:
        if self._profile is None:
            return
        assert isinstance(module, TrainingModule)
        rank = module.ranks.rank
        with module.set_aside():
            self._profile.stop()
            self.folder.mkdir(exist_ok=True)
            temporary = self.folder / f"trace-rank{rank}.tmp.json"
            self._profile.export_chrome_trace(str(temporary))
            os.replace(temporary, self.folder / f"trace-rank{rank}.json")
            if self.config.memory and module.ranks.device.type == "cuda":
                temporary = self.folder / f"memory-rank{rank}.tmp.pickle"
                torch.cuda.memory._dump_snapshot(str(temporary))
                torch.cuda.memory._record_memory_history(enabled=None)
                os.replace(temporary, self.folder / f"memory-rank{rank}.pickle")
        self._profile = None
        if module.ranks.first:
            log.info("steps %d to %d traced: %s", self.steps[0], self._step(module) - 1, self.folder)
