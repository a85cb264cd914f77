"""Rows as arrays: reads the windows of a row, packs them side by side and draws its training mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toto_train.config import Config
from toto_train.data.order import Order, RowSpec, key_of
from toto_train.objective import patch_mask

Batch = dict[str, np.ndarray]


class Rows:
    """Makes the rows of a run by number. Cheap to copy to another process: data are mapped where they are read."""

    def __init__(self, config: Config):
        self.order = Order(config.data, config.seed)
        self.variates, self.length = config.data.variates, config.data.length
        self.patch_size, self.objective = config.model.patch_size, config.objective
        self._mask_key = key_of(config.seed, "cpm")

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The rows of the given numbers.

        target      float32 [B, V, T]  0 where missing, and around series shorter than T: those start in the first
                                       patch and end with a whole one
        target_mask bool    [B, V, T]  True = observed
        cpm_mask    bool    [B, V, T]  True = visible to the model
        series_ids  int64   [B, V]     0, 1, ... for the windows of a row; each empty slot has an id of its own
        row         int64   [B]
        flags       bool    [2]        which masks the batch needs (MaskFlags)
        points      int64   []         observed values
        """
        shape = len(numbers), self.variates, self.length
        out: Batch = {
            "target": np.zeros(shape, np.float32),
            "target_mask": np.empty(shape, bool),
            "cpm_mask": np.empty(shape, bool),
            "series_ids": np.empty(shape[:2], np.int64),
            "row": np.array(numbers, np.int64),
        }
        for b, n in enumerate(numbers):
            spec = self.order.row(n)
            self._read(spec, out["target"][b], out["target_mask"][b], out["series_ids"][b])
            self._hide(n, out["target_mask"][b], out["series_ids"][b], out["cpm_mask"][b])
        ids, patches = out["series_ids"], (*shape[:2], -1, self.patch_size)
        alive = np.any(out["target_mask"].reshape(patches), axis=-1)
        alive |= ~np.all(out["cpm_mask"].reshape(patches), axis=-1)
        after_empty = alive[..., 1:] & ~alive[..., :-1]
        differ = (ids != ids[:, :1]).any() or (alive != alive[:, :1]).any()
        out["flags"] = np.array([after_empty.any(), differ])
        out["points"] = np.array(np.count_nonzero(out["target_mask"]))
        return out

    def _read(self, spec: RowSpec, target: np.ndarray, mask: np.ndarray, ids: np.ndarray) -> None:
        """Fill target [V, T] (given as zeros), mask [V, T] and ids [V]."""
        shards, source = self.order.open(spec.source)
        top = 0
        short: list[tuple[int, int, int, int]] = []
        for k, (series, start, steps) in enumerate(spec.windows):
            try:
                values = shards.values(source, series)[:, start : start + steps]
            except (ValueError, OSError) as error:
                file = shards.path / shards.shard_name(source, series)
                raise ValueError(
                    f"row {spec.n}: cannot read series {series} of {spec.source} ({file}): {error}"
                ) from error
            below = top + len(values)
            # in the first patches that hold them, so that attention over time needs no mask for what is empty
            first = -steps % self.patch_size
            target[top:below, first : first + steps] = values
            if steps < self.length:
                short.append((top, below, first, first + steps))
            ids[top:below] = k
            top = below
        ids[top:] = np.arange(len(spec.windows), len(spec.windows) + self.variates - top)
        np.isfinite(target, out=mask)
        if not mask.all():
            np.copyto(target, 0.0, where=~mask)
        mask[top:] = False
        for top, below, first, end in short:
            mask[top:below, :first] = False
            mask[top:below, end:] = False

    def _hide(self, n: int, mask: np.ndarray, ids: np.ndarray, out: np.ndarray) -> None:
        """Draw the contiguous patch mask of row n into out [V, T]; the draw depends on seed and n alone."""
        patches = self.variates, self.length // self.patch_size, self.patch_size
        rng = np.random.Generator(np.random.Philox(key=self._mask_key, counter=[0, 0, 0, n]))
        observed = np.logical_or.reduce(mask.reshape(patches), axis=-1)
        visible = patch_mask(rng, observed, ids, self.objective.max_span, self.objective.max_rate)
        out.reshape(patches)[...] = visible[:, :, None]
