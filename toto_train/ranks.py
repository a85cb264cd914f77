"""Ranks: the processes of a run, how they meet, and what they settle between them.

What ranks agree on at the edge of a step goes through host memory (gloo, also beside NCCL), so nothing waits for a GPU.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from toto_train.config import Config, ConfigError
from toto_train.config_check_run import rank_problems
from toto_train.environment import LaunchError, check_environment, facts
from toto_train.files import write_text
from toto_train.network import choose_interface
from toto_train.rendezvous import meet, name_ranks

T = TypeVar("T")
PARTING = 120.0
"""Seconds for ranks to part in, after which a rank writes its stack and ends with status 1."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; a run of one process has no process group unless it shards."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None
    """fsdp2: [world], hsdp: [replicas, shards]."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, reports and logs for all."""
        return self.rank == 0

    def agreed(self, job: Callable[[], T]) -> T | None:
        """Rank 0 does a job, and every rank raises what it raised there; the result is rank 0's, None elsewhere."""
        result, error = None, None
        if self.first:
            try:
                result = job()
            except Exception as e:
                error = e
        if self.world > 1:
            box: list[Any] = [error]
            dist.broadcast_object_list(box, device=torch.device("cpu"))
            error = box[0]
        if error is not None:
            raise error
        return result

    def sum(self, values: Any) -> np.ndarray:
        """Sum over the ranks of an array of float64, through host memory; every rank ends with the same bits."""
        total = torch.tensor(np.asarray(values), dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(total)
        return total.numpy()


ALONE = Ranks(torch.device("cpu"))
"""One process on a CPU."""


def pick_device(wanted: str, key: str = "device") -> str:
    """'cpu' or 'cuda' for auto, cpu or cuda. Raises ConfigError naming the setting `key`."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError([f"{key}={wanted!r} must be one of auto, cpu, cuda"])
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError([f"{key}='cuda', but torch sees no CUDA device; use {key}=cpu"])
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def resolve_devices(config: Config, device: str) -> None:
    """Settle parallel.devices=0, every visible GPU, and check what depends on the number of ranks."""
    p = config.parallel
    if not p.devices:
        if device == "cpu" or not (found := torch.cuda.device_count()):
            raise ConfigError(["parallel.devices=0 means every visible GPU and there is none; give their number"])
        p.devices = found
        if problems := rank_problems(config):
            raise ConfigError(problems)


@contextmanager
def join(config: Config, device: str) -> Iterator[Ranks]:
    """Meet the other ranks of the run, whose places are in the environment as torchrun sets it; part at the end.

    device: cpu or cuda. Raises LaunchError where ranks are missing or do not fit together.
    """
    p, mode = config.parallel, config.parallel.mode
    if mode == "single":
        yield Ranks(torch.device(device))
        return
    if "RANK" not in os.environ:  # one process that shards: alone in a group
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    check_environment(config, device)
    rank, local_rank, world = (int(os.environ[key]) for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    here = torch.device("cpu")
    if device == "cuda":
        here = torch.device("cuda", local_rank)
        torch.cuda.set_device(here)
    store = meet(facts(config, device), p.rendezvous_timeout)
    choose_interface(store, rank, p.devices, p.nodes, p.rendezvous_timeout)
    limit = message_timeout(config)
    store.set_timeout(limit)
    # gloo beside NCCL: what ranks agree on at the edge of a step, and checkpoints, go through host memory
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "cpu:gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("default_pg", store), rank=rank, world_size=world, timeout=limit
    )
    try:
        mesh = None
        if mode == "fsdp2":
            mesh = init_device_mesh(device, (world,), mesh_dim_names=("shard",))
        elif mode == "hsdp":
            shards = p.shards or p.devices
            mesh = init_device_mesh(device, (world // shards, shards), mesh_dim_names=("replicate", "shard"))
        if mesh is not None:
            for group in mesh.get_all_groups():  # else with torch's default, 30 minutes
                dist.distributed_c10d._set_pg_timeout(limit, group)
        yield Ranks(here, rank, local_rank, world, mesh)
    finally:
        # parting waits for messages on their way, which may be to ranks that are gone, and the watchdog has stopped
        faulthandler.dump_traceback_later(PARTING, exit=True, file=sys.__stderr__ or sys.stderr)
        try:
            dist.destroy_process_group()
        finally:
            faulthandler.cancel_dump_traceback_later()


def message_timeout(config: Config) -> timedelta:
    """How long a message between ranks may take: longer than any step, so that the watchdog, which knows where every
    rank stands, speaks first."""
    return timedelta(seconds=2 * max(config.parallel.timeout, config.parallel.first_timeout))


def check_shared(folder: Path, ranks: Ranks, patience: float = 10.0) -> None:
    """Raise LaunchError on every rank, naming those for which `folder` is another one, on a disk of their own node.

    patience: seconds for a slow file system to show what rank 0 wrote.
    """
    token: list[str] = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, device=torch.device("cpu"))
    mark, deadline = folder / ".shared", time.monotonic() + patience
    ranks.agreed(lambda: write_text(mark, token[0]))
    while not (seen := mark.is_file() and mark.read_text() == token[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = ranks.sum(np.eye(ranks.world)[ranks.rank] * (not seen)).nonzero()[0].tolist()
    ranks.agreed(mark.unlink)
    if blind:
        problem = (
            f"{name_ranks(blind)} do not see what rank 0 writes to {folder}; put out= where all nodes share a disk"
        )
        raise LaunchError([problem], agreed=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
