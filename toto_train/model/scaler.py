"""Robust causal scaling: location and scale of everything seen so far, held over each patch, then asinh."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SCALE = 1e-6


def causal_loc_scale(x: Tensor, visible: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Causal mean and standard deviation at the last step of each patch.

    x [B, V, T], visible [B, V, T] bool -> loc, scale [B, V, P] float32. Every patch's count, mean and sum of squared
    deviations are merged with those of the patches before it (Chan, Golub, LeVeque 1979), which is Welford's sum read
    at the patches' ends; in float64 (float32 where the device has none), one value a patch. A hidden step changes
    nothing.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    seen = to_patches(visible, patch_size)
    values = to_patches(x, patch_size)
    count = seen.sum(-1, dtype=wide)
    total = torch.where(seen, values, 0.0).sum(-1, dtype=wide)
    mean = total / count.clamp(min=1)
    near = mean.float()  # deviations from it are exact where they are small; what it lacks is put back below
    deviations = torch.where(seen, values - near.unsqueeze(-1), 0.0)
    within = torch.linalg.vector_norm(deviations, dim=-1, dtype=wide).square() - count * (mean - near).square()
    counts = count.cumsum(-1)
    loc = total.cumsum(-1) / counts.clamp(min=1)
    shift = mean - F.pad(loc, (1, -1))
    between = shift.square() * count * (counts - count) / counts.clamp(min=1)
    variance = (within.clamp(min=0) + between).cumsum(-1) / (counts - 1).clamp(min=1)
    return loc.float(), variance.sqrt().clamp(min=MIN_SCALE).float()


def to_patches(x: Tensor, patch_size: int) -> Tensor:
    """[B, V, T] -> [B, V, P, patch_size]."""
    return x.unflatten(-1, (-1, patch_size))


def scale_patches(patches: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """asinh((x - loc)/scale); patches [..., P, patch_size], loc and scale [..., P]."""
    return torch.asinh((patches - loc.unsqueeze(-1)) / scale.unsqueeze(-1))


def unscale(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `scale_patches`; loc and scale broadcast against z."""
    return torch.sinh(z) * scale + loc
