"""What the HTML pages share: the shell, numbers as text, cells, and strips that place a ratio beside 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from toto_train.files import write_text

COLOURS = 8
"""--c1 ... --c8 of report.css tell forecasters or runs apart."""
_SORT = """
for (const button of document.querySelectorAll(".sortable button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], at = head.cellIndex;
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.ariaSort = null;
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const value = row => row.cells[at].dataset.v ?? row.cells[at].textContent;
  const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
    : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
};
"""


def write_page(path: Path, title: str, sections: Iterable[str]) -> Path:
    """Write one HTML file that needs nothing else; it appears whole or not at all."""
    style = files("toto_train.evaluation").joinpath("report.css").read_text()
    body = f"<header><h1>{escape(title)}</h1></header>{''.join(sections)}"
    script = f"<script>{_SORT}</script>" if 'class="sortable"' in body else ""
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title><style>{style}</style></head>\n'
        f"<body><main>{body}</main>{script}</body></html>\n"
    )
    return write_text(path, text)


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis of ratios."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], least: float = 1.25) -> Scale:
        """Holds 1 and every finite positive value, and reaches at least a factor `least` to both sides."""
        known = [v for v in values if math.isfinite(v) and v > 0]
        return cls(min([1 / least, *(v / 1.06 for v in known)]), max([least, *(v * 1.06 for v in known)]))

    def place(self, value: float) -> float:
        """Percent of the width, clipped to the ends."""
        low, high = math.log(self.low), math.log(self.high)
        return 100 * min(max((math.log(max(value, 1e-9)) - low) / (high - low), 0), 1)

    def ticks(self) -> list[float]:
        """1 and round ratios, none closer to another than their labels are wide."""
        chosen: list[float] = []
        for tick in (1, 0.5, 2, 0.8, 1.2, 0.9, 1.1, 0.7, 1.5, 0.3, 3, 0.1, 10, 0.2, 5, 0.01, 100):
            place = self.place(tick)
            if 3 < place < 97 and all(abs(place - self.place(c)) > 26 for c in chosen):
                chosen.append(tick)
        return sorted(chosen)


RELATIVE = Scale(0.25, 2.0)
"""Of the bars in tiles and tables of relative scores."""


def bar(value: float, low: float = math.nan, high: float = math.nan, scale: Scale = RELATIVE, colour: str = "") -> str:
    """Where a ratio lies, with its interval if it has one; green below 1 and red above unless a colour is given."""
    if not math.isfinite(value):
        return ""
    place, one = scale.place(value), scale.place(1.0)
    left, width = min(place, one), abs(place - one)
    span = ""
    if math.isfinite(low) and math.isfinite(high):
        start = scale.place(low)
        span = f'<i class="span" style="left:{start:.1f}%;width:{scale.place(high) - start:.1f}%"></i>'
    style = f' style="--c:{colour}"' if colour else ""
    return (
        f'<span class="bar {side(value)}"{style}><i class="fill" style="left:{left:.1f}%;width:{width:.1f}%"></i>{span}'
        f'<i class="dot" style="left:{place:.1f}%"></i><i class="one" style="left:{one:.1f}%"></i></span>'
    )


def axis(scale: Scale) -> str:
    """Labels below a column of bars."""
    marks = "".join(f'<i style="left:{scale.place(t):.1f}%">{t:g}</i>' for t in scale.ticks())
    return f'<span class="axis">{marks}</span>'


def side(ratio: float) -> str:
    shown = round(ratio, 3)  # what reads 1.000 is neither
    return "good" if shown < 1 else "bad" if shown > 1 else "even"


def colour(k: int | None) -> str:
    """CSS colour of the k-th forecaster or run; None is what all are measured by."""
    return "var(--muted)" if k is None else f"var(--c{k % COLOURS + 1})"


def swatch(k: int | None) -> str:
    return f'<i class="swatch" style="background:{colour(k)}"></i>'


def cell(value: float, text: str, kind: str = "") -> str:
    """A number in a sortable table."""
    known = repr(round(float(value), 9)) if math.isfinite(value) else ""
    return f'<td data-v="{known}"{_class(kind)}>{text}</td>'


def heat(ratio: float, kind: str = "") -> str:
    """A cell of a ratio, tinted by how far it lies from 1."""
    if not math.isfinite(ratio):
        return cell(ratio, fixed(ratio), kind)
    tint = 45 * min(abs(math.log(max(ratio, 1e-9))) / math.log(2), 1)
    value = cell(ratio, f"<b>{fixed(ratio)}</b>", f"heat {side(ratio)} {kind}".strip())
    return value.replace("<td", f'<td style="--t:{tint:.0f}%"', 1)


def heads(names: Sequence[str], text: int = 1, group: Sequence[int] = ()) -> str:
    """Header cells that sort their column; the first `text` are left-aligned, `group` begin a group of columns."""
    cells = []
    for k, name in enumerate(names):
        kind = " ".join(["text"] * (k < text) + ["group"] * (k in group))
        inner = f'<button type="button">{escape(name)}</button>' if name else ""
        cells.append(f"<th{_class(kind)}>{inner}</th>")
    return f"<tr>{''.join(cells)}</tr>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def fixed(value: float) -> str:
    """Three decimals, wider numbers shorter; a dash where there is no number."""
    if not math.isfinite(value):
        return "–"
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:,.0f}"  # + 0.0: not -0.000


def span(low: float, high: float) -> str:
    """'0.873 – 0.912', or nothing where there is no interval."""
    return f"{fixed(low)} – {fixed(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "–"


def points(share: float) -> str:
    """0.031 -> '+3 pts'."""
    if not math.isfinite(share):
        return "–"
    whole = round(100 * share)
    return f"{whole:+d} pts".replace("-", "−") if whole else "0 pts"


def seconds(value: float) -> str:
    """0.00123 -> '1.23 ms'."""
    if not math.isfinite(value):
        return "–"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def plural(count: int, noun: str) -> str:
    """3, 'task' -> '3 tasks'; series is its own plural."""
    return f"{count:,} {noun}{'' if count == 1 or noun.endswith('s') else 's'}"
