"""What training asks of the model: hide spans of patches, predict every next patch, score quantiles."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    patches = observed.shape[1]
    ids, member = np.unique(series_ids, return_inverse=True)
    seen = np.zeros((len(ids), patches), dtype=bool)
    np.logical_or.at(seen, member, observed)
    spans = rng.integers(1, max_span + 1, size=len(ids)).tolist()
    rates = rng.uniform(0.0, max_rate, size=len(ids)).tolist()
    orders = rng.random((len(ids), patches), dtype=np.float32).argsort(axis=1)
    hidden = np.zeros((len(ids), patches), dtype=bool)
    for i in np.flatnonzero(seen.any(axis=1)).tolist():
        after = int(seen[i].argmax()) + 1
        free = patches - int(seen[i, ::-1].argmax()) - after
        count = min(round(rates[i] * (free + 1)), free)
        hidden[i, after : after + free] = _spans(orders[i].tolist(), free, spans[i], count)
    visible = ~hidden[member]
    # a variate that starts later than its siblings keeps its own first patch
    started = np.flatnonzero(observed.any(axis=1))
    visible[started, observed[started].argmax(axis=1)] = True
    return visible


def _spans(order: list[int], patches: int, span: int, count: int) -> np.ndarray:
    """`count` True among `patches`: spans at the starts that `order` names first, the last one cut to fit.

    Sets of patches are the bits of Python integers, several times faster than arrays at these sizes.
    """
    bits, left, last_start, ones = 0, count, max(patches - span, 0), (1 << min(span, patches)) - 1
    for start in order:
        if left <= 0:
            break
        if start > last_start:
            continue
        new = (ones << start) & ~bits
        while new.bit_count() > left:
            new ^= 1 << (new.bit_length() - 1)
        bits |= new
        left -= new.bit_count()
    packed = np.frombuffer(bits.to_bytes(patches // 8 + 1, "little"), np.uint8)
    return np.unpackbits(packed, count=patches, bitorder="little").astype(bool)


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
    """Sum over labels of weight times mean over levels of max(tau e, (tau - 1) e), e = label - z.

    That is e (tau - [e < 0]), linear in z on each side of 0: its gradient is known with the loss and kept for it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        error = label.unsqueeze(-1) - z
        slope = torch.add(error < 0, _levels(z.device), alpha=-1).mul_((weight / len(QUANTILES)).unsqueeze(-1))
        ctx.save_for_backward(slope)
        return error.mul_(slope).sum().neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None


def pinball(z: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of pinball losses, means over levels; z [..., 9], label and weight [...] -> scalar float32."""
    return _Pinball.apply(z, label, weight)


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
    label, weight = labels_and_weights(target, target_mask, cpm_mask, *prediction[1:], patch_size, clamp)
    return pinball(prediction.z[..., : label.shape[-2], :, :], label, weight), weight.sum().float()
