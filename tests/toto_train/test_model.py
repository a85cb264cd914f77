"""The model against the official package (a black box), and the properties training relies on."""

import dataclasses

import numpy as np
import pytest
import torch

from toto_train import hub
from toto_train.config import Config, ModelConfig
from toto_train.model.attention import make_xpos_table
from toto_train.model.decoder import MaskFlags, group_ids
from toto_train.model.scaler import causal_loc_scale
from toto_train.model.toto import Prediction, Toto, mask_flags
from toto_train.model.umup import residual, set_replicas
from toto_train.objective import loss_sum, patch_mask
from toto_train.plan import plan

PATCH = 32
SIZES = {
    "tiny": (256, 4, 4, 688, 1e-4, 4_144_448),
    "proxy": (256, 12, 4, 688, 1e-4, 10_477_376),
    "small": (512, 6, 8, 1368, 1e-4, 21_915_584),
    "large": (1024, 24, 16, 2736, 1e-4, 312_684_608),
    "xl": (1536, 36, 24, 4096, 5e-4, 1_041_033_024),
    "xxl": (2048, 48, 32, 5464, 5e-4, 2_454_281_792),
}


def config(name: str) -> ModelConfig:
    if name.startswith("nano"):
        return ModelConfig(qk_norm=name == "nano qk_norm")
    d, layers, heads, d_ff, eps, _ = SIZES[name]
    return ModelConfig(name, d, layers, heads, d_ff, eps)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def random_model(name: str, seed: int = 0, **changes) -> Toto:
    """Random weights everywhere, also where training starts from zero."""
    model = Toto.create(dataclasses.replace(config(name), **changes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return model


def official(model: Toto):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    peer = toto2.Toto2Model(toto2.Toto2ModelConfig(**hub.config_to_official(model.config)))
    peer.load_state_dict(hub.to_official(model))
    return peer


def official_prediction(peer, x, mask, cpm, ids) -> Prediction:
    out = peer(x, mask, cpm, ids)
    ends = slice(PATCH - 1, None, PATCH)  # loc and scale come per step, held over the patch
    return Prediction(out.quantiles.permute(1, 2, 3, 4, 0), out.loc[..., ends], out.scale[..., ends])


def batch(steps: int, gaps: bool, cpm: bool, several: bool, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, steps, generator=generator).cumsum(-1) * 3 + 100
    mask = torch.ones_like(x, dtype=torch.bool)
    if gaps:
        mask = torch.rand(x.shape, generator=generator) > 0.1
        mask[0, 0, : 3 * PATCH] = False  # a series that starts late
        mask[1, 2] = False  # an empty slot
        mask[:, :, 4 * PATCH : 5 * PATCH + 12] = False  # a hole wider than a patch
    ids = torch.tensor([[0, 0, 1, 1, 2, 3], [0, 0, 0, 0, 0, 0]]) if several else torch.zeros(2, 6, dtype=torch.long)
    visible = torch.ones_like(mask)
    if cpm:
        observed = mask.unflatten(-1, (-1, PATCH)).any(-1).numpy()
        drawn = [patch_mask(np.random.default_rng(i), observed[i], ids[i].numpy(), 4, 0.6) for i in range(2)]
        visible = torch.from_numpy(np.stack(drawn)).repeat_interleave(PATCH, -1)
    return torch.where(mask, x, 0.0), mask, visible, ids


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_those_of_the_released_models(name):
    facts = plan(Config(model=config(name)))
    assert facts.parameters == SIZES[name][-1]
    # 6 N FLOPs a patch, N the matrices: vectors are less than one parameter in a hundred
    assert 0.99 < facts.matmul_flops / (6 * facts.parameters * facts.patches_per_step) < 1


CASES = [
    pytest.param("nano", False, False, False, id="nano-plain"),
    pytest.param("nano", True, True, True, id="nano-everything"),
    pytest.param("tiny", False, False, False, id="tiny-plain"),
    pytest.param("tiny", True, False, False, id="tiny-gaps"),
    pytest.param("tiny", False, True, False, id="tiny-cpm"),
    pytest.param("tiny", False, False, True, id="tiny-several-series"),
    pytest.param("tiny", True, True, True, id="tiny-everything"),
    pytest.param("small", True, True, True, id="small-everything"),
    pytest.param("nano qk_norm", False, False, False, id="nano-qk_norm-plain"),
    pytest.param("nano qk_norm", True, True, True, id="nano-qk_norm-everything"),
]


@pytest.mark.parametrize(("name", "gaps", "cpm", "several"), CASES)
def test_same_weights_give_the_official_quantiles(name, gaps, cpm, several):
    model = random_model(name)
    x, mask, visible, ids = batch(12 * PATCH, gaps, cpm, several)
    with torch.no_grad():
        ours = model(x, mask, visible, ids)
        theirs = official_prediction(official(model).eval(), x, mask, visible, ids)
    assert relative(ours.loc, theirs.loc) <= 1e-5
    assert relative(ours.scale, theirs.scale) <= 1e-5
    assert relative(ours.z, theirs.z) <= 1e-5
    assert relative(model(x, mask, visible, ids, labelled=True).z, theirs.z[:, :, :-1]) <= 1e-5


@pytest.fixture
def steps_of_the_official_run():
    """Tell the official modules of how many row batches a step consists; afterwards one again."""
    unit = pytest.importorskip("dd_unit_scaling", reason="the official package is installed by make test")

    def tell(accumulation: int, world: int) -> None:
        unit.set_grad_accumulation_steps(accumulation)
        unit.init_world_size_cache(world)

    yield tell
    tell(1, 1)


@pytest.mark.parametrize(
    ("name", "accumulation", "world", "everything"),
    [
        ("nano", 1, 1, False),
        ("nano", 4, 1, True),
        ("nano", 1, 8, True),
        ("tiny", 1, 1, True),
        ("tiny", 4, 8, True),
        ("small", 1, 1, True),
        ("nano qk_norm", 1, 1, False),
        ("nano qk_norm", 4, 8, True),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_gradients_are_the_official_ones(steps_of_the_official_run, name, accumulation, world, everything, labelled):
    steps_of_the_official_run(accumulation, world)
    model = random_model(name).train()
    set_replicas(model, accumulation * world)
    peer = official(model).train()
    x, mask, visible, ids = batch(12 * PATCH, everything, everything, everything)
    ours = model(x, mask, visible, ids, labelled=labelled)
    for predicted in (ours, official_prediction(peer, x, mask, visible, ids)):
        loss, weight = loss_sum(predicted, x, mask, visible, PATCH, 20.0)
        (loss / weight).backward()
    names = hub.official_names(model.config)
    theirs = {n: p.grad for n, p in peer.named_parameters()}
    errors = {n: relative(p.grad, theirs[names[n]]) for n, p in model.named_parameters()}
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_bias": False, "mlp_bias": True},
        {"mlp_bias": True, "layer_group_size": 2},
        {"variate_layer_first": True},
        {"qk_norm": True, "attn_bias": False, "layer_group_size": 2},
    ],
)
def test_gradients_of_other_architectures_are_the_official_ones(changes):
    model = random_model("nano", **changes).train()
    peer = official(model).train()
    x, mask, visible, ids = batch(8 * PATCH, True, True, True)
    for predicted in (model(x, mask, visible, ids), official_prediction(peer, x, mask, visible, ids)):
        loss, weight = loss_sum(predicted, x, mask, visible, PATCH, 20.0)
        (loss / weight).backward()
    names = hub.official_names(model.config)
    theirs = {n: p.grad for n, p in peer.named_parameters()}
    errors = {n: relative(p.grad, theirs[names[n]]) for n, p in model.named_parameters()}
    assert max(errors.values()) <= 1e-4, errors


def test_the_eps_of_a_norm_of_queries_and_keys_is_the_official_one():
    """Small queries and keys, beside which it counts; their size would else be gone."""
    model = random_model("nano qk_norm")
    x, mask, visible, ids = batch(12 * PATCH, True, True, True)
    found = []
    for shrink in (1.0, 0.02):
        with torch.no_grad():
            for layer in model.layers:
                layer.attn.in_proj.weight[:128] *= shrink
                layer.attn.in_proj.bias[:128] *= shrink
            found.append(model(x, mask, visible, ids).z)
            theirs = official_prediction(official(model).eval(), x, mask, visible, ids).z
        assert relative(found[-1], theirs) <= 1e-5
    assert relative(*found) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("over_time", [False, True])
def test_normed_queries_and_keys_compile_to_one_graph_with_the_same_gradients(over_time):
    torch._dynamo.reset()
    attn = next(layer.attn for layer in random_model("nano qk_norm").layers if layer.over_time == over_time)
    generator = torch.Generator().manual_seed(0)
    table = make_xpos_table(0, 8, 4, 16, torch.device("cpu")) if over_time else None
    x, g = torch.randn(2, 2, 8, 64, generator=generator)
    found = []
    for run in (attn.forward, torch.compile(attn.forward, backend="aot_eager", fullgraph=True)):
        start = x.clone().requires_grad_(True)
        out = run(start, table, None, residual(0.5), 16)
        found.append([out, *torch.autograd.grad(out, [start, *attn.parameters()], g)])
    for eager, compiled in zip(*found, strict=True):
        assert relative(compiled, eager) <= 1e-5
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["nano", "nano qk_norm"])
def test_bf16_gradients_point_where_those_of_fp32_do(name):
    gradients = []
    for enabled in (False, True):
        model = random_model(name).train()
        x, mask, visible, ids = batch(8 * PATCH, True, True, True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            prediction = model(x, mask, visible, ids)
        loss, weight = loss_sum(prediction, x, mask, visible, PATCH, 20.0)
        (loss / weight).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.ndim > 1})
    exact, rounded = gradients
    for n in exact:
        assert rounded[n].dtype == torch.float32
        assert torch.cosine_similarity(rounded[n].flatten(), exact[n].flatten(), dim=0) > 0.995, n


@pytest.mark.parametrize(("offset", "spread"), [(0, 1e-3), (1e9, 100), (1e30, 1e28), (3e38, 0)])
def test_location_and_scale_are_those_of_a_running_update_in_float64(offset, spread):
    """Welford's update, step by step; also where squares leave float32 and where the spread is far below the level."""
    generator = torch.Generator().manual_seed(0)
    x = (offset + spread * torch.randn(2, 3, 6 * PATCH, generator=generator, dtype=torch.float64)).float()
    mask = torch.rand(x.shape, generator=generator) > 0.2
    mask[0, 0, : 2 * PATCH] = False
    loc, scale = causal_loc_scale(torch.where(mask, x, 0.0), mask, PATCH)
    count, mean, squares = (torch.zeros(2, 3, dtype=torch.float64) for _ in range(3))
    for t in range(x.shape[-1]):
        seen = mask[..., t]
        count += seen
        step = torch.where(seen, x[..., t] - mean, 0.0)
        mean = mean + step / count.clamp(min=1)
        squares = squares + step * torch.where(seen, x[..., t] - mean, 0.0)
        if t % PATCH == PATCH - 1:
            at, expected = t // PATCH, (squares / (count - 1).clamp(min=1)).sqrt().clamp(min=1e-6)
            torch.testing.assert_close(loc[..., at].double(), mean, rtol=1e-6, atol=0)
            if spread:  # else it is what rounding leaves
                torch.testing.assert_close(scale[..., at].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_do_not_depend_on_how_the_global_batch_is_split(parts):
    """By ranks or by accumulation: both are replicas, whose losses are summed and divided once."""
    batches = [batch(8 * PATCH, True, True, True, seed) for seed in range(2)]
    whole = [torch.cat(tensors) for tensors in zip(*batches, strict=True)]  # 4 rows
    gradients = []
    for count in (1, parts):
        model = random_model("nano").train()
        set_replicas(model, count)
        total = torch.zeros(())
        for part in zip(*(t.chunk(count) for t in whole), strict=True):
            x, mask, visible, ids = part
            loss, weight = loss_sum(model(x, mask, visible, ids, labelled=True), x, mask, visible, PATCH, 20.0)
            loss.backward()
            total += weight
        gradients.append({n: p.grad / total for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert relative(gradients[1][name], expected) <= 1e-5 or expected.abs().max() < 1e-9, name


@pytest.mark.parametrize("name", ["nano", "nano qk_norm"])
@pytest.mark.parametrize("recompute", [1, 4])
def test_recomputing_layers_changes_no_gradient(recompute, name):
    gradients = []
    for layers in (0, recompute):
        model = random_model(name).train()
        model.recompute = layers
        x, mask, visible, ids = batch(8 * PATCH, True, True, True)
        loss, _ = loss_sum(model(x, mask, visible, ids), x, mask, visible, PATCH, 20.0)
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.equal(gradients[1][n], g) for n, g in gradients[0].items())


def test_replicas_scale_weight_gradients_by_their_root_and_nothing_else():
    gradients = []
    for replicas in (1, 4):
        model = random_model("nano")
        set_replicas(model, replicas)
        x, mask, visible, ids = batch(6 * PATCH, False, False, True)
        x.requires_grad_(True)
        loss, _ = loss_sum(model(x, mask, visible, ids), x.detach(), mask, visible, PATCH, 20.0)
        loss.backward()
        gradients.append(({n: p.grad for n, p in model.named_parameters()}, x.grad))
    (one, x_one), (four, x_four) = gradients
    assert torch.equal(x_one, x_four)
    for name in one:
        torch.testing.assert_close(four[name], one[name] / 2)


@pytest.mark.parametrize("gaps", [False, True])
def test_later_values_change_no_earlier_output(gaps):
    model = random_model("nano").eval()
    x, mask, visible, ids = batch(10 * PATCH, gaps, True, True)
    cut = 6 * PATCH
    changed, changed_mask, changed_visible = x.clone(), mask.clone(), visible.clone()
    changed[..., cut:] = torch.randn_like(changed[..., cut:]) * 1e4
    changed_mask[..., cut:] = True
    changed_visible[..., cut:] = True
    with torch.no_grad():
        before = model(x, mask, visible, ids, MaskFlags())
        after = model(changed, changed_mask, changed_visible, ids, MaskFlags())
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :, :6], b[:, :, :6])
    assert not torch.allclose(before.z[:, :, 6:], after.z[:, :, 6:])


def test_series_of_one_row_do_not_see_each_other():
    model = random_model("nano").eval()
    x, mask, visible, ids = batch(8 * PATCH, True, False, True)
    changed = x.clone()
    changed[0, 2:4] = torch.randn_like(changed[0, 2:4])  # series 1 of row 0
    with torch.no_grad():
        before, after = model(x, mask, visible, ids), model(changed, mask, visible, ids)
    others = [0, 1, 4, 5]
    assert torch.equal(before.z[0, others], after.z[0, others])
    assert torch.equal(before.z[1], after.z[1])
    assert not torch.allclose(before.z[0, 2], after.z[0, 2])


def test_variates_of_one_series_do_see_each_other():
    model = random_model("nano").eval()
    x, mask, visible, ids = batch(8 * PATCH, False, False, True)
    changed = x.clone()
    changed[0, 0] += torch.randn_like(changed[0, 0])
    with torch.no_grad():
        before, after = model(x, mask, visible, ids), model(changed, mask, visible, ids)
    assert not torch.allclose(before.z[0, 1], after.z[0, 1])


def test_flags_save_masks_without_changing_the_output():
    model = random_model("nano").eval()
    x, mask, visible, ids = batch(8 * PATCH, False, True, False)
    with torch.no_grad():
        plain = model(x, mask, visible, ids, MaskFlags(time=False, variates=False))
        masked = model(x, mask, visible, ids, MaskFlags(time=True, variates=True))
    torch.testing.assert_close(plain.z, masked.z, rtol=1e-4, atol=1e-5)


def test_empty_patches_at_the_end_need_no_time_mask():
    model = random_model("nano").eval()
    x, mask, visible, ids = batch(8 * PATCH, False, True, True)
    mask[0, :4, 5 * PATCH :] = False  # two series that end early
    mask[1, 3] = False
    x, visible = torch.where(mask, x, 0.0), visible | ~mask
    alive = mask.unflatten(-1, (-1, PATCH)).any(-1)
    assert mask_flags(group_ids(ids, mask, visible, PATCH)) == MaskFlags(time=False, variates=True)
    with torch.no_grad():
        bare = model(x, mask, visible, ids, MaskFlags(time=False, variates=True))
        masked = model(x, mask, visible, ids, MaskFlags())
    torch.testing.assert_close(bare.z[alive], masked.z[alive], rtol=1e-4, atol=1e-5)


def test_initialisation_depends_on_seed_and_name_alone():
    a, b, c = (dict(Toto.create(config("nano"), seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(a[n], b[n]) for n in a)
    matrices = [n for n in a if a[n].ndim == 2]
    assert not any(torch.equal(a[n], c[n]) for n in matrices)
    assert all(abs(float(a[n].detach().std()) - 1) < 0.05 for n in matrices)
    assert all(not a[n].any() for n in a if a[n].ndim == 1)
    assert len({a[n].flatten()[0].item() for n in matrices}) == len(matrices)
