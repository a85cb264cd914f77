"""Cumulative quotas: how many rows of each source a lane holds up to any row, in stages of constant shares.

After m rows of lane l the first K sources have had floor(m S_K + l/L) of them, S the cumulative shares. Over all lanes
that is floor(L m S_K) (Hermite's identity), so every source is within one row of its share at each block end.
"""

from __future__ import annotations

import numpy as np

from toto_train.config import DataConfig

_BITS = 30
ONE = 2**_BITS
"""Shares are integers out of this, so quotas are exact."""
_SHORTEST = 16
"""Fewest rows of a lane in a block: finding a block's counts should not cost more than its rows."""


class Stage:
    """Quotas of the sources from row `first` on; m counts the rows of a lane since then.

    block: rows of a lane that are shuffled with each other at the least, where the stage is that long.
    """

    def __init__(
        self,
        name: str,
        first: int,
        shares: np.ndarray,
        labels: list[str],
        lanes: int,
        rows: int | None,
        block: int = _SHORTEST,
    ):
        self.name, self.first, self.lanes = name, first, lanes
        self.total = None if rows is None else rows // lanes
        if not shares.any():
            raise ValueError(f"{name}: no entry has both a positive weight and observed points")
        exact = np.cumsum(shares)
        self.cumulative = np.round(exact / exact[-1] * ONE).astype(np.int64)
        self.units = np.diff(self.cumulative, prepend=0)
        if (lost := (shares > 0) & (self.units <= 0)).any():
            label = labels[int(lost.argmax())]
            raise ValueError(f"{name}: source {label} has a share of rows below 1e-9; give it more weight or none")
        rarest = int(np.where(self.units > 0, self.units, ONE + 1).argmin())
        # A source's rows in a lane's block are two differences of floors apart, each less than 1 from its quota: more
        # than b s - 2. With b >= 1/s that is an integer above -1, so no block takes rows back.
        self.block = max(-(-ONE // int(self.units[rarest])), -(-64 // lanes), _SHORTEST)
        if self.total is not None and self.total < self.block:
            raise ValueError(
                f"{name} lasts for {self.total * lanes} rows and needs {self.block * lanes}, as its rarest source "
                f"{labels[rarest]} has {self.units[rarest] / ONE:.2g} of them; make the stage longer, or give the "
                "source more weight or none"
            )
        self.block = max(self.block, block if self.total is None else min(block, self.total))

    def block_of(self, m: int) -> tuple[int, int, int]:
        """(number, first m, rows per lane) of a block; the last of a stage takes in the remainder."""
        number = m // self.block
        if self.total is not None and number >= (last := self.total // self.block - 1):
            return last, last * self.block, self.total - last * self.block
        return number, number * self.block, self.block

    def _quotas(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        """(floor(m S_K), the first lane l where l/L carries it to the next integer: part + l/L >= 1)."""
        high, low = divmod(m, ONE)  # so that nothing overflows
        product = low * self.cumulative
        part = product & (ONE - 1)
        return high * self.cumulative + (product >> _BITS), -((part - ONE) * self.lanes >> _BITS)

    def counts(self, lane: int, start: int, end: int) -> np.ndarray:
        """[3, sources]: rows of each source in a lane before m = start, in it before end, and in all lanes before start
        or in a lower one before end."""
        (whole, carry), (then, carries) = self._quotas(start), self._quotas(end)
        all_lanes = self.lanes * whole + np.maximum(0, self.lanes - carry)
        lower = lane * (then - whole) + np.maximum(0, lane - carries) - np.maximum(0, lane - carry)
        out = np.stack([whole + (lane >= carry), then + (lane >= carries), all_lanes + lower])
        out[:, 1:] -= out[:, :-1].copy()
        return out


def stage_weights(config: DataConfig) -> tuple[list[int], list[dict[str, float]]]:
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
