"""Which optimizer each parameter gets and at which rate, and the schedule over steps."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toto_train.config import Config, ModelConfig, NorMuonConfig, OptimizerConfig, ScheduleConfig
from toto_train.model.fused import queries_keys_values
from toto_train.model.toto import Toto
from toto_train.model.umup import residual
from toto_train.optim.recipe import (
    build_optimizer,
    canonical,
    describe_routing,
    route,
    routing_table,
    set_lr,
    set_momentum,
    warm_momentum,
    wsd,
)
from toto_train.plan import plan

DEPTH = 4


def normuon(**settings) -> OptimizerConfig:
    return OptimizerConfig(normuon=NorMuonConfig(**settings))


# ---- routing


def nano_shapes(prefix="") -> dict[str, tuple[int, ...]]:
    d, d_ff = 64, 176
    shapes: dict[str, tuple[int, ...]] = {}
    for mlp, fan_in, hidden, out in (("patch_embed", 64, 4 * d, d), ("head", d, 4 * d, 288)):
        for linear, m, n in (("linear1", hidden, fan_in), ("linear2", out, hidden), ("skip", out, fan_in)):
            shapes |= {f"{mlp}.{linear}.weight": (m, n), f"{mlp}.{linear}.bias": (m,)}
    for i in range(DEPTH):
        attn, mlp = f"layers.{i}.attn", f"layers.{i}.mlp"
        shapes |= {f"{attn}.in_proj.weight": (3 * d, d), f"{attn}.in_proj.bias": (3 * d,)}
        shapes |= {f"{attn}.out_proj.weight": (d, d), f"{attn}.out_proj.bias": (d,)}
        shapes |= {f"{attn}.per_dim_scale": (32,)}
        shapes |= {f"{mlp}.up.weight": (2 * d_ff, d), f"{mlp}.down.weight": (d, d_ff)}
    return {prefix + name: shape for name, shape in shapes.items()}


def test_routes_and_multipliers_of_nano():
    routes = {r.name: r for r in route(nano_shapes(), DEPTH, OptimizerConfig())}
    assert set(routes) == set(nano_shapes())
    normuon_names = {n for n, r in routes.items() if r.kind == "normuon"}
    assert normuon_names == {n for n, s in nano_shapes().items() if n.startswith("layers") and len(s) == 2}
    expected = {
        "layers.3.mlp.up.weight": math.sqrt(352 / 64) / 2,
        "layers.0.mlp.down.weight": math.sqrt(64 / 176) / 2,
        "layers.1.attn.per_dim_scale": 0.5,
        "layers.1.attn.in_proj.bias": 0.5,
        "patch_embed.linear1.weight": 1 / 8,
        "patch_embed.linear2.weight": 1 / 16,
        "patch_embed.skip.bias": 1.0,
        "head.linear1.weight": 1 / 8,
        "head.linear2.weight": 1.0,
        "head.skip.weight": 1.0,
        "head.skip.bias": 1.0,
    }
    assert {n: routes[n].multiplier for n in expected} == pytest.approx(expected)
    for rule, want in (("unit_scaled", 8.0), ("original", 1.0), ("match_rms_adamw", 0.2 * math.sqrt(176))):
        down = next(
            r for r in route(nano_shapes(), DEPTH, normuon(lr_rule=rule)) if r.name == "layers.0.mlp.down.weight"
        )
        assert down.multiplier == pytest.approx(want / 2)


def test_wrappers_leave_no_trace_in_names():
    assert canonical("model._orig_mod.layers.0._checkpoint_wrapped_module.mlp.up.weight") == "layers.0.mlp.up.weight"
    assert route(nano_shapes("module.model."), DEPTH, OptimizerConfig()) == route(
        nano_shapes(), DEPTH, OptimizerConfig()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.attn.gate.weight": (64, 64)}, "layers.0.attn.gate.weight .* has no rule"),
        ({"embedding.weight": (64, 64)}, "has no rule"),
        ({"layers.0.attn.per_dim_scale": (2, 16)}, "all matrices of the stack"),
        ({"layers.0.mlp.up.weight": (22528,)}, "all matrices of the stack"),
        ({"layers.4.mlp.up.weight": (352, 64)}, "depth=4"),
    ],
)
def test_routing_errors(change, message):
    with pytest.raises(ValueError, match=message):
        route(nano_shapes() | change, DEPTH, OptimizerConfig())


def test_no_matrix_for_normuon_is_an_error():
    with pytest.raises(ValueError, match="no parameter would get NorMuon"):
        build_optimizer([("head.skip.weight", torch.nn.Parameter(torch.ones(288, 64)))], OptimizerConfig(), 0)
    with pytest.raises(ValueError, match="split='qkv'"):
        route(nano_shapes(), DEPTH, normuon(split="qkv"))
    with pytest.raises(ValueError, match="lr_rule='muon'"):
        route(nano_shapes(), DEPTH, normuon(lr_rule="muon"))


@pytest.mark.parametrize(
    ("split", "in_proj", "up"), [("none", (), ()), ("fused", (64,) * 3, (176,) * 2), ("heads", (32,) * 6, (176,) * 2)]
)
def test_fused_weights_split_where_asked(split, in_proj, up):
    """Two heads of 32; a block has the shape factor of a matrix of its size."""
    routes = {r.name: r for r in route(nano_shapes(), DEPTH, normuon(split=split))}
    found = {n.removeprefix("layers.2."): r for n, r in routes.items() if n.startswith("layers.2.")}
    assert found["attn.in_proj.weight"].blocks == in_proj
    assert found["mlp.up.weight"].blocks == up
    assert not found["attn.out_proj.weight"].blocks
    assert not found["mlp.down.weight"].blocks
    rows = {"none": 192, "fused": 64, "heads": 32}[split]
    assert found["attn.in_proj.weight"].multiplier == pytest.approx(math.sqrt(rows / 64) / 2)
    assert found["mlp.down.weight"].multiplier == pytest.approx(math.sqrt(64 / 176) / 2)


def test_blocks_are_what_the_model_makes_of_a_fused_weight():
    """Blocks of in_proj hold q, k and v of a head each; blocks of up hold the two factors of the gate."""
    config = ModelConfig(d_model=32, d_ff=48, num_layers=1, num_variate_layers_per_group=0)
    model = Toto.create(config, 0)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    blocks = {r.name: r.blocks for r in route(shapes, 1, normuon(split="heads"))}
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    in_proj, mlp, plain = model.layers[0].attn.in_proj, model.layers[0].mlp, residual(1.0)
    heights = blocks["layers.0.attn.in_proj.weight"]
    numbered = torch.cat([torch.full((height, 32), float(i)) for i, height in enumerate(heights)])
    q, k, v, _ = queries_keys_values(
        x, numbered, None, torch.zeros(16), None, 2, 1e-4, in_proj.factors(4), plain
    )  # fmt: skip
    found = torch.cat([q[0], k[0], v[0]])  # [block, position, head_dim]
    torch.testing.assert_close(found, found[1] * torch.arange(6.0)[:, None, None])
    for half in mlp.up.weight.data.split(blocks["layers.0.mlp.up.weight"]):
        kept = half.clone()
        half.zero_()
        torch.testing.assert_close(mlp(x, plain, 4), x * plain.skip)  # either one silent: nothing passes
        half.copy_(kept)
    assert not torch.allclose(mlp(x, plain, 4), x * plain.skip)


def test_the_stack_goes_to_adamw_only_where_asked():
    routes = {r.name: r for r in route(nano_shapes(), DEPTH, OptimizerConfig(stack="adamw"))}
    assert {r.kind for r in routes.values()} == {"adamw"}
    assert routes["layers.1.mlp.down.weight"].multiplier == pytest.approx(176**-0.5 * DEPTH**-0.5)
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in nano_shapes().items()]
    optimizer = build_optimizer(named, OptimizerConfig(stack="adamw"), DEPTH)
    assert [g["kind"] for g in optimizer.param_groups] == ["adamw"]
    states = [plan(Config(optimizer=OptimizerConfig(stack=kind))).state_bytes // 4 for kind in ("normuon", "adamw")]
    stack = [s for n, s in nano_shapes().items() if n.startswith("layers") and len(s) == 2]
    assert states[1] - states[0] == sum(m * n - m for m, n in stack)  # a second moment each, instead of one a row


def test_table_joins_equal_layers():
    lines = routing_table(route(nano_shapes(), DEPTH, OptimizerConfig())).splitlines()
    up = next(line for line in lines if line.startswith("layers.*.mlp.up.weight"))
    assert up.split()[1:5] == ["4", "352x64", "normuon", "1.173"]
    assert lines[-1].startswith("normuon: 16 tensors")


def test_build_optimizer_from_names(caplog):
    caplog.set_level(logging.INFO)
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in nano_shapes("model.").items()]
    dict(named)["model.head.skip.bias"].requires_grad = False
    optimizer = build_optimizer(named, OptimizerConfig(), DEPTH)
    assert [(g["kind"], g["lr"], g["initial_lr"]) for g in optimizer.param_groups] == [
        ("normuon", 0.652, 0.652),
        ("adamw", 0.012, 0.012),
    ]
    names = {n for g in optimizer.param_groups for n in g["param_names"]}
    assert names == set(nano_shapes()) - {"head.skip.bias"}
    assert set(optimizer.state_dict()["state"]) == names
    assert "layers.*.attn.in_proj.weight" in caplog.text


def test_a_frozen_stack_gets_adamw_only_where_asked():
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in nano_shapes().items()]
    for name, p in named:
        p.requires_grad = not (name.startswith("layers") and p.ndim == 2)
    for build in (build_optimizer, describe_routing):
        with pytest.raises(ValueError, match=r"no parameter would get NorMuon.*set optimizer\.stack=adamw"):
            build(named, OptimizerConfig(), DEPTH)
    assert [g["kind"] for g in build_optimizer(named, OptimizerConfig(stack="adamw"), DEPTH).param_groups] == ["adamw"]
    for stack in ("normuon", "adamw"):
        with pytest.raises(ValueError, match="nothing to train: all 40 parameters are frozen"):
            build_optimizer([(n, p.requires_grad_(False)) for n, p in named], OptimizerConfig(stack=stack), DEPTH)


def test_settings_of_the_exchange_reach_the_optimizer():
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in nano_shapes().items()]
    optimizer = build_optimizer(named, normuon(bucket_mib=3, replicated_state="owner"), DEPTH)
    assert optimizer.bucket_bytes == 3 * 2**20
    assert optimizer.replicated_state == "owner"


# ---- schedules

schedules = st.tuples(st.integers(0, 50), st.integers(0, 100), st.integers(0, 50)).map(
    lambda t: ScheduleConfig(warmup_steps=t[0], decay_steps=t[2], max_steps=max(1, sum(t)))
)


@given(schedules)
def test_wsd_rises_stays_and_falls(config):
    factors = [wsd(step, config) for step in range(config.max_steps)]
    start, end = config.warmup_steps, config.max_steps - config.decay_steps
    assert all(0 < f <= 1 for f in factors)
    assert all(f == 1 for f in factors[start:end])
    assert factors[:start] == pytest.approx([(i + 1) / start for i in range(start)])
    assert factors[end:] == pytest.approx([1 - i / config.decay_steps for i in range(config.max_steps - end)])
    if config.decay_steps:
        assert wsd(config.max_steps, config) == wsd(config.max_steps + 7, config) == 0


def test_momentum_warms_up_in_a_line():
    config = NorMuonConfig(momentum=0.95, momentum_start=0.85, momentum_warmup_steps=4)
    found = [warm_momentum(step, config) for step in range(7)]
    assert found == pytest.approx([0.85, 0.875, 0.9, 0.925, 0.95, 0.95, 0.95])
    assert warm_momentum(0, NorMuonConfig()) == NorMuonConfig.momentum == 0.96
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in nano_shapes().items()]
    optimizer = build_optimizer(named, OptimizerConfig(), DEPTH)
    set_momentum(optimizer, 0.5)
    assert [g.get("momentum") for g in optimizer.param_groups] == [0.5, None]


def test_lambda_lr_and_set_lr_agree():
    config = ScheduleConfig(max_steps=10, warmup_steps=3, decay_steps=4)
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in nano_shapes().items()]
    optimizer = build_optimizer(named, OptimizerConfig(), DEPTH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: wsd(step, config))
    for step in range(10):
        present = [g["lr"] for g in optimizer.param_groups]
        set_lr(optimizer, wsd(step, config))
        assert [g["lr"] for g in optimizer.param_groups] == present
        optimizer.step()
        scheduler.step()
