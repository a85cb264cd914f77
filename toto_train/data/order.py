"""Row n of a run -> the windows it holds: a pure function of (data config, seed, n) that costs the same for every n.

Three questions, each answered by arithmetic and keyed bijections, none by a stored permutation:

1. Which source? Blocks of rows hold fixed counts of every source (differences of cumulative quotas floor(n S_k)), so
   that at each block end every source is within one row of its share; the order inside a block is keyed.
2. Which row of the source? Its j-th row lies in epoch j // rows; a bijection keyed by the epoch orders the epoch.
3. Which windows? A row packs floor(variates / V) windows of V variates each. The windows of all series with V variates
   are shuffled by a bijection keyed by the epoch and dealt to the rows; the last row of a class may have empty slots.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipelines.shards import ShardSet
from toto_train.config import DataConfig, MixtureEntry

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise it whenever the same config and seed begin to give other rows."""
_ONE = 2**30
"""Shares are integers out of this, so quotas are exact: int64 holds n * _ONE up to 8 billion rows."""
_MASK = 2**64 - 1


@dataclass(frozen=True)
class RowSpec:
    """What row n holds."""

    n: int
    source: str
    """Label entry/source."""
    windows: tuple[tuple[int, int, int], ...]
    """(series position in the source, first step, steps), all with equal variate counts."""


def key_of(*names: object) -> int:
    """64-bit key that stands for a list of names and numbers."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "little")


def _mix(x: int, key: int) -> int:
    """48-bit hash of a number (two rounds of xor-shift and multiply)."""
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
            left = (left + _mix(right, step)) % a
            right = (right + _mix(left, step + 1)) % b
        x = left * b + right
        if x < size:
            return x


class SourceOrder:
    """The rows of one source: epochs of `rows` rows that visit every series."""

    def __init__(self, label: str, index: np.ndarray, variates: int, length: int, seed: int):
        self.label, self.variates, self.length, self.seed = label, variates, length, seed
        if (widest := int(index["variates"].max())) > variates:
            raise ValueError(
                f"source {label} has a series of {widest} variates, a row takes data.variates={variates}; split wide "
                "groups when the shards are built, or exclude the source"
            )
        windows = np.maximum(1, index["length"] // length)
        self._steps = index["length"].astype(np.int64)
        self._classes: list[tuple[int, np.ndarray, np.ndarray]] = []  # (slots of a row, series, windows up to it)
        ends, self.rows = [], 0
        for v in np.unique(index["variates"]):
            series = np.flatnonzero(index["variates"] == v)
            upto = np.cumsum(windows[series])
            slots = variates // int(v)
            self.rows += -(-int(upto[-1]) // slots)
            ends.append(self.rows)
            self._classes.append((slots, series, upto))
        self._ends = np.array(ends)
        covered = np.minimum(1.0, windows * length / index["length"])
        self.points = int(index["points"].sum())
        self.points_per_row = float((index["points"] * covered).sum()) / self.rows

    def windows(self, j: int) -> tuple[tuple[int, int, int], ...]:
        """Windows of the source's j-th row."""
        epoch, position = divmod(j, self.rows)
        row_key, window_key, phase_key = _epoch_keys(self.seed, self.label, epoch)
        row = permute(position, self.rows, row_key)
        c = int(np.searchsorted(self._ends, row, side="right"))
        slots, series, upto = self._classes[c]
        row -= int(self._ends[c - 1]) if c else 0
        total = int(upto[-1])
        places = range(row * slots, min((row + 1) * slots, total))
        return tuple(self._window(permute(p, total, window_key + c), series, upto, phase_key) for p in places)

    def _window(self, w: int, series: np.ndarray, upto: np.ndarray, phase_key: int) -> tuple[int, int, int]:
        """(series, first step, steps) of window w of a class."""
        at = int(np.searchsorted(upto, w, side="right"))
        i = int(series[at])
        steps = int(self._steps[i])
        count = max(1, steps // self.length)
        # one phase per series and epoch: its windows slide together and cannot overlap
        phase = _mix(i, phase_key) % (max(0, steps - count * self.length) + 1)
        nth = w - (int(upto[at]) - count)
        return i, phase + nth * self.length, min(steps, self.length)


@lru_cache(maxsize=4096)
def _epoch_keys(seed: int, label: str, epoch: int) -> tuple[int, int, int]:
    """Keys of the order of rows, of windows, and of phases."""
    rows, windows, phase = (key_of(seed, "order", label, epoch, what) for what in ("rows", "windows", "phase"))
    return rows, windows, phase


class Order:
    """The endless sequence of rows that a mixture and a seed define."""

    def __init__(self, config: DataConfig, seed: int):
        if not config.mixture:
            raise ValueError("data.mixture is empty; choose data=quickstart or give data.path=FOLDER of shards")
        self.config, self.seed = config, seed
        self._shards: dict[str, ShardSet] = {}
        self._sources: list[SourceOrder] = []
        shares: list[float] = []
        for name, entry in sorted(config.mixture.items()):
            if entry.weight > 0:
                shares += self._add_entry(name, entry)
        if not shares:
            raise ValueError("data.mixture: no entry has both a positive weight and observed points")
        exact = np.cumsum(shares) / sum(shares)
        self._cumulative = np.round(exact * _ONE).astype(np.int64)
        self._cumulative[-1] = _ONE
        units = np.diff(self._cumulative, prepend=0)
        if units.min() <= 0:
            label = self._sources[int(units.argmin())].label
            raise ValueError(f"source {label} has a share of rows below 1e-9; give it more weight or exclude it")
        self.shares: dict[str, float] = {s.label: u / _ONE for s, u in zip(self._sources, units.tolist(), strict=True)}
        # Differences of floors move by less than 2 from the share: a block owed 2 rows of every source takes back none.
        self.block = max(64, -(-2 * _ONE // int(units.min())))
        self._cached: tuple[int, Any] = (-1, None)  # the last block asked for

    def _add_entry(self, name: str, entry: MixtureEntry) -> list[float]:
        """Open one folder; returns the unnormalised share of rows of each of its sources."""
        try:
            shards = ShardSet(entry.path, entry.include, entry.exclude)
        except ValueError as error:
            raise ValueError(f"data.mixture.{name}: {error}") from error
        found: list[SourceOrder] = []
        for source in shards.sources:
            label = f"{name}/{source}"
            order = SourceOrder(label, shards.index(source), self.config.variates, self.config.length, self.seed)
            if order.points:
                found.append(order)
                self._shards[label] = shards
            else:
                log.warning("source %s has no observed value and is left out", label)
        power = {"equal": 0.0, "sqrt": 0.5, "points": 1.0}[entry.balance]
        parts = [s.points**power for s in found]
        self._sources += found
        # weights are shares of observed points, so a source with emptier rows gets more of them
        return [entry.weight * p / sum(parts) / s.points_per_row for p, s in zip(parts, found, strict=True)]

    def row(self, n: int) -> RowSpec:
        """What row n holds."""
        if n < 0:
            raise ValueError(f"rows are counted from 0, got {n}")
        number, position = divmod(n, self.block)
        before, upto, key = self._block(number)
        place = permute(position, self.block, key)
        k = int(np.searchsorted(upto, place, side="right"))
        j = int(before[k]) + place - (int(upto[k - 1]) if k else 0)
        source = self._sources[k]
        return RowSpec(n, source.label, source.windows(j))

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(rows of each source before the block, cumulative rows of the sources in it, key of its order)."""
        if number != self._cached[0]:
            first = number * self.block
            start, end = (n * self._cumulative // _ONE for n in (first, first + self.block))
            block = np.diff(start, prepend=0), end - start, key_of(self.seed, "order", "block", number)
            self._cached = number, block
        return self._cached[1]

    def open(self, label: str) -> tuple[ShardSet, str]:
        """The dataset folder and the source's name in it."""
        return self._shards[label], label.partition("/")[2]

    @property
    def fill(self) -> float:
        """Expected share of a row's slots that hold an observed value."""
        points = sum(self.shares[s.label] * s.points_per_row for s in self._sources)
        return points / (self.config.variates * self.config.length)

    @property
    def fingerprint(self) -> str:
        """sha256 over all that decides the rows; equal fingerprints give equal rows. Paths may differ."""
        datasets = {label: self._shards[label].fingerprint for label in self.shares}
        facts = [FORMAT, self.seed, self.config.variates, self.config.length, self._cumulative.tolist(), datasets]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
