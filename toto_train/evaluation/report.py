"""One page about a run: report.html, a single file that needs no network."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType

import numpy as np

from toto_train.evaluation import plots, tables
from toto_train.evaluation.page import bar, fixed, percent, plural, seconds, write_page
from toto_train.evaluation.rows import IDENTITY
from toto_train.evaluation.score import RANKS, Example, Scores
from toto_train.evaluation.tables import MODEL, NAMES


def write_report(
    run_dir: Path,
    title: str,
    facts: dict[str, str],
    metrics_csv: Path | None = None,
    scores: Scores | None = None,
    peers: dict[str, Scores] | None = None,
) -> Path:
    """Write `run_dir`/report.html and return it; the file appears whole or not at all.

    facts: label -> value, shown as given. metrics_csv: columns step, points, train/loss, train/lr_normuon, val/...;
    every column may be absent and every cell empty. scores: with `examples` for the forecasts. peers: title -> scores
    of another forecaster on the same windows.
    """
    metrics = read_metrics(metrics_csv) if metrics_csv is not None and metrics_csv.is_file() else {}
    sections = [_training(metrics)]
    if scores is not None:
        everyone = {MODEL: scores} | (peers or {})
        for name, other in everyone.items():
            if not other.table[IDENTITY].equals(scores.table[IDENTITY]):
                raise ValueError(f"{name} was scored on other windows than the model; score both on one task set")
        sections = [
            _headline(scores),
            tables.ranking(everyone) if peers else "",
            *sections,
            _scores(everyone),
            forecasts(
                scores.examples,
                "The best, the median and the worst window of a task by weighted quantile loss, "
                "the figure at the right.",
            ),
            _calibration(everyone),
        ]
    return write_page(Path(run_dir) / "report.html", title, [*sections, facts_card(facts)])


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """CSV -> column -> float64 [rows], NaN where a cell is empty or no number."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return {name: np.array([_number(row.get(name)) for row in rows]) for name in reader.fieldnames or ()}


def _number(cell: str | None) -> float:
    try:
        value = float(cell or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _headline(scores: Scores) -> str:
    cards = []
    for metric, name in NAMES.items():
        o = scores.overall[metric]
        better = "below" if o.value < 1 else "above"
        share = f"{abs(1 - o.value):.0%} {better} Seasonal Naive" if math.isfinite(o.value) else "no task to compare"
        cards.append(
            f'<div class="card"><h3>Relative {name.lower() if metric == "mwql" else name}</h3>'
            f'<p class="big">{fixed(o.value)}</p>{bar(o.value, o.low, o.high)}'
            f'<p class="note">{share}<br>95%: {fixed(o.low)} – {fixed(o.high)}</p></div>'
        )
    coverage, sources = scores.coverage(), len({member.source for member in scores.members.values()})
    cards.append(
        f'<div class="card"><h3>Inside the 80% band</h3><p class="big">{percent(coverage[8] - coverage[0])}</p>'
        f'<p class="note">of what came; 80% would be right</p></div>'
        f'<div class="card"><h3>Time a series</h3><p class="big">{seconds(scores.seconds_per_series)}</p>'
        f'<p class="note">to forecast one window of one variate</p></div>'
        f'<div class="card"><h3>Scored windows</h3><p class="big">{scores.windows:,}</p>'
        f'<p class="note">of {plural(scores.series_count, "series")} in {plural(len(scores.members), "task")} '
        f"from {plural(sources, 'source')}</p></div>"
    )
    return f'<section class="tiles">{"".join(cards)}</section>'


def _training(metrics: dict[str, np.ndarray]) -> str:
    """Loss curve and validation curves, over points where they are known, else over steps."""
    unit = next((u for u in ("points", "step") if np.isfinite(metrics.get(u, np.array([]))).any()), None)
    if unit is None:
        return ""
    x, unit_name = filled(metrics[unit]), "points seen" if unit == "points" else "step"
    cards = []
    if np.isfinite(metrics.get("train/loss", np.array([]))).any():
        rates = [metrics.get(f"train/lr_{kind}") for kind in ("normuon", "adamw")]
        rate = next((rate for rate in rates if rate is not None and np.nansum(rate) > 0), None)
        plot = plots.training_curve(x, metrics["train/loss"], rate, unit_name, "loss")
        cards.append(f'<figure class="card"><figcaption>Training</figcaption>{plot}</figure>')
    curves = {}
    for column in sorted((c for c in metrics if c.startswith("val/")), key=lambda c: "rel" not in c)[:2]:
        known = np.isfinite(metrics[column]) & np.isfinite(x)
        if known.any():
            curves[column.removeprefix("val/").replace("_", " ")] = x[known], metrics[column][known]
    if curves:
        plot = plots.validation_curves(curves, unit_name, "val")
        cards.append(f'<figure class="card"><figcaption>Validation</figcaption>{plot}</figure>')
    return f'<section><h2>Learning</h2><div class="pair">{"".join(cards)}</div></section>' if cards else ""


def filled(x: np.ndarray) -> np.ndarray:
    """Gaps filled with the last value before them: a validation row may carry no count of points."""
    last = np.maximum.accumulate(np.where(np.isfinite(x), np.arange(len(x)), 0))
    return x[last]


def facts_card(facts: Mapping[str, str]) -> str:
    """What was run, label by label."""
    if not facts:
        return ""
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<section><h2>Run</h2><dl class="card facts">{cells}</dl></section>'


def forecasts(examples: Sequence[Example], lead: str, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """A row of plots for each task; notes: task -> what stands behind its name."""
    if not examples:
        return ""
    rows = []
    for task in dict.fromkeys(e.task for e in examples):
        shown = {e.rank: (n, e) for n, e in enumerate(examples) if e.task == task}
        cards = []
        for n, e in (shown[rank] for rank in RANKS if rank in shown):
            variate = "" if e.variate == e.item_id else f" <i>{escape(e.variate)}</i>"
            cards.append(
                f'<figure class="card"><figcaption><span class="rank {e.rank}">{e.rank}</span>'
                f'<span class="item">{escape(e.item_id)}{variate}</span>'
                f'<span class="num">{fixed(e.loss)}</span></figcaption>{plots.forecast(e, f"f{n}")}</figure>'
            )
        note = f" <i>{escape(notes[task])}</i>" if task in notes else ""
        rows.append(f'<h3>{escape(task)}{note}</h3><div class="triple">{"".join(cards)}</div>')
    key = (
        '<p class="key"><span class="k-past">history</span><span class="k-ink">what came</span>'
        '<span class="k-accent">median</span><span class="k-band">10% to 90%</span></p>'
    )
    return f'<section><h2>Forecasts</h2><p class="lead">{lead}</p>{key}{"".join(rows)}</section>'


def _scores(everyone: dict[str, Scores]) -> str:
    return (
        "<section><h2>Scores against Seasonal Naive</h2>"
        '<p class="lead">Below 1 the model is better. The overall score is the geometric mean over the tasks of a '
        "source, then over sources; its interval comes from resampling series (windows, where a task has one "
        f"series).</p>{tables.breakdown(everyone)}{tables.task_table(everyone)}{tables.overall_notes(everyone)}</section>"
    )


def _calibration(everyone: dict[str, Scores]) -> str:
    excluded = everyone[MODEL].overall["mwql"].excluded
    each = [np.array(row["coverage"]) for name, row in everyone[MODEL].tasks().items() if name not in excluded]
    plot, table = calibration({name: scores.coverage() for name, scores in everyone.items()}, each)
    return (
        '<section><h2>Calibration</h2><p class="lead">How often the truth fell below each predicted quantile: the mean '
        "over tasks, and each task as a thin grey line. On the diagonal the bands are honest; a curve flatter than it "
        f'means that they are too narrow.</p><div class="pair calibration">{plot}{table}</div></section>'
    )


def calibration(coverage: Mapping[str, np.ndarray], each: Sequence[np.ndarray]) -> tuple[str, str]:
    """Cards with the plot and the table of the share of values below each quantile [9]: forecaster -> mean over tasks,
    the model first, and its share in each task."""
    mean, *_ = coverage.values()
    plot = plots.calibration(mean, each, "cal", dict(list(coverage.items())[1:]))
    return (
        f'<figure class="card">{plot}</figure>',
        f'<div class="card scroll">{tables.coverage_table(coverage)}</div>',
    )
