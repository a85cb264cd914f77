"""Bytes that one rank holds in a step, by part, at the moments when most is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from toto_train.config import Config
from toto_train.model.toto import QUANTILES
from toto_train.planning.activations import Activations
from toto_train.planning.exchange import Exchange
from toto_train.planning.layout import FLOAT, Layout, Shape, padded, share

DEEPSPEED_BUCKETS = 2 * 50_000_000 * FLOAT
"""Bytes of gradients that DeepSpeed collects before it sends them, and of those on their way."""


@dataclass(frozen=True)
class Held:
    """Bytes of one rank at one moment."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    """Of the weights (ema_decay)."""
    batch: int = 0
    activations: int = 0
    """Kept for the backward pass."""
    temporaries: int = 0
    """Of a forward pass, a backward pass or the loss."""
    communication: int = 0
    """Whole weights and gradients of what is sharded, messages with them; gradients beside DDP's buckets."""
    exchange: int = 0
    """Temporaries of the optimizer, and its messages."""
    copies: int = 0
    """Of messages, on a CPU: gloo gathers into memory of its own, and sums gradients in a copy, where NCCL does not."""

    def __add__(self, other: Held) -> Held:
        return Held(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Memory:
    """The fullest moment of each part of a step, when there has been a step before it."""

    forward: Held
    backward: Held
    update: Held

    @property
    def moments(self) -> dict[str, Held]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def peak(self) -> int:
        return max(held.total for held in self.moments.values())


def memory(config: Config, layout: Layout, update: Exchange, masks: bool = True, on_cpu: bool = False) -> Memory:
    """update: of this config's optimizer. masks, on_cpu: see `Activations`."""
    step = _Step(config, layout, Activations(config, masks, on_cpu))
    deepspeed = config.parallel.mode == "deepspeed"
    always = Held(
        weights=(step.weight if deepspeed else FLOAT) * share(layout.every, layout.weights),
        optimizer=optimizer_bytes(config, layout, update),
        average=FLOAT * share(layout.every, layout.weights) if config.ema_decay else 0,
        batch=config.micro_rows * config.data.variates * (6 * config.data.length + 8),
        communication=DEEPSPEED_BUCKETS if deepspeed else 0,
    )
    forward, backward = (
        max((always + held for held in moments), key=lambda held: held.total)
        for moments in (step.forward(), step.backward())
    )
    ended = replace(always, gradients=step.gradients, exchange=update.held, copies=update.copies)
    return Memory(forward, backward, ended)


def optimizer_bytes(config: Config, layout: Layout, update: Exchange) -> int:
    """NorMuon keeps a momentum and one float a row, AdamW two moments; DeepSpeed fp32 weights besides."""
    every, matrices = (share(shapes, layout.state) for shapes in (layout.every, layout.matrices))
    rows = share([shape[:1] for shape in layout.matrices], layout.state)
    masters = every if config.parallel.mode == "deepspeed" else 0
    if config.optimizer.stack == "adamw":
        return FLOAT * (2 * every + masters)
    if config.optimizer.normuon.replicated_state == "owner" and config.world > 1:
        matrices, rows = update.momentum, update.rows
    return FLOAT * (matrices + rows + 2 * (every - share(layout.matrices, layout.state)) + masters)


class _Step:
    """Moments of a step: what each adds to what is always held."""

    def __init__(self, config: Config, layout: Layout, activations: Activations):
        self.config, self.layout, self.a = config, layout, activations
        m, p = config.model, config.parallel
        self.layers, self.d, self.f, self.outputs = m.num_layers, m.d_model, m.d_ff, m.patch_size * len(QUANTILES)
        self.low = 2 if p.precision == "bf16" else 0
        """Bytes of a weight's copy in the dtype of activations."""
        self.weight = 2 if p.precision == "bf16_master" else FLOAT
        """Bytes of a weight as it is used, and of its gradient."""
        self.gradients = FLOAT * share(layout.every, layout.gradients)
        self.several = config.accumulation > 1
        self.copied = p.mode == "ddp" and config.world > 1
        """DDP's gradients lie in its buckets; those of micro batches before the last one are made beside them."""
        self.gloo = activations.on_cpu and layout.gathered and layout.weights > 1
        """Whether gloo carries weights and gradients, and copies them."""

    def forward(self) -> Iterator[Held]:
        """The head, the loss, the last layer; the gradients of the step or micro batch before are still there."""
        a = self.a
        head = a.predicting + 4 * self.d * self.outputs * self.low
        yield self._held(a.saved - a.loss, head, self._root + self._message)
        yield self._held(a.saved, a.scoring, self._root)
        again = a.stream() + a.hidden(3) if a.recomputed == self.layers else 0
        layer = a.stream() + a.hidden() + self.d * self.f * self.low + again
        kept = a.saved - a.loss - a.head
        yield self._held(kept, layer, self._root + self._layer + self._message)
        if self.gloo:  # the last layer's weights come: their message, gloo's copy, and the message before
            kept -= a.kept(self.layers - 1)
            yield self._held(kept, a.stream(), self._root + 2 * self._message, copies=self._message)

    def backward(self) -> Iterator[Held]:
        """The loss, the head, every layer, and where weights are gathered its end and the sum of its gradients."""
        a, layout = self.a, self.layout
        head = 4 * self.d * (self.d + self.outputs) + self.d * self.outputs
        yield self._held(a.saved, a.outputs * FLOAT, self._root + self._message, 0)
        yield self._held(a.saved - a.loss, a.through_head + FLOAT * head, self._root + self._message, 0)
        done = FLOAT * share(layout.root, layout.gradients) if layout.gradients > 1 else FLOAT * head
        done = 0 if layout.gathered else done
        for i in reversed(range(self.layers)):
            # gradients of the MLP's weights, and the copy of one of these in the dtype of activations
            new = self.d * self.f * (3 * FLOAT + 2 * self.low)
            whole = self._root + self.weight * head * layout.gathered + self._layer + (self._message if i else 0)
            sent = self._reduced if i + 1 < self.layers else 0
            yield self._held(a.below(i), a.through_layer(i) + new, whole + sent, done)
            if self.gloo and i:  # the next layer's weights begin to come
                yield self._held(a.below(i), a.stream(), whole + sent, done, copies=self._message)
            if layout.gathered:  # all gradients of the layer are made, those of queries, keys and values last
                kept, queries = a.below(i) - a.layer(i), self.d**2 * (3 * a.itemsize + FLOAT)
                yield self._held(kept, a.stream(6) + queries, whole + self._layer + sent, done)
                yield self._held(kept, a.stream(), whole - self._layer, done) + self._reducing(layout.layer)
            done += FLOAT * share(layout.layer, layout.gradients)
        if layout.gathered:
            yield self._held(a.embedding, a.stream(5), 2 * self._root + self._reduced, done)
            yield self._held(0, 0, 0, done) + self._reducing(layout.root)

    def _reducing(self, shapes: Sequence[Shape]) -> Held:
        """Summed gradients of a layer or the root: the message to other ranks, and what comes of it. The weights, and
        the gradients as they were made, are gone."""
        message = FLOAT * padded(shapes, self.layout.weights)
        own = FLOAT * share(shapes, self.layout.gradients)
        return Held(communication=message + own, copies=message if self.gloo else 0)

    def _held(
        self, activations: int, temporaries: int, communication: int, new: int | None = None, copies: int = 0
    ) -> Held:
        """new: bytes of gradients that this backward pass has made so far; None in a forward pass, where those of the
        micro batch or step before are still there."""
        gradients = self.gradients if new is None or self.several or self.copied else new
        if self.copied and self.several:
            communication += self.gradients - (new or 0)
        return Held(
            gradients=gradients,
            activations=activations,
            temporaries=temporaries,
            communication=communication,
            copies=copies,
        )

    @property
    def _root(self) -> int:
        """Embedding and head, which are gathered once and stay."""
        return self.weight * padded(self.layout.root, self.layout.weights) * self.layout.gathered

    @property
    def _layer(self) -> int:
        return self.weight * padded(self.layout.layer, self.layout.weights) * self.layout.gathered

    @property
    def _message(self) -> int:
        """The weights of a layer as they come from other ranks, ahead of their use."""
        return self._layer if self.layout.weights > 1 else 0

    @property
    def _reduced(self) -> int:
        """The gradients of a layer as they go to other ranks; the message stays until that of the next layer."""
        return FLOAT * padded(self.layout.layer, self.layout.weights) * self.layout.gathered
