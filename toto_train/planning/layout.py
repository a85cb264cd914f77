"""How a model's parameters lie over the ranks of a run, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from toto_train.config import Config
from toto_train.model.toto import Toto

Shape = tuple[int, ...]
FLOAT = 4


def numel(shapes: Iterable[Shape]) -> int:
    return sum(map(math.prod, shapes))


@dataclass(frozen=True)
class Layout:
    """Parameters by name, and the ranks that share them."""

    shapes: dict[str, Shape]
    world: int
    weights: int = 1
    """Ranks that one copy of the weights is divided over."""
    gradients: int = 1
    state: int = 1
    """The same of the gradients and of the optimizer's state."""
    gathered: bool = False
    """Whether weights are gathered before use: from other ranks, or into a copy where there are none (fsdp2)."""

    @classmethod
    def of(cls, config: Config) -> Layout:
        p, world = config.parallel, config.world
        with torch.device("meta"):
            shapes = {name: tuple(t.shape) for name, t in Toto(config.model).named_parameters()}
        if p.mode == "deepspeed":
            weights, gradients, state = (world if p.zero_stage >= stage else 1 for stage in (3, 2, 1))
            return cls(shapes, world, weights, gradients, state, gathered=p.zero_stage == 3)
        shards = {"fsdp2": world, "hsdp": p.shards or p.devices}.get(p.mode, 1)
        return cls(shapes, world, shards, shards, shards, p.mode in ("fsdp2", "hsdp"))

    @property
    def replicas(self) -> int:
        """Copies of the weights."""
        return self.world // self.weights

    @property
    def every(self) -> list[Shape]:
        return list(self.shapes.values())

    @property
    def layer(self) -> list[Shape]:
        """Of one layer of the stack; all are alike."""
        return [shape for name, shape in self.shapes.items() if name.startswith("layers.0.")]

    @property
    def root(self) -> list[Shape]:
        """Of embedding and head."""
        return [shape for name, shape in self.shapes.items() if not name.startswith("layers.")]

    @property
    def matrices(self) -> list[Shape]:
        """The stack's, which NorMuon trains."""
        return [shape for name, shape in self.shapes.items() if name.startswith("layers.") and len(shape) == 2]


def share(shapes: Sequence[Shape], ranks: int) -> int:
    """Entries that the rank with most of them keeps, each tensor cut by rows."""
    return sum(-(-first // ranks) * math.prod(rest) for first, *rest in shapes)


def padded(shapes: Sequence[Shape], ranks: int) -> int:
    """Entries of a message that holds the parts of all ranks, each as large as the largest."""
    return ranks * share(shapes, ranks)
