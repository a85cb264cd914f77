"""What is fit to train on. Every rejection has a name and a count; nothing disappears silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipelines.series import Series


@dataclass(frozen=True)
class Rules:
    """Thresholds, in the order they are applied."""

    min_length: int = 64
    """too_short: a series of fewer steps is rejected."""
    max_magnitude: float = 1e30
    """impossible: infinities and values beyond this (markers of missing data) become missing, counted in points."""
    max_missing: float = 0.9
    """all_missing, too_missing: a variate with no value, or a larger share of its steps missing, is dropped."""

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise ValueError(f"quality.min_length must be at least 1 step, got {self.min_length}")
        if not 0 <= self.max_missing <= 1:
            raise ValueError(f"quality.max_missing is a share in [0, 1], got {self.max_missing}")
        if not self.max_magnitude > 0:
            raise ValueError(f"quality.max_magnitude must be positive, got {self.max_magnitude}")


@dataclass
class Counts:
    """What happened to the series that came in."""

    series_read: int = 0
    series_kept: int = 0
    """Before wide groups are split."""
    variates_read: int = 0
    variates_kept: int = 0
    series_rejected: Counter[str] = field(default_factory=Counter)
    """By rule; a series without a fit variate is counted under the reason most of its variates share."""
    variates_dropped: Counter[str] = field(default_factory=Counter)
    """By rule; includes the variates of rejected series."""
    points_impossible: int = 0
    groups_split: int = 0
    table_rows: Counter[str] = field(default_factory=Counter)
    """What snapping tables to a grid changed: duplicate, out_of_order (rows), gap (slots)."""

    def as_dict(self) -> dict[str, Any]:
        return {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in vars(self).items()}


def clean(series: Series, rules: Rules, counts: Counts) -> Series | None:
    """The series without unfit variates, or None where it is rejected. Adds to counts."""
    counts.series_read += 1
    counts.variates_read += series.variates
    if series.length < rules.min_length:
        counts.series_rejected["too_short"] += 1
        counts.variates_dropped["too_short"] += series.variates
        return None
    values = series.values
    impossible = np.abs(values) > rules.max_magnitude  # NaN compares False
    if impossible.any():
        counts.points_impossible += int(impossible.sum())
        values = np.where(impossible, np.float32(np.nan), values)
    reasons = [_unfit(row, rules) for row in values]
    dropped = Counter(r for r in reasons if r)
    counts.variates_dropped.update(dropped)
    keep = [i for i, reason in enumerate(reasons) if not reason]
    if not keep:
        counts.series_rejected[dropped.most_common(1)[0][0]] += 1
        return None
    counts.series_kept += 1
    counts.variates_kept += len(keep)
    if len(keep) == series.variates and values is series.values:
        return series
    return replace(series, values=values[keep], variate_names=tuple(series.variate_names[i] for i in keep))


def _unfit(row: np.ndarray, rules: Rules) -> str:
    """Name of the rule one variate [T] breaks, or ''."""
    seen = row[~np.isnan(row)]
    if not len(seen):
        return "all_missing"
    if 1 - len(seen) / len(row) > rules.max_missing:
        return "too_missing"
    return "constant" if seen.min() == seen.max() else ""


def split_wide(series: Series, limit: int, counts: Counts) -> Iterator[Series]:
    """Series of at most `limit` variates: neighbours stay together, parts differ by one variate at most."""
    parts = -(-series.variates // limit)
    if parts == 1:
        yield series
        return
    counts.groups_split += 1
    for k, part in enumerate(np.array_split(np.arange(series.variates), parts), start=1):
        yield replace(
            series,
            values=series.values[part],
            item_id=f"{series.item_id}/part{k}of{parts}",
            variate_names=tuple(series.variate_names[i] for i in part),
        )
