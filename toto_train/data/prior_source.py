"""The synthetic prior as a source of a mixture: whoever needs a row makes its series, the same in any process.

A family makes a chunk of series at a time from (seed, family, chunk number), and their widths are known beforehand.
Lane l owns chunks l, l + L, l + 2 L, ... of every family, and each chunk is dealt over the same number of rows, so the
j-th row of a family in a lane is found by arithmetic, rows never run out and no series comes twice.
`scripts/synthesize.py` stores the same series.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipelines.series import DOMAINS
from data_pipelines.shards import INDEX
from data_pipelines.synthetic import prior
from toto_train.config import DataConfig
from toto_train.data.source_order import Windows

PARTS = 64
"""A window's series position is the index of the series times this, plus the part of a series wider than a row."""
_SAMPLE = 64
"""Chunks whose widths say how many rows a chunk of the family gives."""


def parts_of(width: int, variates: int) -> list[int]:
    """Widths of the parts that a series of `width` variates is cut in, as builds of shards cut it: they differ by one
    at most and take a row of `variates` at most."""
    parts = -(-width // variates)
    return [width // parts + (k < width % parts) for k in range(parts)]


def windows_of(family: str, seed: int, number: int, variates: int) -> dict[int, int]:
    """Position -> variates of every window of a chunk."""
    first = number * prior.FAMILIES[family].count
    return {
        index * PARTS + k: width
        for index, of in enumerate(prior.widths(family, seed, number).tolist(), start=first)
        for k, width in enumerate(parts_of(of, variates))
    }


@lru_cache(maxsize=4096)
def deal(family: str, seed: int, number: int, variates: int, rows: int) -> tuple[tuple[int, ...], ...]:
    """Positions of the windows in each of the `rows` rows of a chunk: the widest first, each into the emptiest row.

    Those that the rows could hold by their sum go before the rest, so that what is left out does not depend on widths.
    """
    windows = windows_of(family, seed, number, variates)
    spare = dict(zip(windows, np.cumsum(list(windows.values())) > rows * variates, strict=True))
    hands: list[list[int]] = [[] for _ in range(rows)]
    room = [variates] * rows
    for position in sorted(windows, key=lambda p: (spare[p], -windows[p])):
        emptiest = max(range(rows), key=room.__getitem__)
        if windows[position] <= room[emptiest]:
            hands[emptiest].append(position)
            room[emptiest] -= windows[position]
    filled = [tuple(hand) for hand in hands if hand]
    return tuple(filled[r % len(filled)] for r in range(rows))  # no row stays empty, even of a few univariate ones


@dataclass(frozen=True)
class Family:
    """The rows of one family: the counterpart of SourceOrder."""

    label: str
    name: str
    seed: int
    variates: int
    length: int
    lanes: int

    sliced = True
    rows = math.inf
    """They never run out."""

    @property
    def rows_of_chunk(self) -> int:
        """Rows a chunk is dealt over; in its lane they follow each other."""
        return self._shape()[0]

    @property
    def points_per_row(self) -> float:
        """Expected observed values of a row."""
        return self._shape()[1] * self.length * prior.FAMILIES[self.name].observed

    def fill(self) -> dict[int, float]:
        """Nothing by widths: a row mixes them."""
        return {}

    def windows(self, j: int, lane: int) -> Windows:
        """Windows of the j-th row of a lane: all of one chunk, each a whole series or a part of a wide one."""
        number, r = divmod(j, self.rows_of_chunk)
        hands = deal(self.name, self.seed, number * self.lanes + lane, self.variates, self.rows_of_chunk)
        return tuple((position, 0, self.length) for position in hands[r])

    def _shape(self) -> tuple[int, float]:
        return _shape(self.name, self.seed, self.variates)


@lru_cache(maxsize=256)
def _shape(family: str, seed: int, variates: int) -> tuple[int, float]:
    """(rows of a chunk, variates that are taken of a row on average)."""
    chunks = [windows_of(family, seed, number, variates) for number in range(_SAMPLE)]
    rows = (
        sum(_needed(of.values(), variates) for of in chunks) // _SAMPLE
    )  # an empty slot costs more than a lost series
    taken = [of[p] for k, of in enumerate(chunks) for hand in deal(family, seed, k, variates, rows) for p in hand]
    return rows, sum(taken) / (_SAMPLE * rows)


def _needed(widths: Iterable[int], variates: int) -> int:
    """Rows that hold all of them: the widest first, each into the first row that has room."""
    room: list[int] = []
    for width in sorted(widths, reverse=True):
        first = next((r for r, left in enumerate(room) if left >= width), len(room))
        if first == len(room):
            room.append(variates)
        room[first] -= width
    return len(room)


def _number(family: str, position: int) -> int:
    """The chunk that holds a window."""
    return position // PARTS // prior.FAMILIES[family].count


class PriorSet:
    """Makes the series of families by position: the counterpart of ShardSet, with a family's name for a source.

    Of each family and lane it keeps the windows of the newest chunk that no row has taken yet.
    """

    def __init__(self, config: DataConfig, seed: int):
        self.seed, self.variates, self.length, self.lanes = seed, config.variates, config.length, config.lanes
        self._stock: dict[tuple[str, int], tuple[int, dict[int, tuple[np.ndarray, float]]]] = {}
        """(family, lane) -> chunk, its windows: values [V, T] and interval by position."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stock": {}}

    @property
    def fingerprint(self) -> str:
        """What stands for the bytes, together with the seed and the length."""
        return f"prior {prior.FORMAT}"

    def family(self, label: str, name: str) -> Family:
        """Raises ValueError for an unknown family."""
        prior.widths(name, self.seed, 0)
        return Family(label, name, self.seed, self.variates, self.length, self.lanes)

    def entries(self, family: str, positions: Sequence[int]) -> np.ndarray:
        """INDEX entries of windows of one chunk; where they lie is left zero, and points say all are observed."""
        held = self._held(family, positions)
        out = np.zeros(len(positions), INDEX)
        out["variates"] = [len(held[p][0]) for p in positions]
        out["interval"] = [held[p][1] for p in positions]
        out["length"], out["domain"] = self.length, DOMAINS.index("synthetic")
        out["points"] = out["variates"] * self.length
        return out

    def read_into(
        self, family: str, positions: Sequence[int], starts: Sequence[int], outs: Sequence[np.ndarray]
    ) -> None:
        """Fill each of outs [V, steps] with the steps of a window from a start on, NaN = missing. The windows are of
        one chunk, and making them again costs that chunk."""
        held = self._held(family, positions)
        for position, start, out in zip(positions, starts, outs, strict=True):
            values, _ = held.pop(position)
            out[:] = values[:, start : start + out.shape[1]]

    def meta(self, family: str, position: int) -> dict[str, Any]:
        """What `scripts/synthesize.py` calls the series."""
        return {"item_id": prior.item_id(self.seed, position // PARTS), "source": f"synthetic_{family}"}

    def shard_name(self, family: str, position: int) -> str:
        """What stands for a file: the chunk, and which part of a series wider than a row it is."""
        part = position % PARTS
        return f"{family} chunk {_number(family, position)}" + (f", part {part + 1}" if part else "")

    def where(self, family: str, position: int) -> str:
        return self.shard_name(family, position)

    def _held(self, family: str, positions: Sequence[int]) -> dict[int, tuple[np.ndarray, float]]:
        """The windows in stock of the chunk of `positions`, those among them; the chunk is made where any is not."""
        number = _number(family, positions[0])
        place = family, number % self.lanes
        known, held = self._stock.get(place, (-1, {}))
        if known != number or any(p not in held for p in positions):
            held.clear()  # gives the memory back first
            held = self._make(family, number)
            self._stock[place] = number, held
        return held

    def _make(self, family: str, number: int) -> dict[int, tuple[np.ndarray, float]]:
        try:
            made = prior.chunk(family, self.seed, number, self.length)
        except Exception as error:
            error.add_note(f"chunk {number} of family {family}, seed {self.seed}, {self.length} steps")
            raise
        rows, _ = _shape(family, self.seed, self.variates)
        out = {}
        for position in sorted({p for hand in deal(family, self.seed, number, self.variates, rows) for p in hand}):
            row, part = position // PARTS % len(made.values), position % PARTS
            values = made.values[row]
            of = parts_of(len(values), self.variates)
            top = sum(of[:part])
            # a copy: a view would keep all of the chunk as long as one window is left
            out[position] = values[top : top + of[part]].copy(), float(made.intervals[row])
        return out
