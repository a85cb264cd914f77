"""Scored windows as rows: the Parquet table of an evaluation, and the parts it is resumed from."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.metrics import BANDS, Sums
from toto_train.files import whole

log = logging.getLogger(__name__)

KEYS = ("task", "source", "domain", "frequency", "term", "item_id", "variate", "series", "start", "horizon", "season",
        "context", "variates")  # fmt: skip
"""Columns of `TaskSet.table()`."""
IDENTITY = ["task", "item_id", "variate", "start"]
"""What makes two rows of different evaluations the same window."""
_SHORT = [f"{level:g}" for level in LEVELS]
_PLAIN = ("absolute", "scaled_error", "scaled_points", "points")
_WIDE = {"quantile_loss": _SHORT, "below": _SHORT, "width": [f"{band}%" for band in BANDS]}
"""Sums with several values a window -> what tells their columns apart."""


def to_frame(windows: pd.DataFrame, sums: Sums, seconds: np.ndarray) -> pd.DataFrame:
    """One row a window: the KEYS, its own mase and mwql, the sums they are pooled from, and seconds of forecasting.

    quantile_loss_0.1 ... and below_0.1 ... are the columns of the two sums that have one value a level, width_80% ...
    those of the bands.
    """
    columns = {name: windows[name].to_numpy() for name in KEYS}
    with np.errstate(invalid="ignore", divide="ignore"):
        columns["mase"] = sums.scaled_error / np.where(sums.scaled_points > 0, sums.scaled_points, np.nan)
        columns["mwql"] = sums.quantile_loss.mean(1) / np.where(sums.absolute > 0, sums.absolute, np.nan)
    columns |= {name: getattr(sums, name) for name in _PLAIN}
    for wide, names in _WIDE.items():
        columns |= {f"{wide}_{name}": getattr(sums, wide)[:, k] for k, name in enumerate(names)}
    return pd.DataFrame(columns | {"seconds": seconds})


def from_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, Sums, np.ndarray]:
    """Inverse of `to_frame`."""
    sums = {name: frame[name].to_numpy(np.float64) for name in _PLAIN}
    for wide, names in _WIDE.items():
        # rows side by side in memory, as they were: the order of a sum decides its last digit
        sums[wide] = np.ascontiguousarray(frame[[f"{wide}_{name}" for name in names]].to_numpy(np.float64))
    return frame[list(KEYS)].reset_index(drop=True), Sums(**sums), frame["seconds"].to_numpy(np.float64)


def write(path: Path, frame: pd.DataFrame) -> Path:
    """Parquet, whole or not at all."""
    with whole(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")
    return path


def read(path: Path) -> pd.DataFrame:
    """Raises ValueError naming a file that is damaged or holds no rows of ours."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as rows of an evaluation ({error}); evaluate again") from error
    wide = {f"{wide}_{name}" for wide, names in _WIDE.items() for name in names}
    if missing := {*KEYS, *_PLAIN, *wide} - set(frame):
        raise ValueError(f"{path} has no columns {', '.join(sorted(missing))}; evaluate again with this version")
    return frame


class Parts:
    """Arrays with one entry a window, filled piece by piece and, with a folder, kept on disk while unfinished.

    Every FLUSH seconds what is new becomes one .npz file, renamed into place when whole: a killed evaluation loses no
    more than that. The same folder again goes on from there.
    """

    FLUSH = 20.0

    def __init__(self, arrays: dict[str, np.ndarray], folder: Path | None = None):
        self.arrays, self.folder = arrays, folder
        self.done = np.zeros(len(next(iter(arrays.values()))), bool)
        self._new: list[np.ndarray] = []
        self._last = time.monotonic()
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.npz")):
            try:
                with np.load(file) as part:
                    at = part["indices"]
                    for name, array in arrays.items():
                        array[at] = part[name]
            except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
                log.warning("%s cannot be read (%s); its windows are scored again", file, error)
                file.unlink()
            else:
                self.done[at] = True

    def put(self, indices: np.ndarray, values: dict[str, np.ndarray | float]) -> None:
        """Fill in the windows `indices`."""
        for name, array in self.arrays.items():
            array[indices] = values[name]
        self.done[indices] = True
        if self.folder is not None:
            self._new.append(indices)
            if time.monotonic() - self._last > self.FLUSH:
                self.flush()

    def flush(self) -> None:
        """Write what is new."""
        if self.folder is not None and self._new:
            at = np.concatenate(self._new)
            part = self.folder / f"{int(at.min()):09d}-{len(at)}.npz"
            with whole(part) as temporary, temporary.open("wb") as file:
                np.savez(file, indices=at, **{n: array[at] for n, array in self.arrays.items()})
            self._new = []
        self._last = time.monotonic()

    def remove(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
