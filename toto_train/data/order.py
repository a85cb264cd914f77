"""Row n of a run -> the windows it holds: a pure function of (data config, seed, n) that costs the same for every n.

1. Which source? Lane n % L holds rows of every source by cumulative quotas (stages.py): each is within one row of its
   share at each block end, in each lane and over all. A block of rows is halved until small, each half with half of
   every source (rounded by keyed draw); then it is shuffled.
2. Which row of the source? As many as came before: in its lane where the source is cut in slices, else in all lanes.
3. Which windows? See source_order.py, and prior_source.py for series that the run makes itself.

Stages have constant shares each (a curriculum); quotas start anew with a stage, so that counts integrate the shares.
"""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_right
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.shards import ShardSet
from toto_train.config import DataConfig, MixtureEntry
from toto_train.data.source_order import SourceOrder, Windows, key_of, mix, nothing_left, passes
from toto_train.data.source_order import permute as permute
from toto_train.data.stages import ONE, Stage, stage_weights

if TYPE_CHECKING:
    from toto_train.data.prior_source import Family, PriorSet

log = logging.getLogger(__name__)

FORMAT = 3
"""Raise it whenever the same config and seed begin to give other rows."""
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
    """(series position in the source, first step, steps), of equal variate counts where they come from shards; steps
    count as the entry downsamples them."""


class Order:
    """The endless sequence of rows that a mixture and a seed define."""

    def __init__(self, config: DataConfig, seed: int):
        if not config.mixture:
            raise ValueError(
                "data.mixture is empty; choose data=quickstart, or data=shards data.mixture.corpus.path=FOLDER"
            )
        self.config, self.seed = config, seed
        self._shards: dict[str, ShardSet | PriorSet] = {}
        self._sources: list[SourceOrder | Family] = []
        starts, weights = stage_weights(config)
        ratios: dict[str, list[float]] = {}
        for name, entry in sorted(config.mixture.items()):
            if any(w[name] > 0 for w in weights):
                ratios[name] = (self._add_families if entry.families else self._add_entry)(name, entry)
        labels = [s.label for s in self._sources]
        self._together = np.array([s.rows_of_chunk for s in self._sources])
        block = {"block": _LEAF} if self.chunked else {}  # so long that rows of a chunk find each other in it
        self._stages: list[Stage] = []
        for k, (first, of) in enumerate(zip(starts, weights, strict=True)):
            shares = np.array([of[name] * r for name, ratio in ratios.items() for r in ratio])
            rows = starts[k + 1] - first if k + 1 < len(starts) else None
            name = f"data.stages.{first}" if k else "data.mixture"
            self._stages.append(Stage(name, first, shares, labels, config.lanes, rows, **block))
        self._starts = starts
        self._sliced = np.array([s.sliced for s in self._sources])
        self._before = self._counts_before_stages()
        self.shares: dict[str, float] = dict(zip(labels, (self._stages[0].units / ONE).tolist(), strict=True))
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

    def _add_families(self, name: str, entry: MixtureEntry) -> list[float]:
        """Take the families of one entry; returns rows per weight of each."""
        weights = {family: weight for family, weight in sorted(entry.families.items()) if weight > 0}
        if not weights:
            raise ValueError(f"data.mixture.{name}.families: all weights are 0; give at least one a positive weight")
        self._shards |= {f"{name}/{family}": self._prior for family in weights}
        try:
            found = [self._prior.family(f"{name}/{family}", family) for family in weights]
        except ValueError as error:
            raise ValueError(f"data.mixture.{name}.families: {error}") from error
        self._sources += found
        total = sum(weights.values())
        return [w / total / s.points_per_row for w, s in zip(weights.values(), found, strict=True)]

    @cached_property
    def _prior(self) -> PriorSet:
        from toto_train.data.prior_source import PriorSet  # takes a second to import, which runs on shards need not pay

        return PriorSet(self.config, self.seed)

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
        place, begin = np.arange(size), np.repeat(np.cumsum(counts) - counts, counts)
        rows = place - begin + np.repeat(base, counts)
        # Rows of a chunk that is made at once share a key, so they stay together and it need not be kept for long. A
        # source's rows come in their order, wherever the shuffle puts them: neighbours read neighbouring bytes.
        leader = np.maximum(place - rows % self._together[sources], begin)
        first = leader == place
        keys = mix(place[first].astype(np.uint64), mix(low, key))
        keys = keys[np.lexsort((keys, sources[first]))]
        places = np.argsort(keys[np.cumsum(first) - 1], kind="stable")
        return sources[places], rows[places]

    def wanted(self, first: int, end: int) -> np.ndarray:
        """[sources] share of each in rows first .. end-1 as the stages ask for it, in the order of `shares`."""
        ends = [*self._starts[1:], max(end, self._starts[-1])]
        rows = [max(0, min(end, b) - max(first, a)) for a, b in zip(self._starts, ends, strict=True)]
        units = sum(n * stage.units for n, stage in zip(rows, self._stages, strict=True))
        return units / (ONE * max(1, sum(rows)))

    def open(self, label: str) -> tuple[ShardSet | PriorSet, str]:
        """The dataset folder, or what makes the series, and the source's name in it."""
        return self._shards[label], label.partition("/")[2]

    @property
    def chunked(self) -> bool:
        """Whether several rows of a lane come of a chunk that is made at once."""
        return bool((self._together > 1).any())

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
                "shares": [int(stage.units[i]) / ONE for stage in self._stages],
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
        for source in self._sources:
            entry = c.mixture[source.label.partition("/")[0]]
            sources[source.label] = {
                "dataset": datasets[id(self._shards[source.label])],
                **({"rows_of_chunk": source.rows_of_chunk} if entry.families else {}),
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
