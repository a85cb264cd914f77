"""The rows of one source of a mixture: epochs that give every window once, in an order found by arithmetic.

A row packs floor(variates / V) windows of V variates each, so the windows of a source are numbered class by class, a
class being the series with V variates. A large source is cut in one slice per lane: lane l owns windows
[W l // L, W (l+1) // L) of each class, hence a range of bytes. Rows of a slice are numbered class by class too; chunks
of `shuffle_rows` neighbouring rows come in keyed order, and windows are shuffled inside a chunk, so rows that follow
each other in a lane read bytes that lie near each other.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipelines.series import DOMAINS
from toto_train.config import DataConfig, MixtureEntry

Windows = tuple[tuple[int, int, int], ...]
"""(series position in the source, first step, steps) of each window."""
_MASK = 2**64 - 1
_SLICING_LOSS = 1.02
"""A source is cut in slices where its epoch takes at most this times the rows, and no slice this times another's."""


def key_of(*names: object) -> int:
    """64-bit key that stands for a list of names and numbers."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "little")


def mix(x: Any, key: int) -> Any:
    """48-bit hash of an int or of each of an array of uint64 (two rounds of xor-shift and multiply)."""
    x = ((x ^ key) * 0xFF51AFD7ED558CCD) & _MASK
    x = ((x ^ (x >> 32)) * 0xC4CEB9FE1A85EC53) & _MASK
    return x >> 16


def permute(x: int, size: int, key: int) -> int:
    """Keyed bijection on 0 .. size-1.

    A Feistel network over cells (left, right) of a grid that just covers the range; outside it, walk on until inside.
    """
    a = math.isqrt(max(size - 1, 0)) + 1
    b = -(-size // a)
    while True:
        left, right = divmod(x, b)
        for step in range(key, key + 8, 2):  # 8 additions also mix grids of a few cells
            left = (left + mix(right, step)) % a
            right = (right + mix(left, step + 1)) % b
        x = left * b + right
        if x < size:
            return x


@lru_cache(maxsize=4096)
def shuffled(size: int, key: int, number: int) -> np.ndarray:
    """0 .. size-1 in the order of Philox's raw stream (key, number), which no numpy version changes."""
    draws = np.random.Philox(key=np.array([key, number], np.uint64)).random_raw(size)
    low = 2 ** size.bit_length() - 1
    draws &= _MASK - low
    draws |= np.arange(size, dtype=np.uint64)  # carried in the low bits: sorting is faster than argsort
    draws.sort()
    return (draws & low).astype(np.min_scalar_type(size))


@lru_cache(maxsize=8192)
def _epoch_keys(seed: int, label: str, epoch: int, part: int) -> tuple[int, int]:
    """Keys of an epoch of a slice and of the phases. Slices share those, as they share series at their borders."""
    return key_of(seed, "order", label, epoch, part), key_of(seed, "order", label, epoch, "phase")


@dataclass(frozen=True)
class _Class:
    """The series of one variate count."""

    variates: int
    slots: int
    """Windows in a row."""
    series: np.ndarray
    """Their positions in the source's index, ascending."""
    steps: np.ndarray
    ends: np.ndarray
    """Windows of the series and all before it."""
    points: float
    """Observed values in an epoch's windows."""

    @property
    def windows(self) -> int:
        return int(self.ends[-1])


class SourceOrder:
    """The rows of one source: endless epochs in every slice.

    taken: positions of the series that the entry's filters leave. downsample: lengths count blocks of so many steps.
    """

    rows_of_chunk = 1
    """Rows that should follow each other in their lane: what is read for one serves no other."""

    def __init__(
        self,
        label: str,
        index: np.ndarray,
        config: DataConfig,
        seed: int,
        taken: np.ndarray | None = None,
        downsample: int = 1,
    ):
        self.label, self.seed, self.downsample = label, seed, downsample
        self.variates, self.length, self._chunk = config.variates, config.length, config.shuffle_rows
        series = np.arange(len(index)) if taken is None else taken
        variates, steps = index["variates"][series], index["length"][series] // downsample
        points = index["points"][series] / downsample
        if (widest := int(variates.max())) > self.variates:
            raise ValueError(
                f"source {label} has a series of {widest} variates, a row takes data.variates={self.variates}; split "
                "wide groups when the shards are built, or exclude the source"
            )
        self.points = float(points.sum())
        counts = np.maximum(1, steps // self.length)
        covered = points * np.minimum(1.0, counts * self.length / steps)
        self._classes: list[_Class] = []
        for v in np.unique(variates).tolist():
            of = np.flatnonzero(variates == v)
            ends, slots = np.cumsum(counts[of]), self.variates // v
            kept = _small(series[of]), _small(steps[of]), _small(ends)
            self._classes.append(_Class(v, slots, *kept, points=float(covered[of].sum())))
        self.sliced = False
        whole, parts = self._row_ends(1), self._row_ends(config.lanes)
        rows = parts[:, -1]
        self.sliced = bool(
            rows.sum() <= _SLICING_LOSS * whole[0, -1] and rows.min() > 0 and rows.max() <= _SLICING_LOSS * rows.min()
        )
        self._ends: list[np.ndarray] = list(parts if self.sliced else whole)
        self._rows: list[int] = [int(ends[-1]) for ends in self._ends]
        self.rows = sum(self._rows)
        self.points_per_row = sum(c.points for c in self._classes) / self.rows

    def _row_ends(self, slices: int) -> np.ndarray:
        """[slices, classes] rows of a slice up to the end of each class."""
        rows = [-(-np.diff(c.windows * np.arange(slices + 1) // slices) // c.slots) for c in self._classes]
        return np.cumsum(np.stack(rows, axis=1), axis=1)

    def epoch_rows(self, lane: int) -> int:
        """Rows of an epoch of the slice that a lane reads."""
        return self._rows[lane if self.sliced else 0]

    def fill(self) -> dict[int, float]:
        """Variates of a class -> share of its rows' slots that hold an observed value."""
        rows = np.sum([np.diff(ends, prepend=0) for ends in self._ends], axis=0) * self.variates * self.length
        return {c.variates: c.points / int(slots) for c, slots in zip(self._classes, rows, strict=True)}

    def windows(self, j: int, lane: int) -> Windows:
        """Windows of the j-th row of the slice that a lane reads."""
        part = lane if self.sliced else 0
        rows, ends = self._rows[part], self._ends[part]
        epoch, position = divmod(j, rows)
        key, phase_key = _epoch_keys(self.seed, self.label, epoch, part)
        chunk, at = divmod(position, self._chunk)
        full = rows // self._chunk
        if chunk < full:  # the shorter one stays last
            chunk = permute(chunk, full, key)
        first = chunk * self._chunk
        size = min(self._chunk, rows - first)
        row = first + permute(at, size, key ^ (chunk + 1))
        c = int(ends.searchsorted(row, side="right"))
        of = self._classes[c]
        start, end = int(ends[c - 1]) if c else 0, int(ends[c])
        low, high = max(first, start) - start, min(first + size, end) - start  # rows of the class in the chunk
        begin, limit = of.windows * part // len(self._ends), of.windows * (part + 1) // len(self._ends)
        begin, limit = begin + low * of.slots, min(begin + high * of.slots, limit)  # their windows
        deal = shuffled(limit - begin, key, chunk * len(self._classes) + c)
        hand = (row - start - low) * of.slots
        return self._look_up(deal[hand : hand + of.slots].astype(of.ends.dtype) + begin, of, phase_key)

    def _look_up(self, numbers: np.ndarray, of: _Class, phase_key: int) -> Windows:
        """(series, first step, steps) of windows of a class by number."""
        at = of.ends.searchsorted(numbers, side="right")  # of one type: else numpy would convert all ends
        series, steps = of.series[at], of.steps[at].astype(np.int64)
        counts = np.maximum(1, steps // self.length)
        spare = np.maximum(0, steps - counts * self.length)
        # one phase per series and epoch: its windows slide together and cannot overlap
        phases = mix(series.astype(np.uint64), phase_key).astype(np.int64) % (spare + 1)
        starts = phases + (numbers - of.ends[at] + counts) * self.length
        lengths = np.minimum(steps, self.length)
        return tuple(zip(series.tolist(), starts.tolist(), lengths.tolist(), strict=True))


def _small(array: np.ndarray) -> np.ndarray:
    """As int32 where it fits."""
    return array.astype(np.int32 if array.max() < 2**31 else np.int64)


def passes(index: np.ndarray, entry: MixtureEntry) -> np.ndarray:
    """Which series of a source an entry's filters leave."""
    out = index["length"] >= entry.downsample
    if entry.domain:
        out &= index["domain"] == DOMAINS.index(entry.domain)
    if entry.min_interval:
        out &= index["interval"] >= entry.min_interval
    if entry.max_interval:
        out &= index["interval"] < entry.max_interval
    return out


def nothing_left(indexes: list[np.ndarray], entry: MixtureEntry) -> str:
    """What the filters asked for and what there is."""
    domains = sorted({d for index in indexes for d in np.unique(index["domain"]).tolist()})
    intervals = [f"{t:g}" for t in sorted({t for index in indexes for t in np.unique(index["interval"]).tolist()})]
    if len(intervals) > 10:
        intervals[5:-5] = ["..."]
    longest = max(int(index["length"].max()) for index in indexes)
    asked = [f"domain={entry.domain}"] if entry.domain else []
    asked += [f"{k}={v:g}" for k in ("min_interval", "max_interval") if (v := getattr(entry, k))]
    asked += [f"downsample={entry.downsample}"] if entry.downsample > 1 else []
    return (
        f"{', '.join(asked)} leaves no series; there are domains {', '.join(DOMAINS[d] for d in domains)}, intervals "
        f"{', '.join(intervals)} s, and series of up to {longest} steps"
    )
