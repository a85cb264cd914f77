"""Rows as arrays: reads the windows of a row, packs them side by side, alters them and draws its training mask."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from data_pipelines.shards import ShardSet
from toto_train.config import Config, MixtureEntry
from toto_train.data.augment import Window, active, augment
from toto_train.data.order import Order, RowSpec, key_of
from toto_train.objective import patch_mask

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class Rows:
    """Makes the rows of a run by number. Cheap to copy to another process: files are opened where they are read."""

    def __init__(self, config: Config):
        self.order = Order(config.data, config.seed)
        self.variates, self.length = config.data.variates, config.data.length
        self.patch_size, self.objective = config.model.patch_size, config.objective
        self.data = config.data
        self.altering = active(config.data.augment)
        self.labels = list(self.order.shares)
        self._number = {label: k for k, label in enumerate(self.labels)}
        self._mask_key, self._augment_key = key_of(config.seed, "cpm"), key_of(config.seed, "augment")
        self._told: set[str] = set()

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
        source      int64   [B]        position in `labels` of the source
        seconds     float64 [B]        time spent reading
        lost        int64   [B]        windows in quarantine: their slots are empty
        """
        shape = len(numbers), self.variates, self.length
        out: Batch = {
            "target": np.zeros(shape, np.float32),
            "target_mask": np.empty(shape, bool),
            "cpm_mask": np.empty(shape, bool),
            "series_ids": np.empty(shape[:2], np.int64),
            "row": np.array(numbers, np.int64),
            "source": np.empty(len(numbers), np.int64),
            "seconds": np.empty(len(numbers)),
            "lost": np.zeros(len(numbers), np.int64),
        }
        patches = self.length // self.patch_size
        alive = np.empty((*shape[:2], patches), bool)
        for b, n in enumerate(numbers):
            spec = self.order.row(n)
            target, mask, ids = out["target"][b], out["target_mask"][b], out["series_ids"][b]
            begin = time.perf_counter()
            windows = self._place(spec, ids)
            out["lost"][b] = self._read(spec, windows, target)
            out["source"][b], out["seconds"][b] = self._number[spec.source], time.perf_counter() - begin
            self._observe(windows, target, mask)
            if self.altering and self._entry(spec).augment:
                rng = np.random.Generator(np.random.Philox(key=self._augment_key, counter=[0, 0, 0, n]))
                augment(target, mask, windows, self.data.augment, rng)
            self._hide(n, mask, ids, out["cpm_mask"][b], alive[b])
        ids = out["series_ids"]
        after_empty = alive[..., 1:] & ~alive[..., :-1]
        differ = (ids != ids[:, :1]).any() or (alive != alive[:, :1]).any()
        out["flags"] = np.array([after_empty.any(), differ])
        out["points"] = np.array(np.count_nonzero(out["target_mask"]))
        return out

    def _entry(self, spec: RowSpec) -> MixtureEntry:
        return self.data.mixture[spec.source.partition("/")[0]]

    def _place(self, spec: RowSpec, ids: np.ndarray) -> list[Window]:
        """Where each window of a row stands; fills ids [V]."""
        shards, source = self.order.open(spec.source)
        widths = shards.index(source)["variates"]
        top, windows = 0, []
        for k, (series, _, steps) in enumerate(spec.windows):
            below = top + int(widths[series])
            # in the first patches that hold them, so that attention over time needs no mask for what is empty
            first = -steps % self.patch_size
            windows.append((top, below, first, first + steps))
            ids[top:below] = k
            top = below
        ids[top:] = np.arange(len(windows), len(windows) + self.variates - top)
        return windows

    def _read(self, spec: RowSpec, windows: list[Window], target: np.ndarray) -> int:
        """Fill target [V, T]; returns how many windows are in quarantine."""
        shards, source = self.order.open(spec.source)
        block = self._entry(spec).downsample
        if shards.store.remote and block == 1:  # all windows in one go: what costs there is the latency
            try:
                pieces = []
                for (series, start, _), (top, below, first, end) in zip(spec.windows, windows, strict=True):
                    pieces += shards.pieces(source, series, start, target[top:below, first:end])
                shards.store.read_into(pieces)
                return 0
            except (ValueError, OSError):  # again one by one, to know which
                target[:] = 0
        lost = 0
        for (series, start, steps), (top, below, first, end) in zip(spec.windows, windows, strict=True):
            here = target[top:below, first:end]
            try:
                if block == 1:
                    shards.store.read_into(shards.pieces(source, series, start, here))
                else:
                    raw = np.empty((below - top, steps * block), np.float32)
                    shards.store.read_into(shards.pieces(source, series, start * block, raw))
                    block_means(raw, block, here)
            except (ValueError, OSError) as error:
                file = shards.store.where(shards.shard_name(source, series))
                message = f"row {spec.n}: cannot read series {series} of {spec.source} ({file}): {error}"
                if self.data.on_fault == "stop":
                    raise ValueError(message) from error
                here[:] = np.nan
                lost += 1
                if file not in self._told:
                    self._told.add(file)
                    log.warning("quarantine: %s; its windows stay empty", message)
        return lost

    def _observe(self, windows: list[Window], target: np.ndarray, mask: np.ndarray) -> None:
        """mask [V, T] of what is observed; zeros in target where it is not."""
        np.isfinite(target, out=mask)
        if not mask.all():
            np.copyto(target, 0.0, where=~mask)
        mask[windows[-1][1] :] = False
        for top, below, first, end in windows:
            if end - first < self.length:
                mask[top:below, :first] = False
                mask[top:below, end:] = False

    def _hide(self, n: int, mask: np.ndarray, ids: np.ndarray, out: np.ndarray, alive: np.ndarray) -> None:
        """Draw the contiguous patch mask of row n into out [V, T]; the draw depends on seed and n alone.

        alive [V, P]: patches that hold an observed value or are hidden.
        """
        rng = np.random.Generator(np.random.Philox(key=self._mask_key, counter=[0, 0, 0, n]))
        observed = any_in_patches(mask, self.patch_size)
        visible = patch_mask(rng, observed, ids, self.objective.max_span, self.objective.max_rate)
        out[:] = np.repeat(visible, self.patch_size, axis=1)
        np.logical_or(observed, ~visible, out=alive)


def any_in_patches(mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Whether any of each patch of bool [V, T] is True: [V, T / patch_size]."""
    if patch_size % 8:
        return np.any(mask.reshape(len(mask), -1, patch_size), axis=-1)
    words = mask.view(np.uint64).reshape(len(mask), -1, patch_size // 8)  # 8 flags at once, and no reduction of 32
    found: np.ndarray = words[..., 0].copy()
    for k in range(1, words.shape[-1]):
        found |= words[..., k]
    return found.astype(bool)


def block_means(raw: np.ndarray, block: int, out: np.ndarray) -> None:
    """Means of the observed values in blocks of steps: raw [V, steps * block] -> out [V, steps], NaN where none."""
    parts = raw.reshape(len(raw), -1, block)
    seen = np.isfinite(parts)
    count = seen.sum(axis=-1)
    # in float64: a mean must not overflow where its members do not
    total = np.where(seen, parts, 0.0).sum(axis=-1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        out[:] = np.where(count > 0, total / np.maximum(count, 1), np.nan)


def verify_shards(order: Order) -> dict[str, str]:
    """Read every byte of the shards a run uses: shard -> what is wrong. The bad ones are marked in their ShardSet."""
    sets: dict[int, ShardSet] = {id(shards): shards for shards, _ in map(order.open, order.shares)}
    bad: dict[str, str] = {}
    for shards in sets.values():
        bad |= {shards.store.where(name): why for name, why in shards.verify().items()}
    return bad
