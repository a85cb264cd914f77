"""What a family makes at a time: 64 series from one keyed generator.

The chunk is the unit of randomness. Series i of a family is row i % 64 of chunk i // 64, and a chunk depends on nothing
but (seed, family, chunk number, length), so any process, order or world size makes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 64


@dataclass(frozen=True)
class Chunk:
    """`count` series of one family.

    values: float32 [V, T] each, NaN = missing.
    intervals: seconds per step, float64 [count].
    starts: time of the first step, datetime64[s] [count].
    variate_names: V names each; empty where the family has none to give.
    """

    values: Sequence[np.ndarray]
    intervals: np.ndarray
    starts: np.ndarray
    variate_names: Sequence[tuple[str, ...]] = ()


def keyed_generator(seed: int, family: str, chunk: int) -> np.random.Generator:
    """Philox keyed by SHA-256 of the names (Python's own hash differs between processes)."""
    digest = hashlib.sha256(f"{seed}/{family}/{chunk}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
