"""Benchmark data in a corpus: an index of benchmark windows, and what a build refuses because of it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines import windows
from data_pipelines.series import Series
from data_pipelines.shards import MANIFEST, ShardSet
from data_pipelines.sources.files import SUFFIXES, FileSource

MIN_MATCHES = 2
"""Fewer windows in common are an accident: among unrelated sources one window of 8 was seen to match, never two."""
LIST_COLUMNS = ("source", "item_id", "raw_share", "scaled_share", "windows", "benchmark_source", "benchmark_item")


@dataclass
class Overlap:
    """What one series has in common with an index; windows are counted once however often they repeat."""

    raw_windows: int
    scaled_windows: int
    raw: Counter[int] = field(default_factory=Counter)
    """Windows found as they are, by position of the benchmark item in Index.items."""
    scaled: Counter[int] = field(default_factory=Counter)
    """Windows found up to scale and offset."""

    @property
    def raw_share(self) -> float:
        return _share(self.raw.total(), self.raw_windows)

    @property
    def scaled_share(self) -> float:
        return _share(self.scaled.total(), self.scaled_windows)

    @property
    def best(self) -> int | None:
        """The item with most windows in common; of equals the earliest."""
        found = self.raw + self.scaled
        return min(found, key=lambda k: (-found[k], k)) if found else None


def _share(matches: int, of: int) -> float:
    return matches / of if matches >= MIN_MATCHES else 0.0


@dataclass(frozen=True)
class Index:
    """Windows of benchmark series. A window that several hold belongs to the first of them."""

    items: tuple[tuple[str, str], ...]
    """(source, item id) of every benchmark series."""
    raw: np.ndarray
    """uint64 [n], ascending: windows.raw_hashes of all."""
    raw_owner: np.ndarray
    """int32 [n]: positions in items."""
    scaled: np.ndarray
    scaled_owner: np.ndarray

    @classmethod
    def build(cls, series: Iterable[Series]) -> Index:
        """12 bytes a hash, two hashes a window, one window in about 25 values: 1 MiB for a million values."""
        items: list[tuple[str, str]] = []
        found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for s in series:
            items.append((s.source, s.item_id))
            for kept, hashes in zip(found, windows.hashes(s.values), strict=True):
                kept.append(hashes)
        raw, scaled = (_merge(f) for f in found)
        return cls(tuple(items), *raw, *scaled)

    def match(self, series: Series) -> tuple[float, float, tuple[str, str] | None]:
        """(raw share, scaled share, best benchmark item); shares of the series' own windows, 0 below MIN_MATCHES."""
        overlap = self.overlap(series)
        return overlap.raw_share, overlap.scaled_share, None if overlap.best is None else self.items[overlap.best]

    def overlap(self, series: Series) -> Overlap:
        raw, scaled = windows.hashes(series.values)
        found = _owners(raw, self.raw, self.raw_owner), _owners(scaled, self.scaled, self.scaled_owner)
        return Overlap(len(raw), len(scaled), *found)


def _merge(hashes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted hashes of all items, each once, and the first item that holds it."""
    owner = np.repeat(np.arange(len(hashes), dtype=np.int32), [len(h) for h in hashes])
    merged, first = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_index=True)
    return merged, owner[first]


def _owners(hashes: np.ndarray, known: np.ndarray, owner: np.ndarray) -> Counter[int]:
    if not len(known):
        return Counter()
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    items, count = np.unique(owner[at[known[at] == hashes]], return_counts=True)
    return Counter(dict(zip(items.tolist(), count.tolist(), strict=True)))


@dataclass(frozen=True)
class Refused:
    """What a build refuses: series by name, or series with too many windows of benchmarks."""

    path: str
    names: frozenset[tuple[str, str]] = frozenset()
    index: Index | None = None

    @classmethod
    def open(cls, path: str | Path) -> Refused:
        """A list that scripts/leakage.py wrote (.csv) or a folder of benchmark series; ValueError for anything else."""
        if str(path).endswith(".csv"):
            return cls(str(path), names=read_list(path))
        return cls(str(path), index=Index.build(read_series(path, "quality.refuse")))

    def reason(self, series: Series, max_leakage: float) -> str:
        """Why this series is refused, in words; '' where it is not."""
        if (series.source, series.item_id) in self.names:
            return f"listed in {Path(self.path).name}"
        if self.index is None:
            return ""
        raw, scaled, item = self.index.match(series)
        if item is None or max(raw, scaled) <= max_leakage:
            return ""
        how = "" if raw > max_leakage else " up to scale and offset"
        return f"{100 * max(raw, scaled):.0f} % of its windows occur{how} in benchmark series {item[0]}/{item[1]}"


def read_list(path: str | Path) -> frozenset[tuple[str, str]]:
    """(source, item id) of each line of a CSV file with these columns.

    A part of a group that a build had split (name/part1of2) stands for the whole group as well.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := {"source", "item_id"} - set(rows.fieldnames or ()):
                raise ValueError(
                    f"quality.refuse={path} has no column {' and '.join(sorted(missing))}; "
                    "give a list that scripts/leakage.py wrote"
                )
            names = {(row["source"], row["item_id"]) for row in rows}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"quality.refuse={path} cannot be read ({error}); write it with scripts/leakage.py") from error
    whole = ((source, item.rpartition("/part")) for source, item in names)
    return frozenset(names) | {(source, head) for source, (head, _, part) in whole if _is_part(part) and head}


def _is_part(text: str) -> bool:
    number, sign, count = text.partition("of")
    return bool(sign) and number.isdigit() and count.isdigit()


def read_series(path: str | Path, key: str) -> Iterator[Series]:
    """Every series of a dataset of shards, or of files at or below a path in any layout that can be built from.

    One at a time. ValueError, naming the setting `key`, where there is neither.
    """
    if "://" in str(path) or (Path(path) / MANIFEST).is_file():
        shards = ShardSet(path)
        for source in shards.sources:
            for i in range(len(shards.index(source))):
                yield shards.series(source, i)
        return
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{key}={path} does not exist; give a dataset or a folder of files of series")
    # windows know no clock, so that records without a frequency may have any
    kinds = [kind for kind, suffixes in SUFFIXES.items() if path.is_dir() or path.name.endswith(suffixes)]
    found = [files for kind in kinds if (files := FileSource(str(path), kind, freq="1")).found()]
    if not found:
        inside = sorted(f.parent.name for f in path.glob(f"*/{MANIFEST}"))
        hint = f"; the datasets in it are {', '.join(inside)}: give one" if inside else ""
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{key}={path} holds neither a dataset ({MANIFEST}) nor files of series ({known}){hint}")
    try:
        for files in found:
            for unit in files.units():
                yield from files.read(unit, Counter())
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error
