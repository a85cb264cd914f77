"""One page of pictures: series of every family, telemetry beside real series. It needs no network."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from data_pipelines.counts import envelope
from data_pipelines.report_parts import extent, interval, picture, plural, write_page
from data_pipelines.series import Series
from data_pipelines.sources.files import FileSource
from data_pipelines.synthetic import prior
from data_pipelines.synthetic.chunk import CHUNK

EACH = 8
"""Series of a family; of telemetry and of real series three times as many."""
MOST_VARIATES = 4
"""Of one group."""
REAL_ITEMS = 64
"""Read of one source at most."""


def write_gallery(path: Path, families: Iterable[str], length: int, seed: int, real: str = "") -> Path:
    """Write the page and return its path. `real`: a folder of Parquet files; its observability series are shown."""
    families = list(families)
    sections = []
    shown = list(real_windows(real, length, 3 * EACH, seed)) if real else []
    for family in sorted(families, key=lambda name: (name != "telemetry", prior.widths(name, seed, 0).max() > 1)):
        count = 3 * EACH if family == "telemetry" and shown else EACH
        sections.append(_section(family, _examples(family, length, seed, count)))
        if family == "telemetry" and shown:
            sections.insert(0, _section(f"Real telemetry from {Path(real).name}", shown, "rejected"))
    lead = (
        f"{plural(len(families), 'family')} of series of {length:,} steps, seed {seed}. Of a group the first "
        f"{MOST_VARIATES} variates are shown, each on its own scale. Shaded: missing."
    ).replace("familys", "families")
    return write_page(path, "Synthetic series", lead, sections)


def real_windows(folder: str, length: int, count: int, seed: int) -> Iterator[Series]:
    """`count` windows of the observability series of a folder, in turn of its sources, of `length` steps or fewer."""
    by_source: dict[str, list[Series]] = {}
    source = FileSource(folder, "parquet")
    for unit in source.units():
        for item in source.read(unit, Counter()):
            kept = by_source.setdefault(item.source, [])
            if item.domain == "observability" and len(kept) < REAL_ITEMS:
                kept.append(item)
    rng = np.random.default_rng(seed)
    sources = [items for items in by_source.values() if items]
    for turn in range(count if sources else 0):
        items = sources[turn % len(sources)]
        item = items[rng.integers(len(items))]
        begin = int(rng.integers(0, max(1, item.length - length + 1)))
        rows = np.sort(rng.permutation(item.variates)[:MOST_VARIATES])
        yield dataclasses.replace(
            item,
            values=item.values[rows, begin : begin + length],
            start=None,
            variate_names=tuple(item.variate_names[row] for row in rows),
        )


def _examples(family: str, length: int, seed: int, count: int) -> list[Series]:
    """From the first chunk, so that they cost one; of groups those with few variates, which are seen whole, first."""
    widths = prior.widths(family, seed, 0)
    spread = np.argsort(widths > MOST_VARIATES, kind="stable")[:count] if widths.max() > 1 else np.arange(count)
    return [prior.generate(family, seed, int(i), length) for i in spread[: min(count, CHUNK)]]


def _section(title: str, items: Sequence[Series], kind: str = "") -> str:
    cards = "".join(_card(item, kind) for item in items)
    return f'<section><h2>{escape(title)}</h2><div class="grid">{cards}</div></section>'


def _card(item: Series, kind: str) -> str:
    shown = item.values[:MOST_VARIATES]
    pictures = "".join(f"<div title='{extent(row.tolist())}'>{picture(envelope(row), kind)}</div>" for row in shown)
    what = f"{plural(item.variates, 'variate')} × {item.length:,} × {interval(item.interval)}"
    name = item.item_id if item.domain == "synthetic" else item.source
    own = item.variate_names[:1] != ("v0",)
    names = f"<small>{escape(', '.join(item.variate_names[:MOST_VARIATES]))}</small>" if own else ""
    return (
        f'<figure class="card thumb">{pictures}<figcaption><b>{escape(name)}</b><span>{what}</span>'
        f"{names}</figcaption></figure>"
    )
