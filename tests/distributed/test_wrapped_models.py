"""Models that torch shards or replicates train with the bits of one process, and what that costs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from toto_train.checkpoint import Position
from toto_train.config import Config, ModelConfig, NorMuonConfig, OptimizerConfig, ParallelConfig
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule
from toto_train.objective import loss_sum
from toto_train.optim.exchange import owner_loads
from toto_train.optim.layout import global_norm
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import build_optimizer, canonical
from toto_train.parallel import build, whole
from toto_train.ranks import Ranks

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

from collectives import Collectives

pytestmark = pytest.mark.distributed

CONFIG = ModelConfig(d_model=32, d_ff=64)


def wrapped_training(rank, world, wrapper, qk_norm=False):
    """Three steps of a small model; every rank has the same batch, so the mean over ranks is exact."""
    model = Toto.create(dataclasses.replace(CONFIG, qk_norm=qk_norm), seed=0)
    whole, replicas = model, None
    if wrapper in ("fsdp", "hsdp"):
        mesh = init_device_mesh("cpu", (world,))
        if wrapper == "hsdp":
            mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif wrapper == "ddp":
        whole, replicas = DistributedDataParallel(model), dist.group.WORLD
    config = OptimizerConfig()
    optimizer = build_optimizer(whole.named_parameters(), config, CONFIG.num_layers, replicas)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 128, generator=generator).cumsum(-1)
    seen, ids = torch.ones_like(x, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.long)
    norms = []
    for _ in range(3):
        loss, weight = loss_sum(whole(x, seen, seen, ids), x, seen, seen, 32, 20.0)
        (loss / weight).backward()
        norms.append(global_norm([p.grad for p in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    tensors = {canonical(n): p.detach() for n, p in whole.named_parameters()}
    tensors |= {f"{n}.{k}": t for n, s in optimizer.state_dict()["state"].items() for k, t in s.items()}
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}, torch.stack(norms)


@pytest.mark.parametrize(
    ("qk_norm", "cases"),
    [
        (False, [(2, "fsdp"), (4, "fsdp"), (4, "hsdp"), (2, "ddp"), (4, "ddp")]),
        (True, [(2, "fsdp"), (2, "ddp")]),
    ],
)
def test_models_that_torch_shards_or_replicates_train_with_the_same_bits(ranks, qk_norm, cases):
    ((expected, norms),) = ranks(1, wrapped_training, "none", qk_norm)
    for world, wrapper in cases:
        for got, got_norms in ranks(world, wrapped_training, wrapper, qk_norm):
            assert set(got) == set(expected)
            assert not [name for name, t in got.items() if not torch.equal(t, expected[name])]
            torch.testing.assert_close(got_norms, norms, rtol=1e-6, atol=0)


def clipped(rank, world, clip):
    config = Config(model=CONFIG, optimizer=OptimizerConfig(clip_norm=clip), global_rows=2, micro_rows=2)
    model = Toto.create(CONFIG, seed=0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    if world > 1:
        for layer in model.layers:
            fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, CONFIG.num_layers)
    module = TrainingModule(config, model, optimizer, Position())
    module.on_before_optimizer_step(optimizer)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in gradients.items()}


def test_clipping_sees_the_norm_over_all_shards(ranks):
    """Some of the parameters are sharded, the rest is whole on every rank."""
    (expected,) = ranks(1, clipped, 7.0)
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm == pytest.approx(7.0, rel=1e-5)
    for gradients in ranks(2, clipped, 7.0):
        for name, g in gradients.items():
            torch.testing.assert_close(g, expected[name], rtol=1e-6, atol=0)


def whole_weights(rank, world):
    config = Config(model=CONFIG, global_rows=2, micro_rows=1, parallel=ParallelConfig("fsdp2", devices=world))
    mesh = init_device_mesh("cpu", (world,))
    model = build(config, Ranks(torch.device("cpu"), rank, rank, world, mesh))
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    held = sum(p.to_local().numel() for p in model.parameters())
    copies = whole(model), whole(model, doubled)
    return held, *({name: p.detach() for name, p in copy.named_parameters()} for copy in copies)


def test_a_sharded_model_can_be_had_whole_with_its_weights_or_others(ranks):
    """Initial weights, too, are those of one process however they are sharded."""
    expected = {name: p.detach() for name, p in Toto.create(CONFIG, seed=0).named_parameters()}
    parts = ranks(4, whole_weights)
    assert sum(held for held, _, _ in parts) == sum(t.numel() for t in expected.values())
    for _, own, doubled in parts:
        assert all(torch.equal(own[name], t) and torch.equal(doubled[name], 2 * t) for name, t in expected.items())


# ---- what it costs


def mixed_shapes() -> dict[str, tuple[int, int]]:
    """The matrices of two layers of width 64, and some that divide among four ranks badly."""
    layer = {"in": (192, 64), "out": (64, 64), "up": (352, 64), "down": (64, 176)}
    return {f"{i}.{n}": s for i in range(2) for n, s in layer.items()} | {"a": (66, 64), "b": (18, 40), "c": (96, 32)}


def traffic(rank, world, mode):
    """Collectives and bytes of a step, every matrix in a group of its own; loads of the owners."""
    mesh = init_device_mesh("cpu", (world,))
    groups = []
    for i, (name, shape) in enumerate(mixed_shapes().items()):
        p = nn.Parameter(torch.ones(shape))
        if mode == "fsdp":
            p = nn.Parameter(distribute_tensor(p.data, mesh, [Shard(i % 2)], src_data_rank=None))
        p.grad = torch.ones_like(p)
        config = NorMuonConfig(lr=0.1 * (i + 1), orthogonalize_dtype="bf16")
        groups.append({"kind": "normuon", "params": [(name, p)], **dataclasses.asdict(config)})
    optimizer = NorMuonAdamW(groups, replicas=dist.group.WORLD if mode == "ddp" else None)
    with Collectives() as counted:
        optimizer.step()
    return counted.calls, counted.sent, owner_loads(optimizer.blocks, world)


def known_collectives(rank, world):
    x = torch.ones(8, dtype=torch.float32)
    with Collectives() as counted:
        dist.all_reduce(x)
        dist.all_to_all_single(torch.empty(8), x)
        splits = [5, 1, 1, 1]
        dist.all_to_all_single(torch.empty(20 if rank == 0 else 4), x, [splits[rank]] * 4, splits)
        dist.all_gather_into_tensor(torch.empty(32), x)
        distribute_tensor(x, init_device_mesh("cpu", (world,)), [Shard(0)], src_data_rank=None).full_tensor()
    return counted.calls, counted.sent


def test_the_counter_knows_what_a_rank_sends(ranks):
    for rank, (calls, sent) in enumerate(ranks(4, known_collectives)):
        assert (calls["allreduce"], calls["alltoall_base"], calls["_allgather_base"]) == (1, 2, 1)
        own = 5 if rank == 0 else 1
        assert calls["all_gather_into_tensor"] == 1
        assert sent == 4 * (2 * 8 * 3 / 4 + 6 + (8 - own) + 3 * 8 + 3 * 2)


def test_two_collectives_and_two_fifths_of_the_bytes(ranks):
    bf16_bytes = sum(2 * m * n for m, n in mixed_shapes().values())
    results = ranks(4, traffic, "fsdp")
    for calls, _, _ in results:
        assert calls == {"alltoall_base": 2, "allreduce": 1}  # the latter: who has gradients, and finite ones
    assert max(sent for _, sent, _ in results) <= 0.41 * bf16_bytes
    assert min(sent for _, sent, _ in results) > 0.3 * bf16_bytes  # something was counted
    for calls, _, _ in ranks(4, traffic, "ddp"):
        assert calls == {"_allgather_base": 1, "allreduce": 1}


def test_owners_have_equal_loads(ranks):
    costs = [m * n * min(m, n) for m, n in mixed_shapes().values()]
    for _, _, loads in ranks(4, traffic, "fsdp"):
        assert sum(loads) == sum(costs)
        assert max(loads) <= 1.1 * sum(costs) / 4


def one_group(p):
    return NorMuonAdamW([{"kind": "normuon", "params": [("mine", p)], **dataclasses.asdict(NorMuonConfig())}])


def refused(rank, world):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    p = nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh, [Shard(0), Shard(1)], src_data_rank=None))
    with pytest.raises(ValueError, match=r"mine: placements .* at most one mesh dimension may shard"):
        one_group(p)
    rows = (1, 3, 2, 2)[rank]
    mesh = init_device_mesh("cpu", (world,))
    odd = DTensor.from_local(torch.ones(rows, 8), mesh, [Shard(0)], run_check=False, shape=(8, 8), stride=(8, 1))
    if rank < 2:
        with pytest.raises(ValueError, match=rf"mine: this rank holds \({rows}, 8\) where \(2, 8\) was expected"):
            one_group(nn.Parameter(odd))


def test_matrices_cut_both_ways_or_unevenly_are_refused(ranks):
    ranks(4, refused)


def copies_group(rank, world):
    """Ranks that share the work on a matrix of which a mesh of two dimensions holds copies."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    p = nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh, [Replicate(), Replicate()], src_data_rank=None))
    return dist.get_process_group_ranks(one_group(p).blocks[0].layout.group)


def test_copies_are_worked_on_within_the_last_mesh_dimension(ranks):
    assert ranks(4, copies_group) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def large_norm(rank, world):
    """Each half's square fits fp32, their sum does not."""
    mesh = init_device_mesh("cpu", (world,))
    return global_norm([distribute_tensor(torch.full((2, 1), 1.5e19), mesh, [Shard(0)], src_data_rank=None)])


def test_the_norm_of_large_shards_does_not_overflow(ranks):
    for norm in ranks(2, large_norm):
        assert float(norm) == pytest.approx(1.5e19 * 2**0.5, rel=1e-5)
