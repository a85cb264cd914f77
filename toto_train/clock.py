"""How the time of a step divides into phases, without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

PHASES = ("data", "forward_backward", "optimizer", "other")
"""data: from one batch to the next. other: callbacks, and what Lightning does around a step."""
MANY = 1024
"""Events on their way at which those that have happened are read, so that a pool of a few thousand suffices."""


class Clock:
    """Time since the last mark goes to the phase that the next mark names.

    On a CPU that is time of the host. On CUDA marks are events in the stream of the step, so a phase is the time the
    device spent between them, work or not: waiting for data is what the device waits, not what the host does.
    """

    def __init__(self, device: torch.device | None = None):
        self._cuda = device is not None and device.type == "cuda"
        self._sums = dict.fromkeys(PHASES, 0.0)
        self._events: deque[tuple[str | None, Any]] = deque()
        self._pool: list[Any] = []
        self._last = time.perf_counter()

    def mark(self, phase: str | None) -> None:
        """A phase ended here, or (None) something that belongs to none."""
        if self._cuda:
            event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase, event))
            if len(self._events) % MANY == 0:
                self._collect()
        else:
            now = time.perf_counter()
            if phase is not None:
                self._sums[phase] += now - self._last
            self._last = now

    def _collect(self) -> None:
        """Read events that have happened."""
        while len(self._events) > 1 and self._events[1][1].query():
            _, begin = self._events.popleft()
            phase, end = self._events[0]
            if phase is not None:
                self._sums[phase] += begin.elapsed_time(end) / 1000
            self._pool.append(begin)

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading. On CUDA: of what the device has done; wait for it before."""
        self._collect()
        sums, self._sums = self._sums, dict.fromkeys(PHASES, 0.0)
        return sums
