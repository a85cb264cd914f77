"""How much of a step is communication: measured on one step in a thousand, by torch's profiler."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from toto_train.callbacks.profiling import started
from toto_train.module import TrainingModule

FIRST, EVERY = 10, 1000
"""Steps of this process after which the first step is measured, and between two of them: by then everything is compiled
and allocated, and what measuring costs (a step and a half, about) is spread over a thousand steps."""

Spans = Sequence[tuple[float, float]]
"""(begin, end) of each, in one unit of time."""


class Communication(pl.Callback):
    """Shares of the last measured step of this rank; NaN before the first one.

    `total`: the time in which a collective was under way, from its start (on CUDA: of its kernel, on CPU: of its call)
    to its end, waiting for slower ranks included. `exposed`: the part of that in which nothing else was done: no other
    kernel ran on the device, or no operator on the CPU (where the interpreter's time between two operators counts as
    exposed). That is about what the step would be shorter by if communication took no time; the rest is hidden behind
    work. Both lie inside the phases forward_backward and optimizer.
    """

    def __init__(self, avoid: range):
        """avoid: steps that someone else profiles; there is one profiler in a process."""
        self.avoid = avoid
        self.exposed = self.total = math.nan
        self._profile: Any = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.due = module.position.step + FIRST

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, TrainingModule)
        step = module.position.step
        if self._profile is None and module.ranks.world > 1 and step >= self.due and step not in self.avoid:
            cuda = module.ranks.device.type == "cuda"
            with module.set_aside():
                self._profile = started([ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if self._profile is not None and module.whole_step(batch_idx):
            with module.set_aside():
                self._profile.stop()
                self.total, self.exposed = shares(self._profile.events())
                self._profile, self.due = None, module.position.step + EVERY


def shares(events: Iterable[Any]) -> tuple[float, float]:
    """(total, exposed) communication of a profiled stretch, as shares of it."""
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for event in events:
        if event.device_type == DeviceType.CUDA:
            communicates = event.name.startswith("nccl")
        elif event.name.startswith(("gloo:", "aten::")):
            communicates = event.name.startswith("gloo:")
        else:
            continue  # spans around operators, which hold waits as well
        spans[communicates].append((event.time_range.start, event.time_range.end))
    everything = spans[True] + spans[False]
    if not everything:
        return math.nan, math.nan
    whole = max(end for _, end in everything) - min(begin for begin, _ in everything)
    busy, work = covered(everything), covered(spans[False])
    return covered(spans[True]) / whole, (busy - work) / whole


def covered(spans: Spans) -> float:
    """Length of the union."""
    if not spans:
        return 0.0
    begins, ends = np.array(sorted(spans)).T
    reached = np.maximum.accumulate(ends)
    starts = np.concatenate([begins[:1], np.maximum(begins[1:], reached[:-1])])
    return float(np.maximum(ends - starts, 0).sum())
