"""Strata: what losses are broken down by. Every variate of a row has a source, a domain and an interval."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipelines.series import DOMAINS

INTERVALS = (
    (10, "under 10 s"), (60, "10 s to 1 min"), (600, "1 to 10 min"), (3600, "10 min to 1 h"), (86_400, "1 h to 1 day"),
    (604_800, "1 day to 1 week"), (np.inf, "1 week and more"),
)  # fmt: skip
"""(first interval in seconds that belongs no more, name)."""
_ENDS = np.array([end for end, _ in INTERVALS])


def count(sources: int) -> int:
    return sources * len(DOMAINS) * len(INTERVALS)


def stratum(source: int, domain: np.ndarray, interval: np.ndarray) -> np.ndarray:
    """Numbers of strata, int64 like `domain` (positions in DOMAINS) and `interval` (seconds)."""
    return (source * len(DOMAINS) + domain.astype(np.int64)) * len(INTERVALS) + _ENDS.searchsorted(interval, "right")


def marginals(table: np.ndarray, labels: list[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(kind, name, sums [k]) of every source, domain and interval, from sums over strata [strata, k].

    What is not finite stays with its source; domains and intervals are summed without it.
    """
    table = table.reshape(len(labels), len(DOMAINS), len(INTERVALS), -1)
    finite = np.where(np.isfinite(table).all(-1, keepdims=True), table, 0.0)
    names = {"source": labels, "domain": list(DOMAINS), "interval": [name for _, name in INTERVALS]}
    for axis, (kind, of) in enumerate(names.items()):
        sums = (finite if axis else table).sum(axis=tuple(a for a in range(3) if a != axis))
        yield from ((kind, name, values) for name, values in zip(of, sums, strict=True))
