"""What an evaluation or a run leaves of its scores: scores.json, rows as Parquet, a table as text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation import cache, rows
from toto_train.evaluation.lines import without_nan
from toto_train.evaluation.metrics import METRICS
from toto_train.evaluation.score import Scores
from toto_train.files import write_text


def side_by_side(scores: Scores, others: dict[str, Scores]) -> tuple[Scores, dict[str, Scores]]:
    """The same forecasters, their overall scores over the tasks where every one of them has a ratio."""
    if not others:
        return scores, others
    everyone = [scores, *others.values()]
    leave_out = {m: {task for each in everyone for task in each.overall[m].excluded} for m in METRICS}

    def over_the_same(each: Scores) -> Scores:
        return dataclasses.replace(each, leave_out=leave_out, draws=scores.draws, seed=scores.seed)

    return over_the_same(scores), {name: over_the_same(other) for name, other in others.items()}


def write(
    out: Path,
    scores: Scores,
    naive: cache.Baseline | None = None,
    others: Mapping[str, Scores] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """scores.json, and one Parquet table of scored windows each for the model (rows.parquet) and every baseline."""
    result, others, notes = scores.to_dict(), others or {}, notes or {}
    for name, other in others.items():
        found = other.to_dict()
        result.setdefault("baselines", {})[name] = {
            **notes["baselines"][name],
            "overall": found["overall"],
            "tasks": {task: {m: row[m] for m in (*METRICS, "relative")} for task, row in found["tasks"].items()},
        }
    for task, row in notes.get("gluonts", {}).get("tasks", {}).items():
        result["tasks"][task]["gluonts"] = row
    if "gluonts" in notes:
        result["overall"]["gluonts_largest_difference"] = notes["gluonts"]["largest_difference"]
    text = json.dumps(without_nan(result), indent=2, allow_nan=False)
    write_text(out / "scores.json", text)
    rows.write(out / "rows.parquet", rows.to_frame(scores.table, scores.model, scores.seconds))
    seconds = naive.seconds if naive is not None else np.full(len(scores.table), np.nan)  # part of the model's pass
    rows.write(out / "seasonal_naive.parquet", rows.to_frame(scores.table, scores.baseline, seconds))
    for name, other in others.items():
        rows.write(out / f"{name}.parquet", rows.to_frame(other.table, other.model, other.seconds))


def largest_difference(scores: Scores, found: dict[str, dict[str, float]]) -> float:
    """Between the kernel's and gluonts' scores of every task, relative."""
    pairs = [(row[m], found[task][m]) for task, row in scores.tasks().items() for m in METRICS]
    differences = [
        0.0 if ours == theirs or (math.isnan(ours) and not math.isfinite(theirs)) else abs(ours - theirs) / abs(theirs)
        for ours, theirs in pairs
    ]
    return max((math.inf if math.isnan(d) else d for d in differences), default=0.0)


def table(scores: Scores, others: Mapping[str, Scores] | None = None) -> str:
    """Scores as aligned text: a line a task, then the overall ones with their intervals."""
    tasks, others = scores.tasks(), others or {}
    wide = max(map(len, ("overall", *tasks)))
    found = {title: other.tasks() for title, other in others.items()}
    heads = "".join(f"{title[:14]:>16}" for title in others)
    lines = [f"{'task':<{wide}}{'windows':>9}{'MASE':>9}{'MWQL':>9}{'rel. MASE':>11}{'rel. MWQL':>11}{heads}"]
    for name, row in tasks.items():
        cells = "".join(f"{of[name]['relative']['mwql']:>16.3f}" for of in found.values())
        lines.append(
            f"{name:<{wide}}{row['windows']:>9,}{row['mase']:>9.3f}{row['mwql']:>9.3f}"
            f"{row['relative']['mase']:>11.3f}{row['relative']['mwql']:>11.3f}{cells}"
        )
    cells = "".join(f"{other.overall['mwql'].value:>16.3f}" for other in others.values())
    lines.append(
        f"{'overall':<{wide}}{scores.windows:>9,}{'':>18}"
        f"{scores.overall['mase'].value:>11.3f}{scores.overall['mwql'].value:>11.3f}{cells}"
    )
    spans = {m: f"{o.value:.3f} [{o.low:.3f}, {o.high:.3f}]" for m, o in scores.overall.items()}
    lines.append(
        f"{scores.windows:,} windows of {scores.series_count:,} series; relative to Seasonal Naive, geometric mean "
        "over tasks,\nthen sources, with 95% bootstrap interval over series (windows where a task has one): "
        f"MASE {spans['mase']}, MWQL {spans['mwql']}"
    )
    if others:
        lines.append("columns of the other forecasters: relative MWQL")
    for metric, name in (("mase", "MASE"), ("mwql", "MWQL")):
        if excluded := scores.overall[metric].excluded:
            lines.append(f"overall {name} leaves out {len(excluded)} tasks without a ratio: {', '.join(excluded)}")
    return "\n".join(lines)
