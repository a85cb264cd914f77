"""What NorMuon sends and holds in a step, read off the optimizer's own buckets, which are made without memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from toto_train.config import Config
from toto_train.optim.exchange import AllToAll, Bucket, Gather, assign_owners, make_buckets
from toto_train.optim.layout import Block, Layout
from toto_train.optim.orthogonalize import COEFFICIENTS
from toto_train.optim.recipe import route
from toto_train.planning.layout import FLOAT


@dataclass(frozen=True)
class Exchange:
    """Of the busiest rank, in one optimizer step."""

    sent: int = 0
    """Bytes it sends to others: in all-gathers where matrices are copied, in all-to-alls where they are sharded."""
    least: float = 0.0
    """Bytes that a rank must send on average: updates to their owners (sharded) and back."""
    held: int = 0
    """Most bytes it holds meanwhile beside weights, gradients and state."""
    copies: int = 0
    """And then of messages, made by gloo: it gathers into memory of its own, where NCCL writes in place."""
    momentum: int = 0
    """Entries of the momenta of what it owns, and of their second moments by row."""
    rows: int = 0
    flops: float = 0.0
    """Of the products in the orthogonalisation of what it owns."""
    calls: int = 0
    """Collectives."""


def exchange(
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],
    world: int,
    sharded: bool,
    dtype: torch.dtype,
    device: str,
) -> Exchange:
    """shapes: of all parameters, by name. world: ranks that hold parts or copies of a matrix (hsdp: one shard group).
    dtype: what matrices are orthogonalised and sent in. device: cpu, or any other kind."""
    blocks = _blocks(config, shapes, world, sharded, dtype, device)
    if not blocks:
        return Exchange()
    assign_owners(blocks)
    buckets = make_buckets(blocks, config.optimizer.normuon.bucket_mib * 2**20)
    whole = dtype.itemsize * sum(math.prod(b.shape) for b in blocks)
    others = whole * (world - 1) / world
    most, copies = _most_held(buckets)
    owned = [b for b in blocks if b.owned]
    return Exchange(
        sent=sum(map(_sent, buckets)),
        least=2 * others / world if sharded else others,
        held=most,
        copies=copies,
        momentum=sum(math.prod(b.shape) for b in owned),
        rows=sum(b.shape[0] for b in owned),
        flops=sum(orthogonalize_flops(*b.shape) for b in owned),
        calls=sum(2 if isinstance(b, AllToAll) else 1 for b in buckets) if world > 1 else 0,
    )


def orthogonalize_flops(m: int, n: int) -> float:
    """Polar Express on [m, n]: each quintic forms a Gram matrix on the short side, squares it and multiplies."""
    short, long = min(m, n), max(m, n)
    return len(COEFFICIENTS) * (4.0 * short * short * long + 2.0 * short**3)


def _blocks(
    config: Config, shapes: Mapping[str, tuple[int, ...]], world: int, sharded: bool, dtype: torch.dtype, device: str
) -> list[Block]:
    """As `NorMuonAdamW` cuts them, seen by rank 0: the owner of the costliest."""
    group: Any = "ranks" if world > 1 else None  # what stands for a process group: nothing is sent
    one = torch.empty((), device="cpu" if device == "cpu" else "meta")
    blocks: list[Block] = []
    for r in route(shapes, config.model.num_layers, config.optimizer):
        if r.kind == "normuon":
            m, n = r.shape
            layout = Layout((m, n), 0 if sharded and world > 1 else None, group, 0, world)
            start = 0
            for height in r.blocks or (m,):
                blocks.append(Block(r.name, one.expand(m, n), layout, start, start + height, 1.0, {}, dtype))
                start += height
    return blocks


def _sent(bucket: Bucket) -> int:
    if isinstance(bucket, AllToAll):
        return sum(sum(route.lengths[0][1:]) for route in (bucket.there, bucket.back))
    return (bucket.layout.world - 1) * bucket.length if isinstance(bucket, Gather) else 0


def _most_held(buckets: list[Bucket]) -> tuple[int, int]:
    """(bytes, those of gloo's copies besides) at the fullest moment, as `NorMuonAdamW._normuon_step` passes buckets
    through: one starts, the one before works, the one before ends."""
    nothing = _Stages(0, 0, 0, 0, 0)
    stages = [nothing, nothing, *map(_stages, buckets), nothing, nothing]
    return max(_together(stages), key=sum)


def _together(stages: list[_Stages]) -> Iterator[tuple[int, int]]:
    for last, before, now in zip(stages, stages[1:], stages[2:], strict=False):
        yield now.starting + before.started + last.worked, last.copies
        yield now.started + before.working + last.worked, last.copies
        yield now.started + before.worked + last.finishing, before.copies


@dataclass(frozen=True)
class _Stages:
    """Bytes of one bucket while it goes through them and between them."""

    starting: int
    started: int
    working: int
    worked: int
    finishing: int
    copies: int = 0
    """Gloo's, of what is on its way after the work."""


def _stages(bucket: Bucket) -> _Stages:
    blocks, size = bucket.blocks, bucket.blocks[0].dtype.itemsize
    updates = FLOAT * sum(map(_part, blocks))
    owned = [math.prod(b.shape) for b in bucket.owned]
    results = size * sum(owned)
    squares = [min(b.shape) ** 2 for b in bucket.owned]
    # the normalised matrix, its Gram matrix and the square of that; the result is counted with the results
    products = max((size * (n + 2 * s) for n, s in zip(owned, squares, strict=True)), default=0)
    if bucket.device.type == "cpu" and size < FLOAT:  # where the norms of rows are taken of a float32 copy
        products = max(products, FLOAT * max(owned, default=0))
    apply = (FLOAT if size == FLOAT else 2 * FLOAT) * max(map(_part, blocks))
    if isinstance(bucket, AllToAll):
        there, back = (sum(map(sum, r.lengths)) for r in (bucket.there, bucket.back))
        received, answers = sum(bucket.there.lengths[1]), sum(bucket.back.lengths[1])
        working = received + results + max(results + products, back)
        return _Stages(updates + there, there, working, back, answers + apply)
    if isinstance(bucket, Gather):
        message = (1 + bucket.layout.world) * bucket.length
        mine = FLOAT * sum(owned)
        copies = bucket.layout.world * bucket.length if bucket.device.type == "cpu" else 0
        return _Stages(updates, mine, results + max(mine + products, message), message, message + apply, copies)
    return _Stages(updates, updates, updates + results + products, results, results + apply)


def _part(block: Block) -> int:
    """Entries of a block that this rank holds."""
    rows, columns = (stop - start for start, stop in (block.rows(0), block.columns(0)))
    return rows * columns
