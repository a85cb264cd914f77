"""The arithmetic that the network's autograd functions share: scaled products, norms of rows, their gradients.

Notation: with d = x.shape[-1], r = sqrt(|x|^2 + eps d) and u = x / r, so that rms_norm(x) = sqrt(d) u. Activations keep
their dtype (float32 or bfloat16), row statistics are float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(x W^T) * scale + bias * scale in one product; x [N, in], weight [out, in]; the bias carries its own factor."""
    if bias is None:
        return product(x, weight.t(), scale)
    return torch.addmm(bias, x, weight.t(), beta=scale, alpha=scale)


def product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """a b * scale; with beta = 0 what stands first in addmm is not read."""
    return torch.addmm(b[0], a, b, beta=0.0, alpha=scale)


def weight_grad(g: Tensor, x: Tensor, scale: float) -> Tensor:
    """g^T x * scale, float32; g [N, out], x [N, in]."""
    return product(g.t(), x, scale).float()


def bias_grad(g: Tensor, scale: float) -> Tensor:
    return g.sum(0, dtype=torch.float32).mul_(scale)


def inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / r [N, 1], float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().add_(eps * x.shape[-1]).rsqrt_()


def unit(x: Tensor, inverse: Tensor) -> Tensor:
    """u = x / r in the dtype of x."""
    if x.dtype == inverse.dtype or torch.compiler.is_compiling():
        return (x * inverse).to(x.dtype)
    return torch.mul(x, inverse, out=torch.empty_like(x))


def norm_grad(gh: Tensor, u: Tensor, inverse: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(p, q [N, 1]) with p q = scale times the gradient of rms_norm's input; gh [N, d] is overwritten.

    d(sqrt(d) x / r) applied to gh is sqrt(d)/r (gh - u <u, gh>).
    """
    along = (u * gh).sum(-1, keepdim=True)
    return gh.addcmul_(u, along, value=-1), (inverse * (scale * math.sqrt(u.shape[-1]))).to(gh.dtype)
