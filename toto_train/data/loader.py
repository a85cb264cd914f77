"""Batches of a run for one rank, from any step on: the position is the number of completed optimizer steps.

Step s trains on rows [s G, (s+1) G), G = global_rows. Rank r of W takes those with n % W == r in order, cut in micro
batches, so 1, 8 or 64 GPUs see the same global batches, and a resumed run goes on with the next unseen row.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from data_pipelines.executors import end_with_parent
from toto_train.config import Config
from toto_train.data.order import Order
from toto_train.data.rows import Batch, Rows
from toto_train.data.slots import Slots
from toto_train.model.decoder import MaskFlags

Job = tuple[int, int | None]
"""(number of a micro batch, shared slot to make it in)."""
HELD = 4
"""Batches that may be in use while the workers fill all that they prefetch."""


class RowDataset(Dataset[Batch | int]):
    """The micro batches of one rank by number."""

    def __init__(self, config: Config, rows: Rows, start_step: int = 0, world: int = 1, rank: int = 0):
        if config.global_rows % (world * config.micro_rows):
            raise ValueError(
                f"global_rows={config.global_rows} must be a multiple of {world} ranks x "
                f"micro_rows={config.micro_rows}; change one of them or the number of devices"
            )
        self.rows, self.world, self.rank = rows, world, rank
        self.global_rows, self.micro_rows = config.global_rows, config.micro_rows
        accumulation = config.global_rows // (world * config.micro_rows)
        self.jobs = range(start_step * accumulation, config.schedule.max_steps * accumulation)
        """Numbers of the batches that are still to come, counted from the start of the run."""
        self.slots: Slots | None = None

    def __len__(self) -> int:
        return len(self.jobs)

    def numbers(self, i: int) -> range:
        """Row numbers of this rank's i-th micro batch."""
        step, micro = divmod(i, self.global_rows // (self.world * self.micro_rows))
        first = step * self.global_rows + micro * self.micro_rows * self.world + self.rank
        return range(first, first + self.micro_rows * self.world, self.world)

    def batch(self, i: int, out: Batch | None = None) -> Batch:
        return self.rows.batch(self.numbers(i), out)

    def __getitem__(self, job: Job) -> Batch | int:
        """What a worker does: make a batch in a slot and return the slot, or return the batch itself."""
        i, slot = job
        if slot is None:
            return self.batch(i)
        assert self.slots is not None
        self.batch(i, self.slots.arrays(slot))
        return slot


class RowLoader(DataLoader):
    """Tensors of a RowDataset's batches, in order and with a known number of them, whoever makes them.

    Workers write batches into memory they share with the run, which reads them where they are: a pipe would copy each
    twice. While no slot is free, because somebody keeps many batches, they come through the pipe.
    """

    def __init__(self, dataset: RowDataset, workers: int, prefetch: int, start_method: str | None = None):
        # only forked processes inherit the slots
        forks = "fork" in multiprocessing.get_all_start_methods() and start_method in (None, "fork")
        self._slots = workers * prefetch + HELD if forks else 0
        super().__init__(
            dataset,
            batch_size=None,
            sampler=_Jobs(dataset),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context=("fork" if forks else start_method) if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_the_run,
            generator=torch.Generator(),  # else every start of the loader would move the global generator
        )

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        for worker in getattr(iterator, "_workers", ()):
            # before the handlers of torch and multiprocessing, which end workers by SIGTERM and wait for them
            atexit.register(worker.kill)
        return iterator

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Tensors by the names of `Rows.empty`; `flags` and `points` stay plain, for use without a device sync, and
        `reads` holds source, seconds and lost as arrays."""
        data = self.dataset
        assert isinstance(data, RowDataset)
        if not self.num_workers:
            yield from (_tensors(data.batch(i)) for i in data.jobs)
            return
        slots = data.slots = Slots(data.rows.empty(data.micro_rows), self._slots)
        for made in super().__iter__():
            yield _tensors(slots.lend(made) if isinstance(made, int) else made)


class _Jobs:
    """The jobs of a dataset, in order; each takes a slot if there is one when a worker is asked for it."""

    def __init__(self, dataset: RowDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Job]:
        slots = self._dataset.slots
        return ((i, slots.take() if slots else None) for i in self._dataset.jobs)


def _tensors(batch: Batch) -> dict[str, Any]:
    flags, points = MaskFlags(*batch.pop("flags").tolist()), int(batch.pop("points"))
    reads = {name: batch.pop(name).copy() for name in ("source", "seconds", "lost")}
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if torch.cuda.is_available():  # what lets the copy to the device run beside the step
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {**tensors, "flags": flags, "points": points, "reads": reads}


def _end_with_the_run(worker: int) -> None:
    """A signal to the whole process group must not kill workers under a run that is about to save.

    They end when the run does: killed by RowLoader where it exits, by themselves where it was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


def _as_it_is(batch: Any) -> Any:
    return batch


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
        dataset = RowDataset(self.config, self.rows, self.start_step, world, rank)
        return RowLoader(dataset, self.config.data.workers, self.config.data.prefetch)
