"""Toto 2.0: causal scaler -> patch embedding -> decoder over time and variates -> quantiles of the next patch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from toto_train.config import ModelConfig
from toto_train.model.decoder import MaskFlags, build_layers, decode, group_ids
from toto_train.model.scaler import causal_loc_scale, scale_patches, to_patches
from toto_train.model.umup import ResidualMLP, init_weights

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Prediction(NamedTuple):
    """z [B, V, P, patch_size, 9]: quantiles of patch i+1 at position i, in the asinh space of loc, scale [B, V, P]."""

    z: Tensor
    loc: Tensor
    scale: Tensor


class Toto(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        patch, d = config.patch_size, config.d_model
        self.patch_embed = ResidualMLP(2 * patch, 4 * d, d, readout=False)
        self.layers = build_layers(config)
        self.head = ResidualMLP(d, 4 * d, patch * len(QUANTILES), readout=True)

    @classmethod
    def create(cls, config: ModelConfig, seed: int, device: str | torch.device = "cpu") -> Toto:
        """Built without memory first, then allocated and initialised from the seed."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device=device)
        init_weights(model, seed)
        return model

    def forward(
        self,
        target: Tensor,
        target_mask: Tensor,
        cpm_mask: Tensor | None,
        series_ids: Tensor,
        flags: MaskFlags | None = None,
    ) -> Prediction:
        """target [B, V, T], target_mask and cpm_mask [B, V, T] bool (True = observed, visible), series_ids [B, V].

        flags: what the batch needs masks for; None looks (a host sync on an accelerator).
        """
        patch_size = self.config.patch_size
        visible = target_mask if cpm_mask is None else target_mask & cpm_mask
        loc, scale = causal_loc_scale(target, visible, patch_size)
        shown = to_patches(visible, patch_size)
        z = scale_patches(to_patches(target, patch_size), loc, scale)
        z = torch.where(shown, z, 0.0)
        x = self.patch_embed(torch.cat([z, (~shown).to(z.dtype)], dim=-1))
        ids = group_ids(series_ids, target_mask, cpm_mask, patch_size)
        x = decode(self.layers, x, ids, flags or mask_flags(ids), self.config)
        return Prediction(self.head(x).float().unflatten(-1, (patch_size, len(QUANTILES))), loc, scale)


def mask_flags(ids: Tensor) -> MaskFlags:
    """Read from group ids [B, V, P] what masks they need."""
    return MaskFlags(bool((ids < 0).any()), bool((ids != ids[:, :1]).any()))
