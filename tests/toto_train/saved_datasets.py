"""Saved datasets in the leaderboards' formats, made here or from Parquet files of real series."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[3] / "shared" / "data"


def save(path: Path, targets: list[np.ndarray], freq: str, **columns: list) -> Path:
    """What `save_to_disk` makes of one row a series, target [T] or [V, T]."""
    import datasets

    datasets.disable_progress_bars()
    rows = {
        "item_id": [f"i{k}" for k in range(len(targets))],
        "start": [datetime.datetime(2024, 1, 1)] * len(targets),
        "freq": [freq] * len(targets),
        "target": [np.asarray(t, np.float32).tolist() for t in targets],
    }
    value = datasets.Value("float32")
    nested = targets[0].ndim == 2
    features = {
        "item_id": datasets.Value("string"),
        "start": datasets.Value("timestamp[s]"),
        "freq": datasets.Value("string"),
        "target": datasets.List(datasets.List(value)) if nested else datasets.List(value),
    }
    for name in columns:
        kind = datasets.Value("string") if name == "variate_names" else datasets.List(value)
        features[name] = datasets.List(kind)
    datasets.Dataset.from_dict(rows | columns, datasets.Features(features)).save_to_disk(str(path))
    return path


def seasonal(lengths: list[int], variates: int, season: int, seed: int = 0, gaps: float = 0.03) -> list[np.ndarray]:
    """Noisy seasonal series with gaps, [T] where variates is 0, else [V, T]."""
    out = []
    for i, length in enumerate(lengths):
        random = np.random.default_rng([seed, i])
        shape = (
            5 + np.sin(2 * np.pi * np.arange(length) / season) + 0.2 * random.normal(size=(max(variates, 1), length))
        )
        shape[random.random(shape.shape) < gaps] = np.nan
        out.append(shape if variates else shape[0])
    return out


def shared_series(file: str, count: int, freq: str, length: int = 0) -> list[np.ndarray]:
    """The first groups [V, T] of a source; the caller skips where the folder is absent."""
    import pyarrow.parquet as pq

    table, out = pq.read_table(SHARED / file), []
    columns = (table[name].to_pylist() for name in ("n_variates", "freq"))
    for target, variates, code in zip(table["target"], *columns, strict=True):
        if code == freq and len(out) < count:
            out.append(target.values.to_numpy(zero_copy_only=False).reshape(variates, -1)[:, -length:])
    return out
