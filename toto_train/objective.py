"""What training asks of the model: hide spans of patches, predict every next patch, score quantiles."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from data_pipelines.compiled import compiled
from toto_train.model.scaler import scale_patches, to_patches
from toto_train.model.toto import QUANTILES, Prediction


def patch_mask(
    rng: np.random.Generator, observed: np.ndarray, series_ids: np.ndarray, max_span: int, max_rate: float
) -> np.ndarray:
    """Contiguous patch masking: True = visible, [V, P].

    observed [V, P] bool: patches with any observed value; series_ids [V]. Per series one span length c ~ U{1..max_span}
    and one rate p ~ U(0, max_rate); spans of c patches at random starts, the last one cut so that round(p * P') of the
    series' P' patches are hidden, P' counted from its first to its last observed patch. The first stays visible.
    Variates of a series share their spans: at inference a whole series' future is hidden, so a variate must not peek
    at a sibling.
    """
    variates, patches = observed.shape
    draws = rng.random((variates, 2 + patches), dtype=np.float32)
    visible = np.ones((variates, patches), np.bool_)
    _hide(draws, observed, series_ids, max_span, max_rate, visible)
    return visible


@compiled
def _hide(
    draws: np.ndarray,
    observed: np.ndarray,
    series_ids: np.ndarray,
    max_span: int,
    max_rate: float,
    visible: np.ndarray,
) -> None:
    """Hide what the draws [V, 2 + P] in [0, 1) say; those of a series stand with its first variate."""
    variates, patches = observed.shape
    first, last = np.full(variates, patches), np.full(variates, -1)
    for v in range(variates):
        for p in range(patches):
            if observed[v, p]:
                first[v] = min(first[v], p)
                last[v] = p
    done = np.zeros(variates, np.bool_)
    hidden, starts = np.empty(patches, np.bool_), np.empty(patches, np.int64)
    for v in range(variates):
        if done[v]:
            continue
        after, end = patches, -1
        for m in range(v, variates):
            if series_ids[m] == series_ids[v]:
                done[m] = True
                after, end = min(after, first[m] + 1), max(end, last[m] + 1)
        free = end - after
        if free <= 0:
            continue
        span = min(1 + int(draws[v, 0] * max_span), free)
        left = min(int(np.rint(draws[v, 1] * max_rate * (free + 1))), free)
        hidden[:] = False
        count = free - span + 1
        for k in range(count):
            starts[k] = after + k
        for k in range(count):
            if left == 0:
                break
            pick = k + int(draws[v, 2 + k] * (count - k))  # the next of a random permutation
            start = starts[pick]
            starts[pick] = starts[k]
            for p in range(start, start + span):
                if left > 0 and not hidden[p]:
                    hidden[p] = True
                    left -= 1
        for m in range(v, variates):
            if series_ids[m] == series_ids[v]:
                for p in range(patches):
                    # a variate that starts later than its siblings keeps its own first patch
                    visible[m, p] = not hidden[p] or p == first[m]


def labels_and_weights(
    target: Tensor,
    target_mask: Tensor,
    cpm_mask: Tensor | None,
    loc: Tensor,
    scale: Tensor,
    patch_size: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    """Next-patch labels z [B, V, P-1, patch_size] in the space of position i, and their 0/1 weights.

    No weight where the label is missing, where nothing visible was observed at or before the position, or where the
    position itself is empty (nothing observed, nothing masked out): it is attended by nothing and sees nothing.
    loc, scale [B, V, P or P-1].
    """
    positions = target.shape[-1] // patch_size - 1
    observed = to_patches(target_mask, patch_size)
    shown = alive = observed[..., :-1, :].any(-1)
    if cpm_mask is not None:
        hidden = ~to_patches(cpm_mask, patch_size)[..., :-1, :]
        shown, alive = (observed[..., :-1, :] & ~hidden).any(-1), alive | hidden.any(-1)
    weight = observed[..., 1:, :] & (shown.cummax(-1).values & alive).unsqueeze(-1)
    following = to_patches(target, patch_size)[..., 1:, :]
    z = scale_patches(following, loc[..., :positions], scale[..., :positions]).clamp(-clamp, clamp)
    return torch.where(weight, z, 0.0), weight


@lru_cache
def _levels(device: torch.device) -> Tensor:
    """The quantile levels where they are used; copied to an accelerator once, not in every step."""
    return torch.tensor(QUANTILES, device=device)


class _Pinball(torch.autograd.Function):
    """Sum over the labels of a variate of weight times mean over levels of max(tau e, (tau - 1) e), e = label - z.

    That is e (tau - [e < 0]), linear in z on each side of 0: its gradient is known with the loss and kept for it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        error = label.unsqueeze(-1) - z
        slope = torch.add(error < 0, _levels(z.device), alpha=-1).mul_((weight / len(QUANTILES)).unsqueeze(-1))
        ctx.save_for_backward(slope)
        return error.mul_(slope).flatten(2).sum(-1).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * grad.view(*grad.shape, *(1,) * (slope.ndim - 2)), None, None


def pinball(z: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of pinball losses, means over levels: z [B, V, ..., 9], label and weight [B, V, ...] -> [B, V]."""
    return _Pinball.apply(z, label, weight)


def variate_losses(
    prediction: Prediction,
    target: Tensor,
    target_mask: Tensor,
    cpm_mask: Tensor | None,
    patch_size: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    """`loss_sum` variate by variate: (sums of losses, sums of weights), both [B, V] float32."""
    label, weight = labels_and_weights(target, target_mask, cpm_mask, *prediction[1:], patch_size, clamp)
    losses = pinball(prediction.z[..., : label.shape[-2], :, :], label, weight)
    return losses, weight.flatten(2).sum(-1).float()


def loss_sum(
    prediction: Prediction,
    target: Tensor,
    target_mask: Tensor,
    cpm_mask: Tensor | None,
    patch_size: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    """(sum over weighted labels of the mean pinball loss over levels, sum of weights); both scalars, float32.

    Sums, so that accumulation and ranks divide once by the weight of the whole batch. A prediction for the last
    position, which has no label, may be there or not.
    """
    losses, weights = variate_losses(prediction, target, target_mask, cpm_mask, patch_size, clamp)
    return losses.sum(), weights.sum()
