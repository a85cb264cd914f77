"""Forecasting around the model: padding, gaps, blocks, covariates, bounds, the array interface."""

import numpy as np
import pytest
import torch

from toto_train.config import ModelConfig
from toto_train.forecast import (
    PUBLISHED,
    Covariates,
    Forecaster,
    ForecastOptions,
    clamp_non_finite,
    fill_forward,
    forecast,
)
from toto_train.model.toto import Toto


@pytest.fixture(scope="module")
def model() -> Toto:
    return Toto.create(ModelConfig(), seed=1).eval()


def walks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


def run(model, x, horizon, options=PUBLISHED, covariates=None, mask=None, ids=None):
    """`forecast` of x [B, V, T], all observed and of one series unless said otherwise."""
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    ids = torch.zeros(x.shape[:2], dtype=torch.long) if ids is None else ids
    return forecast(model, x, mask, ids, horizon, options, covariates)


def known(values, *ids: int) -> Covariates:
    """Covariates [B, E, T + horizon], all known, with an id each."""
    return Covariates(values, torch.ones_like(values, dtype=torch.bool), torch.tensor([ids]).expand(len(values), -1))


def test_fill_forward_fills_gaps_and_leaves_what_comes_before_the_first_value():
    nan = np.nan
    filled = fill_forward(np.array([[nan, 1.0, nan, nan, 2.0, nan], [nan] * 6], np.float32))
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled, [[nan, 1, 1, 1, 2, 2], [nan] * 6])


@pytest.mark.parametrize("options", [ForecastOptions(), PUBLISHED, ForecastOptions(32, 8, 1e4)])
def test_quantiles_are_sorted_and_finite_even_for_wild_series(model, options):
    x = np.stack([np.zeros((1, 64)), np.full((1, 64), 1e30), np.random.default_rng(0).normal(size=(1, 64)) * 1e-20])
    out = Forecaster(model, options=options)(x.astype(np.float32), 40)
    assert out.shape == (3, 9, 1, 40)
    assert np.isfinite(out).all()
    assert (np.diff(out, axis=1) >= 0).all()


def test_bf16_computes_in_bf16_and_stays_near(model):
    seen = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype)) for layer in model.modules()]
    x = walks(4, 2, 256).numpy()
    try:
        low = Forecaster(model, precision="bf16")(x, 48)
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.bfloat16 in seen
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert low.dtype == np.float32
    full = Forecaster(model)(x, 48)
    off = np.abs(low - full).max() / np.abs(full).max()
    assert 0 < off < 0.02
    with pytest.raises(ValueError, match="precision='fp16' must be one of fp32, bf16"):
        Forecaster(model, precision="fp16")


@pytest.mark.parametrize("block", [None, 32])
def test_a_forecast_is_scale_and_shift_equivariant(model, block):
    forecaster = Forecaster(model, options=ForecastOptions(block, 8, 1e4))
    x = np.random.default_rng(0).normal(size=(1, 2, 128)).cumsum(-1).astype(np.float32)
    a, b = forecaster(x, 64), forecaster(1000 * x + 5e4, 64)
    np.testing.assert_allclose(b, 1000 * a + 5e4, rtol=1e-3)


def test_left_padding_with_nan_changes_nothing(model):
    x = np.random.default_rng(1).normal(size=(1, 3, 100)).astype(np.float32)
    padded = np.concatenate([np.full((1, 3, 28), np.nan, np.float32), x], axis=-1)
    np.testing.assert_allclose(Forecaster(model)(x, 48), Forecaster(model)(padded, 48), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [None, 32])
def test_batching_changes_nothing(model, block):
    x = np.random.default_rng(2).normal(size=(4, 2, 96)).astype(np.float32)
    x[1, 0, 40:50] = np.nan
    forecaster = Forecaster(model, options=ForecastOptions(block, 8, 1e4))
    together = forecaster(x, 70)
    alone = np.concatenate([forecaster(x[i : i + 1], 70) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [None, 32, 64])
def test_a_longer_horizon_begins_like_a_shorter_one(model, block):
    x, options = walks(2, 2, 96), ForecastOptions(block, 8, 1e4)
    long = run(model, x, 200, options)
    for horizon in (1, 32, 40, 64, 130):
        torch.testing.assert_close(run(model, x, horizon, options), long[..., :horizon], rtol=1e-4, atol=1e-4)


def test_a_block_that_holds_the_horizon_is_one_pass_and_smaller_ones_are_not(model):
    x = walks(1, 2, 96)
    once = run(model, x, 90)
    assert torch.equal(run(model, x, 90, ForecastOptions(96, 8, 1e4)), once)
    blocks = run(model, x, 90, ForecastOptions(32, 8, 1e4))
    torch.testing.assert_close(blocks[..., :32], once[..., :32], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(blocks[..., 32:], once[..., 32:], rtol=1e-3)


def test_a_block_is_forecast_as_if_the_medians_before_it_had_been_observed(model):
    x = walks(1, 3, 96)
    blocks = run(model, x, 64, ForecastOptions(32))
    after = run(model, torch.cat([x, blocks[4, ..., :32]], dim=-1), 32)
    # keys of the first pass were stretched around its own centre, which is worth this much
    torch.testing.assert_close(blocks[..., 32:], after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block", [None, 32])
def test_series_of_one_row_and_covariates_of_others_do_not_touch_a_forecast(model, block):
    x, ids, options = walks(1, 3, 96), torch.tensor([[0, 0, 1]]), ForecastOptions(block, 8, 1e4)
    before = run(model, x, 64, options, known(walks(1, 2, 160, seed=1), 1, 2), ids=ids)
    changed = x.clone()
    changed[:, 2] *= -1
    after = run(model, changed, 64, options, known(walks(1, 2, 160, seed=2), 1, 2), ids=ids)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2], rtol=0.1)


@pytest.mark.parametrize("block", [None, 32])
def test_the_future_of_a_covariate_matters_and_its_place_does_not(model, block):
    x, options, extra = walks(1, 2, 96), ForecastOptions(block, 8, 1e4), walks(1, 2, 160, seed=1)
    out = run(model, x, 64, options, known(extra, 0, 0))
    torch.testing.assert_close(run(model, x, 64, options, known(extra.flip(1), 0, 0)), out, rtol=1e-4, atol=1e-4)
    changed = extra.clone()
    changed[..., 96:128] += 50
    other = run(model, x, 64, options, known(changed, 0, 0))
    torch.testing.assert_close(other[..., :32], out[..., :32], rtol=1e-4, atol=1e-4)  # seen from the next patch on
    assert not torch.allclose(other[..., 32:], out[..., 32:], rtol=1e-2)


def test_values_that_are_not_finite_are_missing_and_arguments_stay_as_they_were(model):
    x, extra = walks(1, 2, 96), walks(1, 1, 160, seed=1)
    mask, seen = torch.ones_like(x, dtype=torch.bool), torch.ones_like(extra, dtype=torch.bool)
    mask[..., 10:20], seen[..., 100:110] = False, False
    ids = torch.zeros(1, 2, dtype=torch.long)
    expected = run(model, x, 64, PUBLISHED, Covariates(extra, seen, ids[:, :1]), mask)
    x[..., 10:20], extra[..., 100:110] = torch.nan, -torch.inf
    for m, s in ((mask, seen), (torch.ones_like(mask), torch.ones_like(seen))):
        given = [t.clone() for t in (x, m, extra, s)]
        assert torch.equal(run(model, x, 64, PUBLISHED, Covariates(extra, s, ids[:, :1]), m), expected)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(given, (x, m, extra, s), strict=True))


@pytest.mark.parametrize("block", [None, 32])
def test_the_clamp_holds_every_variate_near_its_own_context(block):
    wild = Toto.create(ModelConfig(), seed=1).eval()
    with torch.no_grad():
        wild.head.linear2.bias.normal_(std=1000, generator=torch.Generator().manual_seed(0))
    x = walks(1, 2, 96) * torch.tensor([[[1.0], [1e4]]])
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    reach = x.std(-1, keepdim=True) * 1.001
    free, held = (run(wild, x, 90, ForecastOptions(block, 0, clamp)) for clamp in (0.0, 1.0))
    assert ((held >= low - reach) & (held <= high + reach)).all()
    assert ((free < low - reach) | (free > high + reach)).any(-1).any(0).all()


def test_plain_arrays_and_tensors_give_the_same(model):
    x, extra = walks(2, 2, 96).numpy(), walks(2, 1, 136, seed=1).numpy()
    x[0, 0, 10:20] = x[1, 1, 90:] = extra[0, 0, 120:] = np.nan
    out = Forecaster(model)(x, 40, extra)
    target, values = torch.from_numpy(fill_forward(x)), torch.from_numpy(extra)
    covariates = Covariates(values, values.isfinite(), torch.zeros(2, 1, dtype=torch.long))
    expected = run(model, target, 40, PUBLISHED, covariates, torch.from_numpy(np.isfinite(x)))
    assert np.array_equal(out, expected.movedim(0, 1).numpy())


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_below_one_is_an_error(model, horizon):
    with pytest.raises(ValueError, match=f"horizon={horizon}"):
        Forecaster(model)(np.zeros((1, 1, 64), np.float32), horizon)


def test_an_empty_context_is_an_error(model):
    with pytest.raises(ValueError, match="context is empty"):
        forecast(model, torch.zeros(1, 1, 0), torch.zeros(1, 1, 0, dtype=torch.bool), torch.zeros(1, 1), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ForecastOptions(block=0), "block=0 must be a positive multiple of the patch size 32"),
        (ForecastOptions(block=-32), "block=-32 must be"),
        (ForecastOptions(block=48), "block=48 must be"),
        (ForecastOptions(min_observations=-1), "min_observations=-1 must be between 0"),
        (ForecastOptions(min_observations=33), "min_observations=33 must be between 0"),
        (ForecastOptions(clamp=-1.0), "clamp=-1.0 must be"),
        (ForecastOptions(clamp=float("nan")), "clamp=nan must be"),
    ],
)
def test_options_that_cannot_be_are_errors(model, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, walks(1, 1, 64), 8, options)


def test_shapes_that_do_not_fit_are_errors(model):
    x = walks(2, 2, 64)
    for steps in (64, 71, 73):
        with pytest.raises(ValueError, match=rf"covariates have {steps} steps, .* 64 \+ 8"):
            run(model, x, 8, PUBLISHED, known(walks(2, 1, steps), 0))
    with pytest.raises(ValueError, match="covariates have 1 rows, target has 2"):
        run(model, x, 8, PUBLISHED, known(walks(1, 1, 72), 0))
    with pytest.raises(ValueError, match=r"covariates: values .* must have the shapes"):
        run(model, x, 8, PUBLISHED, known(walks(2, 1, 72), 0, 0))
    with pytest.raises(ValueError, match=r"target: values .* must have the shapes"):
        run(model, x, 8, ids=torch.zeros(2))
    with pytest.raises(ValueError, match=r"target: the mask is torch\.float32, give a bool one"):
        run(model, x, 8, mask=torch.ones_like(x))


def test_non_finite_values_take_the_extremes_of_their_row():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, inf, 3.0, -inf, nan], [nan, nan, inf, inf, nan]])
    assert clamp_non_finite(x).tolist() == [[1, 3, 3, 1, 3], [0, 0, 0, 0, 0]]
