"""Multi-head attention over time (causal, xPos) or over variates (full, no position code)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_train.config import ModelConfig
from toto_train.model.umup import ScaledLinear, per_dim_scale

ROTARY_BASE = 10_000.0
XPOS_SCALE_BASE = 256.0
XPOS_GAMMA = 0.4


def xpos_tables(positions: Tensor, width: int, centre: int) -> tuple[Tensor, Tensor, Tensor]:
    """cos, sin and decay [P, width/2] of the rotated part of a head (Sun et al., arXiv 2212.10554).

    positions: [P] patch indices. Queries take the decay, keys its inverse.
    """
    pair = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angle = positions.float()[:, None] * ROTARY_BASE ** (-pair / width)
    decay = ((pair + XPOS_GAMMA * width) / ((1 + XPOS_GAMMA) * width)) ** (
        (positions.float()[:, None] - centre) / XPOS_SCALE_BASE
    )
    return angle.cos(), angle.sin(), decay


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of the first 2*cos.shape[-1] dimensions of x [..., P, head_dim]; the rest passes."""
    width = 2 * cos.shape[-1]
    even, odd = x[..., :width:2], x[..., 1:width:2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned.to(x.dtype), x[..., width:]], dim=-1)


class Attention(nn.Module):
    """Attention with one fused projection and logits scaled by 1/head_dim."""

    def __init__(self, config: ModelConfig, over_time: bool):
        super().__init__()
        self.heads, self.head_dim, self.over_time = config.num_heads, config.head_dim, over_time
        inner = self.heads * self.head_dim
        self.in_proj = ScaledLinear(config.d_model, 3 * inner, config.attn_bias, constrained=True)
        self.out_proj = ScaledLinear(inner, config.d_model, config.attn_bias, constrained=True)
        self.per_dim_scale = nn.Parameter(torch.empty(self.head_dim))
        self.replicas = 1

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """x [N, S, D]; mask [N, 1, S, S] True = attends, or None for plain causal (time) or full (variates)."""
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, self.head_dim)).transpose(1, 3).unbind(2)
        q = per_dim_scale(q, self.per_dim_scale, self.replicas)
        if tables is not None:
            cos, sin, decay = tables
            q = rotate(q, cos * decay, sin * decay)
            k = rotate(k, cos / decay, sin / decay)
        causal = self.over_time and mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1 / self.head_dim)
        return self.out_proj(out.transpose(1, 2).flatten(-2))
