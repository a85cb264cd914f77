"""What is fit to train on. Every rejection has a name, a count and examples; nothing disappears silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.counts import Counts
from data_pipelines.leakage import Refused
from data_pipelines.series import Series

COUNTERS = ("keep", "reject", "rate")
# what exporters write where a value is missing: nines, the ends of integer types, a huge float
_MARKERS = frozenset(
    float(np.float32(m))
    for m in (
        *(sign * (10**digits - 1) for digits in range(3, 11) for sign in (1, -1)),
        *(-99, -99.9, -999.9, -9999.9, 1e20, -1e20, -(2**15), 2**15 - 1, 2**16 - 1, -(2**31), 2**31 - 1, 2**32 - 1),
    )
)
_MARKER_REPEATS = 3
_MARKER_DISTANCE = 5  # ranges of all other values between them and a marker
_COUNTER_RISES = 32
_COUNTER_RESETS = 0.1  # falls per rise; what falls more often is a cycle or made of spikes
_COUNTER_ROUNDING = 0.05  # of the usual rise
_RESET_TO = 0.1  # of the value before: a counter begins again near zero


@dataclass(frozen=True)
class Rules:
    """Thresholds, in the order they are applied."""

    min_length: int = 64
    """too_short: a series of fewer steps is rejected."""
    max_magnitude: float = 1e30
    """impossible: infinities and values beyond this (markers of missing data) become missing, counted in points."""
    placeholders: bool = True
    """placeholder: a usual marker of missing data (-999, 99999, 65535 ...) that repeats and lies 5 times the range of
    all other values away from them becomes missing, counted in points."""
    max_missing: float = 0.9
    """all_missing, too_missing: a variate with no value, or a larger share of its steps missing, is dropped."""
    max_flat: float = 0.995
    """constant, flat: a variate of one value, or with a larger share of its steps without any change, is dropped."""
    counters: str = "reject"
    """counter: an observability variate that only ever rises, apart from resets to near zero, is a cumulative count.
    keep; reject: dropped; rate: replaced by its increase per step as Prometheus computes it, the first step missing;
    dropped all the same where float32 has rounded the increases away."""
    refuse: str = ""
    """leakage: a list written by scripts/leakage.py, or a folder of benchmark series; '' refuses nothing."""
    max_leakage: float = 0.1
    """leakage: a series with a larger share of its windows in benchmark series is rejected."""
    near_duplicate: float = 0.7
    """near_duplicate: the build rejects a series that resembles an earlier one as much; 0 = off."""

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise ValueError(f"quality.min_length must be at least 1 step, got {self.min_length}")
        if not 0 < self.max_magnitude < np.inf:
            raise ValueError(f"quality.max_magnitude must be positive and finite, got {self.max_magnitude}")
        for key in ("max_missing", "max_flat", "max_leakage", "near_duplicate"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"quality.{key} is a share in [0, 1], got {getattr(self, key)}")
        if self.counters not in COUNTERS:
            raise ValueError(f"quality.counters must be one of {', '.join(COUNTERS)}, got {self.counters!r}")


def clean(series: Series, rules: Rules, counts: Counts, refused: Refused | None = None) -> Series | None:
    """The series without unfit variates, or None where it is rejected. Adds to counts.

    refused: what rules.refuse names, opened once for all series.
    """
    counts.series_read += 1
    counts.variates_read += series.variates
    if series.length < rules.min_length:
        reject(counts, "too_short", series, f"{series.length:,} steps, at least {rules.min_length:,} are needed")
        return None
    looks = _Looks(series.values)
    _remove_points(series, looks, rules, counts)
    dropped = _drop_unfit(series, looks, rules, counts)
    keep = [v for v, rule in enumerate(dropped) if not rule]
    if keep and refused is not None:
        fit = series if len(keep) == series.variates else _select(series, looks.values, keep)
        if why := refused.reason(fit, rules.max_leakage):
            counts.variates_dropped.update(filter(None, dropped))
            reject(counts, "leakage", fit, why)
            return None
    if keep and rules.counters == "rate" and series.domain == "observability":
        keep = _rate_counters(series, looks, keep, dropped, rules, counts)
    counts.variates_dropped.update(filter(None, dropped))
    if not keep:
        counts.series_rejected[Counter(dropped).most_common(1)[0][0]] += 1
        return None
    fit = series
    if len(keep) < series.variates or looks.values is not series.values:
        fit = _select(series, looks.values, keep)
    counts.keep(fit)
    return fit


def reject(counts: Counts, rule: str, series: Series, detail: str, kept: bool = False) -> None:
    """Count a whole series under a rule. kept: it had been counted as kept and no longer is."""
    if kept:
        counts.keep(series, -1)
    counts.series_rejected[rule] += 1
    counts.variates_dropped[rule] += series.variates
    counts.example(rule, series, 0, detail)


class _Looks:
    """The values [V, T] of a series and what the rules look at, per variate; recomputed where points are removed."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.look()

    def look(self) -> None:
        x = self.values
        missing = np.isnan(x)
        self.missing = np.count_nonzero(missing, axis=1)
        if self.missing.any():
            self.low, self.high = np.fmin.reduce(x, axis=1), np.fmax.reduce(x, axis=1)
        else:
            self.low, self.high = x.min(axis=1), x.max(axis=1)
        # between neighbours of the observed values
        self.changes = np.count_nonzero(x[:, 1:] != x[:, :-1], axis=1)
        self.falls = np.count_nonzero(x[:, 1:] < x[:, :-1], axis=1)
        self.steps = np.maximum(x.shape[1] - 1 - self.missing, 0)
        for v in np.flatnonzero(self.missing):
            seen = x[v][~missing[v]]
            self.changes[v] = np.count_nonzero(seen[1:] != seen[:-1])
            self.falls[v] = np.count_nonzero(seen[1:] < seen[:-1])

    def remove(self, points: np.ndarray) -> None:
        """points: bool [V, T]."""
        self.values = np.where(points, np.float32(np.nan), self.values)
        self.look()


def _remove_points(series: Series, looks: _Looks, rules: Rules, counts: Counts) -> None:
    if (np.fmax(np.abs(looks.low), np.abs(looks.high)) > rules.max_magnitude).any():  # NaN compares False
        impossible = np.abs(looks.values) > rules.max_magnitude
        counts.points_impossible += int(impossible.sum())
        for v in np.flatnonzero(impossible.any(axis=1)).tolist():
            detail = f"{impossible[v].sum():,} values are infinite or beyond {rules.max_magnitude:g}"
            counts.example("impossible", series, v, detail)
        looks.remove(impossible)
    if not rules.placeholders:
        return
    marked = np.zeros(looks.values.shape, bool)
    for v, ends in enumerate(zip(looks.low.tolist(), looks.high.tolist(), strict=True)):
        if not _MARKERS.isdisjoint(ends) and (found := _placeholders(looks.values[v], marked[v])):
            detail = "; ".join(f"{m:g} stands {n:,} times for a missing value" for m, n in found)
            counts.points_placeholder += sum(n for _, n in found)
            counts.example("placeholder", series, v, detail)
    if marked.any():
        looks.remove(marked)


def _placeholders(row: np.ndarray, marked: np.ndarray) -> list[tuple[float, int]]:
    """(marker, how often) in one variate [T]; sets marked [T] there."""
    values, repeats = np.unique(row[~np.isnan(row)], return_counts=True)
    usual = np.array([v not in _MARKERS for v in values.tolist()])
    if np.count_nonzero(usual) < 2:
        return []
    low, high = float(values[usual][0]), float(values[usual][-1])
    found = []
    for value, n in zip(values[~usual].tolist(), repeats[~usual].tolist(), strict=True):
        if n >= _MARKER_REPEATS and max(low - value, value - high) >= _MARKER_DISTANCE * (high - low):
            marked |= row == np.float32(value)
            found.append((value, n))
    return found


def _drop_unfit(series: Series, looks: _Looks, rules: Rules, counts: Counts) -> list[str]:
    """For each variate the rule it breaks, or ''; adds examples, not counts."""
    counters = rules.counters == "reject" and series.domain == "observability"
    dropped = []
    for v in range(series.variates):
        rule, detail = _unfit(looks, v, rules, counters)
        dropped.append(rule)
        if rule:
            counts.example(rule, series, v, detail)
    return dropped


def _unfit(looks: _Looks, v: int, rules: Rules, counters: bool) -> tuple[str, str]:
    """(rule, detail) of one variate; ('', '') where it breaks none."""
    length, missing = looks.values.shape[1], int(looks.missing[v])
    if missing == length:
        return "all_missing", f"all {length:,} steps missing"
    if missing / length > rules.max_missing:
        return "too_missing", f"{100 * missing / length:.3g} % of {length:,} steps missing"
    if looks.low[v] == looks.high[v]:
        return "constant", f"{looks.low[v]:.6g} at all {length - missing:,} observed steps"
    steps, changes = int(looks.steps[v]), int(looks.changes[v])
    if 1 - changes / steps > rules.max_flat:
        return "flat", f"{changes:,} changes of value in {steps:,} steps"
    if counters and _is_counter(looks, v):
        return "counter", f"{changes - looks.falls[v]:,} rises, {looks.falls[v]:,} resets and no other fall"
    return "", ""


def _is_counter(looks: _Looks, v: int) -> bool:
    rises, falls = looks.changes[v] - looks.falls[v], looks.falls[v]
    if looks.low[v] < 0 or rises < _COUNTER_RISES or falls > _COUNTER_RESETS * rises:
        return False
    row = looks.values[v]
    seen = row[~np.isnan(row)]
    at = np.flatnonzero(seen[1:] < seen[:-1])
    return bool((seen[at + 1] <= _RESET_TO * seen[at]).all())


def _rate_counters(
    series: Series, looks: _Looks, keep: list[int], dropped: list[str], rules: Rules, counts: Counts
) -> list[int]:
    """Replace the counters among the variates `keep` by their increase; the variates still fit, the rest in dropped."""
    counters = [v for v in keep if _is_counter(looks, v)]
    for v in counters:
        if detail := _rounded(looks.values[v]):
            dropped[v] = "counter"
            counts.example("counter", series, v, detail)
    rated = [v for v in counters if not dropped[v]]
    if not rated:
        return [v for v in keep if not dropped[v]]
    looks.values = looks.values.copy()
    for v in rated:
        looks.values[v] = _increase(looks.values[v])
    looks.look()
    for v in rated:  # a clock has a constant rate
        rule, detail = _unfit(looks, v, rules, counters=False)
        dropped[v] = rule
        if rule:
            counts.example(rule, series, v, f"as a rate: {detail}")
    counts.variates_rated += sum(not dropped[v] for v in rated)
    return [v for v in keep if not dropped[v]]


def _rounded(row: np.ndarray) -> str:
    """Whether the increases of a counter float32 [T] are mostly rounding errors, in words; '' where they are not."""
    seen = row[~np.isnan(row)].astype(np.float64)
    rises = np.diff(seen)
    usual, unit = np.median(rises[rises > 0]), np.spacing(np.float32(seen.max()))
    if unit <= _COUNTER_ROUNDING * usual or (unit <= 1 and not (seen % 1).any()):  # whole numbers are exact up to 2**24
        return ""
    return f"rises by {usual:,.4g} a step, which float32 rounds to {unit:,.4g} at {seen.max():.3g}; store the rate"


def _increase(row: np.ndarray) -> np.ndarray:
    """float32 [T] -> [T]: increase since the step before; after a reset, the value itself (it began again at zero)."""
    exact = row.astype(np.float64)
    rise = np.diff(exact, prepend=np.nan)
    return np.where(rise < 0, exact, rise).astype(np.float32)


def _select(series: Series, values: np.ndarray, keep: list[int]) -> Series:
    return replace(series, values=values[keep], variate_names=tuple(series.variate_names[i] for i in keep))


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
