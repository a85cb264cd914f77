"""Tables of the report: forecasters ranked, scores by group and by task, coverage."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.page import (
    Scale,
    axis,
    bar,
    cell,
    colour,
    fixed,
    heads,
    heat,
    percent,
    plural,
    points,
    seconds,
    side,
    span,
    swatch,
)
from toto_train.evaluation.score import Scores
from toto_train.evaluation.tasks import TERMS

NAMES = {"mwql": "Quantile loss", "mase": "MASE"}
MODEL = "this model"
NAIVE = "Seasonal Naive"
GROUPS = {"domain": "domain", "frequency": "interval", "term": "term"}
_UNITS = {"L": "ms", "S": "s", "T": "min", "H": "h", "D": "d", "W": "w", "M": "mo", "Q": "q", "A": "y"}


@dataclass(frozen=True)
class Rung:
    """One forecaster among others: a ratio to Seasonal Naive, its interval if it has one."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    colour: int | None = None
    strong: bool = False
    note: str = ""


def ladder(title: str, rungs: Iterable[Rung]) -> str:
    """A card with forecasters in order of a score that is better when it is lower."""
    rungs = sorted(rungs, key=lambda rung: _last(rung.value))
    scale = Scale.around(v for rung in rungs for v in (rung.value, rung.low, rung.high))
    rows = "".join(
        f'<tr><th title="{escape(r.name)}">{swatch(r.colour)}{_rung_name(r)}</th>'
        f'<td class="b">{bar(r.value, r.low, r.high, scale, colour(r.colour))}</td>'
        f'<td>{fixed(r.value)}</td><td class="span">{span(r.low, r.high)}</td></tr>'
        for r in rungs
    )
    return (
        f'<div class="card"><h3>{title}</h3><table class="ranks"><tbody>{rows}</tbody><tfoot><tr><th></th>'
        f'<td class="b">{axis(scale)}</td><td></td><td></td></tr></tfoot></table></div>'
    )


def _rung_name(rung: Rung) -> str:
    name = escape(rung.name)
    return (f"<b>{name}</b>" if rung.strong else name) + (f" <i>{escape(rung.note)}</i>" if rung.note else "")


def time_card(spent: Mapping[str, float], colours: Mapping[str, int]) -> str:
    """Seconds to forecast one window of one variate: the model (first) and others, the fastest on top."""
    first, own = next(iter(spent.items()))
    rows = "".join(
        f"<tr><th>{swatch(colours.get(name))}{f'<b>{escape(name)}</b>' if name == first else escape(name)}</th>"
        f"<td>{seconds(value)}</td><td>{f'{value / own:,.3g}×' if own > 0 else ''}</td></tr>"
        for name, value in sorted(spent.items(), key=lambda item: _last(item[1]))
    )
    return (
        f'<div class="card"><h3>Time to forecast a series</h3><table class="ranks"><tbody>{rows}</tbody></table></div>'
    )


@dataclass(frozen=True)
class Group:
    """Tasks of one kind."""

    tasks: int
    windows: int
    ratios: Mapping[str, Mapping[str, float]]
    """Metric -> forecaster -> mean ratio to Seasonal Naive."""
    seconds: float = math.nan
    """To forecast one window of one variate."""


def grouped(
    kinds: Mapping[str, Mapping[str, Group]], metrics: Sequence[str], names: Sequence[str], what: str = "tasks"
) -> str:
    """A table of the groups of each kind: counts, time if it is known, ratios by metric and forecaster."""
    timed = any(math.isfinite(g.seconds) for groups in kinds.values() for g in groups.values())
    counts, body = 3 + timed, []
    for title, groups in kinds.items():
        body.append(f'<tbody><tr class="group"><th colspan="{counts + len(metrics) * len(names)}">by {title}</th></tr>')
        for shown, group in groups.items():
            cells = [
                heat(group.ratios[metric][name], "group" if name == names[0] else "")
                for metric in metrics
                for name in names
            ]
            time = f"<td>{seconds(group.seconds)}</td>" if timed else ""
            body.append(
                f"<tr><th>{escape(shown)}</th><td>{group.tasks:,}</td><td>{group.windows:,}</td>{time}"
                f"{''.join(cells)}</tr>"
            )
        body.append("</tbody>")
    over = "".join(f'<th colspan="{len(names)}" class="group">{escape(metric)}</th>' for metric in metrics)
    leader, *rest = (escape(name) for name in names)
    columns = (f'<th class="group">{leader}</th>' + "".join(f"<th>{name}</th>" for name in rest)) * len(metrics)
    return (
        f'<div class="card scroll"><table class="breakdown"><thead><tr>{"<th></th>" * counts}{over}</tr>'
        f"<tr><th></th><th>{what}</th><th>windows</th>{'<th>a series</th>' if timed else ''}{columns}</tr></thead>"
        f"{''.join(body)}</table></div>"
    )


def breakdown(everyone: Mapping[str, Scores]) -> str:
    """Geometric means by domain, interval and term, where there is more than one."""
    kinds: dict[str, dict[str, Group]] = {}
    for column, title in GROUPS.items():
        found = {name: scores.by(column) for name, scores in everyone.items()}
        first = found[MODEL]
        if len(first) < 2:
            continue
        kinds[title] = {
            group_name(column, group): Group(
                first[group]["tasks"],
                first[group]["windows"],
                {NAMES[m]: {name: of[group]["relative"][m] for name, of in found.items()} for m in NAMES},
                first[group]["seconds_per_series"],
            )
            for group in sorted(first, key=lambda group: order(column, group))
        }
    if not kinds:
        return ""
    note = "Relative to Seasonal Naive, averaged like the overall score."
    return f'<h3>By kind of task</h3>{grouped(kinds, [*NAMES.values()], [*everyone])}<p class="note">{note}</p>'


def task_table(everyone: Mapping[str, Scores]) -> str:
    """One row a task: raw and relative scores of the model, relative quantile loss of every peer."""
    scores, peers = everyone[MODEL], {name: s.tasks() for name, s in everyone.items() if name != MODEL}
    tasks = sorted(scores.tasks().items(), key=lambda item: task_order(item[1]))
    body = []
    for name, row in tasks:
        others = [of[name]["relative"]["mwql"] for of in peers.values()]
        best = min((round(v, 3) for v in (row["relative"]["mwql"], *others) if math.isfinite(v)), default=math.nan)
        best = best if peers and best < 1 else math.nan
        counts = "".join(cell(row[key], f"{row[key]:,}") for key in ("series", "windows"))
        body.append(
            f"<tr>{task_cells(row)}{counts}{_score_cells(row, 'mwql', best)}"
            f"{''.join(cell(v, _mark(v, best)) for v in others)}{_score_cells(row, 'mase')}"
            f"{cell(row['seconds_per_series'], seconds(row['seconds_per_series']), 'group')}</tr>"
        )
    over = (
        f'<th colspan="{4 + len(peers)}" class="group">{NAMES["mwql"]}</th>'
        f'<th colspan="4" class="group">{NAMES["mase"]}</th><th></th>'
    )
    columns = ["model", "naive", "relative", ""]
    names = ["source", "interval", "term", "series", "windows", *columns, *peers, *columns, "a series"]
    note = "Naive is Seasonal Naive; bars run from 0.25 to 2, the line marks 1; a series is one variate of one window."
    if peers:
        note += " The columns of other forecasters are relative too; the best of a row is set off if it beats 1."
    return (
        f'<h3>By task</h3><div class="card scroll tall"><table class="sortable"><thead><tr>{"<th></th>" * 5}{over}</tr>'
        f"{heads(names, 3, (5, 9 + len(peers), 13 + len(peers)))}</thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">{note}</p>'
    )


def task_cells(row: Mapping[str, Any]) -> str:
    """Source, interval and term of a task."""
    code = row["frequency"]
    return (
        f"<th>{escape(row['source'])}</th>"
        f'<td class="text" data-v="{_frequency_order(code)}">{interval_name(code)}</td>'
        f'<td class="text">{escape(row["term"])}</td>'
    )


def overall_notes(everyone: Mapping[str, Scores]) -> str:
    """What the overall scores leave out, by name."""
    notes, said = [], {(m, o.excluded) for m, o in everyone[MODEL].overall.items()}
    for name, scores in everyone.items():
        for metric, o in scores.overall.items():
            if o.excluded and (name == MODEL or (metric, o.excluded) not in said):
                whose = "" if name == MODEL else f" of {name}"
                notes.append(left_out(f"{NAMES[metric]}{whose}", o.excluded, len(scores.members)))
    scores = everyone[MODEL]
    if empty := len(scores.table) - scores.windows:
        notes.append(f'<p class="note">{plural(empty, "window")} without any observed value: not scored.</p>')
    return "".join(notes)


def left_out(what: str, tasks: Sequence[str], total: int, noun: str = "task") -> str:
    """Names the tasks that have no ratio; folded where they are many."""
    head = f"{what} leaves out {len(tasks)} of {plural(total, noun)}, where a score is 0 or undefined"
    names = escape(", ".join(tasks))
    if len(tasks) <= 4:
        return f'<p class="note">{escape(head)}: {names}.</p>'
    return f'<details class="note"><summary>{escape(head)}.</summary>{names}</details>'


def coverage_table(found: Mapping[str, np.ndarray]) -> str:
    """Share of values below each quantile [9]: observed for the first, the model, and how far everyone is off."""
    rows, model = [], next(iter(found.values()))
    for k, level in enumerate(LEVELS.tolist()):
        off = "".join(f"<td>{points(coverage[k] - level)}</td>" for coverage in found.values())
        rows.append(f"<tr><th>{level:.0%}</th><td>{percent(model[k])}</td>{off}</tr>")
    names = "<th>off by</th>" if len(found) == 1 else "".join(f"<th>{escape(name)}</th>" for name in found)
    return (
        f"<table><thead><tr><th>quantile level</th><th>observed</th>{names}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def interval_name(code: str) -> str:
    """'10T' -> '10 min'."""
    match = re.fullmatch(r"(\d*)([A-Z])", code)
    return f"{match[1] or 1} {_UNITS[match[2]]}" if match and match[2] in _UNITS else escape(code)


def _frequency_order(code: str) -> int:
    match = re.fullmatch(r"(\d*)([A-Z])", code)
    return 10**6 * list(_UNITS).index(match[2]) + int(match[1] or 1) if match and match[2] in _UNITS else 10**8


def group_name(column: str, group: str) -> str:
    """As the reports write it."""
    return interval_name(group) if column == "frequency" else group


def order(column: str, group: str) -> tuple[int, str]:
    if column == "frequency":
        return _frequency_order(group), group
    return list(TERMS).index(group) if group in TERMS else len(TERMS), group


def task_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["source"], order("frequency", row["frequency"]), order("term", row["term"])


def _score_cells(row: Mapping[str, Any], metric: str, best: float = math.nan) -> str:
    ratio = row["relative"][metric]
    return (
        f"{cell(row[metric], fixed(row[metric]), 'group')}"
        f"{cell(row['seasonal_naive'][metric], fixed(row['seasonal_naive'][metric]))}"
        f'{cell(ratio, _mark(ratio, best), side(ratio))}<td class="b">{bar(ratio)}</td>'
    )


def _mark(ratio: float, best: float) -> str:
    return f"<mark>{fixed(ratio)}</mark>" if np.isfinite(best) and round(ratio, 3) == best else fixed(ratio)


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
