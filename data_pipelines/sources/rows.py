"""Rows of a long table by item: in memory, or in temporary files where they are too many."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SPILL_BYTES = 256 * 2**20
"""Rows beyond this leave memory."""
MAX_PARTITIONS = 256


class Rows:
    """Stamps and values of a table's rows, given back item by item, each item's rows in the order of the file.

    Memory: SPILL_BYTES, or the largest partition (the rows of the items of one hash), and the names of the items.
    Partitions follow from the guessed size alone, so the order of items is a function of the file.
    """

    def __init__(self, stamp: np.dtype, variates: int, size: int):
        """stamp: 8-byte type of stamps; size: a guess of the table's bytes."""
        self._dtype = np.dtype([("item", "<i4"), ("stamp", stamp), ("values", "<f4", (variates,))])
        self._partitions = int(np.clip(-(-2 * size // SPILL_BYTES), 2, MAX_PARTITIONS))
        self._codes: dict[str, int] = {}
        self._names: list[str] = []
        self._partition_of: list[int] = []
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, keys: pa.DictionaryArray | None, stamps: np.ndarray, values: np.ndarray) -> None:
        """Rows of one batch; keys None: all of the one item ''. values: float32 [N, V]."""
        rows = np.empty(len(stamps), dtype=self._dtype)
        rows["stamp"], rows["values"] = stamps, values
        if keys is None:
            rows["item"] = self._code("")
        else:
            codes = np.array([self._code(key) for key in keys.dictionary.to_pylist()], dtype=np.int32)
            rows["item"] = codes[keys.indices.to_numpy()]
        self._held.append(rows)
        self._bytes += rows.nbytes
        # one item is one series, which has to fit memory in any case
        if self._bytes > SPILL_BYTES // (1 if self._folder is None else 8) and keys is not None:
            self._spill()

    def items(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(item, stamps [N], values [N, V]) of every item, sorted in a partition; can be run through more than once."""
        if self._folder is not None:
            self._spill()
            for partition in range(self._partitions):
                if (file := self._file(partition)).exists():
                    yield from self._split(np.fromfile(file, dtype=self._dtype))
        elif self._held:
            if len(self._held) > 1:
                self._held = [np.concatenate(self._held)]
            yield from self._split(self._held[0])

    def close(self) -> None:
        self._held = []
        if self._folder is not None:
            self._folder.cleanup()

    def _code(self, key: str) -> int:
        code = self._codes.setdefault(key, len(self._names))
        if code == len(self._names):
            self._names.append(key)
            self._partition_of.append(zlib.crc32(key.encode()) % self._partitions)
        return code

    def _file(self, partition: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{partition:03d}"

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="toto-rows-")
        partition_of = np.array(self._partition_of)
        while self._held:
            rows = self._held.pop(0)
            partitions = partition_of[rows["item"]]
            for partition in np.unique(partitions):
                with open(self._file(partition), "ab") as out:
                    rows[partitions == partition].tofile(out)
        self._bytes = 0

    def _split(self, rows: np.ndarray) -> Iterator[tuple[str, Any, Any]]:
        codes = rows["item"]
        if (codes == codes[0]).all():  # no copy of a table that is one series
            yield self._names[codes[0]], rows["stamp"], rows["values"]
            return
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        spans = sorted((self._names[codes[order[a]]], a, b) for a, b in zip(starts, ends, strict=True))
        for name, a, b in spans:
            inside = rows[order[a:b]]
            yield name, inside["stamp"], inside["values"]
