"""Rows as arrays: reads the windows of a row, packs them side by side, alters them and draws its training mask."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from data_pipelines.compiled import compiled
from data_pipelines.shards import ShardSet
from data_pipelines.store import out_of_resources
from toto_train.config import Config, MixtureEntry
from toto_train.data.augment import Window, active, augment
from toto_train.data.order import Order, RowSpec, key_of
from toto_train.data.strata import stratum
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
        self._mask_bits = np.random.Philox(key=key_of(config.seed, "cpm"))
        self._augment_bits = np.random.Philox(key=key_of(config.seed, "augment"))
        self._told: set[str] = set()

    def empty(self, rows: int) -> Batch:
        """The arrays of a batch, of any content.

        target      float32 [B, V, T]  0 where missing, and around series shorter than T: those start in the first
                                       patch and end with a whole one
        target_mask bool    [B, V, T]  True = observed
        cpm_mask    bool    [B, V, T]  True = visible to the model
        series_ids  int64   [B, V]     0, 1, ... for the windows of a row; each empty slot has an id of its own
        row         int64   [B]
        flags       bool    [2]        which masks the batch needs (MaskFlags)
        points      int64   []         observed values
        source      int64   [B]        position in `labels` of the source
        stratum     int64   [B, V]     source, domain and interval of each variate (`strata`)
        seconds     float64 [B]        time spent reading
        lost        int64   [B]        windows in quarantine: their slots are empty
        """
        shape = rows, self.variates, self.length
        return {
            "target": np.empty(shape, np.float32),
            "target_mask": np.empty(shape, bool),
            "cpm_mask": np.empty(shape, bool),
            "series_ids": np.empty(shape[:2], np.int64),
            "row": np.empty(rows, np.int64),
            "flags": np.empty(2, bool),
            "points": np.empty((), np.int64),
            "source": np.empty(rows, np.int64),
            "stratum": np.empty(shape[:2], np.int64),
            "seconds": np.empty(rows),
            "lost": np.empty(rows, np.int64),
        }

    def batch(self, numbers: Sequence[int], out: Batch | None = None) -> Batch:
        """The rows of the given numbers, in new arrays or in `out`; `empty` says what they are."""
        out = self.empty(len(numbers)) if out is None else out
        out["row"][:] = numbers
        alive = np.empty((len(numbers), self.variates, self.length // self.patch_size), bool)
        for b, n in enumerate(numbers):
            spec = self.order.row(n)
            target, mask, ids = out["target"][b], out["target_mask"][b], out["series_ids"][b]
            begin = time.perf_counter()
            windows = self._place(spec, ids, out["stratum"][b])
            out["lost"][b] = self._read(spec, windows, target)
            out["source"][b], out["seconds"][b] = self._number[spec.source], time.perf_counter() - begin
            self._observe(windows, target, mask)
            if self.altering and self._entry(spec).augment:
                augment(target, mask, windows, self.data.augment, generator(self._augment_bits, n))
            self._hide(n, mask, ids, out["cpm_mask"][b], alive[b])
        out["flags"][:] = needed_masks(alive, out["series_ids"])
        out["points"][...] = np.count_nonzero(out["target_mask"])
        return out

    def _entry(self, spec: RowSpec) -> MixtureEntry:
        return self.data.mixture[spec.source.partition("/")[0]]

    def _place(self, spec: RowSpec, ids: np.ndarray, strata: np.ndarray) -> list[Window]:
        """Where each window of a row stands; fills ids [V] and strata [V]."""
        shards, source = self.order.open(spec.source)
        series = shards.entries(source, [series for series, _, _ in spec.windows])
        widths = series["variates"].tolist()
        top, windows = 0, []
        for (_, _, steps), width in zip(spec.windows, widths, strict=True):
            # in the first patches that hold them, so that attention over time needs no mask for what is empty
            first = -steps % self.patch_size
            windows.append((top, top + width, first, first + steps))
            top += width
        ids[:top] = np.repeat(np.arange(len(widths)), widths)
        ids[top:] = np.arange(len(widths), len(widths) + self.variates - top)
        number, interval = self._number[spec.source], series["interval"] * self._entry(spec).downsample
        strata[:top] = np.repeat(stratum(number, series["domain"], interval), widths)
        strata[top:] = strata[0]
        return windows

    def _read(self, spec: RowSpec, windows: list[Window], target: np.ndarray) -> int:
        """Fill the windows of target [V, T]; returns how many of them are in quarantine."""
        shards, source = self.order.open(spec.source)
        block = self._entry(spec).downsample
        places = [target[top:below, first:end] for top, below, first, end in windows]

        def read(which: slice) -> None:
            of = spec.windows[which]
            outs = places[which]
            if block > 1:
                outs = [np.empty((len(out), out.shape[1] * block), np.float32) for out in outs]
            series, starts = [s for s, _, _ in of], [start * block for _, start, _ in of]
            shards.read_into(source, series, starts, outs)
            if block > 1:
                for raw, out in zip(outs, places[which], strict=True):
                    block_means(raw, block, out)

        try:
            read(slice(None))
            return 0
        except (ValueError, OSError):
            pass  # again one by one, to know which
        lost = 0
        for k, (series, _, _) in enumerate(spec.windows):
            try:
                read(slice(k, k + 1))
            except (ValueError, OSError) as error:
                file = shards.where(source, series)
                message = f"row {spec.n}: cannot read series {series} of {spec.source} ({file}): {error}"
                if out_of_resources(error):
                    raise OSError(f"{message}; that is no fault of the data") from error
                if self.data.on_fault == "stop":
                    raise ValueError(message) from error
                places[k][:] = np.nan
                lost += 1
                if file not in self._told:
                    self._told.add(file)
                    log.warning("quarantine: %s; its windows stay empty", message)
        return lost

    def _observe(self, windows: list[Window], target: np.ndarray, mask: np.ndarray) -> None:
        """mask [V, T] of what is observed; zeros in target where it is not."""
        inside = np.zeros((self.variates, 2), np.int64)
        for top, below, first, end in windows:
            inside[top:below] = first, end
        observe(target, inside, mask)

    def _hide(self, n: int, mask: np.ndarray, ids: np.ndarray, out: np.ndarray, alive: np.ndarray) -> None:
        """Draw the contiguous patch mask of row n into out [V, T]; the draw depends on seed and n alone.

        alive [V, P]: patches that hold an observed value or are hidden.
        """
        observed = any_in_patches(mask, self.patch_size)
        rng = generator(self._mask_bits, n)
        visible = patch_mask(rng, observed, ids, self.objective.max_span, self.objective.max_rate)
        # whole patches of flags at once: several times as fast as repeating them
        patch = f"V{self.patch_size}"
        flags = np.repeat([False, True], self.patch_size).view(patch)
        flags.take(visible.view(np.uint8), out=out.view(patch), mode="clip")
        np.logical_or(observed, ~visible, out=alive)


def generator(bits: np.random.Philox, n: int) -> np.random.Generator:
    """The generator of row n: as of a new Philox(key, counter=[0, 0, 0, n]) with the key of `bits`, which asks the
    system for entropy first and so takes several times as long."""
    state = bits.state
    state["state"]["counter"][:] = 0, 0, 0, n
    bits.state = state | {"buffer_pos": len(state["buffer"]), "has_uint32": 0}
    return np.random.Generator(bits)


@compiled
def observe(target: np.ndarray, inside: np.ndarray, mask: np.ndarray) -> None:
    """Set mask [V, T] to what is finite in target [V, T] between the steps inside [V, 2]; zero the rest of target."""
    zero, largest = np.float32(0), np.float32(np.finfo(np.float32).max)
    for v in range(target.shape[0]):
        first, end = inside[v]
        target[v, :first] = zero
        mask[v, :first] = False
        target[v, end:] = zero
        mask[v, end:] = False
        values, flags = target[v, first:end], mask[v, first:end]  # one index each, or the loop is not vectorised
        for t in range(len(values)):
            value = values[t]
            seen = abs(value) <= largest  # not of NaN either
            flags[t] = seen
            values[t] = value if seen else zero


@compiled
def any_in_patches(mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Whether any of each patch of bool [V, T] is True: [V, T / patch_size]."""
    found = np.zeros((mask.shape[0], mask.shape[1] // patch_size), np.bool_)
    for v in range(found.shape[0]):
        for p in range(found.shape[1]):
            for t in range(p * patch_size, (p + 1) * patch_size):
                if mask[v, t]:
                    found[v, p] = True
                    break
    return found


@compiled
def needed_masks(alive: np.ndarray, series_ids: np.ndarray) -> tuple[bool, bool]:
    """The flags of a batch with alive [B, V, P] and ids [B, V]: whether a patch that is alive follows one that is not,
    and whether variates of a row differ in their ids or in what is alive."""
    after_empty = differ = False
    for b in range(alive.shape[0]):
        for v in range(alive.shape[1]):
            differ |= series_ids[b, v] != series_ids[b, 0]
            for p in range(alive.shape[2]):
                differ |= alive[b, v, p] != alive[b, 0, p]
                after_empty |= p > 0 and alive[b, v, p] and not alive[b, v, p - 1]
    return after_empty, differ


def compile_loops() -> None:
    """Have the loops over a row ready: processes that are forked afterwards need not compile or load them again."""
    target, mask, ids = np.zeros((1, 8), np.float32), np.empty((1, 8), bool), np.zeros(1, np.int64)
    observe(target, np.zeros((1, 2), np.int64), mask)
    observed = any_in_patches(mask, 8)
    patch_mask(np.random.Generator(np.random.Philox(0)), observed, ids, 1, 0.5)
    needed_masks(observed[None], ids[None])


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
    opened = (shards for shards, _ in map(order.open, order.shares))
    sets = {id(shards): shards for shards in opened if isinstance(shards, ShardSet)}
    bad: dict[str, str] = {}
    for shards in sets.values():
        bad |= {shards.store.where(name): why for name, why in shards.verify().items()}
    return bad
