"""What a rank saves: its share of the tensors, and a copy of that in host memory while training goes on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

Key = tuple[str, tuple[int, ...]]
"""Name of a tensor, and where in it a part begins."""


class Shares:
    """Which rank writes what several hold copies of (all of ddp, the replicas of hsdp): each about as many bytes.

    DCP would divide them as well, but only once every rank has copied everything to its host. group: of the ranks,
    gloo; None for one alone. Ranks ask each other again only when some rank holds other tensors than at its last save.
    """

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group
        self.held: dict[Key, int] = {}
        self.own: set[Key] = set()

    def mine(self, items: Sequence[WriteItem]) -> list[WriteItem]:
        """Those that this rank writes of those it holds. All ranks call this together."""
        if self.group is None:
            return list(items)
        held = {_key(item): _bytes(item) for item in items}
        changed = torch.tensor(held != self.held, dtype=torch.int32)
        dist.all_reduce(changed, dist.ReduceOp.MAX, group=self.group)
        if changed:
            everyone: list[Any] = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(everyone, held, group=self.group)
            self.held, self.own = held, divide(everyone)[dist.get_rank(self.group)]
        return [item for item in items if _key(item) in self.own]


def divide(held: Sequence[dict[Key, int]]) -> list[set[Key]]:
    """Bytes of what each rank holds -> what each writes: all of it once, copies where least is to be written so far."""
    ranks_of: dict[Key, list[int]] = defaultdict(list)
    for rank, tensors in enumerate(held):
        for key in tensors:
            ranks_of[key].append(rank)
    load, own = [0] * len(held), [set[Key]() for _ in held]
    # the largest first, after those that only one rank holds
    for key, ranks in sorted(ranks_of.items(), key=lambda of: (len(of[1]), -held[of[1][0]][of[0]], of[0])):
        rank = min(ranks, key=lambda r: load[r])
        load[rank] += held[rank][key]
        own[rank].add(key)
    return own


def _key(item: WriteItem) -> Key:
    return item.index.fqn, tuple(item.index.offset or ())


def _bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None  # or `HostCopy` has refused it
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


class HostCopy(DefaultSavePlanner):
    """What this rank saves, taken when made: later changes to the tensors do not reach it.

    buffers: host memory to copy into, by tensor; filled at the first save and used again at the next. None takes the
    tensors as they are, for a save that training waits for. shares: between the ranks that save; None for one alone.
    """

    def __init__(
        self, state: dict[str, Any], buffers: dict[MetadataIndex, Tensor] | None, shares: Shares | None = None
    ):
        super().__init__()
        super().set_up_planner(state)
        self.own = super().create_local_plan()
        for item in self.own.items:
            if item.type == WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn} is no tensor; a checkpoint holds nothing else")
        if shares is not None:
            self.own = replace(self.own, items=shares.mine(self.own.items))
        self.tensors = {item.index: super(HostCopy, self).lookup_object(item.index).detach() for item in self.own.items}
        if buffers is not None:
            self.tensors = {index: _copy(tensor, index, buffers) for index, tensor in self.tensors.items()}
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.current_stream().synchronize()

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        return self.own

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.tensors[index]


def _copy(tensor: Tensor, index: MetadataIndex, buffers: dict[MetadataIndex, Tensor]) -> Tensor:
    if index not in buffers:
        buffers[index] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffers[index].copy_(tensor, non_blocking=True)
