"""Row n of a run -> the windows it holds: a pure function of (data config, seed, n) that costs the same for every n.

1. Which source? Lane n % L holds rows of every source by cumulative quotas: after m rows of lane l, the first K sources
   have had floor(m S_K + l/L) of them, S the cumulative shares. Over all lanes that is floor(L m S_K) (Hermite's
   identity), so every source is within one row of its share at each block end, in each lane and over all. A block of
   rows is halved until small, each half with half of every source (rounded by keyed draw); then it is shuffled.
2. Which row of the source? As many as came before: in its lane where the source is cut in slices, else in all lanes.
3. Which windows? See source_order.py.

Stages have constant shares each (a curriculum); quotas start anew with a stage, so that counts integrate the shares.
"""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_pipelines.shards import ShardSet
from toto_train.config import DataConfig, MixtureEntry
from toto_train.data.source_order import SourceOrder, Windows, key_of, mix, nothing_left, passes
from toto_train.data.source_order import permute as permute

log = logging.getLogger(__name__)

FORMAT = 3
"""Raise it whenever the same config and seed begin to give other rows."""
_BITS = 30
_ONE = 2**_BITS
"""Shares are integers out of this, so quotas are exact."""
_SHORTEST = 16
"""Fewest rows of a lane in a block: finding a block's counts should not cost more than its rows."""
_LEAF = 256
"""Rows of a lane that are shuffled at once."""
_LEAVES = 1024
"""How many of those are kept."""


@dataclass(frozen=True)
class RowSpec:
    """What row n holds."""

    n: int
    source: str
    """Label entry/source."""
    windows: Windows
    """(series position in the source, first step, steps), all with equal variate counts; steps count as the entry
    downsamples them."""


class _Stage:
    """Quotas of the sources from row `first` on; m counts the rows of a lane since then."""

    def __init__(self, name: str, first: int, shares: np.ndarray, labels: list[str], lanes: int, rows: int | None):
        self.name, self.first, self.lanes = name, first, lanes
        self.total = None if rows is None else rows // lanes
        if not shares.any():
            raise ValueError(f"{name}: no entry has both a positive weight and observed points")
        exact = np.cumsum(shares)
        self.cumulative = np.round(exact / exact[-1] * _ONE).astype(np.int64)
        self.units = np.diff(self.cumulative, prepend=0)
        if (lost := (shares > 0) & (self.units <= 0)).any():
            label = labels[int(lost.argmax())]
            raise ValueError(f"{name}: source {label} has a share of rows below 1e-9; give it more weight or none")
        rarest = int(np.where(self.units > 0, self.units, _ONE + 1).argmin())
        # A source's rows in a lane's block are two differences of floors apart, each less than 1 from its quota: more
        # than b s - 2. With b >= 1/s that is an integer above -1, so no block takes rows back.
        self.block = max(-(-_ONE // int(self.units[rarest])), -(-64 // lanes), _SHORTEST)
        if self.total is not None and self.total < self.block:
            raise ValueError(
                f"{name} lasts for {self.total * lanes} rows and needs {self.block * lanes}, as its rarest source "
                f"{labels[rarest]} has {self.units[rarest] / _ONE:.2g} of them; make the stage longer, or give the "
                "source more weight or none"
            )

    def block_of(self, m: int) -> tuple[int, int, int]:
        """(number, first m, rows per lane) of a block; the last of a stage takes in the remainder."""
        number = m // self.block
        if self.total is not None and number >= (last := self.total // self.block - 1):
            return last, last * self.block, self.total - last * self.block
        return number, number * self.block, self.block

    def _quotas(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        """(floor(m S_K), the first lane l where l/L carries it to the next integer: part + l/L >= 1)."""
        high, low = divmod(m, _ONE)  # so that nothing overflows
        product = low * self.cumulative
        part = product & (_ONE - 1)
        return high * self.cumulative + (product >> _BITS), -((part - _ONE) * self.lanes >> _BITS)

    def counts(self, lane: int, start: int, end: int) -> np.ndarray:
        """[3, sources]: rows of each source in a lane before m = start, in it before end, and in all lanes before start
        or in a lower one before end."""
        (whole, carry), (then, carries) = self._quotas(start), self._quotas(end)
        all_lanes = self.lanes * whole + np.maximum(0, self.lanes - carry)
        lower = lane * (then - whole) + np.maximum(0, lane - carries) - np.maximum(0, lane - carry)
        out = np.stack([whole + (lane >= carry), then + (lane >= carries), all_lanes + lower])
        out[:, 1:] -= out[:, :-1].copy()
        return out


class Order:
    """The endless sequence of rows that a mixture and a seed define."""

    def __init__(self, config: DataConfig, seed: int):
        if not config.mixture:
            raise ValueError("data.mixture is empty; choose data=quickstart or give data.path=FOLDER of shards")
        self.config, self.seed = config, seed
        self._shards: dict[str, ShardSet] = {}
        self._sources: list[SourceOrder] = []
        starts, weights = _stage_weights(config)
        ratios: dict[str, list[float]] = {}
        for name, entry in sorted(config.mixture.items()):
            if any(w[name] > 0 for w in weights):
                ratios[name] = self._add_entry(name, entry)
        labels = [s.label for s in self._sources]
        self._stages: list[_Stage] = []
        for k, (first, of) in enumerate(zip(starts, weights, strict=True)):
            shares = np.array([of[name] * r for name, ratio in ratios.items() for r in ratio])
            rows = starts[k + 1] - first if k + 1 < len(starts) else None
            name = f"data.stages.{first}" if k else "data.mixture"
            self._stages.append(_Stage(name, first, shares, labels, config.lanes, rows))
        self._starts = starts
        self._sliced = np.array([s.sliced for s in self._sources])
        self._before = self._counts_before_stages()
        self.shares: dict[str, float] = dict(zip(labels, (self._stages[0].units / _ONE).tolist(), strict=True))
        """Label -> share of rows in the first stage."""
        self.block = self._stages[0].block * config.lanes
        """Rows of a block in the first stage."""
        self._leaves: dict[tuple[int, int, int, int], tuple[np.ndarray, np.ndarray]] = {}

    def _add_entry(self, name: str, entry: MixtureEntry) -> list[float]:
        """Open one folder; returns rows per weight of each of its sources."""
        try:
            shards = ShardSet(entry.path, entry.include, entry.exclude, tolerate=self.config.on_fault == "quarantine")
        except ValueError as error:
            raise ValueError(f"data.mixture.{name}: {error}") from error
        found: list[SourceOrder] = []
        rejected = 0
        for source in shards.sources:
            label, index = f"{name}/{source}", shards.index(source)
            taken = np.flatnonzero(passes(index, entry))
            if not len(taken):
                rejected += 1
                continue
            order = SourceOrder(label, index, self.config, self.seed, taken, entry.downsample)
            if order.points:
                found.append(order)
                self._shards[label] = shards
            else:
                log.warning("source %s has no observed value and is left out", label)
        if rejected == len(shards.sources):
            raise ValueError(f"data.mixture.{name}: {nothing_left([shards.index(s) for s in shards.sources], entry)}")
        power = {"equal": 0.0, "sqrt": 0.5, "points": 1.0}[entry.balance]
        parts = [s.points**power for s in found]
        self._sources += found
        # weights are shares of observed points, so a source with emptier rows gets more of them
        return [p / sum(parts) / s.points_per_row for p, s in zip(parts, found, strict=True)]

    def _counts_before_stages(self) -> list[np.ndarray]:
        """For each stage: [lanes + 1, sources] rows of the stages before it in each lane, and in all."""
        lanes = range(self.config.lanes)
        out = [np.zeros((len(lanes) + 1, len(self._sources)), np.int64)]
        for stage in self._stages[:-1]:
            assert stage.total is not None
            of = np.stack([stage.counts(lane, 0, stage.total)[1] for lane in lanes])
            out.append(out[-1] + np.concatenate([of, of.sum(axis=0, keepdims=True)]))
        return out

    def row(self, n: int) -> RowSpec:
        """What row n holds."""
        if n < 0:
            raise ValueError(f"rows are counted from 0, got {n}")
        k = bisect_right(self._starts, n) - 1
        m, lane = divmod(n - self._starts[k], self.config.lanes)
        number, start, size = self._stages[k].block_of(m)
        at, low = m - start, 0
        while size > _LEAF:  # which leaf of the halving
            low, size = (low, size // 2) if at < low + size // 2 else (low + size // 2, size - size // 2)
        leaf = self._leaves.get((k, number, lane, low))
        if leaf is None:
            if len(self._leaves) >= _LEAVES:
                del self._leaves[next(iter(self._leaves))]
            leaf = self._leaves[k, number, lane, low] = self._make_leaf(k, lane, number, m)
        source = self._sources[leaf[0][at - low]]
        return RowSpec(n, source.label, source.windows(int(leaf[1][at - low]), lane))

    def _make_leaf(self, k: int, lane: int, number: int, m: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, row of the source) of the rows that are shuffled together with the m-th of a lane in stage k."""
        stage = self._stages[k]
        number, start, size = stage.block_of(m)
        key = key_of(self.seed, "order", "block", stage.first, number, lane)
        before, then, of_all = stage.counts(lane, start, start + size)
        earlier = self._before[k]
        base = np.where(self._sliced, earlier[lane] + before, earlier[-1] + of_all)
        upto = np.cumsum(then - before)  # rows of the first K sources in what is left of the block
        passed = np.zeros_like(upto)  # and in what was cut off before it
        at, low = m - start, 0
        while size > _LEAF:
            half = size // 2
            # quotas again, with a keyed offset: half the rows of each source, rounded so that the sum is right
            left = (upto * half + mix(low, key + size) % size) // size
            if at < low + half:
                upto, size = left, half
            else:
                upto, passed, low, size = upto - left, passed + left, low + half, size - half
        counts, base = np.diff(upto, prepend=0), base + np.diff(passed, prepend=0)
        sources = np.repeat(np.arange(len(counts)), counts)
        rows = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(base, counts)
        keys = mix(np.arange(size, dtype=np.uint64), mix(low, key))
        places = np.argsort(keys, kind="stable")
        # a source's rows come in their order, wherever the shuffle put them: neighbours read neighbouring bytes
        shuffled = sources[places]
        numbers = np.empty_like(rows)
        numbers[np.argsort(shuffled, kind="stable")] = rows
        return shuffled, numbers

    def wanted(self, first: int, end: int) -> np.ndarray:
        """[sources] share of each in rows first .. end-1 as the stages ask for it, in the order of `shares`."""
        ends = [*self._starts[1:], max(end, self._starts[-1])]
        rows = [max(0, min(end, b) - max(first, a)) for a, b in zip(self._starts, ends, strict=True)]
        units = sum(n * stage.units for n, stage in zip(rows, self._stages, strict=True))
        return units / (_ONE * max(1, sum(rows)))

    def open(self, label: str) -> tuple[ShardSet, str]:
        """The dataset folder and the source's name in it."""
        return self._shards[label], label.partition("/")[2]

    @property
    def fill(self) -> float:
        """Expected share of a row's slots that hold an observed value, in the first stage."""
        points = sum(self.shares[s.label] * s.points_per_row for s in self._sources)
        return points / (self.config.variates * self.config.length)

    def table(self) -> list[dict[str, Any]]:
        """For each source: label, share (of rows in the first stage), shares (in each stage), sliced, rows (of an
        epoch), fill, fills (by variates of the windows)."""
        slots = self.config.variates * self.config.length
        return [
            {
                "label": s.label,
                "share": self.shares[s.label],
                "shares": [int(stage.units[i]) / _ONE for stage in self._stages],
                "sliced": s.sliced,
                "rows": s.rows,
                "fill": s.points_per_row / slots,
                "fills": s.fill(),
            }
            for i, s in enumerate(self._sources)
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides the rows, as JSON takes it. Paths may differ."""
        labels, c = list(self.shares), self.config
        datasets = {id(shards): shards.fingerprint for shards in self._shards.values()}
        sources = {}
        for label in labels:
            entry = c.mixture[label.partition("/")[0]]
            sources[label] = {
                "dataset": datasets[id(self._shards[label])],
                **{key: getattr(entry, key) for key in ("domain", "min_interval", "max_interval", "downsample")},
                "augment": asdict(c.augment) if entry.augment else {},
            }
        return {
            "format": FORMAT,
            "seed": self.seed,
            **{key: getattr(c, key) for key in ("variates", "length", "lanes", "shuffle_rows")},
            "stages": [
                {"first_row": s.first, "units": dict(zip(labels, s.units.tolist(), strict=True))} for s in self._stages
            ],
            "sources": sources,
        }

    @property
    def fingerprint(self) -> str:
        """sha256 over the facts; equal fingerprints give equal rows."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def _stage_weights(config: DataConfig) -> tuple[list[int], list[dict[str, float]]]:
    """(first row, weights of all entries) of each stage."""
    lanes = config.lanes
    starts, weights = [0], [{name: entry.weight for name, entry in config.mixture.items()}]
    for text, changes in sorted(config.stages.items(), key=lambda item: item[0].zfill(20)):
        first = int(text) if text.isdecimal() else 0
        if first <= 0 or first % lanes:
            low = max(lanes, first // lanes * lanes)
            raise ValueError(
                f"data.stages.{text}: a stage begins at a row that is a positive multiple of the {lanes} lanes; "
                f"the nearest are {low} and {low + lanes}"
            )
        if first == starts[-1]:
            raise ValueError(f"data.stages.{text}: there are two stages that begin at row {first}")
        if unknown := sorted(set(changes) - set(config.mixture)):
            raise ValueError(f"data.stages.{text}: no entry {unknown[0]!r}; there are: {', '.join(config.mixture)}")
        starts.append(first)
        weights.append(weights[-1] | changes)
    return starts, weights
