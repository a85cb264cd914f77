"""Batches of a run for one rank, from any step on: the position is the number of completed optimizer steps.

Step s trains on rows [s G, (s+1) G), G = global_rows. Rank r of W takes those with n % W == r in order, cut in micro
batches, so 1, 8 or 64 GPUs see the same global batches, and a resumed run goes on with the next unseen row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch.profiler import record_function

from toto_train.config import Config
from toto_train.data.ahead import ahead
from toto_train.data.order import Order
from toto_train.data.rows import Batch, Rows, compile_loops
from toto_train.data.workers import batches
from toto_train.model.decoder import MaskFlags

log = logging.getLogger(__name__)


class RowLoader:
    """Micro batches of one rank as tensors, in order and with a known number of them, whoever makes them.

    workers: processes that make them, 0 = this one. prefetch: batches that each worker keeps ready. device: a CUDA
    device has them copied one ahead (`ahead`); else they stay in main memory.
    """

    def __init__(
        self,
        config: Config,
        rows: Rows,
        start_step: int = 0,
        world: int = 1,
        rank: int = 0,
        start_method: str | None = None,
        device: torch.device | None = None,
    ):
        if config.global_rows % (world * config.micro_rows):
            raise ValueError(
                f"global_rows={config.global_rows} must be a multiple of {world} ranks x "
                f"micro_rows={config.micro_rows}; change one of them or the number of devices"
            )
        self.rows, self.world, self.rank = rows, world, rank
        self.global_rows, self.micro_rows = config.global_rows, config.micro_rows
        self.workers, self.prefetch, self.start_method = config.data.workers, config.data.prefetch, start_method
        self.pin = torch.cuda.is_available() and config.parallel.device != "cpu"
        """Pinned memory is what lets the copy to the device run beside the step."""
        self.device = device
        self.lanes = config.data.lanes
        self.lap = self.lanes // math.gcd(self.lanes, world * config.micro_rows)
        """Micro batches after which the lanes of their rows come round."""
        self.accumulation = config.global_rows // (world * config.micro_rows)
        self.numbers = range(start_step * self.accumulation, config.schedule.max_steps * self.accumulation)
        """Numbers of the micro batches that are still to come, counted from the start of the run."""

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, number: int, out: Batch | None = None) -> Batch:
        """This rank's micro batch of a number, in new arrays or in `out`."""
        step, micro = divmod(number, self.accumulation)
        first = step * self.global_rows + micro * self.micro_rows * self.world + self.rank
        return self.rows.batch(range(first, first + self.micro_rows * self.world, self.world), out)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Tensors by the names of `Rows.empty`; `flags` and `points` stay plain, for use without a device sync, and
        `reads` holds source, seconds and lost as arrays."""
        made: Iterator[Batch] = (self.batch(number) for number in self.numbers)
        if self.workers:
            self._tell_of_lanes()
            compile_loops()
            like = self.rows.empty(self.micro_rows)
            made = batches(self.batch, self.numbers, like, self.workers, self.prefetch, self.start_method, self.lap)
        tensors: Iterator[dict[str, Any]] = map(self._tensors, made)
        if self.device is not None and self.device.type == "cuda":
            tensors = ahead(tensors, self.device)
        return _spans(tensors)

    def _tell_of_lanes(self) -> None:
        """Where workers share lanes, each makes the series of the prior that the others made too."""
        if self.world * self.workers == 1:
            return
        lanes = math.lcm(self.lanes, self.world * self.micro_rows * self.workers)
        if self.rank == 0 and lanes != self.lanes and self.rows.order.chunked:
            log.warning(
                "data.lanes=%d leaves %d workers on each of %d ranks no lanes of their own, so series of the prior are "
                "made more than once; data.lanes=%d avoids it", self.lanes, self.workers, self.world, lanes
            )  # fmt: skip

    def _tensors(self, batch: Batch) -> dict[str, Any]:
        flags, points = MaskFlags(*batch.pop("flags").tolist()), int(batch.pop("points"))
        reads = {name: batch.pop(name).copy() for name in ("source", "seconds", "lost")}  # may be kept for long
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self.pin:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return {**tensors, "flags": flags, "points": points, "reads": reads}


def _spans(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same; a profile shows the time that getting one takes as `data`."""
    while True:
        with record_function("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class RowDataModule(LightningDataModule):
    """The training data of a run, starting with the given optimizer step."""

    def __init__(self, config: Config, start_step: int = 0):
        super().__init__()
        self.config, self.start_step = config, start_step

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.config)

    @property
    def order(self) -> Order:
        return self.rows.order

    def train_dataloader(self) -> RowLoader:
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        return RowLoader(self.config, self.rows, self.start_step, world, rank, device=device)
