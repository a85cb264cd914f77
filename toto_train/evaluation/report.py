"""One page about a run: report.html, a single file that needs no network."""

from __future__ import annotations

import csv
import math
import os
import tempfile
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation import plots
from toto_train.evaluation.score import RANKS, Scores

NAMES = {"mwql": "Quantile loss", "mase": "MASE"}
_BAR = (0.25, 2.0)
"""Relative scores at the two ends of a bar (logarithmic)."""


def write_report(
    run_dir: Path,
    title: str,
    facts: dict[str, str],
    metrics_csv: Path | None = None,
    scores: Scores | None = None,
) -> Path:
    """Write `run_dir`/report.html and return it; the file appears whole or not at all.

    facts: label -> value, shown as given. metrics_csv: columns step, points, train/loss, train/lr_normuon, val/...;
    every column may be absent and every cell empty. scores: with `examples` for the forecasts.
    """
    metrics = read_metrics(metrics_csv) if metrics_csv is not None and metrics_csv.is_file() else {}
    sections = [_header(title)]
    if scores is not None:
        sections.append(_headline(scores))
    sections.append(_training(metrics))
    if scores is not None:
        sections += [_table(scores), _forecasts(scores), _calibration(scores)]
    sections.append(_facts(facts))
    style = files("toto_train.evaluation").joinpath("report.css").read_text()
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title><style>{style}</style></head>\n'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    return _write_whole(Path(run_dir) / "report.html", page)


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


def _write_whole(path: Path, text: str) -> Path:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _header(title: str) -> str:
    return f"<header><h1>{escape(title)}</h1></header>"


def _headline(scores: Scores) -> str:
    cards = []
    for metric, name in NAMES.items():
        o = scores.overall[metric]
        better = "below" if o.value < 1 else "above"
        share = f"{abs(1 - o.value):.0%} {better} Seasonal Naive" if math.isfinite(o.value) else "no source to compare"
        cards.append(
            f'<div class="card"><h3>Relative {name.lower() if metric == "mwql" else name}</h3>'
            f'<p class="big">{_fixed(o.value)}</p>{_bar(o.value, o.low, o.high)}'
            f'<p class="note">{share}<br>95% interval {_fixed(o.low)} – {_fixed(o.high)}</p></div>'
        )
    coverage = scores.coverage()
    cards.append(
        f'<div class="card"><h3>Inside the 80% band</h3><p class="big">{_percent(coverage[8] - coverage[0])}</p>'
        f'<p class="note">of what came; 80% would be right</p></div>'
        f'<div class="card"><h3>Scored windows</h3><p class="big">{scores.windows:,}</p>'
        f'<p class="note">of {scores.series_count:,} series<br>in {len(scores.members):,} '
        f"{'source' if len(scores.members) == 1 else 'sources'}</p></div>"
    )
    return f'<section class="tiles">{"".join(cards)}</section>'


def _training(metrics: dict[str, np.ndarray]) -> str:
    """Loss curve and validation curves, over points where they are known, else over steps."""
    unit = next((u for u in ("points", "step") if np.isfinite(metrics.get(u, np.array([]))).any()), None)
    if unit is None:
        return ""
    x, unit_name = _filled(metrics[unit]), "points seen" if unit == "points" else "step"
    cards = []
    if np.isfinite(metrics.get("train/loss", np.array([]))).any():
        rate = metrics.get("train/lr_normuon")
        rate = rate if rate is not None and np.isfinite(rate).any() else None
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


def _filled(x: np.ndarray) -> np.ndarray:
    """Gaps filled with the last value before them: a validation row may carry no count of points."""
    last = np.maximum.accumulate(np.where(np.isfinite(x), np.arange(len(x)), 0))
    return x[last]


def _facts(facts: dict[str, str]) -> str:
    if not facts:
        return ""
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<section><h2>Run</h2><dl class="card facts">{cells}</dl></section>'


def _forecasts(scores: Scores) -> str:
    if not scores.examples:
        return ""
    rows = []
    for source in dict.fromkeys(e.source for e in scores.examples):
        shown = {e.rank: (n, e) for n, e in enumerate(scores.examples) if e.source == source}
        cards = []
        for n, e in (shown[rank] for rank in RANKS if rank in shown):
            variate = "" if e.variate == e.item_id else f" <i>{escape(e.variate)}</i>"
            cards.append(
                f'<figure class="card"><figcaption><span class="rank {e.rank}">{e.rank}</span>'
                f'<span class="item">{escape(e.item_id)}{variate}</span>'
                f'<span class="num">{_fixed(e.loss)}</span></figcaption>{plots.forecast(e, f"f{n}")}</figure>'
            )
        rows.append(f'<h3>{escape(source)}</h3><div class="triple">{"".join(cards)}</div>')
    key = (
        '<p class="key"><span class="k-past">history</span><span class="k-ink">what came</span>'
        '<span class="k-accent">median</span><span class="k-band">10% to 90%</span></p>'
    )
    lead = "The best, the median and the worst window of a source by weighted quantile loss, the figure at the right."
    return f'<section><h2>Forecasts</h2><p class="lead">{lead}</p>{key}{"".join(rows)}</section>'


def _table(scores: Scores) -> str:
    result = scores.to_dict()
    total = result["overall"]
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(', '.join(row.get('intervals', [])))}</td>"
        f"<td>{row['series']:,}</td><td>{row['windows']:,}</td>{_score_cells(row)}</tr>"
        for name, row in result["sources"].items()
    )
    flat = {**total, "relative": {m: r["value"] for m, r in total["relative"].items()}}
    spans = {m: (_nan(r["low"]), _nan(r["high"])) for m, r in total["relative"].items()}
    foot = (
        f"<tr><th>Geometric mean</th><td></td><td>{total['series']:,}</td><td>{total['windows']:,}</td>"
        f"{_score_cells(flat, spans)}</tr>"
    )
    intervals, left = [], []
    for metric, name in NAMES.items():
        r = total["relative"][metric]
        intervals.append(f"{name} {_fixed(_nan(r['value']))} ({_fixed(_nan(r['low']))} – {_fixed(_nan(r['high']))})")
        if r["excluded"]:
            left.append(f"{name} leaves out {len(r['excluded'])} without a ratio: {', '.join(r['excluded'])}.")
    notes = [
        f"Overall, 95% bootstrap interval over series (windows, where a source has one): {' · '.join(intervals)}.",
        *left,
    ]
    if total["windows_without_label"]:
        notes.append(f"{total['windows_without_label']} windows hold no observed value and are not scored.")
    heads = "".join(f'<th colspan="4" class="group">{NAMES[m]}</th>' for m in NAMES)
    columns = '<th class="group">model</th><th>naive</th><th>relative</th><th></th>' * len(NAMES)
    return (
        "<section><h2>Scores against Seasonal Naive</h2>"
        '<p class="lead">Below 1 the model is better. Bars run from 0.25 to 2, the line marks 1.</p>'
        '<div class="card scroll"><table>'
        f'<thead><tr><th></th><th></th><th></th><th></th>{heads}</tr><tr><th>source</th><th class="text">interval</th>'
        f"<th>series</th><th>windows</th>{columns}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
        f'<p class="note">{" ".join(escape(n) for n in notes)}</p></section>'
    )


def _score_cells(row: dict[str, Any], spans: dict[str, tuple[float, float]] | None = None) -> str:
    cells = []
    for metric in NAMES:
        ratio = _nan(row["relative"][metric])
        low, high = (spans or {}).get(metric, (math.nan, math.nan))
        cells.append(
            f'<td class="group">{_fixed(_nan(row[metric]))}</td><td>{_fixed(_nan(row["seasonal_naive"][metric]))}</td>'
            f'<td class="{_side(ratio)}">{_fixed(ratio)}</td><td class="b">{_bar(ratio, low, high)}</td>'
        )
    return "".join(cells)


def _calibration(scores: Scores) -> str:
    excluded = scores.overall["mwql"].excluded
    each = [np.array(row["coverage"]) for name, row in scores.table().items() if name not in excluded]
    mean = scores.coverage()
    rows = "".join(
        f"<tr><th>{level:.0%}</th><td>{_percent(value)}</td><td>{_points(value - level)}</td></tr>"
        for level, value in zip(plots.LEVELS.tolist(), mean.tolist(), strict=True)
    )
    return (
        '<section><h2>Calibration</h2><p class="lead">How often the truth fell below each predicted quantile: the mean '
        "over sources, and each source as a thin line. On the diagonal the bands are honest; a curve flatter than it "
        'means that they are too narrow.</p><div class="pair calibration">'
        f'<figure class="card">{plots.calibration(mean, each, "cal")}</figure><div class="card"><table><thead><tr>'
        "<th>quantile level</th><th>observed</th><th>off by</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></div></section>"
    )


def _bar(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Where a relative score lies on a logarithmic scale, with its interval if it has one."""
    if not math.isfinite(value):
        return ""
    place, one = _place(value), _place(1.0)
    left, width = min(place, one), abs(place - one)
    span = ""
    if math.isfinite(low) and math.isfinite(high):
        span = f'<i class="span" style="left:{_place(low):.1f}%;width:{_place(high) - _place(low):.1f}%"></i>'
    return (
        f'<span class="bar {_side(value)}"><i class="fill" style="left:{left:.1f}%;width:{width:.1f}%"></i>{span}'
        f'<i class="dot" style="left:{place:.1f}%"></i><i class="one" style="left:{one:.1f}%"></i></span>'
    )


def _side(ratio: float) -> str:
    shown = round(ratio, 3)  # what reads 1.000 is neither
    return "good" if shown < 1 else "bad" if shown > 1 else "even"


def _place(value: float) -> float:
    low, high = (math.log(v) for v in _BAR)
    return 100 * min(max((math.log(max(value, 1e-9)) - low) / (high - low), 0), 1)


def _fixed(value: float) -> str:
    """Three decimals, wider numbers shorter; a dash where there is no number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "–"


def _points(share: float) -> str:
    """0.031 -> '+3 pts'."""
    return f"{100 * share:+.0f} pts".replace("-", "−") if math.isfinite(share) else "–"


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
