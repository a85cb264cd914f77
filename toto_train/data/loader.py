"""Batches of a run for one rank, from any step on: the position is the number of completed optimizer steps.

Step s trains on rows [s G, (s+1) G), G = global_rows. Rank r of W takes those with n % W == r in order, cut in micro
batches, so 1, 8 or 64 GPUs see the same global batches, and a resumed run goes on with the next unseen row.
"""

from __future__ import annotations

import atexit
import signal
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_pipelines.executors import end_with_parent
from toto_train.config import Config
from toto_train.data.order import Order
from toto_train.data.rows import Batch, Rows
from toto_train.model.decoder import MaskFlags


class RowDataset(IterableDataset[Batch]):
    """Yields the micro batches of one rank; among K loader workers, worker w makes batches w, w + K, ...

    DataLoader asks its workers in turn, so the stream does not depend on how many there are.
    """

    def __init__(self, config: Config, rows: Rows, start_step: int = 0, world: int = 1, rank: int = 0):
        if config.global_rows % (world * config.micro_rows):
            raise ValueError(
                f"global_rows={config.global_rows} must be a multiple of {world} ranks x "
                f"micro_rows={config.micro_rows}; change one of them or the number of devices"
            )
        self.rows, self.world, self.rank = rows, world, rank
        self.global_rows, self.micro_rows = config.global_rows, config.micro_rows
        self.accumulation = config.global_rows // (world * config.micro_rows)
        self.start_step, self.max_steps = start_step, config.schedule.max_steps

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for i in range(self.start_step * self.accumulation + worker, self.max_steps * self.accumulation, workers):
            yield self.rows.batch(self.numbers(i))

    def numbers(self, i: int) -> range:
        """Row numbers of this rank's i-th micro batch, counted from the start of the run."""
        step, micro = divmod(i, self.accumulation)
        first = step * self.global_rows + micro * self.micro_rows * self.world + self.rank
        return range(first, first + self.micro_rows * self.world, self.world)


class RowLoader(DataLoader):
    """Tensors of a RowDataset's batches, with a known number of them.

    Workers send arrays through their pipe: sharing tensors costs a file and a handshake for each, 2-3 times as long.
    """

    def __init__(self, dataset: RowDataset, workers: int, prefetch: int, start_method: str | None = None):
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=start_method if workers else None,
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
        """Tensors by the names of `Rows.batch`; `flags` and `points` stay plain, for use without a device sync, and
        `reads` holds source, seconds and lost as arrays."""
        for batch in super().__iter__():
            flags, points = MaskFlags(*batch.pop("flags").tolist()), int(batch.pop("points"))
            reads = {name: batch.pop(name) for name in ("source", "seconds", "lost")}
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            if torch.cuda.is_available():  # what lets the copy to the device run beside the step
                tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
            yield {**tensors, "flags": flags, "points": points, "reads": reads}

    def __len__(self) -> int:
        data = self.dataset
        assert isinstance(data, RowDataset)
        return max(0, data.max_steps - data.start_step) * data.accumulation


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
        # Lightning doubts __len__ of an iterable dataset because workers often repeat each other; here they do not
        warnings.filterwarnings("ignore", message=r"Your `IterableDataset` has `__len__` defined")
        dataset = RowDataset(self.config, self.rows, self.start_step, world, rank)
        return RowLoader(dataset, self.config.data.workers, self.config.data.prefetch)
