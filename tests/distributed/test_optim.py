"""The optimizer on several processes gives the bits that it gives on one."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import (
    DeviceMesh,
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)

from toto_train.config import AdamWConfig, NorMuonConfig
from toto_train.optim.layout import local
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import set_lr

pytestmark = pytest.mark.distributed

MATRICES = {
    "wide": (66, 64),
    "short": (3, 64),
    "row": (1, 64),
    "uneven": (18, 40),
    "odd": (5, 7),
    "lognormal": (96, 32),
    "half": (96, 32),
}
"""Numbers of bf16 that fill no whole fp32 (odd); the last two with rows of unequal strength: lognormal, and every other
row ten times the rest."""
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
    if mode == "replicate twice":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("outer", "inner"))
        return mesh, [[Replicate(), Replicate()]]
    if mode == "halves":
        return init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("half", "shard"))["shard"], [[Shard(0)]]
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
            if step == 2:
                self.params["uneven"].grad = None  # on all ranks alike
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


MODES = {
    1: ["plain", "fsdp"],
    2: ["fsdp", "columns", "ddp", "ddp owner"],
    4: ["fsdp", "columns", "both", "hsdp", "replicate", "replicate owner", "replicate twice", "ddp", "ddp owner"],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32": {"dtype": "fp32"},
    "blocks": {"dtype": "bf16", "blocks": True},
    "small buckets": {"dtype": "bf16", "bucket_bytes": 1},
}


def train_all(rank, world):
    """Five steps of every mode and variant."""
    return {(m, v): Toy(m, world, **VARIANTS[v]).steps(range(5)).bits() for m in MODES[world] for v in VARIANTS}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert not [name for name, t in got.items() if not torch.equal(t, want[name])]


def test_any_number_of_processes_gives_the_bits_of_one(ranks):
    found = {world: ranks(world, train_all) for world in MODES}
    for variant in VARIANTS:
        expected = found[1][0]["plain", "bf16" if variant == "small buckets" else variant]
        assert len(expected) == 3 * len(MATRICES) + 4 * len(OTHERS)
        for world, modes in MODES.items():
            for mode in modes:
                results = [result[mode, variant] for result in found[world]]
                for bits in results:
                    assert_equal(bits, expected)
                    assert "owner" in mode or set(bits) == set(expected)
                # an owner is the only one to have a state, and every state has one
                owners = [sum(name in bits for bits in results) for name in expected if ".momentum" in name]
                assert owners == [1 if "owner" in mode else world] * len(MATRICES)
    whole, blocks = (found[1][0]["plain", v] for v in ("bf16", "blocks"))
    assert not torch.equal(whole["wide"], blocks["wide"])
    assert torch.equal(whole["short"], blocks["short"])


# ---- checkpoints


def go_on(rank, world, mode, start, folder):
    """Three steps from step `start` and its checkpoint on, and another checkpoint."""
    toy = Toy(mode, world)
    if start:
        dcp.load(toy.tensors(), checkpoint_id=folder / str(start))
    toy.steps(range(start, start + 3))
    dcp.save(toy.tensors(), checkpoint_id=folder / str(start + 3))
    return toy.bits()


@pytest.mark.parametrize("mode", ["both", "hsdp", "ddp owner"])
def test_a_run_goes_on_with_the_same_bits_on_other_numbers_of_processes(ranks, mode, tmp_path):
    (straight,) = ranks(1, lambda *_: Toy("plain", 1).steps(range(12)).bits())
    for start, world in ((0, 2), (3, 2), (6, 4), (9, 1)):
        last = ranks(world, go_on, "plain" if world == 1 else mode, start, tmp_path)
    assert_equal(last[0], straight)
    assert set(last[0]) == set(straight)


def state_and_bits(rank, world):
    toy = Toy("plain", 1).steps(range(2))
    return toy.optimizer.state_dict(), toy.bits()


def load_whole(rank, world, state, mode):
    toy = Toy(mode, world)
    toy.optimizer.load_state_dict(state)
    return toy.bits()


def test_a_state_of_one_process_loads_into_shards(ranks):
    ((state, bits),) = ranks(1, state_and_bits)
    for mode in ("both", "hsdp", "ddp owner"):
        for found in ranks(4, load_whole, state, mode):
            assert_equal({n: t for n, t in found.items() if "." in n}, bits)


# ---- steps that must not happen


def one_bad_gradient(rank, world, mode, bad):
    toy = Toy(mode, world).steps(range(2))
    before = {n: t.clone() for n, t in toy.bits().items()}
    for name, p in toy.params.items():
        p.grad = toy.place(numbers(name, 2), name)
    gradient = toy.params["wide"].grad
    assert gradient is not None
    if rank == world - 1:
        local(gradient)[0, 0] = bad
    toy.optimizer.step()
    return before, toy.bits(), int(toy.optimizer.skipped_steps)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize(("mode", "world"), [("fsdp", 2), ("ddp owner", 2), ("hsdp", 4)])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(ranks, mode, world, bad):
    for before, after, skipped in ranks(world, one_bad_gradient, mode, bad):
        assert skipped == 1
        assert_equal(after, before)


# ---- which parameters have a gradient


def without(rank, world, mode, names, catch):
    """A step in which the last rank lacks the gradients of `names`."""
    toy = Toy(mode, world).steps(range(2))
    before = {n: local(p).clone() for n, p in toy.params.items()}
    for name, p in toy.params.items():
        p.grad = None if rank == world - 1 and name in names else toy.place(numbers(name, 2), name)
    error = ""
    try:
        toy.optimizer.step()
    except RuntimeError as e:
        if rank < world - 1:
            time.sleep(60)  # its messages found nobody; the last rank is the one to speak
        if not catch:
            raise
        error = str(e)
    return error, [n for n, p in toy.params.items() if not torch.equal(local(p), before[n])]


LACKS = r"none on this rank, but one elsewhere: wide, vector\)"


@pytest.mark.parametrize("mode", ["fsdp", "hsdp", "ddp owner"])
def test_a_rank_that_lacks_a_gradient_says_which(ranks, mode):
    """The other ranks wait for its messages until it is gone."""
    with pytest.raises(mp.ProcessRaisedException, match=LACKS):
        ranks(4, without, mode, ("wide", "vector"), False)


class Vectors(Toy):
    """AdamW alone, so that nobody waits for messages."""

    def __init__(self, world):
        self.where = None
        self.params = {n: nn.Parameter(numbers(n, -1)) for n in OTHERS}
        group = {"kind": "adamw", **dataclasses.asdict(AdamWConfig()), "params": list(self.params.items())}
        self.optimizer = NorMuonAdamW([group], replicas=dist.group.WORLD)


def disagree(rank, world, absent):
    toy = Vectors(world)
    for name, p in toy.params.items():
        p.grad = None if name in absent[rank] else numbers(name, 0)
    try:
        toy.optimizer.step()
        error = ""
    except RuntimeError as e:
        error = str(e)
    return error, int(toy.optimizer.skipped_steps), [n for n, p in toy.params.items() if (p != numbers(n, -1)).any()]


def test_nobody_steps_where_ranks_disagree_about_gradients(ranks):
    here, all_three = "one on this rank, but not everywhere", ["table", "vector", "single"]
    for absent, errors, skipped, changed in (
        ([(), ("table",)], ["", "none on this rank, but one elsewhere: table)"], 1, []),
        ([(), all_three], ["", f"none on this rank, but one elsewhere: {', '.join(all_three)})"], 1, []),
        ([("table",), ("vector",)], ["elsewhere: table; one on this", f"vector; {here}: table"], 0, []),
        ([("table",), ("table", "vector")], [f"({here}: vector)", "elsewhere: vector)"], 0, []),
        ([("table",), ("table",)], ["", ""], 0, ["vector", "single"]),
        ([all_three, all_three], ["", ""], 0, []),
    ):
        for (error, count, moved), want in zip(ranks(2, disagree, absent), errors, strict=True):
            assert (want in error) if want else not error, (absent, error)
            assert count == (skipped if not error else 0)
            assert moved == changed


def half_of_the_job(rank, world, mode):
    """Two of four ranks step; the others never do."""
    if mode == "ddp":
        replicas = init_device_mesh("cpu", (2, 2), mesh_dim_names=("half", "rank"))["rank"].get_group()
        toy = Toy("plain", 1, replicas=replicas)
    else:
        toy = Toy("halves", world)
    return toy.steps(range(3)).bits() if rank < 2 else {}


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_ranks_outside_of_the_group_need_not_step(ranks, mode):
    (expected,) = ranks(1, lambda *_: Toy("plain", 1).steps(range(3)).bits())
    found = ranks(4, half_of_the_job, mode)
    assert found[2:] == [{}, {}]
    for bits in found[:2]:
        assert_equal(bits, expected)
        assert set(bits) == set(expected)
