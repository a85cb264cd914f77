"""The page of a comparison: curves, scores against the first run, tasks, and differing settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from toto_train.evaluation import plots
from toto_train.evaluation.compare import Run, Standing, differences, notes, verdict
from toto_train.evaluation.metrics import Interval
from toto_train.evaluation.page import (
    Scale,
    axis,
    bar,
    cell,
    colour,
    fixed,
    heads,
    heat,
    seconds,
    span,
    swatch,
    write_page,
)
from toto_train.evaluation.tables import NAMES, task_cells, task_order

CURVES = {"train/loss": ("training loss", "smoothed"), "val/mwql": ("validation MWQL", "over Seasonal Naive's")}
"""Column of metrics.csv -> what it is, and how to read it."""


def write_comparison(out: Path, found: Sequence[Standing]) -> Path:
    """Write the page to the file `out`; it appears whole or not at all."""
    runs = [s.run for s in found]
    out.parent.mkdir(parents=True, exist_ok=True)
    title = " · ".join(run.name for run in runs) if len(runs) < 4 else f"{runs[0].name} and {len(runs) - 1} other runs"
    return write_page(out, title, [_runs(runs), _curves(runs), _scores(found), _tasks(found), _settings(runs)])


def _runs(runs: Sequence[Run]) -> str:
    """One row a run; also what its colour is."""
    body = []
    for k, run in enumerate(runs):
        steps, validated = run.curve("val/mwql", "step")
        best = int(np.argmin(validated)) if len(validated) else -1
        cells = [_count(run.last("step")), _count(run.last("points"))]
        cells.append(plots.duration(run.last("seconds")) if math.isfinite(run.last("seconds")) else "–")
        cells.append(f"{validated[best]:.3f}" if best >= 0 else "–")
        cells.append(f"{steps[best]:,.0f}" if best >= 0 else "–")
        cells.append(seconds(run.seconds_per_series))
        body.append(f"<tr>{_name(k, run)}{''.join(f'<td>{text}</td>' for text in cells)}</tr>")
    names = ("run", "steps", "points", "training time", "best validation", "at step", "time a forecast")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<section><div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _curves(runs: Sequence[Run]) -> str:
    unit = "points" if all(np.isfinite(run.last("points")) for run in runs if run.metrics) else "step"
    cards: list[str] = []
    for column, (measure, how) in CURVES.items():
        curves = {run.name: run.curve(column, unit) for run in runs}
        if any(len(y) for _, y in curves.values()):
            shown = plots.run_curves(curves, measure, "points seen" if unit == "points" else "step", f"c{len(cards)}")
            caption = f"<figcaption>{measure[0].upper()}{measure[1:]}<i>{how}</i></figcaption>"
            cards.append(f'<figure class="card">{caption}{shown}</figure>')
    return f'<section><h2>Learning</h2><div class="pair">{"".join(cards)}</div></section>' if cards else ""


def _scores(found: Sequence[Standing]) -> str:
    cards = "".join(_versus(metric, found) for metric in NAMES if any(metric in s.own or s.paired for s in found))
    if not cards:
        return ""
    lead = (
        "Below 1 is better. Shades are 95% intervals from resampling series; against the first run both are resampled "
        "together, and only an interval without 1 makes a verdict."
    )
    lines = "<br>".join(map(escape, notes(found)))
    return (
        f'<section><h2>Scores</h2><p class="lead">{lead}</p><div class="stack">{cards}</div>'
        f'<p class="note">{lines}</p></section>'
    )


def _versus(metric: str, found: Sequence[Standing]) -> str:
    """Runs by rank: one score against Seasonal Naive and, paired, against the first run."""
    own = {k: s.own[metric] for k, s in enumerate(found) if metric in s.own}
    paired = {k: s.paired.overall[metric] for k, s in enumerate(found) if k and s.paired}
    both = [(of, Scale.around(v for o in of.values() for v in (o.value, o.low, o.high))) for of in (own, paired)]
    body = []
    for k, s in sorted(enumerate(found), key=lambda item: (item[1].rank.get(metric, math.inf), item[0])):
        cells = "".join(_place(of.get(k), scale, colour(k)) for of, scale in both)
        word = verdict(paired[k]) if k in paired else "" if k else "reference"
        kind = {"better": "good", "worse": "bad"}.get(word, "even")
        body.append(
            f'<tr><td>{s.rank.get(metric, "–")}</td>{_name(k, s.run)}{cells}<td class="verdict {kind}">{word}</td></tr>'
        )
    foot = "".join(f'<td class="b">{axis(scale) if of else ""}</td><td></td><td></td>' for of, scale in both)
    return (
        f'<div class="card scroll"><table class="ranks versus"><thead><tr><th>rank</th><th class="text">{NAMES[metric]}'
        '</th><th class="text" colspan="3">relative to Seasonal Naive</th><th class="text" colspan="4">relative to '
        f"{escape(found[0].run.name)}, on the same windows</th></tr></thead><tbody>{''.join(body)}</tbody>"
        f"<tfoot><tr><td></td><td></td>{foot}<td></td></tr></tfoot></table></div>"
    )


def _place(o: Interval | None, scale: Scale, shade: str) -> str:
    """A ratio with its interval: strip, value, ends."""
    if o is None:
        return "<td></td><td></td><td></td>"
    strip = bar(o.value, o.low, o.high, scale, shade)
    return f'<td class="b">{strip}</td><td>{fixed(o.value)}</td><td class="span">{span(o.low, o.high)}</td>'


def _tasks(found: Sequence[Standing]) -> str:
    """Ratio to the first run, task by task."""
    others = [(k, s.run, s.paired.tasks()) for k, s in enumerate(found) if k and s.paired]
    if not others:
        return ""
    tasks = {name: row for *_, of in reversed(others) for name, row in of.items()}
    body = []
    for name, row in sorted(tasks.items(), key=lambda item: task_order(item[1])):
        cells = ""
        for metric in NAMES:
            for at, (_, _, of) in enumerate(others):
                ratio = of[name]["relative"][metric] if name in of else math.nan
                cells += heat(ratio, "" if at else "group")
        count = cell(row["windows"], _count(row["windows"]))
        body.append(f"<tr>{task_cells(row)}{count}{cells}</tr>")
    over = "".join(f'<th colspan="{len(others)}" class="group">{title}</th>' for title in NAMES.values())
    names = ["source", "interval", "term", "windows", *[run.name for _, run, _ in others] * len(NAMES)]
    return (
        f'<section><h2>Tasks</h2><p class="lead">Score over that of {escape(found[0].run.name)}; below 1 is better.</p>'
        f'<div class="card scroll tall"><table class="sortable"><thead><tr>{"<th></th>" * 4}{over}</tr>'
        f"{heads(names, 3, (4, 4 + len(others)))}</thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _settings(runs: Sequence[Run]) -> str:
    """What differs in the configurations, and in what was asked of the evaluations."""
    parts = []
    for title, kind in (("Training", "config"), ("Evaluation", "request")):
        having = [(k, run, getattr(run, kind)) for k, run in enumerate(runs) if getattr(run, kind) is not None]
        if len(having) < 2:
            continue
        found = differences([settings for *_, settings in having])
        if not found:
            parts.append(f'<h3>{title}</h3><p class="note">No difference.</p>')
            continue
        head = "".join(_name(k, run) for k, run, _ in having)
        body = "".join(
            f"<tr><th>{escape(key)}</th>{''.join(_setting(value) for value in values)}</tr>"
            for key, values in found.items()
        )
        parts.append(
            f'<h3>{title}</h3><div class="card scroll"><table class="settings"><thead><tr><th>key</th>{head}</tr>'
            f"</thead><tbody>{body}</tbody></table></div>"
        )
    return f"<section><h2>Settings that differ</h2>{''.join(parts)}</section>" if parts else ""


def _setting(value: str | None) -> str:
    if value is None:
        return '<td class="text">–</td>'
    return f'<td title="{escape(value)}">{escape(value) or "empty"}</td>'


def _name(k: int, run: Run) -> str:
    return f'<th class="text" title="{escape(str(run.path))}">{swatch(k)}{escape(run.name)}</th>'


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"
