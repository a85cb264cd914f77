"""Unit scaling (u-muP, arXiv 2407.17465): every weight starts N(0, 1), the factors live in the products.

Each factor acts once per direction: a linear layer multiplies its output by one, the gradient to its input by another,
and the gradient to its weights by N^-1/2 with N the rows of the whole global batch. `fused.py` applies them.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import nn

from toto_train.tensors import copy_into

LN2 = math.log(2.0)
# The scale that keeps silu(x) near unit variance: 0.8 / 0.2 log-interpolation between a ReLU and a linear unit.
SILU_SCALE = math.exp(0.8 * math.log(math.sqrt(2 / (1 - 1 / math.pi))) + 0.2 * LN2)


class Factors(NamedTuple):
    """What a linear layer multiplies its output, the gradient to its input and those to its weight and bias by."""

    out: float
    x: float
    weight: float


class Residual(NamedTuple):
    """What a residual connection multiplies its branch and its skip by."""

    branch: float
    skip: float


class ScaledLinear(nn.Module):
    """Weights and factors of a unit-scaled linear layer, [..., fan_in] -> [..., fan_out]; `fused.py` computes it.

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

    def factors(self, rows: int) -> Factors:
        """rows: patches of one row batch on one device, also of those this layer does not see."""
        return Factors(self.forward_factor, self.backward_factor, (rows * self.replicas) ** -0.5)


def residual(tau: float) -> Residual:
    """(tau, 1) / sqrt(1 + tau^2)."""
    scale = 1 / math.sqrt(1 + tau * tau)
    return Residual(tau * scale, scale)


def residual_taus(layers: int, mult: float, attn_ratio: float) -> list[tuple[float, float]]:
    """(attention tau, MLP tau) of every layer: branch k adds its share to a stream that k branches built."""
    mlp = mult * math.sqrt(2 / (1 + attn_ratio**2))
    attn = attn_ratio * mlp

    def tau(k: int) -> float:
        own = attn if k % 2 == 0 else mlp
        return own / math.sqrt(layers + math.ceil(k / 2) * attn**2 + (k // 2) * mlp**2)

    return [(tau(2 * i), tau(2 * i + 1)) for i in range(layers)]


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
            copy_into(p, torch.randn(p.shape, generator=generator))
