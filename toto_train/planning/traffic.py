"""Bytes that a rank sends to others in an optimizer step, by collective, and the least that its mode allows.

An all-gather or a reduce-scatter of B bytes over W ranks sends B (W - 1) / W, an all-reduce twice that, as the best
ring does. The least leaves out what pads messages and travels with the updates; it keeps what the mode is: sharded
weights are gathered in every micro batch, before forward and backward pass, and gradients summed in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toto_train.config import Config
from toto_train.planning.exchange import Exchange
from toto_train.planning.layout import FLOAT, Layout, Shape, numel, padded

DOUBLE = 8
DDP_BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at once."""


@dataclass(frozen=True)
class Group:
    """Ranks that talk, so many of them on each node."""

    ranks: int
    on_node: int


@dataclass(frozen=True)
class Message:
    """What one kind of collective sends in a step, all calls together."""

    kind: str
    """all-gather, reduce-scatter, all-reduce or all-to-all."""
    what: str
    phase: str
    """What it can hide behind: forward, backward or update."""
    sent: float
    """Bytes of the busiest rank."""
    least: float
    """Bytes of a rank on average, at best."""
    group: Group
    calls: int = 1


def messages(config: Config, layout: Layout, update: Exchange) -> list[Message]:
    """Those of one optimizer step; none where there is one rank."""
    if layout.world == 1:
        return []
    mode = config.parallel.mode
    made = {"ddp": _copied, "fsdp2": _sharded, "hsdp": _sharded, "deepspeed": _zero}[mode](config, layout, update)
    return [m for m in [*made, _agreement(config, layout)] if m.sent or m.least]


def ranks_together(config: Config, layout: Layout) -> tuple[Group, Group]:
    """(that share one copy of the weights, that hold copies of one part), where ranks are numbered node by node."""
    on_node = min(config.parallel.devices, layout.world)
    shards = Group(layout.weights, min(layout.weights, on_node))
    return shards, Group(layout.replicas, min(layout.replicas, max(1, on_node // layout.weights)))


def _copied(config: Config, layout: Layout, update: Exchange) -> Iterator[Message]:
    _, everyone = ranks_together(config, layout)
    gradients = FLOAT * numel(layout.every)
    yield _sum("gradients", gradients, gradients, everyone, -(-gradients // DDP_BUCKET))
    yield Message("all-gather", "updates", "update", update.sent, update.least, everyone, update.calls)


def _sharded(config: Config, layout: Layout, update: Exchange) -> Iterator[Message]:
    shards, replicas = ranks_together(config, layout)
    times, layers, size = config.accumulation, config.model.num_layers, _weight(config)
    stack, root = layout.layer * layers, layout.root
    yield _part("all-gather", "weights", "forward", [*stack, *root], size, shards, times, layers + 1)
    yield _part("all-gather", "weights", "backward", stack, size, shards, times, layers)
    yield _part("reduce-scatter", "gradients", "backward", [*stack, *root], FLOAT, shards, times, layers + 1)
    if replicas.ranks > 1:
        here, least = FLOAT * padded([*stack, *root], shards.ranks) // shards.ranks, FLOAT * numel(layout.every)
        yield _sum("shards of gradients", times * here, times * least / shards.ranks, replicas, times * (layers + 1))
    kind, group = ("all-to-all", shards) if shards.ranks > 1 else ("all-gather", replicas)  # whole, as ddp has them
    yield Message(kind, "updates", "update", update.sent, update.least, group, update.calls)


def _zero(config: Config, layout: Layout, update: Exchange) -> Iterator[Message]:
    """By the paper's account (arXiv 1910.02054, section 7): every piece goes to its owner, and updated weights back."""
    everyone, size, times = Group(layout.world, min(config.parallel.devices, layout.world)), _weight(config), 1
    if config.parallel.zero_stage >= 2:
        times = config.accumulation
    weights = layout.every
    yield _part("reduce-scatter", "gradients", "backward", weights, FLOAT, everyone, times, 1, pad=False)
    if config.parallel.zero_stage == 3:
        for phase in ("forward", "backward"):
            yield _part("all-gather", "weights", phase, weights, size, everyone, times, config.model.num_layers, False)
    else:
        yield _part("all-gather", "weights", "update", weights, size, everyone, 1, 1, pad=False)


def _agreement(config: Config, layout: Layout) -> Message:
    """Loss, weight, points and signals; which parameters have a finite gradient, one mesh dimension after the other;
    the norm of what is sharded, and DDP's map of parameters in use."""
    shards, replicas = ranks_together(config, layout)
    everyone, parameters = Group(layout.world, min(config.parallel.devices, layout.world)), len(layout.shapes)
    sizes = {everyone: 2 * FLOAT + 3 * DOUBLE + (FLOAT * parameters if config.parallel.mode == "ddp" else 0)}
    for group in (shards, replicas):
        sizes[group] = sizes.get(group, 0) + FLOAT * (1 + 2 * parameters) + (DOUBLE if group == shards else 0)
    sent = sum(2 * (group.ranks - 1) / group.ranks * size for group, size in sizes.items())
    return Message("all-reduce", "agreement", "update", sent, 0, everyone, 5)


def _weight(config: Config) -> int:
    """Bytes of a weight on its way."""
    return 2 if config.parallel.precision == "bf16_master" else FLOAT


def _sum(what: str, size: float, least: float, group: Group, calls: int) -> Message:
    share = 2 * (group.ranks - 1) / group.ranks
    return Message("all-reduce", what, "backward", share * size, share * least, group, calls)


def _part(
    kind: str, what: str, phase: str, shapes: Sequence[Shape], size: int, group: Group, times: int, calls: int,
    pad: bool = True,
) -> Message:  # fmt: skip
    share, least = times * size * (group.ranks - 1) / group.ranks, numel(shapes)
    sent = padded(shapes, group.ranks) if pad else least
    return Message(kind, what, phase, share * sent, share * least, group, times * calls)
