"""Robust causal scaling: location and scale of everything seen so far, held over each patch, then asinh."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE = 1e-6


def causal_loc_scale(x: Tensor, visible: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Causal mean and standard deviation at the last step of each patch.

    x [B, V, T], visible [B, V, T] bool -> loc, scale [B, V, P] float32. Welford's update as cumulative sums in
    float64 (float32 where the device has none); a hidden step changes neither.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    seen = visible.to(wide)
    values = torch.where(visible, x, 0.0).to(wide)
    count = seen.cumsum(-1)
    mean = values.cumsum(-1) / count.clamp(min=1)
    before = torch.cat([torch.zeros_like(mean[..., :1]), mean[..., :-1]], dim=-1)
    increments = (values - before) * (values - mean) * seen
    last = slice(patch_size - 1, None, patch_size)
    variance = increments.cumsum(-1)[..., last] / (count[..., last] - 1).clamp(min=1)
    scale = variance.sqrt().clamp(min=MIN_SCALE)
    return mean[..., last].float(), scale.float()


def to_patches(x: Tensor, patch_size: int) -> Tensor:
    """[B, V, T] -> [B, V, P, patch_size]."""
    return x.unflatten(-1, (-1, patch_size))


def scale_patches(patches: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """asinh((x - loc)/scale); patches [..., P, patch_size], loc and scale [..., P]."""
    return torch.asinh((patches - loc.unsqueeze(-1)) / scale.unsqueeze(-1))


def unscale(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `scale_patches`; loc and scale broadcast against z."""
    return torch.sinh(z) * scale + loc
