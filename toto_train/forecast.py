"""Forecasts from a trained model: in one pass, or in blocks whose medians become the history of the next block.

Both equal the official package's `forecast`, its quirks included (docs/compatibility.md names them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toto_train.model.attention import KeyValueCache
from toto_train.model.decoder import (
    EMPTY,
    Masks,
    causal_mask,
    decode,
    group_ids,
    over_time,
    time_mask,
    variate_mask,
)  # fmt: skip
from toto_train.model.scaler import MIN_SCALE, causal_loc_scale, scale_patches, to_patches, unscale
from toto_train.model.toto import QUANTILES, Prediction, Toto

MEDIAN = QUANTILES.index(0.5)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precision -> what products are computed in; weights, scales and quantiles stay float32."""


@dataclass(frozen=True)
class ForecastOptions:
    """block: steps forecast per pass, whole patches; None: all in one pass, better up to some 768 steps.

    min_observations: leading patches that end with fewer observations than that take location and scale from the first
    so many observations of their series; 0: from what they have. clamp: quantiles stay within so many scales of the
    extremes of the context; 0: unbounded.
    """

    block: int | None = None
    min_observations: int = 0
    clamp: float = 0.0


PUBLISHED = ForecastOptions(block=None, min_observations=8, clamp=1e4)
"""Settings of the published benchmarks."""


class Covariates(NamedTuple):
    """What is known of the future, too: values [B, E, T + horizon], mask of the same shape (True = known), series_ids
    [B, E]: seen by variates of equal id. The forecast of a patch sees them up to the patch before it."""

    values: Tensor
    mask: Tensor
    series_ids: Tensor


class _Row(NamedTuple):
    """Whole patches of context, then of future; covariates stand behind the targets. values, mask [B, V + E, T']."""

    values: Tensor
    mask: Tensor
    series_ids: Tensor
    context: int  # patches


class _Pass(NamedTuple):
    """Reads the patches start ... end; those from `known` on are to be forecast. What lies before `start` stays as
    the passes before left it."""

    start: int
    known: int
    end: int


@torch.no_grad()
def forecast(
    model: Toto,
    target: Tensor,
    target_mask: Tensor,
    series_ids: Tensor,
    horizon: int,
    options: ForecastOptions = ForecastOptions(),
    covariates: Covariates | None = None,
) -> Tensor:
    """Quantiles 0.1 ... 0.9 of the next `horizon` steps, [9, B, V, horizon], in the units of the input.

    target [B, V, T] float, target_mask [B, V, T] bool (True = observed), series_ids [B, V] int. T may be any length:
    it is padded on the left to whole patches. Values that are not finite count as missing. The last patch of the
    context counts as observed throughout, as in the official package, so what stands at its masked steps is read:
    fill its gaps first (`fill_forward`); values masked elsewhere are not read.
    """
    patch = model.config.patch_size
    _check(target, target_mask, series_ids, horizon, options, covariates, patch)
    variates, ahead = target.shape[1], -(-horizon // patch)
    row = _lay_out(target, target_mask, series_ids, ahead, covariates, patch)
    context = row.context * patch
    seen, history = row.mask[:, :variates, :context], row.values[:, :variates, :context]
    low = torch.where(seen, history, torch.inf).amin(-1)[..., None, None]
    high = torch.where(seen, history, -torch.inf).amax(-1)[..., None, None]
    passes = _passes(row.context, ahead, options.block // patch if options.block else ahead)
    blocks = []
    time_layers = sum(over_time(model.config, i) for i in range(model.config.num_layers))
    caches = [KeyValueCache(passes[-1].end) for _ in range(time_layers)] if len(passes) > 1 else None
    for now in passes:
        _, known, end = now
        z, loc, scale = (t[:, :variates] for t in _predict(model, row, now, caches, options.min_observations))
        # step k of position p describes patch p + 1, whose own loc and scale unscale it
        places = (slice(None), slice(None), slice(known, end), None, None)
        real = clamp_non_finite(unscale(z, loc[places], scale[places]).movedim(-1, 0))  # [9, B, V, patches, patch]
        if options.clamp:
            reach = options.clamp * scale[:, :, row.context - 1, None, None]
            real = real.clamp(low - reach, high + reach)
        blocks.append(real.sort(dim=0).values.flatten(-2))
        row.values[:, :variates, known * patch : end * patch] = blocks[-1][MEDIAN]
        row.mask[:, :variates, known * patch : end * patch] = True
    return torch.cat(blocks, dim=-1)[..., :horizon]


def _lay_out(
    target: Tensor, mask: Tensor, series_ids: Tensor, ahead: int, covariates: Covariates | None, patch: int
) -> _Row:
    """Pad targets and covariates to whole patches: unobserved on the left, unobserved `ahead` patches long behind."""
    steps = target.shape[-1]
    left, right = -steps % patch, ahead * patch
    values, mask = F.pad(target.float(), (left, right)), F.pad(mask & target.isfinite(), (left, right))
    mask[..., left + steps - patch : left + steps] = True
    if covariates is not None:
        pad = left, right + steps - covariates.values.shape[-1]
        known = covariates.mask & covariates.values.isfinite()
        values = torch.cat([values, F.pad(covariates.values.float(), pad)], dim=1)
        mask = torch.cat([mask, F.pad(known, pad)], dim=1)
        series_ids = torch.cat([series_ids, covariates.series_ids], dim=1)
    return _Row(torch.where(values.isfinite(), values, 0.0), mask, series_ids, (left + steps) // patch)


def _passes(context: int, ahead: int, block: int) -> list[_Pass]:
    """Block by block, all in patches; a pass reads again what the one before it forecast, which is known by now."""
    known = list(range(context, context + ahead, block))
    return [_Pass(s, k, min(k + block, context + ahead)) for s, k in zip([0, *known], known, strict=False)]


def _predict(
    model: Toto, row: _Row, now: _Pass, caches: list[KeyValueCache] | None, min_observations: int
) -> Prediction:
    """Outputs that describe the patches known ... end of this pass; loc and scale are those of the whole row.

    The last of them is described by the patch before, so the pass stops there. Kept from the official package: the
    positional stretch is centred on the middle of the row as far as the pass went, so cached keys differ from those
    of a run over the whole row; attention between variates takes the groups of the row's first patches, as many as the
    pass reads; finished blocks enter as observed, also where covariates are not known (their value is 0).
    """
    config, patch, stop = model.config, model.config.patch_size, now.end - 1
    loc, scale = causal_loc_scale(row.values, row.mask, patch)
    if min_observations:
        loc, scale = _fall_back(row.values, row.mask, loc, scale, min_observations)
    read = slice(now.start, stop)
    shown = to_patches(row.mask, patch)[:, :, read]
    z = scale_patches(to_patches(row.values, patch)[:, :, read], loc[..., read], scale[..., read])
    hidden = ~shown
    hidden[:, :, max(row.context - now.start, 0) : now.known - now.start] = False
    future = torch.arange(row.mask.shape[-1], device=z.device) >= row.context * patch  # keeps its ids unobserved, too
    ids = group_ids(row.series_ids, row.mask, ~future.expand_as(row.mask), patch)[..., :stop]
    between, kind = ids[..., : stop - now.start], z.device.type
    in_time = None
    if (ids == EMPTY).any():
        in_time = time_mask(ids, stop - now.start)
    elif now.start:
        in_time = causal_mask(stop - now.start, stop, z.device)
    masks = Masks(in_time, variate_mask(between) if (between != between[:, :1]).any() else None)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    with torch.autocast(kind, enabled=False):
        x = model.patch_embed(torch.cat([torch.where(shown, z, 0.0), hidden], dim=-1).to(dtype), 1)
        x = decode(model.layers, x, masks, config, 1, 0, caches, now.end - now.known, now.end // 2)
        out = model.head(x, 1).float()
    for cache in caches or ():
        cache.length = now.known  # what lies behind is read again when it is known
    return Prediction(out.unflatten(-1, (patch, len(QUANTILES))), loc, scale)


def _fall_back(values: Tensor, mask: Tensor, loc: Tensor, scale: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Patches with fewer than `least` observations up to their end get loc and scale of the row's first `least` ones.

    values, mask [B, V, T]; loc, scale [B, V, P].
    """
    count = mask.cumsum(-1)
    first = mask & (count <= least)
    n = first.sum(-1, keepdim=True)
    mean = torch.where(first, values, 0.0).sum(-1, keepdim=True) / n.clamp(min=1)
    squares = torch.where(first, (values - mean).square(), 0.0).sum(-1, keepdim=True)
    deviation = (squares / (n - 1).clamp(min=1)).sqrt().clamp(min=MIN_SCALE)
    short = count.unflatten(-1, (loc.shape[-1], -1))[..., -1] < least
    return torch.where(short, mean, loc), torch.where(short, deviation, scale)


def _check(
    target: Tensor,
    mask: Tensor,
    ids: Tensor,
    horizon: int,
    options: ForecastOptions,
    known: Covariates | None,
    patch: int,
) -> None:
    """ValueError for whatever cannot be forecast."""
    steps, block, least = target.shape[-1], options.block, options.min_observations
    if horizon < 1:
        raise ValueError(f"horizon={horizon} must be at least 1")
    if steps < 1:
        raise ValueError("the context is empty; give at least one step of history")
    if block is not None and (block < 1 or block % patch):
        raise ValueError(f"block={block} must be a positive multiple of the patch size {patch}, or None for one pass")
    if not 0 <= least <= patch:  # every context has a patch of them: the last one counts as observed
        raise ValueError(f"min_observations={least} must be between 0 (no fallback) and the patch size {patch}")
    if not options.clamp >= 0:
        raise ValueError(f"clamp={options.clamp} must be 0 (no clamp) or a positive number of scales")
    _check_shapes("target", target, mask, ids)
    if known is None:
        return
    _check_shapes("covariates", *known)
    if known.values.shape[0] != target.shape[0]:
        raise ValueError(
            f"covariates have {known.values.shape[0]} rows, target has {target.shape[0]}; give one for each"
        )
    if known.values.shape[-1] != steps + horizon:
        raise ValueError(
            f"covariates have {known.values.shape[-1]} steps, context and horizon together {steps} + {horizon}; "
            "give a value for every step, and mask what is not known"
        )


def _check_shapes(name: str, values: Tensor, mask: Tensor, ids: Tensor) -> None:
    if values.ndim != 3 or mask.shape != values.shape or ids.shape != values.shape[:2]:
        raise ValueError(
            f"{name}: values {list(values.shape)}, mask {list(mask.shape)} and series_ids {list(ids.shape)} "
            "must have the shapes [B, V, T], [B, V, T] and [B, V]"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: the mask is {mask.dtype}, give a bool one: True = observed")


def history_steps(context_length: int, horizon: int, patch: int) -> int:
    """Steps of history that go with the `context_length` of the official package: the network's row holds them and the
    patches that one pass appends, all but the last, so longer horizons leave less history; whole patches, at least one.
    """
    return max(1, (context_length - (horizon - 1) // patch * patch) // patch) * patch


def clamp_non_finite(x: Tensor) -> Tensor:
    """Replace inf and NaN by the extreme finite values of the same row (last axis); a row without any becomes 0."""
    finite = x.isfinite()
    high = torch.where(finite, x, -torch.inf).amax(-1, keepdim=True)
    low = torch.where(finite, x, torch.inf).amin(-1, keepdim=True)
    high, low = (torch.where(v.isfinite(), v, 0.0) for v in (high, low))
    return torch.where(finite, x, torch.where(x == -torch.inf, low, high))


def fill_forward(values: np.ndarray) -> np.ndarray:
    """Fill NaN with the last observed value before it, along the last axis; leading NaN stay."""
    at = np.where(np.isfinite(values), np.arange(values.shape[-1]), -1)
    at = np.maximum.accumulate(at, axis=-1)
    filled = np.take_along_axis(values, np.maximum(at, 0), axis=-1)
    return np.where(at >= 0, filled, np.nan).astype(values.dtype)


class Forecaster:
    """A model as a function of plain arrays, for evaluation and scripts; every item is one multivariate series."""

    levels = QUANTILES

    def __init__(
        self,
        model: Toto,
        device: str | torch.device = "cpu",
        options: ForecastOptions = PUBLISHED,
        precision: str = "fp32",
    ):
        """precision: one of DTYPES; bf16 is autocast, as in training with parallel.precision=bf16."""
        check_precision(precision)
        self.model = model.eval()
        self.device = torch.device(device)
        self.options = options
        self.dtype = DTYPES[precision]

    def __call__(self, contexts: np.ndarray, horizon: int, covariates: np.ndarray | None = None) -> np.ndarray:
        """contexts [N, V, C] float32 with NaN = missing (also as left padding) -> quantiles [N, 9, V, horizon].

        covariates [N, E, C + horizon]: what is known of the future, too; NaN = not known. Gaps stay missing but in the
        last patch, which counts as observed: there they are filled forward.
        """
        known = None if covariates is None else Covariates(*as_tensors(covariates, covariates, self.device))
        series = as_tensors(fill_forward(contexts), contexts, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            out = forecast(self.model, *series, horizon, self.options, known)
        return out.movedim(0, 1).cpu().numpy()


def check_precision(precision: str) -> None:
    """ValueError for a precision that forecasts are not computed in."""
    if precision not in DTYPES:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(DTYPES)}")


def as_tensors(values: np.ndarray, observed: np.ndarray, device: str | torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Values [N, V, T], where `observed` is finite, and one id for all variates of an item, for `forecast`."""
    target = torch.from_numpy(np.nan_to_num(values, posinf=0.0, neginf=0.0).astype(np.float32)).to(device)
    mask = torch.from_numpy(np.isfinite(observed)).to(device)
    return target, mask, torch.zeros(target.shape[:2], dtype=torch.long, device=device)
