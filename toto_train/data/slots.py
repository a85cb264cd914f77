"""Memory for batches that forked workers share with the run."""

from __future__ import annotations

import mmap
from collections import deque
from typing import Any

import numpy as np

from toto_train.data.rows import Batch

_ALIGNMENT = 64  # bytes; what vectorised code likes best


class Slots:
    """Room for `count` batches like the given one. A worker fills a slot, the loader lends it out, and it is free again
    when nobody has a view of it.

    The memory is mapped without a file, so the size of /dev/shm, which containers keep small, does not matter.
    """

    def __init__(self, like: Batch, count: int):
        self._places: dict[str, tuple[tuple[int, ...], np.dtype, int]] = {}
        size = 0
        for name, array in like.items():
            self._places[name] = array.shape, array.dtype, size
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        try:
            self._memory = np.frombuffer(mmap.mmap(-1, max(1, size * count)), np.uint8)
        except OSError as error:
            raise MemoryError(
                f"the loader needs {size * count / 1e9:.1f} GB for {count} batches of {size / 1e6:.1f} MB; "
                "lower data.workers, data.prefetch or micro_rows"
            ) from error
        self._size = size
        self._free = deque(range(count))

    def take(self) -> int | None:
        """A free slot, which stays taken until it was lent out and given up; None where there is none."""
        return self._free.pop() if self._free else None  # the last one freed may still be in a cache

    def arrays(self, slot: int) -> Batch:
        """Views of a slot, to fill it."""
        return self._views(self._memory, slot * self._size)

    def lend(self, slot: int) -> Batch:
        """Views of a filled slot; it is free when the last of them, and of what was made of them, is gone."""
        return self._views(np.asarray(_Loan(self._memory, slot, self._size, self._free)), 0)

    def _views(self, memory: np.ndarray, start: int) -> Batch:
        return {
            name: np.ndarray(shape, dtype, memory, start + offset)
            for name, (shape, dtype, offset) in self._places.items()
        }


class _Loan:
    """Owner of the views of a slot: numpy keeps it alive as long as any of them."""

    def __init__(self, memory: np.ndarray, slot: int, size: int, free: deque[int]):
        self._memory, self._slot, self._free = memory, slot, free
        address = memory.__array_interface__["data"][0] + slot * size
        self.__array_interface__: dict[str, Any] = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        self._free.append(self._slot)
