"""Counts collectives at torch.distributed's own operators, and the bytes a rank sends in them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMESPACES = ("c10d", "_c10d_functional")
NOT_COUNTED = ("wait_tensor", "barrier", "_wrap_tensor_autograd")


class Collectives(TorchDispatchMode):
    """Inside, `calls` counts every collective by name and `sent` sums the bytes that leave this rank.

    What a rank keeps of an all-to-all is not sent. An all-gather sends its part to every other rank; an all-reduce
    and a reduce-scatter send what the best ring does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(t, DTensor) for t in types):  # comes back here as what it asks of the ranks
            return NotImplemented
        namespace, name = func.name().split("::")
        name = name.split(".")[0].rstrip("_")
        if namespace in NAMESPACES and name not in NOT_COUNTED:
            self.calls[name] += 1
            self.sent += self._sent(name, args)
        return func(*args, **kwargs)

    @staticmethod
    def _sent(name: str, args: Any) -> float:
        world, rank = dist.get_world_size(), dist.get_rank()
        if name in ("alltoall_base", "all_to_all_single"):
            given, splits = (args[1], args[4]) if name == "alltoall_base" else (args[0], args[2])
            row = given.nbytes // given.shape[0] if given.shape[0] else 0
            own = row * splits[rank] if splits else given.nbytes / world
            return given.nbytes - own
        tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)]
        if name in ("allreduce", "all_reduce", "all_reduce_coalesced"):
            return 2 * (world - 1) / world * sum(t.nbytes for t in tensors)
        if name in ("_allgather_base", "allgather_into_tensor_coalesced"):
            return (world - 1) * tensors[1].nbytes
        if name in ("all_gather_into_tensor", "all_gather_into_tensor_coalesced"):
            return (world - 1) * sum(t.nbytes for t in tensors)
        if name in ("_reduce_scatter_base", "reduce_scatter_tensor"):
            return (world - 1) / world * max(t.nbytes for t in tensors)
        if name in ("broadcast", "send", "scatter"):
            return sum(t.nbytes for t in tensors)
        raise NotImplementedError(f"no rule for the bytes of {name}")
