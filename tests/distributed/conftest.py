"""Several processes on one machine: gloo, a file to meet at, one thread each."""

import os
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

from toto_train.ranks import free_port


def _process(rank: int, world: int, port: int, folder: Path, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    torch.save(function(rank, world, *args), folder / f"{rank}.pt")


def _rank(rank: int, world: int, function: Callable[..., Any], args: tuple) -> Any:
    dist.init_process_group("gloo", rank=rank, world_size=world)
    result = function(rank, world, *args)
    dist.barrier()
    dist.destroy_process_group()
    return result


def _run(folder: Path, world: int, function: Callable[..., Any], args: tuple) -> list[Any]:
    mp.start_processes(_process, (world, free_port(), folder, function, args), nprocs=world, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="session")
def processes(tmp_path_factory) -> Callable[..., list[Any]]:
    """processes(world, function, *args) -> what function(rank, world, *args) returned on each rank, whose places are in
    the environment as torchrun sets it."""
    return lambda world, function, *args: _run(tmp_path_factory.mktemp("ranks"), world, function, args)


@pytest.fixture(scope="session")
def ranks(processes) -> Callable[..., list[Any]]:
    """The same within a process group."""
    return lambda world, function, *args: processes(world, _rank, function, args)


@pytest.fixture(scope="session")
def deepspeed() -> None:
    """Imported once for all forks, for a CPU and with its kernels as they are written: nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
