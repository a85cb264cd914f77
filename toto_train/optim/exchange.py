"""Who orthogonalises which matrix, and how updates travel there and back.

Every block (a matrix, or a declared part of one) has an owner among the ranks that hold it. All ranks send it their
parts of the update and of the second moment; it does the whole-matrix part of the step on the whole block, so the
result does not depend on how many ranks there are, and sends each rank what it needs for its own part: O, the scale of
its rows, and its new second moment. Blocks travel in buckets: two collectives a bucket, whatever the shapes.

A bucket goes through start (send), work (orthogonalise, send back) and finish. Collectives are asynchronous, so that
start of the next bucket before work on this one hides the wire behind the products. Sizes follow from the layouts:
no rank asks another, and none waits for its device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from toto_train.optim.layout import Block
from toto_train.optim.orthogonalize import normalized_update

ALIGN = 4
"""Bytes; where a tensor may start inside a message, so that fp32 behind bf16 can be read in place."""

Spec = tuple[torch.dtype, tuple[int, ...]]
Result = tuple[Block, Tensor, Tensor, Tensor]
"""Block; this rank's part of O, the scales of its rows, and the rows it keeps of the new second moment."""


def assign_owners(blocks: Iterable[Block]) -> None:
    """Longest processing time first: the costliest block left goes to the rank that has the least, in each group.

    Blocks of a replicated matrix stay together: its owner may be the only rank that has its momentum.
    """
    together: dict[tuple[str, int], list[Block]] = {}
    for block in blocks:
        together.setdefault((block.name, 0 if block.layout.dim is None else block.start), []).append(block)
    loads: dict[dist.ProcessGroup | None, list[int]] = {}
    costs = [(sum(b.cost for b in own), own) for own in together.values()]
    for cost, own in sorted(costs, key=lambda pair: -pair[0]):  # stable: every rank finds the same
        load = loads.setdefault(own[0].layout.group, [0] * own[0].layout.world)
        owner = load.index(min(load))
        load[owner] += cost
        for block in own:
            block.owner = owner


def owner_loads(blocks: Iterable[Block], world: int) -> list[int]:
    """Summed cost of the blocks of each rank."""
    loads = [0] * world
    for block in blocks:
        loads[block.owner] += block.cost
    return loads


def make_buckets(blocks: Sequence[Block], bucket_bytes: int) -> list[Bucket]:
    """Buckets that hold every block once, each with about equal work for all owners.

    bucket_bytes bounds the updates of one bucket, divided by the ranks that share them; one block of each owner is
    always taken. Without other ranks there is nothing to exchange, and a CPU works best on one block at a time.
    """
    kinds: dict[tuple[dist.ProcessGroup | None, bool], list[Block]] = {}
    for block in blocks:
        kinds.setdefault((block.layout.group, block.layout.dim is None), []).append(block)
    buckets: list[Bucket] = []
    for (group, replicated), members in kinds.items():
        kind = Alone if group is None else Gather if replicated else AllToAll
        world = members[0].layout.world
        queues: list[list[Block]] = [[] for _ in range(world)]
        for block in members:
            queues[block.owner].append(block)
        bound = 0 if group is None and members[0].p.device.type == "cpu" else bucket_bytes * world
        taken: list[Block] = []
        size = 0
        for turn in zip_longest(*(sorted(q, key=lambda b: -b.cost) for q in queues)):
            turn_blocks = [block for block in turn if block is not None]
            more = sum(b.dtype.itemsize * math.prod(b.shape) for b in turn_blocks)
            if taken and size + more > bound:
                buckets.append(kind(taken))
                taken, size = [], 0
            taken, size = taken + turn_blocks, size + more
        buckets.append(kind(taken))
    return buckets


class Bucket:
    """Blocks that travel together; this one's are whole here and nowhere else."""

    def __init__(self, blocks: list[Block]):
        self.blocks = blocks
        self.layout = blocks[0].layout
        self.owned = [b for b in blocks if b.owned]
        self.device = blocks[0].p.device

    def start(self, held: Mapping[Block, tuple[Tensor, Tensor]]) -> None:
        """Take second moments v and updates U, the parts of each that are here, and send them where they go."""
        self.whole = [held[block] for block in self.owned]

    def work(self) -> None:
        """Orthogonalise and normalise the blocks this rank owns, and send back."""
        self.results = []
        for block, (v, u) in zip(self.owned, self.whole, strict=True):
            s = block.settings
            self.results.append(normalized_update(u, v, s["beta2"], s["eps"], block.dtype, s["normalize"]))
        del self.whole

    def finish(self) -> Iterator[Result]:
        """What each block's part here is updated by."""
        for block, result in zip(self.owned, self.results, strict=True):
            yield block, *result
        del self.results


class Alone(Bucket):
    """Nobody else holds any of it."""


class AllToAll(Bucket):
    """Sharded matrices: parts go to the owner and come back by one variable-size all-to-all each way."""

    def __init__(self, blocks: list[Block]):
        super().__init__(blocks)
        ranks, here = range(self.layout.world), self.layout.rank
        by_owner = [[b for b in blocks if b.owner == rank] for rank in ranks]
        self.order = [b for owned in by_owner for b in owned]
        self.there = _Route(
            [[s for b in by_owner[rank] for s in _parts(b, here)] for rank in ranks],
            [[s for b in self.owned for s in _parts(b, rank)] for rank in ranks],
        )
        self.back = _Route(
            [[s for b in self.owned for s in _answers(b, rank)] for rank in ranks],
            [[s for b in by_owner[rank] for s in _answers(b, here)] for rank in ranks],
        )

    def start(self, held: Mapping[Block, tuple[Tensor, Tensor]]) -> None:
        self.there.send([t for block in self.order for t in held[block]], self.layout.group, self.device)

    def work(self) -> None:
        received = iter(self.there.receive())
        empty = partial(torch.empty, device=self.device)  # memory of its own, aligned as everywhere
        self.whole = [(empty(b.shape[0], dtype=torch.float32), empty(b.shape, dtype=b.dtype)) for b in self.owned]
        for rank in range(self.layout.world):
            for block, (v, u) in zip(self.owned, self.whole, strict=True):
                rows, columns, v_rows = _slices(block, rank)
                v[v_rows].copy_(next(received))
                u[rows, columns].copy_(next(received))
        super().work()
        answers = []
        for rank in range(self.layout.world):
            for block, (o, scale, v) in zip(self.owned, self.results, strict=True):
                rows, columns, v_rows = _slices(block, rank)
                answers += [v[v_rows], scale[rows], o[rows, columns]]
        self.back.send(answers, self.layout.group, self.device)
        del self.results

    def finish(self) -> Iterator[Result]:
        received = iter(self.back.receive())
        for block in self.order:
            v, scale, o = next(received), next(received), next(received)
            yield block, o, scale, v


class Gather(Bucket):
    """Replicated matrices: each owner has them whole, and everyone gets its results by one all-gather."""

    def __init__(self, blocks: list[Block]):
        super().__init__(blocks)
        self.specs = [
            [s for b in blocks if b.owner == rank for s in _answers(b, rank)] for rank in range(self.layout.world)
        ]
        self.order = [b for rank in range(self.layout.world) for b in blocks if b.owner == rank]
        self.length = max(map(_length, self.specs))

    def work(self) -> None:
        super().work()
        empty = partial(torch.empty, dtype=torch.uint8, device=self.device)
        self.message, self.everyone = empty(self.length), empty(self.layout.world * self.length)
        _fill(_views(self.message, self.specs[self.layout.rank]), [t for o, c, v in self.results for t in (v, c, o)])
        del self.results  # before gloo makes its copy of the messages
        with record_function("exchange"):
            self.handle = dist.all_gather_into_tensor(
                self.everyone, self.message, group=self.layout.group, async_op=True
            )

    def finish(self) -> Iterator[Result]:
        with record_function("exchange"):
            self.handle.wait()
        received = iter(_all_views(self.everyone, [self.length] * self.layout.world, self.specs))
        del self.message, self.everyone, self.handle
        for block in self.order:
            v, scale, o = next(received), next(received), next(received)
            yield block, o, scale, v


class _Route:
    """One direction of an all-to-all: which tensors go to each rank, and which come from it."""

    def __init__(self, sent: list[list[Spec]], received: list[list[Spec]]):
        self.sent, self.received = sent, received
        self.lengths = [list(map(_length, sides)) for sides in (sent, received)]

    def send(self, tensors: Sequence[Tensor], group: dist.ProcessGroup | None, device: torch.device) -> None:
        out, into = (torch.empty(sum(lengths), dtype=torch.uint8, device=device) for lengths in self.lengths)
        _fill(_all_views(out, self.lengths[0], self.sent), tensors)
        self.out, self.into = out, into  # both live until the wire is done with them
        with record_function("exchange"):
            self.handle = dist.all_to_all_single(
                into, out, self.lengths[1], self.lengths[0], group=group, async_op=True
            )

    def receive(self) -> list[Tensor]:
        with record_function("exchange"):
            self.handle.wait()
        views = _all_views(self.into, self.lengths[1], self.received)
        del self.out, self.into, self.handle
        return views


def _slices(block: Block, rank: int) -> tuple[slice, slice, slice]:
    """Rows and columns of the block that a rank holds, and the rows whose second moment it keeps."""
    return slice(*block.rows(rank)), slice(*block.columns(rank)), slice(*block.v_rows(rank))


def _parts(block: Block, rank: int) -> list[Spec]:
    """What a rank sends to the block's owner: second moment, update."""
    rows, columns, v_rows = (
        stop - start for start, stop in (block.rows(rank), block.columns(rank), block.v_rows(rank))
    )
    return [(torch.float32, (v_rows,)), (block.dtype, (rows, columns))]


def _answers(block: Block, rank: int) -> list[Spec]:
    """What it gets back: second moment, scale of its rows, O."""
    v, o = _parts(block, rank)
    return [v, (torch.float32, o[1][:1]), o]


def _length(specs: Iterable[Spec]) -> int:
    """Bytes of a message."""
    return sum(_bytes(spec) for spec in specs)


def _bytes(spec: Spec) -> int:
    size = spec[0].itemsize * math.prod(spec[1])
    return -(-size // ALIGN) * ALIGN


def _views(message: Tensor, specs: Iterable[Spec]) -> list[Tensor]:
    """The tensors of a message [bytes], one behind the other."""
    out, start = [], 0
    for dtype, shape in specs:
        size = dtype.itemsize * math.prod(shape)
        out.append(message[start : start + size].view(dtype).view(shape))
        start += _bytes((dtype, shape))
    return out


def _all_views(messages: Tensor, lengths: list[int], specs: list[list[Spec]]) -> list[Tensor]:
    return [t for part, own in zip(messages.split(lengths), specs, strict=True) for t in _views(part, own)]


def _fill(views: list[Tensor], tensors: Sequence[Tensor]) -> None:
    if views:  # a rank may own nothing in a bucket
        torch._foreach_copy_(views, list(tensors))
