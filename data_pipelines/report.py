"""One page about a dataset that was built: what is in it, what was turned away and why. It needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.report_parts import (
    bars,
    brief,
    columns,
    extent,
    facts,
    interval,
    more,
    picture,
    plural,
    share,
    size,
    write_page,
)

if TYPE_CHECKING:
    from data_pipelines.counts import Counts, Example

MOST_SOURCES = 250
"""Rows of the table of sources; the page says how many there are more."""
MOST_BARS = 14
MOST_KEPT = 48
MOST_REJECTED = 8
"""Pictures of a rule."""
MOST_COLUMNS = 12
MOST_SETTINGS = 120
RULES: dict[str, tuple[str, str]] = {
    "too_short": ("series of too few steps", "min_length"),
    "impossible": ("infinite or absurdly large values, which become missing", "max_magnitude"),
    "placeholder": ("markers such as -999 or 65535 far from all else, which become missing", "placeholders"),
    "all_missing": ("no value at all", "max_missing"),
    "too_missing": ("too few of the steps have a value", "max_missing"),
    "constant": ("one value all along", ""),
    "flat": ("the value hardly ever changes", "max_flat"),
    "counter": ("a count that only rises, such as bytes since start", "counters"),
    "leakage": ("part of a benchmark's test data", "max_leakage"),
    "near_duplicate": ("nearly the same values as an earlier series", "near_duplicate"),
}
"""Rule -> (what it finds, its setting in quality.*), in the order they apply; rules not listed are shown by name."""
_TABLE_ROWS = {
    "duplicate": "rows on a slot that a later row fills",
    "out_of_order": "rows out of order",
    "gap": "empty slots, made missing",
}
_SHOWN = {"series_read", "series_kept", "variates_read", "variates_kept", "groups_split"}


def write_report(path: str | Path, manifest: dict[str, Any], counts: Counts, title: str) -> Path:
    """Write the page and return its path; it appears whole or not at all.

    manifest: as `assemble.write_shards` returns it. counts: of the build that wrote it.
    """
    numbers = counts.as_dict()
    sections = [
        _tiles(manifest, numbers),
        _contents(manifest, numbers),
        _kept(counts.kept_examples),
        _rejected(manifest, numbers, counts.examples),
        _sources(manifest["sources"]),
        _shards(manifest["shards"]),
        _settings(manifest.get("config", {})),
    ]
    return write_page(Path(path), title, _headline(manifest, numbers), sections)


def _headline(manifest: dict[str, Any], numbers: dict[str, Any]) -> str:
    sources, read = len(manifest["sources"]), numbers["series_read"]
    kept = f": {share(numbers['series_kept'] / read)} of the {plural(read, 'series')} that came in" if read else ""
    return (
        f"{plural(manifest['series'], 'series')} with {_words(manifest['points'])} observed points from "
        f"{plural(sources, 'source')}{kept}."
    )


def _words(n: int) -> str:
    for unit, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return f"{n:,}"


def _tiles(manifest: dict[str, Any], numbers: dict[str, Any]) -> str:
    read, slots = numbers["series_read"], manifest["points"] + manifest["missing"]
    variates, split = numbers["variates_read"], numbers["groups_split"]
    tiles = [
        ("Points", brief(manifest["points"]), f"{manifest['points']:,} observed values"),
        ("Series", brief(manifest["series"]), f"{plural(manifest['variates'], 'variate')} in all"),
        ("Sources", brief(len(manifest["sources"])), plural(len(manifest["licences"]), "licence")),
        (
            "Series kept",
            share(numbers["series_kept"] / read) if read else "–",
            f"{numbers['series_kept']:,} of {read:,}" + (f", then {split:,} wide ones were split" if split else ""),
        ),
        (
            "Variates kept",
            share(numbers["variates_kept"] / variates) if variates else "–",
            f"{numbers['variates_kept']:,} of {variates:,}",
        ),
        ("Missing", share(manifest["missing"] / slots) if slots else "–", f"{manifest['missing']:,} empty slots"),
    ]
    cards = (
        f'<div class="card"><h3>{k}</h3><p class="big">{v}</p><p class="note">{note}</p></div>' for k, v, note in tiles
    )
    return f'<section class="tiles">{"".join(cards)}</section>'


def _contents(manifest: dict[str, Any], numbers: dict[str, Any]) -> str:
    sources: dict[str, Any] = manifest["sources"]
    by_source = sorted(((name, s["points"]) for name, s in sources.items()), key=lambda p: -p[1])
    domains: Counter[str] = Counter()
    for s in sources.values():
        domains[" + ".join(sorted(s["domains"]))] += s["points"]
    intervals = numbers.get("intervals") or manifest["intervals"]
    cards = [
        ("Interval between steps", "series", columns(_common_intervals(intervals))),
        ("Length in steps", "series", columns(_length_bins(numbers.get("lengths", {})))),
        ("Points by source", "", bars(by_source, MOST_BARS, "source")),
        ("Variates of a series", "series", columns(_power_bins(manifest["variate_counts"]))),
        ("Points by domain", "", bars(domains.most_common(), MOST_BARS, "domain")),
    ]
    shown = [f'<figure class="card"><figcaption>{k}<em>{unit}</em></figcaption>{v}</figure>' for k, unit, v in cards]
    return (
        f'<section><h2>What is in it</h2><div class="pair">{"".join(shown[:2])}</div>'
        f'<div class="wide">{shown[2]}<div class="stack">{"".join(shown[3:])}</div></div></section>'
    )


def _common_intervals(intervals: dict[str, int]) -> list[tuple[str, str, int]]:
    """The commonest intervals from short to long, then all others together."""
    ordered = sorted(intervals.items(), key=lambda p: -p[1])
    keep = ordered if len(ordered) <= MOST_COLUMNS else ordered[: MOST_COLUMNS - 1]
    bins = [(interval(float(k)), f"{k} s", n) for k, n in sorted(keep, key=lambda p: float(p[0]))]
    rest = sum(n for _, n in ordered[len(keep) :])
    return [*bins, ("other", plural(len(ordered) - len(keep), "other interval"), rest)] if rest else bins


def _length_bins(lengths: dict[str, int]) -> list[tuple[str, str, int]]:
    """Bins such as '256-511' in order, labelled by their first length."""
    firsts = sorted((int(k.split("-")[0].rstrip("+")), k, n) for k, n in lengths.items())
    return [(str(first) if first < 1024 else f"{first >> 10:,}k", f"{k} steps", n) for first, k, n in firsts]


def _power_bins(histogram: dict[str, int]) -> list[tuple[str, str, int]]:
    """1, 2, 3-4, 5-8, ...: counts of variates, gathered."""
    gathered: Counter[int] = Counter()
    for k, n in histogram.items():
        gathered[(int(k) - 1).bit_length()] += n
    labels = [("1", "1 variate"), ("2", "2 variates")]
    labels += [(text := f"{2**b + 1}–{2 ** (b + 1)}", f"{text} variates") for b in range(1, max(gathered, default=0))]
    return [(*labels[b], gathered[b]) for b in range(max(gathered, default=-1) + 1)]


def _card(e: Example, kind: str, note: str) -> str:
    variate = "" if str(e.variate) == e.item_id else f" <i>{escape(str(e.variate))}</i>"
    name = escape(f"{e.source} / {e.item_id} / {e.variate}")
    return (
        f'<figure class="card thumb">{picture(e.values, kind)}<figcaption title="{name}">'
        f"<b>{escape(e.item_id)}{variate}</b><span>{escape(e.source)}</span><small>{escape(note)}</small>"
        "</figcaption></figure>"
    )


def _kept(examples: list[Example]) -> str:
    if not examples:
        return ""
    cards = "".join(_card(e, "kept", extent(e.values)) for e in examples[:MOST_KEPT])
    return (
        '<section><h2>What it looks like</h2><p class="lead">Series of the dataset, thinned to the width of the '
        f"picture. Shaded: missing.</p>{_grid(cards)}</section>"
    )


def _grid(cards: str) -> str:
    return f'<div class="grid">{cards}</div>'


def _rejected(manifest: dict[str, Any], numbers: dict[str, Any], examples: dict[str, list[Example]]) -> str:
    settings = manifest.get("config", {}).get("quality", {})
    series, variates = numbers["series_rejected"], numbers["variates_dropped"]
    named = [r for r, (_, key) in RULES.items() if not key or key in settings]
    met = sorted({*series, *variates, *(r for r, shown in examples.items() if shown)} - {*named})
    rows, galleries = [], []
    for rule in [*named, *(r for r in RULES if r in met), *(r for r in met if r not in RULES)]:
        meaning, key = RULES.get(rule, ("", ""))
        counted = [series.get(rule, 0), variates.get(rule, 0), numbers.get(f"points_{rule}", 0)]
        setting = f"<code>quality.{key}={escape(str(settings[key]))}</code>" if key in settings else ""
        cells = "".join(f"<td>{n:,}</td>" if n else "<td>–</td>" for n in counted)
        quiet = "" if any(counted) else ' class="quiet"'
        rows.append(
            f'<tr{quiet}><th>{escape(rule)}</th>{cells}<td class="text">{meaning}</td>'
            f'<td class="text">{setting}</td></tr>'
        )
        if shown := examples.get(rule, [])[:MOST_REJECTED]:
            count = ", ".join(plural(n, k) for n, k in zip(counted, ("series", "variate", "point"), strict=True) if n)
            cards = "".join(_card(e, "rejected", e.detail) for e in shown)
            galleries.append(f"<h3>{escape(rule)} <em>{count}</em></h3>{_grid(cards)}")
    head = (
        '<th>Rule</th><th>Series</th><th>Variates</th><th>Points</th><th class="text">Finds</th>'
        '<th class="text">Setting</th>'
    )
    total = (
        f"<tr><th>all</th><td>{sum(series.values()):,}</td><td>{sum(variates.values()):,}</td>"
        f"<td>{sum(v for k, v in numbers.items() if k.startswith('points_')):,}</td><td></td><td></td></tr>"
    )
    return (
        '<section><h2>What was turned away</h2><p class="lead">Most rules drop single variates; a series whose '
        "variates all go is rejected under the rule that most of them broke. Points become missing.</p>"
        f'<div class="card scroll"><table class="rules"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"<tfoot>{total}</tfoot></table></div>{''.join(galleries)}{_changes(numbers)}</section>"
    )


def _changes(numbers: dict[str, Any]) -> str:
    """What else the build did to the series: every further counter that is not 0."""
    found = [("wide groups split", numbers["groups_split"])]
    found += [(_TABLE_ROWS.get(k, k.replace("_", " ")), n) for k, n in numbers["table_rows"].items()]
    for key, n in numbers.items():
        if isinstance(n, int) and key not in _SHOWN and not key.startswith("points_"):
            found.append((key.replace("_", " "), n))
    card = facts((label, f"{n:,}") for label, n in found if n)
    return f"<h3>Also changed</h3>{card}" if card else ""


def _sources(sources: dict[str, Any]) -> str:
    ordered = sorted(sources.items(), key=lambda p: -p[1]["points"])
    top = max((s["points"] for s in sources.values()), default=0) or 1
    rows = "".join(
        f'<tr><th title="{escape(name)}">{escape(name)}</th>{_text(s["domains"])}<td>{s["series"]:,}</td>'
        f"<td>{s['variates']:,}</td><td>{s['points']:,}</td>"
        f'<td class="b"><i style="--w:{100 * s["points"] / top:.2f}%"></i></td>'
        f"<td>{share(s['missing'] / max(s['points'] + s['missing'], 1))}</td>{_steps(s['intervals'])}"
        f"{_text(s['licences'])}</tr>"
        for name, s in ordered[:MOST_SOURCES]
    )
    head = (
        '<th>Source</th><th class="text">Domain</th><th>Series</th><th>Variates</th><th>Points</th><th></th>'
        '<th>Missing</th><th class="text">Interval</th><th class="text">Licence</th>'
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    left = more(len(ordered) - MOST_SOURCES, "source")
    return f'<section><h2>Sources</h2><div class="card scroll tall">{table}</div>{left}</section>'


def _text(names: Iterable[str]) -> str:
    text = escape(", ".join(sorted(names)))
    return f'<td class="text" title="{text}">{text}</td>'


def _steps(intervals: dict[str, int]) -> str:
    """The three commonest intervals of a source."""
    common = sorted(intervals, key=lambda k: -intervals[k])
    text = ", ".join(interval(float(k)) for k in common[:3])
    return f'<td class="text">{text}{f" +{len(common) - 3}" if len(common) > 3 else ""}</td>'


def _shards(shards: list[dict[str, Any]]) -> str:
    if not shards:
        return ""
    biggest, smallest = (choose(shards, key=lambda s: s["bytes"]) for choose in (max, min))
    total = sum(s["bytes"] for s in shards)
    pairs = [
        ("shards", f"{len(shards):,}"),
        ("bytes", f"{total:,}"),
        ("mean", size(total // len(shards))),
        (f"biggest: {biggest['name']}", size(biggest["bytes"])),
        (f"smallest: {smallest['name']}", size(smallest["bytes"])),
    ]
    return f"<section><h2>Shards</h2>{facts(pairs)}</section>"


def _settings(config: dict[str, Any]) -> str:
    pairs = list(_flat(config, ""))
    shown = facts(pairs[:MOST_SETTINGS], "settings")
    return f"<section><h2>Settings</h2>{shown}{more(len(pairs) - MOST_SETTINGS, 'setting')}</section>" if pairs else ""


def _flat(tree: dict[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    """Dotted key and value, cut where it is long."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = str(value) if value != "" else "–"
            yield f"{prefix}{key}", text if len(text) <= 200 else f"{text[:199]}…"
