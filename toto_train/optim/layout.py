"""Where a matrix lies: which rows and columns each rank holds, and the blocks that are orthogonalised on their own.

A parameter is a plain tensor, or a DTensor of which at most one mesh dimension shards it (FSDP2, and HSDP, whose other
dimension replicates). Ranks that hold parts of a matrix, or copies of it, form its group; replicas of sharded matrices
do the same work in their own shard groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

Range = tuple[int, int]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def chunk(size: int, world: int, rank: int) -> Range:
    """[start, stop) of rank's part of `size` entries, as DTensor cuts them: all parts but the last ones are equal."""
    step = -(-size // world)
    return min(rank * step, size), min((rank + 1) * step, size)


@dataclass(frozen=True)
class Layout:
    """How the ranks of `group` hold a matrix [m, n]."""

    shape: tuple[int, int]
    dim: int | None = None
    """0: parts of the rows, 1: of the columns; None: each rank holds all of it."""
    group: dist.ProcessGroup | None = None
    """None where nobody else holds any of it."""
    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, name: str, p: Tensor, replicas: dist.ProcessGroup | None) -> Layout:
        """Layout of a parameter; `replicas` is the group that holds copies of plain tensors."""
        m, n = p.shape
        if not isinstance(p, DTensor):
            return cls._in_group((m, n), None, replicas)
        placements = [(i, x) for i, x in enumerate(p.placements) if p.device_mesh.size(i) > 1]
        shards = [(i, x) for i, x in placements if not isinstance(x, Replicate)]
        if len(shards) > 1 or any(type(x) is not Shard for _, x in shards):
            raise ValueError(
                f"{name}: placements {p.placements} are not supported; at most one mesh dimension may shard a matrix, "
                "by Shard(0) or Shard(1)"
            )
        if shards:
            ((mesh_dim, placement),) = shards
            assert isinstance(placement, Shard)
            layout = cls._in_group((m, n), placement.dim % 2, p.device_mesh.get_group(mesh_dim))
        else:
            layout = cls._in_group((m, n), None, p.device_mesh.get_group(placements[-1][0]) if placements else None)
        here = tuple(stop - start for start, stop in (layout.rows(layout.rank), layout.columns(layout.rank)))
        if here != tuple(local(p).shape):
            raise ValueError(f"{name}: this rank holds {tuple(local(p).shape)} where {here} was expected")
        return layout

    @classmethod
    def _in_group(cls, shape: tuple[int, int], dim: int | None, group: dist.ProcessGroup | None) -> Layout:
        if group is None or dist.get_world_size(group) == 1:
            return cls(shape)
        return cls(shape, dim, group, dist.get_rank(group), dist.get_world_size(group))

    def rows(self, rank: int) -> Range:
        return chunk(self.shape[0], self.world, rank) if self.dim == 0 else (0, self.shape[0])

    def columns(self, rank: int) -> Range:
        return chunk(self.shape[1], self.world, rank) if self.dim == 1 else (0, self.shape[1])

    def v_rows(self, rank: int) -> Range:
        """Rows whose second moment a rank holds: v [m] is cut by rows however the matrix is cut."""
        return (0, self.shape[0]) if self.dim is None else chunk(self.shape[0], self.world, rank)


@dataclass(eq=False)
class Block:
    """Rows [start, stop) of a parameter, orthogonalised and normalised as a matrix of their own."""

    name: str
    p: Tensor
    layout: Layout
    start: int
    stop: int
    multiplier: float
    """On the learning rate."""
    settings: dict[str, Any]
    """The parameter group it belongs to."""
    dtype: torch.dtype
    """What it is orthogonalised in, and sent."""
    owner: int = 0
    """Rank, in the layout's group, that does so."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.layout.shape[1]

    @property
    def cost(self) -> int:
        """Proportional to the operations of its orthogonalisation."""
        m, n = self.shape
        return m * n * min(m, n)

    @property
    def owned(self) -> bool:
        return self.owner == self.layout.rank

    def rows(self, rank: int) -> Range:
        """Rows of the block, counted from its first, that a rank holds weights of."""
        return self._within(self.layout.rows(rank))

    def columns(self, rank: int) -> Range:
        return self.layout.columns(rank)

    def v_rows(self, rank: int) -> Range:
        return self._within(self.layout.v_rows(rank))

    def part(self, whole: Tensor) -> Tensor:
        """This block's rows of what this rank holds of the parameter, its gradient or its momentum."""
        return self._part(whole, self.layout.rows(self.layout.rank))

    def v_part(self, v: Tensor) -> Tensor:
        return self._part(v, self.layout.v_rows(self.layout.rank))

    def _within(self, held: Range) -> Range:
        start, stop = max(self.start, held[0]), min(self.stop, held[1])
        return (start - self.start, stop - self.start) if start < stop else (0, 0)

    def _part(self, whole: Tensor, held: Range) -> Tensor:
        first, last = self._within(held)
        if last - first == held[1] - held[0]:
            return local(whole)
        offset = self.start - held[0]
        return local(whole)[first + offset : last + offset] if first < last else local(whole)[:0]


def shard_group(tensor: Tensor, cut: dist.ProcessGroup | None = None) -> dist.ProcessGroup | None:
    """The ranks among which a tensor is cut, which for plain ones is `cut`; None where this one holds all of it."""
    if not isinstance(tensor, DTensor):
        return cut
    group = None
    for i, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard) and tensor.device_mesh.size(i) > 1:
            if group is not None:
                raise ValueError(f"a tensor sharded over several mesh dimensions: {tensor.placements}")
            group = tensor.device_mesh.get_group(i)
    return group


def global_norm(tensors: Iterable[Tensor], cut: dist.ProcessGroup | None = None) -> Tensor:
    """Frobenius norm [] over all tensors, whole ones and sharded ones alike, the same on every rank; no host sync.

    cut: ranks that hold different parts of the plain tensors; None where these are whole.
    """
    shared: dict[dist.ProcessGroup | None, list[Tensor]] = {}
    for t in tensors:
        shared.setdefault(shard_group(t, cut), []).append(local(t))
    return norm_of_parts({group: torch._foreach_norm(parts) for group, parts in shared.items()})


def norm_of_parts(norms: Mapping[dist.ProcessGroup | None, Sequence[Tensor]]) -> Tensor:
    """Frobenius norm [] of everything, from norms [] of what this rank holds of it by `shard_group`.

    One small sum over the ranks for each shard group, none where nothing is sharded.
    """
    totals = []
    for group, parts in norms.items():
        norm = torch.linalg.vector_norm(torch.stack(list(parts)))
        if group is not None:
            square = norm.double().square()  # fp32 would overflow from 2e19 on
            dist.all_reduce(square, group=group)
            norm = square.sqrt().to(norm.dtype)
        totals.append(norm)
    return totals[0] if len(totals) == 1 else torch.linalg.vector_norm(torch.stack(totals))
