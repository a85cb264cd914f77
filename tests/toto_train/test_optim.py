"""The optimizer against a plain float64 reading of its formulas, skipped steps, and its state on disk."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toto_train.config import AdamWConfig, NorMuonConfig
from toto_train.optim.exchange import assign_owners, make_buckets, owner_loads
from toto_train.optim.layout import Block, Layout
from toto_train.optim.migrate import migrate
from toto_train.optim.normuon import FIXED, NorMuonAdamW
from toto_train.optim.orthogonalize import COEFFICIENTS, normalized_update, orthogonalize, resolve_dtype
from toto_train.optim.recipe import LR_RULES, set_lr

SHAPES = [(24, 24), (40, 16), (16, 40)]
DEPTH = 4


def relative(a, b) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def well_conditioned(shape, seed) -> torch.Tensor:
    """float64 matrix with singular values between 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    return u @ torch.diag(torch.linspace(1, 2, min(shape), dtype=torch.float64)) @ vh


def polar_express(x: torch.Tensor) -> torch.Tensor:
    """Five quintics on the singular values themselves, float64."""
    u, sigma, vh = torch.linalg.svd(x.double(), full_matrices=False)
    sigma = sigma / (1.02 * x.double().norm() + 1e-6)
    for a, b, c in COEFFICIENTS:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return u @ torch.diag(sigma) @ vh


class Reference:
    """The update of one matrix as the module's docstring says it, in float64."""

    def __init__(self, weight: torch.Tensor, config: NorMuonConfig, multiplier: float):
        self.w, self.c, self.multiplier = weight.double().clone(), config, multiplier
        self.m, self.v = torch.zeros_like(self.w), torch.zeros(len(weight), dtype=torch.float64)
        self.sure = torch.ones_like(self.w, dtype=torch.bool)
        """Entries whose sign was never within rounding of 0, so that the cautious mask is beyond doubt."""

    def step(self, g: torch.Tensor, factor: float) -> None:
        c = self.c
        self.m = c.momentum * self.m + g.double()
        o = polar_express(g.double() + c.momentum * self.m if c.nesterov else self.m)
        self.v = c.beta2 * self.v + (1 - c.beta2) * (o**2).mean(1)
        n = o / (self.v.sqrt() + c.eps)[:, None]
        d = n * o.norm() / n.norm() if c.normalize else o
        self.sure &= o.abs() > 1e-4
        shrink = c.weight_decay * factor * self.w
        if c.cautious:
            shrink = torch.where(d * self.w >= 0, shrink, 0.0)
        self.w = self.w - shrink - c.lr * factor * self.multiplier * d


def matrices(shapes=SHAPES, seed=0) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {f"matrix{i}": torch.nn.Parameter(torch.randn(s, generator=generator)) for i, s in enumerate(shapes)}


def normuon_group(params, config, multipliers=None):
    group = {"params": list(params.items()), "kind": "normuon", **dataclasses.asdict(config)}
    return group if multipliers is None else {**group, "multipliers": multipliers}


def toy_optimizer(params: dict[str, torch.nn.Parameter], **normuon_settings) -> NorMuonAdamW:
    """Matrices to NorMuon, each with a multiplier of its own; vectors to AdamW."""
    config = NorMuonConfig(**{"weight_decay": 1e-2, "orthogonalize_dtype": "fp32", **normuon_settings})
    two_d = {n: p for n, p in params.items() if p.ndim == 2}
    groups = [normuon_group(two_d, config, [1 / (1 + int(n[-1])) for n in two_d])]
    if vectors := [(n, p) for n, p in params.items() if p.ndim == 1]:
        groups.append({"params": vectors, "kind": "adamw", **dataclasses.asdict(AdamWConfig(weight_decay=1e-2))})
    return NorMuonAdamW(groups)


def toy_params(seed=0) -> dict[str, torch.nn.Parameter]:
    params = matrices(seed=seed)
    params["bias"] = torch.nn.Parameter(torch.arange(5.0))
    return params


def fill_gradients(params, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator)


# ---- orthogonalisation


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_fp32_matches_float64_and_the_polar_factor(shape):
    x = well_conditioned(shape, 1)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    got = orthogonalize(x.float(), torch.float32)
    assert relative(got, polar_express(x)) < 1e-5
    assert torch.linalg.svdvals(got).sub(1).abs().max() < 0.15  # what five quintics leave of a wide spectrum
    assert (
        relative(u.T @ got.double() @ vh.T, (u.T @ got.double() @ vh.T).diag().diag()) < 1e-5
    )  # singular vectors kept


@pytest.mark.parametrize("shape", [(64, 64), (192, 64), (64, 176)])
def test_orthogonalize_bf16_error_is_rounding(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    got = orthogonalize(x, torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert relative(got, polar_express(x)) < 8e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_ignores_scale(shape):
    x = well_conditioned(shape, 0).float()
    assert relative(orthogonalize(x * 1e6, torch.float32), orthogonalize(x, torch.float32)) < 1e-4
    assert not orthogonalize(torch.zeros(shape), torch.float32).any()


def test_resolve_dtype():
    cpu = torch.device("cpu")
    assert resolve_dtype("bf16", cpu) == torch.bfloat16
    assert resolve_dtype("fp32", cpu) == torch.float32
    assert resolve_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    assert resolve_dtype("auto", torch.device("meta")) == torch.float32
    with pytest.raises(ValueError, match="fp16"):
        resolve_dtype("fp16", cpu)


def test_fp32_is_not_tf32():
    cuda = torch.device("cuda")
    assert resolve_dtype("fp32", cuda) == torch.float32
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match=r"TF32 here; call torch\.set_float32_matmul_precision\('highest'\)"):
            resolve_dtype("fp32", cuda)
        assert resolve_dtype("bf16", cuda) == torch.bfloat16
        assert resolve_dtype("fp32", torch.device("cpu")) == torch.float32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert resolve_dtype("fp32", cuda) == torch.float32


# ---- NorMuon


@pytest.mark.parametrize("lr_rule", LR_RULES)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("cautious", [True, False])
def test_normuon_matches_the_float64_reference(lr_rule, nesterov, cautious):
    config = NorMuonConfig(
        lr=0.5, weight_decay=1e-2, beta2=0.9, nesterov=nesterov, cautious=cautious, orthogonalize_dtype="fp32"
    )
    params = matrices()
    multipliers = [LR_RULES[lr_rule](*p.shape) * DEPTH**-0.5 for p in params.values()]
    references = [Reference(p.data, config, k) for p, k in zip(params.values(), multipliers, strict=True)]
    starts = [p.detach().clone() for p in params.values()]
    optimizer = NorMuonAdamW([normuon_group(params, config, multipliers)])
    for step, factor in enumerate([0.5, 1.0, 1.0, 0.25]):
        set_lr(optimizer, factor)
        for i, (p, reference) in enumerate(zip(params.values(), references, strict=True)):
            g = well_conditioned(p.shape, i) + 0.1 * well_conditioned(p.shape, 10 * i + step)
            g[0] *= 1.5  # rows of unequal strength
            p.grad = g.float()
            reference.step(p.grad, factor)
        optimizer.step()
    for p, reference, start in zip(params.values(), references, starts, strict=True):
        sure = reference.sure if cautious else torch.ones_like(reference.sure)
        assert sure.float().mean() > 0.98
        moved, want = (p.data - start)[sure], (reference.w - start)[sure]
        assert relative(p.data[sure], reference.w[sure]) <= 1e-5
        assert relative(moved, want) <= 1e-5
        assert relative(optimizer.state[p]["momentum"], reference.m) <= 1e-5
        assert relative(optimizer.state[p]["v"].sqrt(), reference.v.sqrt()) <= 1e-5  # v enters by its root


def test_without_normalisation_it_is_muon():
    config = NorMuonConfig(lr=0.5, weight_decay=0.0, cautious=False, normalize=False, orthogonalize_dtype="fp32")
    params = matrices()
    references = [Reference(p.data, config, 1.0) for p in params.values()]
    optimizer = NorMuonAdamW([normuon_group(params, config)])
    for _ in range(3):
        for i, (p, reference) in enumerate(zip(params.values(), references, strict=True)):
            p.grad = well_conditioned(p.shape, i).float()
            reference.step(p.grad, 1.0)
        optimizer.step()
    for p, reference in zip(params.values(), references, strict=True):
        assert relative(p.data, reference.w) <= 1e-5
        assert not optimizer.state[p]["v"].any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_blocks_are_matrices_of_their_own(dtype):
    heights, factors = (24, 8, 9), (0.5, 1.0, 2.0)
    (whole,) = matrices([(41, 16)]).values()
    parts = {f"part{i}": torch.nn.Parameter(w.clone()) for i, w in enumerate(whole.detach().split(heights))}
    config = NorMuonConfig(orthogonalize_dtype=dtype, weight_decay=1e-2)
    group = {**normuon_group({"whole": whole}, config, [factors]), "blocks": [heights]}
    optimizers = NorMuonAdamW([group]), NorMuonAdamW([normuon_group(parts, config, list(factors))])
    for step in range(3):
        fill_gradients({"whole": whole}, step)
        for p, g in zip(parts.values(), whole.grad.split(heights), strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(whole, torch.cat(list(parts.values())))
    for key in ("momentum", "v"):
        together = torch.cat([optimizers[1].state[p][key] for p in parts.values()])
        assert torch.equal(optimizers[0].state[whole][key], together)


# ---- owners and buckets


class Group:
    """Stands for a process group: only its identity counts."""


def sharded_blocks(shapes, world) -> list[Block]:
    layouts = [Layout(shape, 0, Group, 0, world) for shape in shapes]
    blocks = [
        Block(str(i), torch.empty(0), layout, 0, layout.shape[0], 1.0, {}, torch.bfloat16)
        for i, layout in enumerate(layouts)
    ]
    assign_owners(blocks)
    return blocks


shape_lists = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=40)


@given(shape_lists, st.integers(1, 16))
def test_owners_keep_the_bound_of_longest_processing_time(shapes, world):
    """The block that made a rank the busiest came when that rank had least, and blocks come in falling order."""
    blocks = sharded_blocks(shapes, world)
    loads, costs = owner_loads(blocks, world), sorted((b.cost for b in blocks), reverse=True)
    assert sum(loads) == sum(costs)
    assert max(loads) <= max(costs[0], sum(costs) / world + costs[min(world, len(costs) - 1)] * (1 - 1 / world))
    if len(costs) <= world:
        assert max(loads) == costs[0]


@given(shape_lists, st.integers(1, 8), st.integers(1, 2**18))
def test_buckets_hold_every_block_once_within_the_bound(shapes, world, bound):
    blocks = sharded_blocks(shapes, world)
    buckets = make_buckets(blocks, bound)
    assert sorted(b.name for bucket in buckets for b in bucket.blocks) == sorted(b.name for b in blocks)
    for bucket in buckets:
        per_owner = [sum(b.owner == rank for b in bucket.blocks) for rank in range(world)]
        size = sum(2 * math.prod(b.shape) for b in bucket.blocks)
        assert size <= bound * world or max(per_owner) == 1
    assert len(make_buckets(blocks, 2**30)) == 1


def test_row_normalisation_keeps_the_norm_and_evens_rows():
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    o, c, v = normalized_update(x, torch.zeros(40), beta2=0.0, eps=1e-7, dtype=torch.float32)
    d = c[:, None] * o
    assert float(d.norm()) == pytest.approx(float(o.norm()), rel=1e-5)
    assert d.norm(dim=1).std() < 1e-5 * d.norm(dim=1).mean()
    assert torch.allclose(v, o.square().mean(1))


def test_a_matrix_without_gradient_history_stays():
    params = toy_params()
    before = {n: p.detach().clone() for n, p in params.items()}
    optimizer = toy_optimizer(params, weight_decay=0.0)
    fill_gradients(params, 0)
    params["matrix0"].grad.zero_()
    params["matrix1"].grad = None
    for _ in range(2):
        optimizer.step()
    assert torch.equal(params["matrix0"], before["matrix0"])
    assert torch.equal(params["matrix1"], before["matrix1"])
    assert not torch.equal(params["matrix2"], before["matrix2"])
    assert optimizer.skipped_steps == 0


def test_decay_follows_the_schedule_not_the_learning_rate():
    shrink = {}
    for lr, factor in [(1e-3, 1.0), (1.0, 1.0), (1.0, 0.5)]:
        params = matrices([(8, 8)])
        optimizer = toy_optimizer(params, lr=lr, cautious=False)
        params["matrix0"].grad = torch.zeros(8, 8)
        start = params["matrix0"].detach().clone()
        set_lr(optimizer, factor)
        optimizer.step()
        shrink[lr, factor] = float((1 - params["matrix0"].data / start).mean())
    assert shrink[1e-3, 1.0] == pytest.approx(1e-2, rel=1e-4)
    assert shrink[1.0, 1.0] == pytest.approx(1e-2, rel=1e-4)
    assert shrink[1.0, 0.5] == pytest.approx(5e-3, rel=1e-4)


# ---- AdamW


def test_adamw_part_is_torch_adamw_step_by_step():
    config = AdamWConfig(weight_decay=1e-2)
    generator = torch.Generator().manual_seed(4)
    ours = {
        f"p{i}": torch.nn.Parameter(torch.randn(s, generator=generator)) for i, s in enumerate([(6, 4), (9,), (3,)])
    }
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours.values()]
    multipliers = [0.5, 1.0, 0.5]
    groups = [{"params": list(ours.items()), "kind": "adamw", "multipliers": multipliers, **dataclasses.asdict(config)}]
    optimizer = NorMuonAdamW(groups)
    expected = torch.optim.AdamW(
        [{"params": [p], "lr": config.lr * k} for p, k in zip(theirs, multipliers, strict=True)],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    for step in range(6):
        fill_gradients(ours, step)
        for a, b in zip(ours.values(), theirs, strict=True):
            b.grad = a.grad.clone()
        optimizer.step()
        expected.step()
        for a, b in zip(ours.values(), theirs, strict=True):
            assert relative(a.data, b.data) < 1e-6


# ---- steps that must not happen


@pytest.mark.parametrize("where", ["matrix1", "bias"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_a_non_finite_gradient_changes_nothing_and_is_counted(where, bad):
    params = toy_params()
    optimizer = toy_optimizer(params)
    fill_gradients(params, 0)
    optimizer.step()
    weights = {n: p.detach().clone() for n, p in params.items()}
    state = {(n, k): t.clone() for n, s in optimizer.state_dict()["state"].items() for k, t in s.items()}
    fill_gradients(params, 1)
    params[where].grad.view(-1)[2] = bad
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(p, weights[n]) for n, p in params.items())
    for (name, key), tensor in state.items():
        assert torch.equal(optimizer.state_dict()["state"][name][key], tensor)
    fill_gradients(params, 2)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert not any(torch.equal(p, weights[n]) for n, p in params.items())


# ---- state on disk


def save_and_load(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_is_bitwise_and_by_name(dtype):
    straight = toy_params()
    optimizer = toy_optimizer(straight, orthogonalize_dtype=dtype)
    for step in range(3):
        fill_gradients(straight, step)
        set_lr(optimizer, 0.5)
        optimizer.step()
    straight["bias"].grad[0] = math.nan
    optimizer.step()
    saved = save_and_load({"weights": straight, "optimizer": optimizer.state_dict()})

    resumed = {n: torch.nn.Parameter(saved["weights"][n].detach()) for n in reversed(straight)}
    second = toy_optimizer(resumed, orthogonalize_dtype=dtype)
    second.load_state_dict(saved["optimizer"])
    assert second.skipped_steps == 1
    assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in optimizer.param_groups]
    for step in range(3, 6):
        for params, opt in ((straight, optimizer), (resumed, second)):
            fill_gradients({n: params[n] for n in straight}, step)  # the same draws whatever the order
            opt.step()
    for name, p in straight.items():
        assert torch.equal(p, resumed[name])
        for key, tensor in optimizer.state[p].items():
            assert torch.equal(tensor, second.state[resumed[name]][key])


def test_a_state_that_does_not_fit_says_which_names():
    params = toy_params()
    optimizer = toy_optimizer(params)
    before = {n: dict(s) for n, s in save_and_load(optimizer.state_dict())["state"].items()}
    broken = save_and_load(optimizer.state_dict())
    broken["state"]["other"] = broken["state"].pop("matrix0")
    broken["state"]["matrix1"]["v"] = torch.ones(3)
    with pytest.raises(ValueError, match="other is not in") as error:
        optimizer.load_state_dict(broken)
    assert "matrix0 is missing" in str(error.value)
    assert "matrix1 holds" in str(error.value)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[n][k], t) for n, s in before.items() for k, t in s.items())  # nothing was half loaded


def test_groups_cut_otherwise_do_not_fit():
    optimizer = toy_optimizer(toy_params())
    state = save_and_load(optimizer.state_dict())
    moved = state["param_groups"][0]["param_names"]
    state["param_groups"].insert(0, {**state["param_groups"][0], "param_names": moved[:1]})
    state["param_groups"][1]["param_names"] = moved[1:]
    with pytest.raises(ValueError, match="parameters are grouped otherwise"):
        optimizer.load_state_dict(state)


def test_a_loaded_state_leaves_what_is_fixed_at_construction():
    """Settings that are read in every step come with the state; the others would say what is not done."""
    config, bias = NorMuonConfig(orthogonalize_dtype="fp32"), {"params": [("bias", torch.nn.Parameter(torch.ones(3)))]}
    bias |= {"kind": "adamw", **dataclasses.asdict(AdamWConfig())}

    def optimizer(order, blocks, dtype, multiplier, momentum):
        params = {n: torch.nn.Parameter(torch.ones(8, 8)) for n in order}
        group = normuon_group(params, config, [multiplier + i for i in range(2)])
        group |= {"blocks": blocks, "orthogonalize_dtype": dtype, "momentum": momentum}
        return NorMuonAdamW([group, {**bias, "multipliers": [multiplier]}])

    saved = optimizer("ab", [(4, 4), ()], "fp32", 1.0, 0.5).state_dict()
    other = optimizer("ba", [(), (2, 6)], "bf16", 7.0, 0.9)
    fixed = [{k: g[k] for k in FIXED if k in g} for g in other.param_groups]
    other.load_state_dict(save_and_load(saved))
    assert [{k: g[k] for k in FIXED if k in g} for g in other.param_groups] == fixed
    assert {"kind", "param_names", "multipliers", "blocks", "orthogonalize_dtype"} == set(fixed[0])
    assert fixed[0]["multipliers"] == [7.0, 8.0] == [b.multiplier for b in other.blocks if b.start == 0]
    assert fixed[1]["multipliers"] == [7.0]
    assert other.param_groups[0]["momentum"] == 0.5


def test_an_optimizer_is_not_copied():
    optimizer = toy_optimizer(toy_params())
    for function in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="build another one over the other parameters"):
            function(optimizer)


def test_wrong_groups_are_errors():
    config = NorMuonConfig()
    with pytest.raises(ValueError, match="takes matrices"):
        NorMuonAdamW([normuon_group({"bias": torch.nn.Parameter(torch.zeros(3))}, config)])
    with pytest.raises(ValueError, match="needs a name"):
        NorMuonAdamW([{**normuon_group({}, config), "params": list(matrices().values())}])
    with pytest.raises(ValueError, match="kind='muon'"):
        NorMuonAdamW([{**normuon_group(matrices(), config), "kind": "muon"}])
    with pytest.raises(ValueError, match="must be positive"):
        NorMuonAdamW([{**normuon_group(matrices(), config), "lr": 0.0}])
    with pytest.raises(ValueError, match="named matrix0"):
        NorMuonAdamW([normuon_group(matrices([(2, 2)]), config), normuon_group(matrices([(2, 2)]), config)])
    with pytest.raises(ValueError, match="blocks of \\[2, 3\\] rows"):
        NorMuonAdamW([{**normuon_group(matrices([(4, 4)]), config), "blocks": [(2, 3)]}])
    with pytest.raises(ValueError, match="replicated_state='half'"):
        NorMuonAdamW([normuon_group(matrices(), config)], replicated_state="half")
    with pytest.raises(ValueError, match="give all groups at construction"):
        toy_optimizer(matrices()).add_param_group(normuon_group({"more": torch.nn.Parameter(torch.ones(2, 2))}, config))


# ---- state of other optimizers


def test_a_run_of_torch_optimizers_goes_on_here():
    """Momentum of torch.optim.Muon is a mean where ours is a sum; orthogonalised, the two give one update."""
    params = toy_params()
    two_d = {n: p for n, p in params.items() if p.ndim == 2}
    muon = torch.optim.Muon(list(two_d.values()), lr=0.1, momentum=0.9)
    adam = torch.optim.AdamW([("model.bias", params["bias"])], lr=0.1, betas=(0.8, 0.9))
    summed = {n: torch.zeros_like(p) for n, p in two_d.items()}
    for step in range(3):
        fill_gradients(params, step)
        muon.step()
        adam.step()
        for n, p in two_d.items():
            summed[n].mul_(0.9).add_(p.grad)
    optimizer = toy_optimizer(params, momentum=0.9)
    optimizer.load_state_dict(migrate(muon.state_dict(), adam.state_dict(), names=[list(two_d), []]))
    for n, p in two_d.items():
        assert relative(optimizer.state[p]["momentum"], summed[n]) < 1e-5
        assert not optimizer.state[p]["v"].any()
    (theirs,) = adam.state_dict()["state"].values()
    for key, tensor in optimizer.state[params["bias"]].items():
        assert torch.equal(tensor, theirs[key])
    assert [g["lr"] for g in optimizer.param_groups] == [NorMuonConfig.lr, AdamWConfig.lr]


def test_a_parameter_that_never_had_a_gradient_elsewhere_starts_anew():
    params = toy_params()
    two_d = {n: p for n, p in params.items() if p.ndim == 2}
    muon = torch.optim.Muon(list(two_d.values()), lr=0.1, momentum=0.9)
    adam = torch.optim.AdamW([("bias", params["bias"])], lr=0.1)
    fill_gradients({n: p for n, p in params.items() if n not in ("matrix1", "bias")}, 0)
    muon.step()
    adam.step()
    optimizer = toy_optimizer(params)
    fill_gradients(params, 1)
    optimizer.step()
    optimizer.load_state_dict(migrate(muon.state_dict(), adam.state_dict(), names=[list(two_d), []]))
    for name in params:
        moved = [bool(t.any()) for t in optimizer.state[params[name]].values()]
        assert any(moved) == (name in ("matrix0", "matrix2")), name


def test_a_state_of_dion_goes_on_here():
    m, v, moments = torch.randn(6, 4), torch.rand(6, 1), torch.rand(2, 3)
    theirs = {
        "state": {0: {"momentum": m, "variance_neuron": v}, 1: {"momentum": moments[0], "variance": moments[1]}},
        "param_groups": [{"params": [0], "step": 7, "mu": 0.95}, {"params": [1], "step": 7}],
    }
    assert set(migrate(theirs, names=[["w", "b"]])["state"]) == {"w", "b"}
    state = migrate(theirs, names=[["module.w", "module.b"]])["state"]
    assert torch.equal(state["w"]["momentum"], m)
    assert torch.equal(state["w"]["v"], v[:, 0])
    assert (state["b"]["step"], set(state["b"])) == (7, {"step", "exp_avg", "exp_avg_sq"})
    plain = {"state": {0: {"momentum": m}}, "param_groups": [{"params": [0], "step": 7, "mu": 0.95}]}
    assert not migrate(plain, names=[["w"]])["state"]["w"]["v"].any()


def test_a_state_nobody_knows_is_refused():
    group = {"params": [0], "momentum": 0.9}
    known, unknown = (
        {"momentum_buffer": torch.ones(2, 2)},
        {"momentum_buffer": torch.ones(2, 2), "trace": torch.ones(2)},
    )
    with pytest.raises(ValueError, match=r"w: the keys \['momentum_buffer', 'trace'\]"):
        migrate({"state": {0: unknown}, "param_groups": [group]}, names=[["w"]])
    with pytest.raises(ValueError, match="parameter 0 has no name"):
        migrate({"state": {0: known}, "param_groups": [group]})
    with pytest.raises(ValueError, match="w is in several"):
        migrate(*[{"state": {0: known}, "param_groups": [group]}] * 2, names=[["w"], ["model.w"]])
