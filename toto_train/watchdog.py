"""Ends a rank that makes no progress, and says where it stands."""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import IO


class Watchdog:
    """A timer in C, which works where Python is stuck in a call: when nobody sets it again in time, the stack of every
    thread is written to `file` and the process ends with status 1.

    file: None never ends anything. One per process, as faulthandler has one timer.
    """

    def __init__(self, file: Path | None = None):
        self.path = file
        self._file: IO[str] | None = None

    def allow(self, seconds: float) -> None:
        """From now on, so long without another call."""
        if self.path is not None:
            if self._file is None:
                self._file = self.path.open("w")
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def stop(self) -> None:
        if self.path is not None and self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)


def stacks(folder: Path) -> list[Path]:
    """What watchdogs wrote into a run folder."""
    return sorted(path for path in folder.glob("stack-rank*.txt") if _size(path))


def _size(path: Path) -> int:
    """Bytes; 0 where another node, or the rank, has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
