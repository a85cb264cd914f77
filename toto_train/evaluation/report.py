"""One page about a run: report.html, a single file that needs no network."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from toto_train.evaluation import plots, tables
from toto_train.evaluation.metrics import sharpness
from toto_train.evaluation.page import bar, fixed, percent, plural, seconds, write_page
from toto_train.evaluation.rows import IDENTITY
from toto_train.evaluation.score import Scores
from toto_train.evaluation.sections import Bands, bands, facts_card, forecasts, ranks_card, ratios_card, tile
from toto_train.evaluation.tables import MODEL, NAIVE, NAMES


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
        lead = "The best, the median and the worst window of a task by weighted quantile loss, the figure at the right."
        sections = [_headline(scores), _standing(everyone), *sections, _scores(everyone)]
        sections += [_bands(everyone), forecasts(scores.examples, lead)]
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
        title = f"Relative {name.lower() if metric == 'mwql' else name}"
        note = f"{share}<br>95%: {fixed(o.low)} – {fixed(o.high)}"
        cards.append(tile(title, fixed(o.value), note, bar(o.value, o.low, o.high)))
    coverage, sources = scores.coverage(), len({member.source for member in scores.members.values()})
    cards += [
        tile("Inside the 80% band", percent(coverage[8] - coverage[0]), "of what came; 80% would be right"),
        tile("Time a series", seconds(scores.seconds_per_series), "to forecast one window of one variate"),
        tile(
            "Scored windows",
            f"{scores.windows:,}",
            f"of {plural(scores.series_count, 'series')} in {plural(len(scores.members), 'task')} "
            f"from {plural(sources, 'source')}",
        ),
    ]
    return f'<section class="tiles">{"".join(cards)}</section>'


def _standing(everyone: Mapping[str, Scores]) -> str:
    """Scores of the model (first) and its peers in order, how they rank over tasks, where the model is better."""
    scores, colours = everyone[MODEL], {name: k for k, name in enumerate(everyone)}
    names = scores.compared
    if not names:
        return ""
    found = {name: of.tasks() for name, of in everyone.items()}
    ratios = pd.DataFrame({name: [of[task]["relative"]["mwql"] for task in names] for name, of in found.items()}, names)
    metric = NAMES["mwql"].lower()
    ranks = ratios.assign(**{NAIVE: 1.0}).rank(axis=1, method="average")
    kind = next((kind for kind in tables.GROUPS if len(scores.by(kind)) > 1), "source")
    groups = {
        tables.group_name(kind, group): (
            ratios.loc[[task for task in names if found[MODEL][task][kind] == group], MODEL].to_numpy(float),
            of["relative"]["mwql"],
        )
        for group, of in scores.by(kind).items()
    }
    plots = (
        f'<div class="pair below">{ranks_card(ranks, colours, MODEL, metric)}'
        f"{ratios_card(groups, metric, f'task, by {tables.GROUPS.get(kind, kind)}')}</div>"
    )
    if len(everyone) == 1:
        return f"<section><h2>Beside {NAIVE}</h2>{plots}</section>"
    return (
        '<section><h2>Beside other forecasters</h2><p class="lead">All forecast the same windows; left of the line is '
        f'better than {NAIVE}.</p><div class="ranking">{"".join(_ladders(everyone, colours))}</div>{plots}</section>'
    )


def _ladders(everyone: Mapping[str, Scores], colours: Mapping[str, int]) -> list[str]:
    """A card for each overall score, and one for what a forecast takes."""
    cards = []
    for metric, title in NAMES.items():
        found = {name: scores.overall[metric] for name, scores in everyone.items()}
        rungs = [tables.Rung(n, o.value, o.low, o.high, colours[n], n == MODEL) for n, o in found.items()]
        title = title.lower() if metric == "mwql" else title
        cards.append(tables.ladder(f"Relative {title}, 95% interval", [*rungs, tables.Rung(NAIVE, 1.0)]))
    spent = {name: scores.seconds_per_series for name, scores in everyone.items()}
    return [*cards, tables.time_card(spent, colours)]


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


def _scores(everyone: dict[str, Scores]) -> str:
    return (
        "<section><h2>Scores against Seasonal Naive</h2>"
        '<p class="lead">Below 1 the model is better. The overall score is the geometric mean over the tasks of a '
        "source, then over sources; its interval comes from resampling series (windows, where a task has one "
        f"series).</p>{tables.breakdown(everyone)}{tables.task_table(everyone)}{tables.overall_notes(everyone)}</section>"
    )


def _bands(everyone: Mapping[str, Scores]) -> str:
    scores = everyone[MODEL]
    if not (names := scores.compared):
        return ""
    windows = [member.windows for member in names.values()]
    found = {
        name: Bands(
            np.stack([of.model.coverage(w) for w in windows]),
            np.stack([sharpness(of.model, scores.baseline, w) for w in windows]),
            k,
        )
        for k, (name, of) in enumerate(everyone.items())
    }
    naive = scores.baseline
    found[NAIVE] = Bands(
        np.stack([naive.coverage(w) for w in windows]), np.stack([sharpness(naive, naive, w) for w in windows])
    )
    return bands(found, "task")
