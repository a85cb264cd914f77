"""Toto 2.0: causal scaler -> patch embedding -> decoder over time and variates -> quantiles of the next patch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from toto_train.config import ModelConfig
from toto_train.model.decoder import EMPTY, MaskFlags, build_layers, decode, group_ids, make_masks
from toto_train.model.fused import residual_mlp
from toto_train.model.scaler import causal_loc_scale, scale_patches, to_patches
from toto_train.model.umup import ScaledLinear, init_weights

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Prediction(NamedTuple):
    """z [B, V, P, patch_size, 9]: quantiles of patch i+1 at position i, in the asinh space of loc, scale [B, V, P]."""

    z: Tensor
    loc: Tensor
    scale: Tensor


class ResidualMLP(nn.Module):
    """A hidden layer with a linear skip: the input embedding, and (readout) the output head."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int, readout: bool):
        super().__init__()
        self.linear1 = ScaledLinear(fan_in, hidden, bias=True, constrained=readout)
        self.linear2 = ScaledLinear(hidden, fan_out, bias=True, constrained=not readout, readout=readout)
        self.skip = ScaledLinear(fan_in, fan_out, bias=True, constrained=False, readout=readout)

    def forward(self, x: Tensor, rows: int) -> Tensor:
        """x [..., fan_in] -> [..., fan_out]; rows: nominal number of patches, for `ScaledLinear.factors`."""
        one, two, skip = self.linear1, self.linear2, self.skip
        factors = one.factors(rows), two.factors(rows), skip.factors(rows)
        return residual_mlp(x, factors, one.weight, one.bias, two.weight, two.bias, skip.weight, skip.bias)


class Toto(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        patch, d = config.patch_size, config.d_model
        self.patch_embed = ResidualMLP(2 * patch, 4 * d, d, readout=False)
        self.layers = build_layers(config)
        self.head = ResidualMLP(d, 4 * d, patch * len(QUANTILES), readout=True)
        self.recompute = 0
        """So many layers keep only their input for the backward (activation checkpointing)."""

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
        labelled: bool = False,
    ) -> Prediction:
        """target [B, V, T], target_mask and cpm_mask [B, V, T] bool (True = observed, visible), series_ids [B, V].

        flags: what the batch needs masks for; None looks (a host sync on an accelerator). labelled: only positions that
        have a label, all but the last, on which nothing depends: P counts one less then. Under autocast activations
        are in its dtype from the embedding to the head; scaler and output are float32.
        """
        config, patch_size = self.config, self.config.patch_size
        rows = target.numel() // patch_size
        if labelled:
            target, target_mask = target[..., :-patch_size], target_mask[..., :-patch_size]
            cpm_mask = None if cpm_mask is None else cpm_mask[..., :-patch_size]
        visible = target_mask if cpm_mask is None else target_mask & cpm_mask
        loc, scale = causal_loc_scale(target, visible, patch_size)
        shown = to_patches(visible, patch_size)
        z = torch.where(shown, scale_patches(to_patches(target, patch_size), loc, scale), 0.0)
        ids = None if flags and not any(flags) else group_ids(series_ids, target_mask, cpm_mask, patch_size)
        masks = make_masks(ids, flags or mask_flags(ids))
        device = target.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        with torch.autocast(device, enabled=False):
            x = self.patch_embed(torch.cat([z, ~shown], dim=-1).to(dtype), rows)
            x = decode(self.layers, x, masks, config, rows, self.recompute)
            out = self.head(x, rows).float()
        return Prediction(out.unflatten(-1, (patch_size, len(QUANTILES))), loc, scale)


def mask_flags(ids: Tensor | None) -> MaskFlags:
    """Read from group ids [B, V, P] what masks they need."""
    if ids is None:
        return MaskFlags(False, False)
    after_empty = (ids[..., :-1] == EMPTY) & (ids[..., 1:] != EMPTY)
    return MaskFlags(bool(after_empty.any()), bool((ids != ids[:, :1]).any()))
