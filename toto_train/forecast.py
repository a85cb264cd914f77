"""Forecasts from a trained model: one pass over context and horizon together, quantiles out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toto_train.model.scaler import unscale
from toto_train.model.toto import QUANTILES, Toto


@torch.no_grad()
def forecast(model: Toto, target: Tensor, target_mask: Tensor, series_ids: Tensor, horizon: int) -> Tensor:
    """Quantiles 0.1 ... 0.9 of the next `horizon` steps, [9, B, V, horizon], in the units of the input.

    target [B, V, T] float, target_mask [B, V, T] bool (True = observed), series_ids [B, V] int. T may be any length:
    it is padded on the left to whole patches. ceil(horizon/patch) unobserved patches are appended; the output at the
    last context patch and at all but the last appended one is the forecast. The last context patch counts as observed
    throughout, as in the official package: fill its gaps first (`fill_forward`).
    """
    if horizon < 1:
        raise ValueError(f"horizon={horizon} must be at least 1")
    if target.shape[-1] < 1:
        raise ValueError("the context is empty; give at least one step of history")
    patch = model.config.patch_size
    steps = -(-horizon // patch)
    left, right = -target.shape[-1] % patch, steps * patch
    context = target.shape[-1] + left
    mask = F.pad(target_mask, (left, right))
    target = torch.where(mask, F.pad(target, (left, right)), 0.0)
    mask[..., context - patch : context] = True
    # appended patches keep their series id though nothing in them is observed: a masked-out patch does just that
    hidden = torch.ones_like(mask)
    hidden[..., context:] = False
    z, loc, scale = model(target, mask, hidden, series_ids)
    first = context // patch - 1
    # step i of position p describes patch p + 1, whose own loc and scale unscale it
    places = slice(first + 1, first + 1 + steps)
    real = unscale(z[..., first : first + steps, :, :], loc[..., places, None, None], scale[..., places, None, None])
    real = real.flatten(-3, -2)[..., :horizon, :].movedim(-1, 0)
    return clamp_non_finite(real).sort(dim=0).values


def clamp_non_finite(x: Tensor) -> Tensor:
    """Replace inf and NaN by the extreme finite values of the same row (last axis); a row without any becomes 0."""
    finite = x.isfinite()
    high = torch.where(finite, x, -torch.inf).amax(-1, keepdim=True)
    low = torch.where(finite, x, torch.inf).amin(-1, keepdim=True)
    high, low = (torch.where(v.isfinite(), v, 0.0) for v in (high, low))
    return torch.where(finite, x, torch.where(x == -torch.inf, low, high))


def fill_forward(values: np.ndarray) -> np.ndarray:
    """Fill NaN with the last observed value before it, along the last axis; leading NaN stay."""
    at = np.where(np.isfinite(values), np.arange(values.shape[-1]), -1)
    at = np.maximum.accumulate(at, axis=-1)
    filled = np.take_along_axis(values, np.maximum(at, 0), axis=-1)
    return np.where(at >= 0, filled, np.nan).astype(values.dtype)


class Forecaster:
    """A model as a function of plain arrays, for evaluation and scripts; every item is one multivariate series."""

    levels = QUANTILES

    def __init__(self, model: Toto, device: str | torch.device = "cpu"):
        self.model = model.eval()
        self.device = torch.device(device)

    def __call__(self, contexts: np.ndarray, horizon: int) -> np.ndarray:
        """contexts [N, V, C] float32 with NaN = missing (also as left padding) -> quantiles [N, 9, V, horizon]."""
        filled = fill_forward(contexts)
        observed = np.isfinite(filled)
        target = torch.from_numpy(np.where(observed, filled, 0).astype(np.float32)).to(self.device)
        mask = torch.from_numpy(observed).to(self.device)
        ids = torch.zeros(target.shape[:2], dtype=torch.long, device=self.device)
        out = forecast(self.model, target, mask, ids, horizon)
        return out.movedim(0, 1).cpu().numpy()
