"""The optimizer on several processes gives the bits that it gives on one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Placement, Replicate, Shard, distribute_tensor, init_device_mesh

from toto_train.config import AdamWConfig, NorMuonConfig
from toto_train.optim.layout import global_norm
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import set_lr

pytestmark = pytest.mark.distributed

MATRICES = {
    "wide": (66, 64),
    "short": (3, 64),
    "row": (1, 64),
    "uneven": (18, 40),
    "lognormal": (96, 32),
    "half": (96, 32),
}
"""The last two with rows of unequal strength: lognormal, and every other row ten times the rest."""
OTHERS = {"table": (5, 7), "vector": (9,), "single": (1,)}
BLOCKS = {"wide": (22, 22, 22), "uneven": (7, 11), "lognormal": (32,) * 3, "half": (1, 95)}


def numbers(name: str, step: int) -> Tensor:
    """Gradient of a step; step -1 gives the weight itself."""
    generator = torch.Generator().manual_seed(1000 * (step + 2) + sum(map(ord, name)))
    x = torch.randn((MATRICES | OTHERS)[name], generator=generator)
    if name == "lognormal" and step >= 0:
        x *= torch.randn(len(x), 1, generator=torch.Generator().manual_seed(7)).exp()
    if name == "half" and step >= 0:
        x[::2] *= 10
    return x


def mesh_and_placements(mode: str, world: int) -> tuple[DeviceMesh, list[list[Placement]]] | None:
    """Mesh of a mode, and what its tensors take turns in; None where they are plain."""
    if mode == "hsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        return mesh, [[Replicate(), Shard(0)]]
    placements = {"fsdp": [[Shard(0)]], "columns": [[Shard(1)]], "both": [[Shard(0)], [Shard(1)]]}
    placements["replicate"] = placements["replicate owner"] = [[Replicate()]]
    return (init_device_mesh("cpu", (world,)), placements[mode]) if mode in placements else None


class Toy:
    """Matrices to NorMuon, each at a rate of its own; the rest to AdamW."""

    def __init__(self, mode: str, world: int, dtype: str = "bf16", blocks: bool = False, **settings):
        self.where = mesh_and_placements(mode, world)
        names = [*MATRICES, *OTHERS]
        self.params = {n: nn.Parameter(self.place(numbers(n, -1), n)) for n in names}
        config = NorMuonConfig(lr=0.1, weight_decay=1e-2, beta2=0.9, orthogonalize_dtype=dtype)
        group = {"kind": "normuon", **dataclasses.asdict(config), "params": [(n, self.params[n]) for n in MATRICES]}
        group["multipliers"] = [1 / (1 + i) for i in range(len(MATRICES))]
        if blocks:
            group["blocks"] = [BLOCKS.get(n, ()) for n in MATRICES]
            group["multipliers"] = [
                tuple(k / (1 + i) for i in range(len(BLOCKS[n]))) if n in BLOCKS else k
                for n, k in zip(MATRICES, group["multipliers"], strict=True)
            ]
        rest = {"kind": "adamw", **dataclasses.asdict(AdamWConfig(weight_decay=1e-2))}
        rest["params"] = [(n, self.params[n]) for n in OTHERS]
        if mode.startswith("ddp"):
            settings["replicas"] = dist.group.WORLD
        if mode.endswith("owner"):
            settings["replicated_state"] = "owner"
        self.optimizer = NorMuonAdamW([group, rest], **settings)

    def place(self, x: Tensor, name: str) -> Tensor:
        """A whole tensor, the same on every rank, as the mode holds it."""
        if self.where is None:
            return x.clone()
        mesh, turns = self.where
        placements = turns[list(MATRICES | OTHERS).index(name) % len(turns)]
        if x.ndim == 1:
            placements = [Shard(0) if isinstance(p, Shard) else p for p in placements]
        return distribute_tensor(x, mesh, placements, src_data_rank=None)

    def steps(self, steps: Iterable[int]) -> Toy:
        for step in steps:
            set_lr(self.optimizer, 1 / (1 + step))
            for name, p in self.params.items():
                p.grad = self.place(numbers(name, step), name)
            self.optimizer.step()
        return self

    def bits(self) -> dict[str, Tensor]:
        """Everything that is here, whole."""
        found = {n: p.detach() for n, p in self.params.items()}
        for name, state in self.optimizer.state_dict()["state"].items():
            found |= {f"{name}.{key}": t for key, t in state.items()}
        return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}

    def tensors(self) -> dict:
        """What a checkpoint holds."""
        state = self.optimizer.state_dict()
        return {
            "model": {n: p.detach() for n, p in self.params.items()},
            "optimizer": {"state": state["state"], "skipped_steps": state["skipped_steps"]},
        }


def train(rank, world, mode, steps, *args, **settings):
    return Toy(mode, world, *args, **settings).steps(range(steps)).bits()


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], complete: bool = True) -> None:
    if complete:
        assert set(got) == set(want)
    different = [name for name, t in got.items() if not torch.equal(t, want[name])]
    assert not different


MODES = [
    ("fsdp", 1), ("fsdp", 2), ("fsdp", 4), ("columns", 2), ("columns", 4), ("both", 4), ("hsdp", 4),
    ("replicate", 4), ("replicate owner", 4), ("ddp", 2), ("ddp", 4), ("ddp owner", 2), ("ddp owner", 4),
]  # fmt: skip


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_any_number_of_processes_gives_the_bits_of_one(ranks, dtype, blocks):
    (expected,) = ranks(1, train, "plain", 5, dtype, blocks)
    assert sum(name.endswith(".momentum") for name in expected) == len(MATRICES)
    for mode, world in MODES:
        held: set[str] = set()
        for bits in ranks(world, train, mode, 5, dtype, blocks):
            assert_equal(bits, expected, complete=not mode.endswith("owner"))
            held |= set(bits)
        assert held == set(expected)
