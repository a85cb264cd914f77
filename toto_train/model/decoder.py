"""The stack: pre-norm layers, most of them over time, the last of each group over variates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_train.config import ModelConfig
from toto_train.model.attention import Attention, xpos_tables
from toto_train.model.umup import ScaledLinear, residual_add, residual_split, residual_taus

EMPTY = -1  # group id of a patch with nothing observed: only other empty patches see it


class MaskFlags(NamedTuple):
    """What a batch needs masks for; known on the host, so that no mask is built (or synced on) where a flag will do."""

    empty_patches: bool = True
    several_series: bool = True


class GatedMLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = ScaledLinear(config.d_model, 2 * config.d_ff, config.mlp_bias, constrained=False)
        self.down = ScaledLinear(config.d_ff, config.d_model, config.mlp_bias, constrained=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(gate * F.silu(up))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each residual weighted by its tau."""

    def __init__(self, config: ModelConfig, over_time: bool, taus: tuple[float, float]):
        super().__init__()
        self.over_time, self.eps = over_time, config.norm_eps
        self.attn_tau, self.mlp_tau = taus
        self.attn = Attention(config, over_time)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        branch, skip = residual_split(x, self.attn_tau)
        x = residual_add(skip, self.attn(rms_norm(branch, self.eps), tables, mask), self.attn_tau)
        branch, skip = residual_split(x, self.mlp_tau)
        return residual_add(skip, self.mlp(rms_norm(branch, self.eps)), self.mlp_tau)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis; no weight."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def over_time(config: ModelConfig, layer: int) -> bool:
    """Whether layer i attends over time; in each group the variate layers come first or last."""
    group = config.layer_group_size or config.num_layers
    place = layer % group
    variates = config.num_variate_layers_per_group
    return place >= variates if config.variate_layer_first else place < group - variates


def build_layers(config: ModelConfig) -> nn.ModuleList:
    taus = residual_taus(config.num_layers, config.residual_mult, config.residual_attn_ratio)
    return nn.ModuleList(Layer(config, over_time(config, i), taus[i]) for i in range(config.num_layers))


def group_ids(series_ids: Tensor, target_mask: Tensor, cpm_mask: Tensor | None, patch_size: int) -> Tensor:
    """Attention group of every patch [B, V, P]: its series id, or EMPTY where nothing was observed or masked out.

    series_ids [B, V]; target_mask, cpm_mask [B, V, T] bool.
    """
    alive = target_mask.unflatten(-1, (-1, patch_size)).any(-1)
    if cpm_mask is not None:
        alive = alive | ~cpm_mask.unflatten(-1, (-1, patch_size)).all(-1)
    return torch.where(alive, series_ids.unsqueeze(-1), EMPTY)


def time_mask(ids: Tensor) -> Tensor:
    """Causal attention within equal group ids; ids [B, V, P] -> [B*V, 1, P, P]."""
    ids = ids.flatten(0, 1)
    causal = torch.ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool, device=ids.device).tril()
    return ((ids.unsqueeze(-1) == ids.unsqueeze(-2)) & causal).unsqueeze(1)


def variate_mask(ids: Tensor) -> Tensor:
    """Attention between variates of one group at one patch; ids [B, V, P] -> [B*P, 1, V, V]."""
    ids = ids.transpose(1, 2).flatten(0, 1)
    return (ids.unsqueeze(-1) == ids.unsqueeze(-2)).unsqueeze(1)


def decode(layers: nn.ModuleList, x: Tensor, ids: Tensor, flags: MaskFlags, config: ModelConfig) -> Tensor:
    """Run the stack over patch embeddings x [B, V, P, D] with group ids [B, V, P]."""
    batch, variates, patches, _ = x.shape
    positions = torch.arange(patches, device=x.device)
    tables = xpos_tables(positions, config.head_dim // 2, centre=patches // 2)
    across_time = time_mask(ids) if flags.empty_patches else None
    across_variates = variate_mask(ids) if flags.empty_patches or flags.several_series else None
    for layer in layers:
        assert isinstance(layer, Layer)
        if layer.over_time:
            x = layer(x.flatten(0, 1), tables, across_time).unflatten(0, (batch, variates))
        else:
            x = x.transpose(1, 2).flatten(0, 1)
            x = layer(x, None, across_variates).unflatten(0, (batch, patches)).transpose(1, 2)
    return rms_norm(x, config.norm_eps)
