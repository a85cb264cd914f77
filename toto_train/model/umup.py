"""Unit-scaled building blocks (u-muP, arXiv 2407.17465): every weight starts N(0, 1), the factors live in the products.

Each factor acts once per direction: a linear layer multiplies its output by `forward` inside the matrix product, the
gradient to its input by `backward`, and the gradient to its weights by N^-1/2 with N the rows of the whole global
batch. Forward and backward factors need not agree, so these are autograd functions of their own.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LN2 = math.log(2.0)
# The scale that keeps silu(x) near unit variance: 0.8 / 0.2 log-interpolation between a ReLU and a linear unit.
SILU_SCALE = math.exp(0.8 * math.log(math.sqrt(2 / (1 - 1 / math.pi))) + 0.2 * LN2)


class _ScaledLinear(torch.autograd.Function):
    """(x W^T + b) * f, with gradients scaled apart; factors ride in the product's alpha and beta."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, f: float, gx: float, gw: float) -> Tensor:
        ctx.scales = gx, gw
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        flat = x.reshape(-1, x.shape[-1])
        added = x.new_zeros(1) if bias is None else bias
        out = torch.addmm(added, flat, weight.t(), beta=0.0 if bias is None else f, alpha=f)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        gx, gw = ctx.scales
        g = grad.reshape(-1, grad.shape[-1])
        unused = g.new_zeros(1)
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(unused, g, weight, beta=0.0, alpha=gx).view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_w = torch.addmm(unused, g.t(), x.reshape(-1, x.shape[-1]), beta=0.0, alpha=gw)
        if ctx.has_bias:
            grad_b = g.sum(0).mul_(gw)
        return grad_x, grad_w, grad_b, None, None, None


class ScaledLinear(nn.Module):
    """Unit-scaled linear layer, [..., fan_in] -> [..., fan_out].

    readout: the forward factor is 1/fan_in instead of fan_in^-1/2 (the muP rule for output layers).
    constrained: the gradient to the input carries the forward factor; otherwise fan_out^-1/2.
    """

    def __init__(self, fan_in: int, fan_out: int, bias: bool, constrained: bool, readout: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))
        self.bias = nn.Parameter(torch.empty(fan_out)) if bias else None
        self.forward_factor = 1 / fan_in if readout else fan_in**-0.5
        self.backward_factor = self.forward_factor if constrained else fan_out**-0.5
        self.replicas = 1  # data-parallel world size x accumulation steps; see set_replicas

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        rows = x.numel() // x.shape[-1] * self.replicas
        return _ScaledLinear.apply(x, weight, bias, self.forward_factor, self.backward_factor, rows**-0.5)


class _ResidualSplit(torch.autograd.Function):
    """x -> (branch input, skip); the two gradients are scaled here, on their way in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: float, skip: float) -> tuple[Tensor, Tensor]:
        ctx.factors = branch, skip
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_branch: Tensor, grad_skip: Tensor) -> Any:
        branch, skip = ctx.factors
        return torch.add(grad_skip * skip, grad_branch, alpha=branch), None, None


class _ResidualAdd(torch.autograd.Function):
    """branch * b + skip * s forward; the gradient passes unscaled (it is scaled at the split)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, b: float, s: float) -> Tensor:
        return torch.add(x * s, branch, alpha=b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad, None, None


def residual_factors(tau: float) -> tuple[float, float]:
    """(branch, skip) = (tau, 1) / sqrt(1 + tau^2)."""
    scale = 1 / math.sqrt(1 + tau * tau)
    return tau * scale, scale


def residual_split(x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    return _ResidualSplit.apply(x, *residual_factors(tau))


def residual_add(skip: Tensor, branch: Tensor, tau: float) -> Tensor:
    b, s = residual_factors(tau)
    return _ResidualAdd.apply(skip, branch, b, s)


def residual_taus(layers: int, mult: float, attn_ratio: float) -> list[tuple[float, float]]:
    """(attention tau, MLP tau) of every layer: branch k adds its share to a stream that k branches built."""
    mlp = mult * math.sqrt(2 / (1 + attn_ratio**2))
    attn = attn_ratio * mlp

    def tau(k: int) -> float:
        own = attn if k % 2 == 0 else mlp
        return own / math.sqrt(layers + math.ceil(k / 2) * attn**2 + (k // 2) * mlp**2)

    return [(tau(2 * i), tau(2 * i + 1)) for i in range(layers)]


class _PerDimScale(torch.autograd.Function):
    """q * softplus(p)/ln 2 per dimension; the gradient to p is scaled by the global count of q."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, p: Tensor, replicas: int) -> Tensor:
        ctx.save_for_backward(q, p)
        ctx.replicas = replicas
        return q * (F.softplus(p) / LN2).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, p = ctx.saved_tensors
        elements = q.numel() * ctx.replicas
        summed = (grad * q).reshape(-1, p.numel()).sum(0, dtype=torch.float32)
        grad_p = summed * 2 * torch.sigmoid(p) * math.sqrt(p.numel() / elements)
        return grad * (F.softplus(p) / LN2).to(grad.dtype), grad_p, None


def per_dim_scale(q: Tensor, p: Tensor, replicas: int) -> Tensor:
    """Learned positive scale of each query dimension, 1 where p = 0; q [..., head_dim], p [head_dim]."""
    return _PerDimScale.apply(q, p, replicas)


class ResidualMLP(nn.Module):
    """linear2(silu(linear1(x))) with a linear skip: the input embedding, and (readout) the output head."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int, readout: bool):
        super().__init__()
        self.linear1 = ScaledLinear(fan_in, hidden, bias=True, constrained=readout)
        self.linear2 = ScaledLinear(hidden, fan_out, bias=True, constrained=not readout, readout=readout)
        self.skip = ScaledLinear(fan_in, fan_out, bias=True, constrained=False, readout=readout)

    def forward(self, x: Tensor) -> Tensor:
        branch, skip = residual_split(x, 1.0)
        branch = self.linear2(F.silu(self.linear1(branch)) * SILU_SCALE)
        return residual_add(self.skip(skip), branch, 1.0)


def set_replicas(model: nn.Module, replicas: int) -> None:
    """Tell every layer how many row batches make one optimizer step: world size x accumulation steps."""
    for module in model.modules():
        if hasattr(module, "replicas"):
            module.replicas = replicas  # type: ignore[assignment]


def init_weights(model: nn.Module, seed: int) -> None:
    """The whole initialisation: matrices N(0, 1), vectors (biases, per-dimension scales) 0.

    Each tensor draws from a generator keyed by (seed, name), so the values depend on no order, device or sharding.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2:
                p.zero_()
                continue
            key = hashlib.sha256(f"{seed}/init/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
            p.copy_(torch.randn(p.shape, generator=generator))
