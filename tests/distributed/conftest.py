"""Several processes on one machine: gloo, a file to meet at, one thread each."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# what the processes need is imported once, here: they are forks
import torch._dynamo  # by the first optimizer
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.multiprocessing as mp


def _rank(rank: int, world: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(function(rank, world, *args), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def ranks(tmp_path) -> Callable[..., list[Any]]:
    """ranks(world, function, *args) -> what function(rank, world, *args) returned on each rank."""
    count = itertools.count()

    def run(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        folder = tmp_path / f"ranks{next(count)}"
        folder.mkdir()
        mp.start_processes(_rank, (world, folder, function, args), nprocs=world, start_method="fork")
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return run
