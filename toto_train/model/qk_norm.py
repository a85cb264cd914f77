"""Queries and keys that are normalised over the width of a head (`model.qk_norm`), as autograd functions.

In this order, as the official model has it: projection, RMS norm of q and k without weight, per-dimension scale of q,
rotation of q and k. The norm stands between the per-dimension scale and the weight, so unlike in `fused.py` the scale
cannot ride in the weight's rows. Its gradient is the plain one. Notation: `kernels.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from toto_train.model.fused import rotate_
from toto_train.model.kernels import affine, bias_grad, inverse_norm, norm_grad, product, unit, weight_grad
from toto_train.model.umup import LN2, Factors, Residual


class _Projection(torch.autograd.Function):
    """Linear layer of rms_norm(x); and the residual's skip."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, f: Factors, residual: Residual
    ) -> tuple[Tensor, Tensor]:
        d = x.shape[-1]
        flat = x.reshape(-1, d)
        inverse = inverse_norm(flat, eps)
        into = None if bias is None else (bias / math.sqrt(d)).to(x.dtype)  # alpha holds sqrt(d), the bias must not
        y = affine(unit(flat, inverse), weight.to(x.dtype), into, f.out * math.sqrt(d))
        ctx.save_for_backward(flat, inverse, weight)
        ctx.constants = f, residual, bias is not None
        return y.view(*x.shape[:-1], -1), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, gskip: Tensor) -> Any:
        flat, inverse, weight = ctx.saved_tensors
        f, residual, has_bias = ctx.constants
        d, g = flat.shape[-1], grad.reshape(-1, grad.shape[-1])
        u = unit(flat, inverse)
        grad_w = weight_grad(g, u, f.weight * math.sqrt(d))
        part, row = norm_grad(product(g, weight.to(g.dtype), f.x), u, inverse, residual.branch)
        grad_x = (gskip.reshape(-1, d) * residual.skip).addcmul_(part, row).view(gskip.shape)
        return grad_x, grad_w, bias_grad(g, f.weight) if has_bias else None, None, None, None


class _NormedHeads(torch.autograd.Function):
    """RMS norm of q and k -> per-dimension scale of q -> rotation of q and k; keeps its input, in which v lies."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, p: Tensor, table: Tensor | None, eps: float, f: Factors
    ) -> tuple[Tensor, Tensor, Tensor]:
        raw = qkv[:, :, :2]
        inverse = inverse_norm(raw, eps)
        scale = _query_scale(p).to(qkv.dtype)
        qk = unit(raw, inverse * math.sqrt(qkv.shape[-1]))
        qk[:, :, 0].mul_(scale)
        if table is not None:
            rotate_(qk[..., : 2 * table.shape[-2]], table)
        ctx.save_for_backward(qkv, inverse, p)
        ctx.constants = table, f
        q, k = qk.transpose(1, 3).unbind(2)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor) -> Any:
        qkv, inverse, p = ctx.saved_tensors
        table, f = ctx.constants
        heads, width = qkv.shape[-2:]
        g = torch.stack([gq.transpose(1, 2), gk.transpose(1, 2), gv.transpose(1, 2)], dim=2)
        both = g[:, :, :2]
        if table is not None:
            rotate_(both[..., : 2 * table.shape[-2]], table, inverse=True)
        u = unit(qkv[:, :, :2], inverse)
        along = (both[:, :, 0] * u[:, :, 0]).sum((0, 1, 2), dtype=torch.float32)
        grad_p = along.mul_(torch.sigmoid(p)).mul_(2 * f.weight * math.sqrt(width / heads))
        both[:, :, 0].mul_(_query_scale(p).to(g.dtype))
        part, row = norm_grad(both, u, inverse, 1.0)
        part.mul_(row)
        return g, grad_p, None, None, None


def _query_scale(p: Tensor) -> Tensor:
    return F.softplus(p.float()) / LN2


def normed_queries_keys_values(
    x: Tensor, weight: Tensor, bias: Tensor | None, p: Tensor, table: Tensor | None, heads: int,
    eps: float, f: Factors, residual: Residual,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `fused.queries_keys_values`: x [N, S, D] -> q, k (both normalised), v [N, H, S, w], and x."""
    qkv, skip = _Projection.apply(x, weight, bias, eps, f, residual)
    return *_NormedHeads.apply(qkv.unflatten(-1, (3, heads, -1)), p, table, eps, f), skip
