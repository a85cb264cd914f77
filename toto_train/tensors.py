"""Tensors that may be distributed."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full(tensor: Tensor) -> Tensor:
    """All of a tensor; of a distributed one every rank gets a copy, and all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_into(tensor: Tensor, source: Tensor) -> None:
    """Copy in place; what is whole on one side and distributed on the other finds its place."""
    if isinstance(tensor, DTensor) and not isinstance(source, DTensor):
        source = distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    elif isinstance(source, DTensor) and not isinstance(tensor, DTensor):
        source = source.full_tensor()
    tensor.copy_(source)
