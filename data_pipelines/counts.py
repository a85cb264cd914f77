"""What a build did to the series that came in: counts, histograms and examples, mergeable in any order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipelines.series import Series

EXAMPLES, KEPT_EXAMPLES, EXAMPLE_POINTS = 4, 24, 240


@dataclass(frozen=True)
class Example:
    """One variate that a rule rejected, or one that was kept, to look at."""

    source: str
    item_id: str
    variate: str
    detail: str
    """In words, such as "97 % of 1,440 steps missing"."""
    values: list[float | None]
    """At most EXAMPLE_POINTS, in order: minimum and maximum of each stretch, None where all of it is missing."""


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
    points_placeholder: int = 0
    variates_rated: int = 0
    groups_split: int = 0
    table_rows: Counter[str] = field(default_factory=Counter)
    """What snapping tables to a grid changed: duplicate, out_of_order (rows), gap (slots)."""
    lengths: Counter[str] = field(default_factory=Counter)
    """Kept series by steps, in powers of two: "256-511"."""
    intervals: Counter[str] = field(default_factory=Counter)
    """Kept series by seconds between steps."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """By rule, at most EXAMPLES; which ones depends on their names alone, not on the order or division of the work."""
    kept_examples: list[Example] = field(default_factory=list)
    """At most KEPT_EXAMPLES, one variate of a series."""

    def merge(self, other: Counts) -> None:
        """Add what another process or piece of work counted; the order of merging makes no difference."""
        for key, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, key).update(value)
            elif isinstance(value, int):
                setattr(self, key, getattr(self, key) + value)
        for rule, examples in other.examples.items():
            self.examples[rule] = _fewest(rule, self.examples.get(rule, []) + examples, EXAMPLES)
        self.kept_examples = _gallery(self.kept_examples + other.kept_examples)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: numbers only."""
        plain = {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in vars(self).items()}
        return {k: v for k, v in plain.items() if k not in ("examples", "kept_examples")}

    def to_json(self) -> str:
        """Everything, for from_json."""
        return json.dumps(vars(self), default=vars, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Counts:
        fields = json.loads(text)
        made = cls()
        for key, value in fields.items():
            setattr(made, key, Counter(value) if isinstance(value, dict) else value)
        made.examples = {rule: [Example(**e) for e in found] for rule, found in fields["examples"].items()}
        made.kept_examples = [Example(**e) for e in fields["kept_examples"]]
        return made

    def keep(self, series: Series, sign: int = 1) -> None:
        """Count a kept series; sign -1 takes it back."""
        power = series.length.bit_length() - 1
        self.series_kept += sign
        self.variates_kept += sign * series.variates
        self.lengths[f"{2**power}-{2 ** (power + 1) - 1}"] += sign
        self.intervals[f"{series.interval:.12g}"] += sign
        if sign < 0:
            name = series.source, series.item_id
            self.kept_examples = [e for e in self.kept_examples if (e.source, e.item_id) != name]
        else:
            chosen = _order("variate", series.source, series.item_id)[0] % series.variates
            self._show(series, chosen)

    def _show(self, series: Series, v: int) -> None:
        """Offer a picture of a kept series; drawn only where it will be shown."""
        name = series.source, series.item_id, series.variate_names[v]
        blank = Example(*name, "", [])
        if blank in _gallery([*self.kept_examples, blank]):
            self.kept_examples = _gallery([*self.kept_examples, Example(*name, "", envelope(series.values[v]))])

    def example(self, rule: str, series: Series, variate: int, detail: str) -> None:
        """Offer an example of a rule."""
        _add(rule, self.examples.setdefault(rule, []), series, variate, detail, EXAMPLES)


def _add(rule: str, examples: list[Example], series: Series, v: int, detail: str, limit: int) -> None:
    name = series.source, series.item_id, series.variate_names[v]
    if len(examples) < limit or _order(rule, *name) <= _order(rule, *_name(examples[-1])):
        examples.append(Example(*name, detail, envelope(series.values[v])))
        examples[:] = _fewest(rule, examples, limit)


def _fewest(rule: str, examples: list[Example], limit: int) -> list[Example]:
    return sorted(examples, key=lambda e: (_order(rule, *_name(e)), e.detail))[:limit]


def _gallery(examples: list[Example]) -> list[Example]:
    """At most KEPT_EXAMPLES: one of every source before a second one of any."""
    nth: Counter[str] = Counter()
    ranked: list[tuple[int, int, Example]] = []
    for e in _fewest("", examples, len(examples)):
        ranked.append((nth[e.source], len(ranked), e))
        nth[e.source] += 1
    return [e for _, _, e in sorted(ranked, key=lambda r: r[:2])[:KEPT_EXAMPLES]]


def _name(example: Example) -> tuple[str, str, str]:
    return example.source, example.item_id, example.variate


@lru_cache(maxsize=4096)
def _order(*names: str) -> tuple[int, tuple[str, ...]]:
    """Sort key that no source or name is favoured by."""
    digest = hashlib.blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest), names


def envelope(row: np.ndarray) -> list[float | None]:
    """One variate [T] as EXAMPLE_POINTS numbers or fewer: least and greatest of each stretch, in their order."""
    row = np.where(np.isfinite(row), row, np.float32(np.nan))
    if len(row) > EXAMPLE_POINTS:
        width = -(-len(row) // (EXAMPLE_POINTS // 2))
        parts = np.append(row, np.full(-len(row) % width, np.float32(np.nan))).reshape(-1, width)
        low = np.where(np.isnan(parts), np.inf, parts).argmin(axis=1)
        high = np.where(np.isnan(parts), -np.inf, parts).argmax(axis=1)
        row = np.take_along_axis(parts, np.sort([low, high], axis=0).T, axis=1).ravel()
    return [None if np.isnan(x) else float(f"{x:.6g}") for x in row.tolist()]
