"""Folders that Hugging Face `datasets` wrote with `save_to_disk`: how GIFT-Eval, BOOM and TIME lie on disk.

A row is a series: item_id, start, freq ('15T'), target ([T], or [V][T] of a group), in some sets
past_feat_dynamic_real (features known for the past alone, of the target's shape) and variate_names.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation.tasks import SEASONS

STATE = "state.json"
PAST_FEATURES = "past_feat_dynamic_real"
SECONDS = {
    "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86_400, "b": 86_400, "w": 604_800, "mo": 2_629_800, "q": 7_889_400,
    "y": 31_557_600,
}  # fmt: skip
_UNITS = {
    "ms": ["L", "ms"], "s": ["S", "s"], "min": ["T", "min"], "h": ["H", "h"], "d": ["D"], "b": ["B"], "w": ["W"],
    "mo": ["M", "ME", "MS"], "q": ["Q", "QE", "QS"], "y": ["A", "Y", "AE", "YE", "AS", "YS"],
}  # fmt: skip
_UNIT_OF = {alias: unit for unit, aliases in _UNITS.items() for alias in aliases}
_INDEX = np.dtype([("length", "i8"), ("variates", "i8")])


def parse_freq(freq: str) -> tuple[int, str]:
    """Frequency as pandas writes it, old or new, -> (multiple, unit): '15T' -> (15, 'min'), 'W-SUN' -> (1, 'w')."""
    found = re.fullmatch(r"(\d*)([A-Za-z]+)(-[A-Z]+)?", freq)
    if not found or found[2] not in _UNIT_OF:
        raise ValueError(f"freq={freq!r} is no frequency that the benchmarks have; known: {', '.join(_UNIT_OF)}")
    return int(found[1] or 1), _UNIT_OF[found[2]]


def season_of_freq(freq: str) -> int:
    """Steps of one season, as gluonts' get_seasonality has it: business days have 5."""
    count, unit = parse_freq(freq)
    season, rest = divmod((SEASONS | {"b": 5})[unit], count)
    return 1 if rest else season


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (path / STATE).is_file()


class Folder:
    """One dataset, read row by row from its memory-mapped Arrow files; a store of one source for `TaskSet`."""

    def __init__(self, root: Path, name: str):
        """The folder root/name. ValueError where it is none, or without the package `datasets`."""
        self.path, self.name = root / name, name
        try:
            from datasets import Dataset, load_from_disk
        except ImportError as error:
            raise ValueError(
                f"{self.path} is read with the package datasets ({error}); pip install 'toto-train[eval]'"
            ) from error
        try:
            data = load_from_disk(str(self.path))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path} cannot be read as a saved dataset ({error}); download it again") from error
        if not isinstance(data, Dataset) or not {"target", "freq"} <= set(data.column_names) or not len(data):
            raise ValueError(f"{self.path} is no dataset with the columns target and freq, one row a series")
        self._table = data.data.table
        self.sources = (name,)
        self.freq = str(self._table["freq"][0].as_py())

    @property
    def interval(self) -> float:
        """Seconds between two steps (months, quarters and years: of a mean one)."""
        count, unit = parse_freq(self.freq)
        return count * SECONDS[unit]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.path)

    @cached_property
    def _index(self) -> np.ndarray:
        import pyarrow as pa
        import pyarrow.compute as pc

        target = self._table["target"]
        out = np.ones(len(target), _INDEX)
        count = pc.list_value_length(target)
        nested = not pa.types.is_floating(target.type.value_type) and hasattr(target.type.value_type, "value_type")
        if nested:
            out["variates"] = count.to_numpy()
            count = pc.list_value_length(pc.list_flatten(pc.list_slice(target, 0, 1)))
        out["length"] = count.to_numpy()
        return out

    def index(self, source: str) -> np.ndarray:
        """[S] length and variates of every series."""
        return self._index

    def values(self, source: str, i: int) -> np.ndarray:
        """float32 [V, T] of series i, NaN = missing."""
        return self._array("target", i)

    def past_features(self, i: int) -> np.ndarray:
        """float32 [E, T] of series i, E = 0 where the dataset has none."""
        if PAST_FEATURES not in self._table.column_names:
            return np.empty((0, int(self._index["length"][i])), np.float32)
        return self._array(PAST_FEATURES, i)

    def _array(self, column: str, i: int) -> np.ndarray:
        rows = self._table[column][i].values
        if not hasattr(rows.type, "value_type"):
            return rows.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)[None]
        flat = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        if len(flat) % len(rows) or len({len(row) for row in rows}) > 1:
            raise ValueError(f"{self.path}: the variates of row {i} in {column} differ in length")
        return flat.reshape(len(rows), -1)

    def meta(self, source: str, i: int) -> dict[str, Any]:
        def cell(column: str) -> Any:
            return self._table[column][i].as_py() if column in self._table.column_names else None

        item = cell("item_id")
        return {"item_id": str(i) if item is None else str(item), "variate_names": cell("variate_names")}


def fingerprint(path: Path) -> str:
    """Tells whether a saved dataset changed, without reading it: its state (which has a hash of its own) and sizes."""
    digest = hashlib.sha256((path / STATE).read_bytes())
    for file in sorted(path.glob("*.arrow")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:16]
