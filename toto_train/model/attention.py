"""Multi-head attention over time (causal, xPos) or over variates (full, no position code)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_train.config import ModelConfig
from toto_train.model.fused import add_projection, queries_keys_values
from toto_train.model.qk_norm import normed_queries_keys_values
from toto_train.model.umup import Residual, ScaledLinear

ROTARY_BASE = 10_000.0
XPOS_SCALE_BASE = 256.0
XPOS_GAMMA = 0.4


def xpos_table(first: int, patches: int, centre: int, width: int, device: torch.device) -> Tensor:
    """`make_xpos_table`, made once for every shape and place; a compiler takes it into its graph."""
    make = make_xpos_table if torch.compiler.is_compiling() else _kept_xpos_table
    return make(first, patches, centre, width, device)


def make_xpos_table(first: int, patches: int, centre: int, width: int, device: torch.device) -> Tensor:
    """Complex factors [patches, 2, 1, width/2, 2] of queries and keys at positions first, first + 1, ...

    Rotation by position * base^(-2j/width), stretched on queries and shrunk on keys (xPos: Sun et al., arXiv
    2212.10554).
    """
    pair = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    position = torch.arange(first, first + patches, device=device, dtype=torch.float32)[:, None]
    angle = position * ROTARY_BASE ** (-pair / width)
    stretch = ((pair + XPOS_GAMMA * width) / ((1 + XPOS_GAMMA) * width)) ** ((position - centre) / XPOS_SCALE_BASE)
    turn = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return torch.stack([turn * stretch[..., None], turn / stretch[..., None]], dim=1).unsqueeze(2)


_kept_xpos_table = lru_cache(maxsize=16)(make_xpos_table)


class KeyValueCache:
    """Keys and values of the patches a time layer has seen, [N, H, length, w] each, with room for more."""

    def __init__(self, room: int):
        self.room, self.length = room, 0
        self.keys = self.values = torch.empty(0)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values with these behind the first `length`; to keep them, advance `length`."""
        if not self.keys.numel():
            n, heads, _, width = k.shape
            self.keys, self.values = k.new_empty(n, heads, self.room, width), k.new_empty(n, heads, self.room, width)
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """x + attention(rms_norm(x)): one fused projection, logits scaled by 1/head_dim, residual weighted by tau."""

    def __init__(self, config: ModelConfig, over_time: bool):
        super().__init__()
        self.heads, self.head_dim, self.over_time = config.num_heads, config.head_dim, over_time
        self.eps, self.qk_norm = config.norm_eps, config.qk_norm
        inner = self.heads * self.head_dim
        self.in_proj = ScaledLinear(config.d_model, 3 * inner, config.attn_bias, constrained=True)
        self.out_proj = ScaledLinear(inner, config.d_model, config.attn_bias, constrained=True)
        self.per_dim_scale = nn.Parameter(torch.empty(self.head_dim))

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        mask: Tensor | None,
        residual: Residual,
        rows: int,
        cache: KeyValueCache | None = None,
        last: int = 0,
    ) -> Tensor:
        """x [N, S, D] -> [N, S, D], or [N, last, D]: the last positions only, where last is given.

        table: of `xpos_table`, on time layers. mask [N or 1, 1, queries, keys] True = attends, or None for plain causal
        (time) or full attention (variates). rows: nominal number of patches, for `ScaledLinear.factors`.
        """
        into, out = self.in_proj, self.out_proj
        project = normed_queries_keys_values if self.qk_norm else queries_keys_values
        q, k, v, skip = project(
            x, into.weight, into.bias, self.per_dim_scale, table, self.heads, self.eps, into.factors(rows), residual
        )
        if cache is not None:
            k, v = cache.extend(k, v)
        if last:
            q, skip = q[:, :, -last:], skip[:, -last:]
        causal = self.over_time and mask is None
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1 / self.head_dim)
        a = a.transpose(1, 2).flatten(-2)
        return add_projection(skip, a, out.weight, out.bias, out.factors(rows), residual)
