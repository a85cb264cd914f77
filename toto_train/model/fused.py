"""The network's blocks as autograd functions: few passes over activations, few of them kept for the backward.

Unit scaling asks for factors that differ between forward and backward, so the gradients are written by hand anyway.
That leaves room: factors and residual sums ride in the matrix products (alpha, beta and an output that accumulates),
norms and hidden activations are computed again in the backward, and gradients are finished in place. Weights are cast
to the dtype of activations. Formulas: u-muP, arXiv 2407.17465; which gradient takes which factor: `umup.py`; notation:
`kernels.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from toto_train.model.kernels import affine, bias_grad, inverse_norm, norm_grad, product, unit, weight_grad
from toto_train.model.umup import LN2, SILU_SCALE, Factors, Residual


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        inverse = inverse_norm(x, eps)
        ctx.save_for_backward(x, inverse)
        return unit(x, inverse * math.sqrt(x.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, inverse = ctx.saved_tensors
        p, q = norm_grad(grad.clone(), unit(x, inverse), inverse, 1.0)
        return p.mul_(q), None


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis; no weight."""
    return _RMSNorm.apply(x, eps)


def _query_scale(p: Tensor) -> Tensor:
    """Factors of the rows of a fused q, k, v projection, [3, 1, head_dim, 1]: softplus(p)/ln 2 for q, 1 for k and v."""
    return F.pad((F.softplus(p.float()) / LN2).view(1, -1), (0, 0, 0, 2), value=1.0).view(3, 1, -1, 1)


def rotate_(x: Tensor, table: Tensor, inverse: bool = False) -> None:
    """Turn and stretch x [N, S, 2, H, w] in place; table [S, 2, 1, w/2, 2] holds real and imaginary parts of factors
    for queries and keys. inverse: by the conjugates, which is the gradient."""
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # a compiler fuses real arithmetic, but calls out for complex
        even, odd, (re, im) = pairs[..., 0], pairs[..., 1], table.unbind(-1)
        im = -im if inverse else im
        pairs.copy_(torch.stack([even * re - odd * im, even * im + odd * re], dim=-1))
        return
    factors = torch.view_as_complex(table)
    factors = factors.conj_physical() if inverse else factors
    if x.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(factors)
    else:  # there are no complex bfloat16
        wide = pairs.float()
        torch.view_as_complex(wide).mul_(factors)
        pairs.copy_(wide)


class _Queries(torch.autograd.Function):
    """rms_norm -> fused projection -> per-dimension scale of q -> rotation of q and k; and the residual's skip."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, p: Tensor, table: Tensor | None, heads: int,
        eps: float, f: Factors, residual: Residual,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        batch, length, d = x.shape
        flat = x.reshape(-1, d)
        inverse = inverse_norm(flat, eps)
        rows = _query_scale(p)
        scaled = (weight.view(3, heads, -1, d) * rows).view(weight.shape).to(x.dtype)
        into = None
        if bias is not None:  # alpha holds sqrt(d), the bias must not
            into = (bias.view(3, heads, -1) * (rows[..., 0] / math.sqrt(d))).flatten().to(x.dtype)
        qkv = affine(unit(flat, inverse), scaled, into, f.out * math.sqrt(d)).view(batch, length, 3, heads, -1)
        if table is not None:
            rotate_(qkv[:, :, :2, :, : 2 * table.shape[-2]], table)
        ctx.save_for_backward(flat, inverse, weight, bias, p, rows)
        ctx.constants = table, heads, f, residual, x.shape
        q, k, v = qkv.transpose(1, 3).unbind(2)
        return q, k, v, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor, gskip: Tensor) -> Any:
        flat, inverse, weight, bias, p, rows = ctx.saved_tensors
        table, heads, f, residual, shape = ctx.constants
        d = flat.shape[-1]
        g = torch.stack([gq.transpose(1, 2), gk.transpose(1, 2), gv.transpose(1, 2)], dim=2)
        if table is not None:
            rotate_(g[:, :, :2, :, : 2 * table.shape[-2]], table, inverse=True)
        g = g.view(-1, weight.shape[0])
        scaled = (weight.view(3, heads, -1, d) * rows).view(weight.shape).to(flat.dtype)
        u = unit(flat, inverse)
        grad_w = weight_grad(g, u, f.weight * math.sqrt(d)).view(3, heads, -1, d)
        grad_b = None if bias is None else bias_grad(g, f.weight).view(3, heads, -1)
        # f.out / f.weight * along is sum(g q), q before its scale: read off the gradients of the projection's rows
        along = (weight.view_as(grad_w)[0] * grad_w[0]).sum((0, 2))
        if grad_b is not None:
            along += (bias.view_as(grad_b)[0] * grad_b[0]).sum(0)
        grad_p = along.mul_(torch.sigmoid(p)).mul_(2 * f.out / math.sqrt(heads))
        grad_w = grad_w.mul_(rows).view(weight.shape)
        if grad_b is not None:
            grad_b = grad_b.mul_(rows[..., 0]).flatten()
        part, row = norm_grad(product(g, scaled, f.x), u, inverse, residual.branch)
        grad_x = (gskip.reshape(-1, d) * residual.skip).addcmul_(part, row).view(shape)
        return grad_x, grad_w, grad_b, grad_p, None, None, None, None, None


def queries_keys_values(
    x: Tensor, weight: Tensor, bias: Tensor | None, p: Tensor, table: Tensor | None, heads: int,
    eps: float, f: Factors, residual: Residual,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x [N, S, D] -> q, k, v [N, H, S, w] of rms_norm(x), and x for `add_projection`."""
    return _Queries.apply(x, weight, bias, p, table, heads, eps, f, residual)


class _AddProjection(torch.autograd.Function):
    """skip * s + (a W^T + bias) * b; the gradient passes unscaled: residual factors act where the branch began."""

    @staticmethod
    def forward(
        ctx: Any, skip: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, f: Factors, residual: Residual
    ) -> Tensor:
        flat, w = a.reshape(-1, a.shape[-1]), weight.to(a.dtype)
        ctx.save_for_backward(flat, weight)
        ctx.constants = f, bias is not None, a.shape
        scale = f.out * residual.branch
        into = skip.reshape(-1, skip.shape[-1])
        if bias is None:
            return torch.addmm(into, flat, w.t(), beta=residual.skip, alpha=scale).view(skip.shape)
        out = torch.add((bias * scale).to(into.dtype), into, alpha=residual.skip)
        return out.addmm_(flat, w.t(), alpha=scale).view(skip.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        flat, weight = ctx.saved_tensors
        f, has_bias, shape = ctx.constants
        g = grad.reshape(-1, grad.shape[-1])
        grad_a = product(g, weight.to(g.dtype), f.x).view(shape)
        return grad, grad_a, weight_grad(g, flat, f.weight), bias_grad(g, f.weight) if has_bias else None, None, None


def add_projection(
    skip: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, f: Factors, residual: Residual
) -> Tensor:
    """The residual stream after a branch: skip [..., D], a [..., in], weight [D, in]."""
    return _AddProjection.apply(skip, a, weight, bias, f, residual)


def _silu_grad_(g: Tensor, x: Tensor) -> Tensor:
    """Gradient of x from that of silu(x), in its place."""
    if torch.compiler.is_compiling():
        return torch.ops.aten.silu_backward(g, x)
    return torch.ops.aten.silu_backward.grad_input(g, x, grad_input=g)


def _gate_grad(gh: Tensor, gate: Tensor, up: Tensor, act: Tensor) -> Tensor:
    """Gradient of [gate | up] from that of gate * silu(up), which is overwritten; act = silu(up)."""
    if torch.compiler.is_compiling():  # which does not trace outputs written in place
        return torch.cat([gh * act, torch.ops.aten.silu_backward(gh * gate, up)], dim=-1)
    g = gh.new_empty(gh.shape[0], 2 * gh.shape[1])
    g_gate, g_up = g.chunk(2, dim=-1)
    torch.mul(gh, act, out=g_gate)
    torch.ops.aten.silu_backward.grad_input(gh.mul_(gate), up, grad_input=g_up)
    return g


class _GatedMLP(torch.autograd.Function):
    """x + down(gate * silu(up)) of rms_norm(x), both residual factors included; keeps x, [gate | up] and silu(up)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, eps: float,
        f1: Factors, f2: Factors, residual: Residual,
    ) -> Tensor:  # fmt: skip
        flat = x.reshape(-1, x.shape[-1])
        d, dtype = flat.shape[-1], x.dtype
        inverse = inverse_norm(flat, eps)
        bias = None if b1 is None else (b1 / math.sqrt(d)).to(dtype)
        y = affine(unit(flat, inverse), w1.to(dtype), bias, f1.out * math.sqrt(d))
        gate, up = y.chunk(2, dim=-1)
        act = F.silu(up)
        scale = f2.out * residual.branch
        into = flat if b2 is None else torch.add((b2 * (scale / residual.skip)).to(dtype), flat)
        ctx.save_for_backward(flat, inverse, y, act, w1, w2)
        ctx.constants = f1, f2, residual, b1 is not None, b2 is not None
        return torch.addmm(into, gate * act, w2.to(dtype).t(), beta=residual.skip, alpha=scale).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        flat, inverse, y, act, w1, w2 = ctx.saved_tensors
        f1, f2, residual, has_b1, has_b2 = ctx.constants
        d, dtype = flat.shape[-1], flat.dtype
        g = grad.reshape(-1, d)
        gate, up = y.chunk(2, dim=-1)
        grad_w2 = weight_grad(g, gate * act, f2.weight)
        gh = product(g, w2.to(dtype), f2.x)
        gy = _gate_grad(gh, gate, up, act)
        u = unit(flat, inverse)
        grad_w1 = weight_grad(gy, u, f1.weight * math.sqrt(d))
        part, row = norm_grad(product(gy, w1.to(dtype), f1.x), u, inverse, residual.branch)
        grad_x = (g * residual.skip).addcmul_(part, row).view(grad.shape)
        grad_b1 = bias_grad(gy, f1.weight) if has_b1 else None
        return grad_x, grad_w1, grad_b1, grad_w2, bias_grad(g, f2.weight) if has_b2 else None, None, None, None, None


def gated_mlp(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, eps: float,
    f1: Factors, f2: Factors, residual: Residual,
) -> Tensor:  # fmt: skip
    """The residual stream x [..., D] after its MLP; w1 [2 d_ff, D] gives gate and up, w2 [D, d_ff]."""
    return _GatedMLP.apply(x, w1, b1, w2, b2, eps, f1, f2, residual)


class _ResidualMLP(torch.autograd.Function):
    """(linear2(silu(linear1(x)) * SILU_SCALE) + skip(x)) / sqrt(2); keeps x and what enters the silu

    (which is computed again where x is so narrow that this costs less than keeping it)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: tuple[Factors, Factors, Factors],
        w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor,
    ) -> Tensor:  # fmt: skip
        f1, f2, f3 = f
        flat, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        a = affine(flat, w1.to(dtype), b1.to(dtype), f1.out)
        keep = a if 8 * flat.shape[1] > a.shape[1] else None
        ctx.save_for_backward(flat, keep, w1, b1, w2, w3)
        ctx.f, ctx.shape = f, x.shape
        half = math.sqrt(0.5)
        bias = torch.add(b3 * f3.out, b2, alpha=f2.out).to(dtype)
        out = torch.addmm(bias, flat, w3.to(dtype).t(), beta=half, alpha=half * f3.out)
        out.addmm_(F.silu(a), w2.to(dtype).t(), alpha=half * f2.out * SILU_SCALE)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        flat, kept, w1, b1, w2, w3 = ctx.saved_tensors
        (f1, f2, f3), dtype = ctx.f, flat.dtype
        a = affine(flat, w1.to(dtype), b1.to(dtype), f1.out) if kept is None else kept
        g = grad.reshape(-1, grad.shape[-1])
        grad_w2 = weight_grad(g, F.silu(a), f2.weight * SILU_SCALE)
        ga = _silu_grad_(product(g, w2.to(dtype), f2.x * SILU_SCALE), a)
        total = g.sum(0, dtype=torch.float32)
        grad_x = None
        if ctx.needs_input_grad[0]:
            half = math.sqrt(0.5)
            grad_x = product(g, w3.to(dtype), half * f3.x)
            grad_x = grad_x.addmm_(ga, w1.to(dtype), alpha=half * f1.x).view(ctx.shape)
        return (
            grad_x, None,
            weight_grad(ga, flat, f1.weight), bias_grad(ga, f1.weight),
            grad_w2, total * f2.weight,
            weight_grad(g, flat, f3.weight), total * f3.weight,
        )  # fmt: skip


def residual_mlp(
    x: Tensor, f: tuple[Factors, Factors, Factors],
    w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, w3: Tensor, b3: Tensor | None,
) -> Tensor:  # fmt: skip
    """x [..., in] -> [..., out] through a hidden layer (w1, w2) and a linear skip (w3); f: factors of the three."""
    return _ResidualMLP.apply(x, f, w1, b1, w2, b2, w3, b3)
