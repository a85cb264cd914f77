"""How long a step takes: a model, from counts of operations and bytes and the hardware's peaks. Nothing is run.

Products run at `hardware.mfu` of the peak. Each phase of a step takes the longer of its products and its messages:
forward passes hide the gathers of weights, backward passes those and the sums of gradients (DDP's behind the last one
only), the orthogonalisation the exchange of updates.
"""

from __future__ import annotations

from dataclasses import dataclass

from toto_train.config import Config
from toto_train.hardware import GPU
from toto_train.planning.exchange import Exchange
from toto_train.planning.layout import Layout, share
from toto_train.planning.traffic import Group, Message

LINK_SHARE = 0.8
"""Of a link's rate that collectives of large messages reach; nccl-tests report 75 to 85 % on NVLink 4."""
HOP_ON_NODE, HOP_BETWEEN = 1.9e-6, 4.0e-6
"""Seconds a ring takes from one rank to the next: what NCCL's tuning model assumes (src/graph/tuning.cc, LL128)."""
NORMUON_TRAFFIC, ADAMW_TRAFFIC = 128, 36
"""Bytes that the optimizer reads and writes beside its products, for every weight that it trains by either rule;
counted with scripts/bench/counting.py."""


@dataclass(frozen=True)
class Duration:
    """Seconds of one optimizer step."""

    products: float
    """Forward and backward passes."""
    again: float
    """Activation checkpointing."""
    exposed: float
    """Communication that nothing hides."""
    update: float
    """The optimizer, its exposed messages apart."""

    @property
    def step(self) -> float:
        return self.products + self.again + self.exposed + self.update


def duration(
    config: Config, layout: Layout, sent: list[Message], update: Exchange, flops: float, repeated: float, peak: float,
    gpu: GPU | None,
) -> Duration:  # fmt: skip
    """flops, repeated: of a step over all ranks, the latter computed twice. peak: FLOP/s of one rank's products.
    gpu: None where links and memory are unknown: then communication and the optimizer's reading are left out."""
    rate = peak * config.hardware.mfu
    products, again = (x / layout.world / rate for x in (flops, repeated))
    orthogonalize = update.flops / rate
    if gpu is None:
        return Duration(products, again, 0.0, orthogonalize)
    wire = {phase: 0.0 for phase in ("forward", "backward", "update")}
    for message in sent:
        wire[message.phase] += seconds(message, config, gpu)
    passes = 1 if config.parallel.mode == "ddp" else config.accumulation  # that hide messages
    part = passes / config.accumulation
    exposed = max(0.0, wire["forward"] - part * products / 3)
    exposed += max(0.0, wire["backward"] - part * (products * 2 / 3 + again))
    exposed += max(0.0, wire["update"] - orthogonalize)
    return Duration(products, again, exposed, orthogonalize + _reading(config, layout) / (1e9 * gpu.bandwidth))


def seconds(message: Message, config: Config, gpu: GPU) -> float:
    """Of all calls: bytes over the slowest link on their way, and a ring's hops."""
    group = message.group
    nodes = -(-group.ranks // group.on_node)
    if message.kind == "all-to-all":
        outside = (group.ranks - group.on_node) / max(1, group.ranks - 1)
        wire = max(message.sent * (1 - outside) / gpu.link, message.sent * outside / gpu.network)
    else:
        wire = message.sent / _ring(group, gpu)
    rounds = 2 if message.kind == "all-reduce" else 1
    hops = (group.ranks - nodes) * HOP_ON_NODE + (nodes if nodes > 1 else 0) * HOP_BETWEEN
    return wire / (1e9 * LINK_SHARE) + message.calls * rounds * hops


def _ring(group: Group, gpu: GPU) -> float:
    """GB/s. A ring passes every node once and may use the adapters of all its ranks there."""
    return gpu.link if group.ranks <= group.on_node else min(gpu.link, gpu.network * group.on_node)


def _reading(config: Config, layout: Layout) -> float:
    """Bytes that the optimizer moves through the memory of one rank."""
    every, matrices = (share(shapes, layout.state) for shapes in (layout.every, layout.matrices))
    if config.optimizer.stack == "adamw":
        return ADAMW_TRAFFIC * every
    return NORMUON_TRAFFIC * matrices + ADAMW_TRAFFIC * (every - matrices)
