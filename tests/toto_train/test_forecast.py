"""Forecasting around the model: padding, gaps, order of quantiles, the array interface."""

import numpy as np
import pytest
import torch

from toto_train.config import ModelConfig
from toto_train.forecast import Forecaster, clamp_non_finite, fill_forward, forecast
from toto_train.model.toto import Toto


@pytest.fixture(scope="module")
def model() -> Toto:
    return Toto.create(ModelConfig(), seed=1).eval()


def test_fill_forward_fills_gaps_and_leaves_what_comes_before_the_first_value():
    nan = np.nan
    filled = fill_forward(np.array([[nan, 1.0, nan, nan, 2.0, nan], [nan] * 6], np.float32))
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled, [[nan, 1, 1, 1, 2, 2], [nan] * 6])


def test_quantiles_are_sorted_and_finite_even_for_wild_series(model):
    x = np.stack([np.zeros((1, 64)), np.full((1, 64), 1e30), np.random.default_rng(0).normal(size=(1, 64)) * 1e-20])
    out = Forecaster(model)(x.astype(np.float32), 40)
    assert out.shape == (3, 9, 1, 40)
    assert np.isfinite(out).all()
    assert (np.diff(out, axis=1) >= 0).all()


def test_a_forecast_is_scale_and_shift_equivariant(model):
    x = np.random.default_rng(0).normal(size=(1, 2, 128)).cumsum(-1).astype(np.float32)
    a, b = Forecaster(model)(x, 32), Forecaster(model)(1000 * x + 5e4, 32)
    np.testing.assert_allclose(b, 1000 * a + 5e4, rtol=1e-3)


def test_left_padding_with_nan_changes_nothing(model):
    x = np.random.default_rng(1).normal(size=(1, 3, 100)).astype(np.float32)
    padded = np.concatenate([np.full((1, 3, 28), np.nan, np.float32), x], axis=-1)
    np.testing.assert_allclose(Forecaster(model)(x, 48), Forecaster(model)(padded, 48), rtol=1e-5, atol=1e-5)


def test_batching_changes_nothing(model):
    x = np.random.default_rng(2).normal(size=(4, 2, 96)).astype(np.float32)
    x[1, 0, 40:50] = np.nan
    together = Forecaster(model)(x, 33)
    alone = np.concatenate([Forecaster(model)(x[i : i + 1], 33) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_below_one_is_an_error(model, horizon):
    with pytest.raises(ValueError, match=f"horizon={horizon}"):
        Forecaster(model)(np.zeros((1, 1, 64), np.float32), horizon)


def test_an_empty_context_is_an_error(model):
    with pytest.raises(ValueError, match="context is empty"):
        forecast(model, torch.zeros(1, 1, 0), torch.zeros(1, 1, 0, dtype=torch.bool), torch.zeros(1, 1), 8)


def test_non_finite_values_take_the_extremes_of_their_row():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, inf, 3.0, -inf, nan], [nan, nan, inf, inf, nan]])
    assert clamp_non_finite(x).tolist() == [[1, 3, 3, 1, 3], [0, 0, 0, 0, 0]]
