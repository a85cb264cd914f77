"""The stack: pre-norm layers, most of them over time, the last of each group over variates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toto_train.config import ModelConfig
from toto_train.model.attention import Attention, KeyValueCache, xpos_table
from toto_train.model.fused import gated_mlp, rms_norm
from toto_train.model.umup import Residual, ScaledLinear, residual, residual_taus

EMPTY = -1  # group id of a patch with nothing observed: only other empty patches see it


class MaskFlags(NamedTuple):
    """Which masks a batch needs; known on the host, so that none is built (or synced on) where a flag will do.

    time: an empty patch stands before one that is not. Empty patches at a row's end need no mask: causality hides them,
    and what they see themselves matters to nobody. variates: two variates of a row differ in group at some patch.
    """

    time: bool = True
    variates: bool = True


class GatedMLP(nn.Module):
    """x + down(gate * silu(up)) of rms_norm(x), the residual weighted by tau."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.up = ScaledLinear(config.d_model, 2 * config.d_ff, config.mlp_bias, constrained=False)
        self.down = ScaledLinear(config.d_ff, config.d_model, config.mlp_bias, constrained=False)

    def forward(self, x: Tensor, residual: Residual, rows: int) -> Tensor:
        up, down = self.up, self.down
        return gated_mlp(
            x, up.weight, up.bias, down.weight, down.bias, self.eps, up.factors(rows), down.factors(rows), residual
        )


class Layer(nn.Module):
    """Pre-norm attention, then a pre-norm MLP, both with residuals."""

    def __init__(self, config: ModelConfig, over_time: bool, taus: tuple[float, float]):
        super().__init__()
        self.over_time = over_time
        self.attn_tau, self.mlp_tau = taus
        self.attn = Attention(config, over_time)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        mask: Tensor | None,
        rows: int,
        cache: KeyValueCache | None = None,
        last: int = 0,
    ) -> Tensor:
        """As `Attention.forward`."""
        x = self.attn(x, table, mask, residual(self.attn_tau), rows, cache, last)
        return self.mlp(x, residual(self.mlp_tau), rows)


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


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """[queries, keys] True = attends; the last query stands at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def time_mask(ids: Tensor, queries: int) -> Tensor:
    """Causal attention within equal group ids; ids [B, V, keys] -> [B*V, 1, queries, keys]."""
    ids = ids.flatten(0, 1)
    causal = causal_mask(queries, ids.shape[-1], ids.device)
    return ((ids[:, -queries:, None] == ids[:, None, :]) & causal).unsqueeze(1)


def variate_mask(ids: Tensor) -> Tensor:
    """Attention between variates of one group at one patch; ids [B, V, P] -> [B, P, V, V]."""
    ids = ids.transpose(1, 2)
    return ids.unsqueeze(-1) == ids.unsqueeze(-2)


class Masks(NamedTuple):
    """Of `time_mask` or `causal_mask`, and of `variate_mask`; None is plain causal and full attention."""

    time: Tensor | None
    variates: Tensor | None


def make_masks(ids: Tensor | None, flags: MaskFlags) -> Masks:
    """Those a batch needs; group ids [B, V, P] may be None where no flag is set."""
    if ids is None:
        return Masks(None, None)
    time = time_mask(ids, ids.shape[-1]) if flags.time else None
    return Masks(time, variate_mask(ids) if flags.variates else None)


def decode(
    layers: nn.ModuleList,
    x: Tensor,
    masks: Masks,
    config: ModelConfig,
    rows: int,
    recompute: int = 0,
    caches: list[KeyValueCache] | None = None,
    last: int = 0,
    centre: int | None = None,
) -> Tensor:
    """Run the stack over patch embeddings x [B, V, P, D]; only their last positions, where last is given.

    rows: nominal number of patches (see `ScaledLinear.factors`). recompute: so many layers, from the first, keep
    nothing for the backward but their input. caches: of the time layers; x goes on behind what they hold. centre: of
    the positional stretch, the middle of x where None; without caches it cancels out.
    """
    patches, start = x.shape[2], caches[0].length if caches else 0
    middle = patches // 2 if centre is None else centre
    table = xpos_table(start, patches, middle, config.head_dim // 2, x.device)
    last_over_time = [i for i in range(len(layers)) if over_time(config, i)][-1]
    cached, by_time = iter(caches or ()), True
    for i, layer in enumerate(layers):
        assert isinstance(layer, Layer)
        if layer.over_time != by_time:  # [B, V, P, D] <-> [B, P, V, D]
            x, by_time = x.transpose(1, 2).contiguous(), not by_time
        mask, wanted = masks.time, 0
        if not by_time:
            mask = None if masks.variates is None else masks.variates[:, -x.shape[1] :].flatten(0, 1).unsqueeze(1)
        elif last and i == last_over_time:  # what follows attends within positions
            mask = causal_mask(last, start + patches, x.device) if mask is None else mask[..., -last:, :]
            wanted = last
        inputs = x.flatten(0, 1), table if by_time else None, mask, rows
        if i < recompute and torch.is_grad_enabled():
            out = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            out = layer(*inputs, next(cached, None) if by_time else None, wanted)
        x = out.unflatten(0, x.shape[:2])
    x = rms_norm(x, config.norm_eps)
    return x if by_time else x.transpose(1, 2)
