"""What the build's page is made of: the shell, numbers as text, bars and small pictures of series."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

WIDTH, HEIGHT = 240, 64
"""Of a picture of a series, in its own units."""
_UNITS = (
    (365.25 * 86400, "yr"), (91.3125 * 86400, "qtr"), (30.4375 * 86400, "mo"), (7 * 86400, "w"),
    (86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"),
)  # fmt: skip


def write_page(path: Path, title: str, lead: str, sections: Iterable[str]) -> Path:
    """Write one HTML file that needs nothing else; it appears whole or not at all. title is text, the rest HTML."""
    style = files("data_pipelines").joinpath("report.css").read_text()
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title><style>{style}</style></head>\n'
        f"<body><main><header><h1>{escape(title)}</h1><p>{lead}</p></header>{''.join(sections)}</main></body></html>\n"
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # lone surrogates of odd file names
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def picture(values: Sequence[float | None], kind: str = "") -> str:
    """A series as SVG: a line that breaks where values are missing, on a shaded ground there."""
    shown = [v if v is not None and math.isfinite(v) else None for v in values]
    known = [v for v in shown if v is not None]
    step = WIDTH / max(len(shown) - 1, 1)
    half = [v / 2 for v in known] or [0.0]  # halves: the difference of two huge values stays finite
    low, span = min(half), max(half) - min(half)
    paths, bands, run = [], [], 0
    for i, v in enumerate([*shown, None]):
        if v is not None:
            y = HEIGHT - 4 - (HEIGHT - 8) * ((v / 2 - low) / span if span else 0.5)
            paths.append(f"{'L' if run else 'M'}{_short(i * step)} {_short(y)}")
            run += 1
        else:
            if run == 1:  # a lone point: a line of no length, which its round ends make visible
                paths.append("h0")
            run = 0
    i = 0
    while i < len(shown):
        end = i
        while end < len(shown) and shown[end] is None:
            end += 1
        if end > i:
            left, right = max((i - 0.5) * step, 0), min((end - 0.5) * step, WIDTH)
            bands.append(f'<rect x="{_short(left)}" y="0" width="{_short(right - left)}" height="{HEIGHT}"/>')
        i = max(end, i + 1)
    note = "" if known else f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT / 2 + 4:.0f}">no value</text>'
    return (
        f'<svg class="series {kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(bands)}'
        f'<path d="{"".join(paths)}"/>{note}</svg>'
    )


def _short(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def extent(values: Sequence[float | None]) -> str:
    """'0.5 to 120', or '' where nothing is observed."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return ""
    low, high = _number(min(known)), _number(max(known))
    return low if low == high else f"{low} to {high}"


def _number(v: float) -> str:
    """Three digits: '0.0123', '−4.5', '1.44M', '1e+20'."""
    x = abs(v)
    text = f"{x:.3g}" if x < 1000 or x >= 1e15 else f"{x:,.0f}" if x < 10_000 else brief(round(x))
    return f"−{text}" if v < 0 else text


def columns(bins: Sequence[tuple[str, str, int]]) -> str:
    """A histogram: one upright bar a bin (short label, what it holds, count), in the given order."""
    top = max((n for _, _, n in bins), default=0) or 1
    cells = "".join(
        f'<li title="{escape(what)}: {n:,}" style="--h:{n / top:.3f}"><b>{brief(n)}</b><i></i>'
        f"<span>{escape(label)}</span></li>"
        for label, what, n in bins
    )
    return f'<ol class="columns">{cells}</ol>'


def bars(amounts: Sequence[tuple[str, int]], most: int, noun: str) -> str:
    """One lying bar for each of the first `most` (label, amount); what is left is counted in a last line."""
    top = max((n for _, n in amounts), default=0) or 1
    total = sum(n for _, n in amounts) or 1
    lines = "".join(
        f'<li><span title="{escape(label)}">{escape(label)}</span><i style="--w:{100 * n / top:.2f}%"></i>'
        f'<b title="{n:,}">{brief(n)}</b><em>{share(n / total)}</em></li>'
        for label, n in amounts[:most]
    )
    rest = sum(n for _, n in amounts[most:])
    left = more(len(amounts) - most, noun, f"with {share(rest / total)} of the points")
    return f'<ul class="bars">{lines}</ul>{left}'


def more(count: int, noun: str, extra: str = "") -> str:
    """'and 7 more sources', or nothing."""
    return f'<p class="note">and {plural(count, f"more {noun}")} {extra}</p>' if count > 0 else ""


def facts(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    """A card of (label, text) pairs."""
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)
    return f'<dl class="card facts {kind}">{cells}</dl>' if cells else ""


def plural(count: int, noun: str) -> str:
    """3, 'shard' -> '3 shards'; series is its own plural."""
    return f"{count:,} {noun}{'' if count == 1 or noun.endswith('s') else 's'}"


def brief(n: int) -> str:
    """1234567 -> '1.23M'; whole below ten thousand."""
    if n < 10_000:
        return f"{n:,}"
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 0.9995 * size:
            x = n / size
            return f"{x:.{2 if x < 9.995 else 1 if x < 99.95 else 0}f}{letter}"
    return str(n)


def share(x: float) -> str:
    """0.1234 -> '12%', as HTML; small and nearly whole shares show that they are not 0 or 1."""
    if 0 < x < 0.0005:
        return "&lt;0.1%"
    if 0.9995 <= x < 1:
        return "&gt;99.9%"
    return f"{100 * x:.1f}%" if 0 < x < 0.0995 or 0.995 <= x < 1 else f"{x:.0%}"


def size(n: int) -> str:
    """Bytes -> '12.3 MB' (powers of ten)."""
    for unit, letter in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n >= unit:
            return f"{n / unit:.3g} {letter}"
    return f"{n} bytes"


def interval(seconds: float) -> str:
    """60 -> '1 min', 2629800 -> '1 mo'."""
    for unit, name in _UNITS:
        times = seconds / unit
        if times >= 0.999 and abs(times - round(times)) < 1e-3 * times and (unit >= 1 or seconds < 1):
            return f"{round(times):,} {name}"
    return f"{seconds:.4g} s"
