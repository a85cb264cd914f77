"""The record that every source yields and every shard holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

DOMAINS = ("observability", "general", "synthetic")


@dataclass(frozen=True)
class Series:
    """One univariate or multivariate time series on a regular grid.

    values: float32 [V, T], NaN = missing.
    interval: seconds between two steps, > 0.
    start: ISO 8601 time stamp of the first step, or None where it is unknown.
    domain: one of ``DOMAINS``.
    source, item_id: together they name the series; held-out splits are by source.
    variate_names: V names.
    licence: licence of the values, carried into the manifest of every shard.
    """

    values: np.ndarray
    interval: float
    source: str
    item_id: str
    domain: str = "general"
    start: str | None = None
    variate_names: tuple[str, ...] = field(default=())
    licence: str = "unknown"

    def __post_init__(self) -> None:
        name = f"series {self.source}/{self.item_id}"
        values = self.values
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size == 0:
            shape = getattr(values, "shape", type(values).__name__)
            raise ValueError(f"{name}: values must be a non-empty array [variates, steps], got {shape}")
        if values.dtype != np.float32:
            raise ValueError(f"{name}: values must be float32, got {values.dtype}; convert with .astype('float32')")
        if not (np.isfinite(self.interval) and self.interval > 0):
            raise ValueError(f"{name}: interval must be a positive number of seconds, got {self.interval!r}")
        if self.domain not in DOMAINS:
            raise ValueError(f"{name}: domain must be one of {', '.join(DOMAINS)}, got {self.domain!r}")
        if not self.source or not self.item_id:
            raise ValueError(f"{name}: source and item_id must not be empty")
        if not self.variate_names:
            object.__setattr__(self, "variate_names", tuple(f"v{i}" for i in range(values.shape[0])))
        elif len(self.variate_names) != values.shape[0]:
            raise ValueError(f"{name}: {len(self.variate_names)} variate names for {values.shape[0]} variates")

    @property
    def variates(self) -> int:
        return self.values.shape[0]

    @property
    def length(self) -> int:
        return self.values.shape[1]

    @property
    def points(self) -> int:
        """Observed values (NaN excluded)."""
        return int(np.isfinite(self.values).sum())
