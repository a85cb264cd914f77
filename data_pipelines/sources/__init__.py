"""What every source of series looks like to the build."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from data_pipelines.series import Series


@dataclass(frozen=True)
class Unit:
    """A piece of a source that one process reads alone: a file, some row groups of one, a host."""

    key: str
    """Unique within the source and stable: names the piece in messages and in the work of an interrupted build."""
    size: int
    """Bytes, or a guess: for the progress bar and to begin with the largest."""
    version: str
    """Changes when the content does (size and time of a file, an etag, a time range)."""


class Source(Protocol):
    """Picklable: it travels to the processes or machines that read its units."""

    def units(self) -> list[Unit]:
        """Everything there is to read, in a fixed order, without reading it. ValueError where there is nothing."""
        ...

    def read(self, unit: Unit, counts: Counter[str]) -> Iterator[Series]:
        """The series of one unit, one at a time, in a fixed order; counts gains what a grid changed (see tables)."""
        ...
