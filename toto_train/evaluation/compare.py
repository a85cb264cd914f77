"""Runs side by side: their scores paired window by window, their curves, and what their configurations differ in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from toto_train.evaluation import rows
from toto_train.evaluation.metrics import METRICS, Interval
from toto_train.evaluation.report import filled, read_metrics
from toto_train.evaluation.score import Scores

WINDOW = [*rows.IDENTITY, "horizon"]
"""Columns that are equal where two runs forecast the same window."""
OWN_KEYS = {"name", "out", "model", "path", "request.weights"}
"""Top-level settings that say which run it is, not how it was made."""


@dataclass
class Run:
    """What a run or evaluation folder holds; whatever is missing is empty or None."""

    name: str
    path: Path
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns of metrics.csv, [rows] each."""
    config: dict[str, str] | None = None
    """config.yaml: dotted key -> value as text."""
    request: dict[str, str] | None = None
    """evaluation.json, likewise."""
    frame: pd.DataFrame | None = None
    """Scored windows with an observed label, one row each."""
    naive: pd.DataFrame | None = None
    """The same of Seasonal Naive."""
    reported: dict[str, Interval] = field(default_factory=dict)
    """Overall relative scores of scores.json."""

    def curve(self, column: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
        """Where a column of the metrics has values: (unit [N], value [N])."""
        empty = np.full(len(next(iter(self.metrics.values()), ())), np.nan)
        x, y = filled(self.metrics.get(unit, empty)), self.metrics.get(column, empty)
        known = np.isfinite(x) & np.isfinite(y)
        return x[known], y[known]

    def last(self, column: str) -> float:
        """Last known value of a column of the metrics; step and points also of an evaluation."""
        values = self.metrics.get(column, np.array([]))
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else float((self.request or {}).get(column, "nan"))

    @property
    def seconds_per_series(self) -> float:
        if self.frame is None:
            return math.nan
        return float(self.frame["seconds"].sum() / max(self.frame["variates"].sum(), 1))


@dataclass
class Standing:
    """A run's overall scores, and how it compares with the first run on the windows that both have."""

    run: Run
    own: dict[str, Interval]
    """Metric -> overall score relative to Seasonal Naive, on the run's own windows."""
    rank: dict[str, int] = field(default_factory=dict)
    """Among the runs scored on the windows of the first."""
    paired: Scores | None = None
    """The run with the first run as its baseline; None where one of the two has no rows."""
    lacks: int = 0
    """Windows of the first run that this one was not scored on."""
    extra: int = 0
    """Windows that only this run was scored on."""
    changed: int = 0
    """Windows of both whose labels differ, left out."""


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Runs named after their folders, or by their paths where two folders are called alike."""
    runs = [read_run(Path(path)) for path in paths]
    names = [run.name for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run.name) > 1:
            run.name = str(path)
    for k, run in enumerate(runs):
        if again := sum(other.path == run.path for other in runs[:k]):
            run.name += f" ({again + 1})"
    return runs


def read_run(path: Path) -> Run:
    """Raises ValueError where the folder is neither a run nor an evaluation, or a file in it cannot be read."""
    known = ("config.yaml", "metrics.csv", "evaluation.json")
    if not any((path / name).is_file() for name in known):
        raise ValueError(
            f"{path} is neither a run folder (config.yaml, metrics.csv) nor an evaluation folder (evaluation.json)"
        )
    run = Run(path.resolve().name, path)
    if (path / "metrics.csv").is_file():
        run.metrics = read_metrics(path / "metrics.csv")
    if (path / "config.yaml").is_file():
        run.config = flat(_load(path / "config.yaml"))
    if (path / "evaluation.json").is_file():
        run.request = flat(_load(path / "evaluation.json"))
    run.frame, run.naive = _rows(path / "rows.parquet"), _rows(path / "seasonal_naive.parquet")
    if (path / "scores.json").is_file():
        relative = _load(path / "scores.json").get("overall", {}).get("relative", {})
        for metric, found in relative.items():
            value, low, high = (math.nan if found.get(k) is None else found[k] for k in ("value", "low", "high"))
            run.reported[metric] = Interval(value, low, high, tuple(found.get("excluded") or ()))
    return run


def _rows(path: Path) -> pd.DataFrame | None:
    """Rows of windows with an observed label."""
    if not path.is_file():
        return None
    frame = rows.read(path)
    return frame[frame["points"] > 0].reset_index(drop=True)


def _load(path: Path) -> dict[str, Any]:
    """A mapping in YAML or JSON."""
    try:
        text = path.read_text()
        tree = json.loads(text) if path.suffix == ".json" else OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # of three libraries, which share no base
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no settings")
    return {str(key): value for key, value in tree.items()}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with their values as text."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{above}{key}.")
        else:
            out[f"{above}{key}"] = _text(value)
    return out


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def differences(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Keys whose values are not the same everywhere -> the value of each; None where a key is absent."""
    keys = dict.fromkeys(key for one in settings for key in one if key not in OWN_KEYS)
    found = {key: [one.get(key) for one in settings] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def standings(runs: Sequence[Run], draws: int = 1000, seed: int = 0) -> list[Standing]:
    """Every run's overall scores and its comparison with the first, in the order of `runs`."""
    found = []
    for run in runs:
        here = Standing(run, run.reported)
        if run.frame is not None and run.naive is not None:
            at, naive = matched(run.frame, run.naive)
            here.own = _scores(run.frame, at, run.naive, naive, draws, seed).overall
        if run.frame is not None and runs[0].frame is not None:
            _pair(here, run.frame, runs[0].frame, draws, seed)
        found.append(here)
    alike = [s for s in found if s.paired is not None and not (s.lacks or s.extra or s.changed)]
    for metric in METRICS:
        scored = [s for s in alike if metric in s.own and math.isfinite(s.own[metric].value)]
        for s in scored:
            s.rank[metric] = 1 + sum(other.own[metric].value < s.own[metric].value for other in scored)
    return found


def _pair(standing: Standing, run: pd.DataFrame, first: pd.DataFrame, draws: int, seed: int) -> None:
    at, there = matched(run, first)
    standing.lacks, standing.extra = len(first) - len(at), len(run) - len(at)
    points, absolute = ((run[c].to_numpy()[at], first[c].to_numpy()[there]) for c in ("points", "absolute"))
    same = (points[0] == points[1]) & np.isclose(*absolute, rtol=1e-5)
    standing.changed = int((~same).sum())
    if same.any():
        standing.paired = _scores(run, at[same], first, there[same], draws, seed)


def matched(a: pd.DataFrame, b: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `a` and in `b` of the windows that both have, in the order of `a`."""
    keyed = [f[WINDOW].assign(nth=f.groupby(WINDOW).cumcount(), at=np.arange(len(f))) for f in (a, b)]
    both = keyed[0].merge(keyed[1], on=[*WINDOW, "nth"])
    return both["at_x"].to_numpy(), both["at_y"].to_numpy()


def _scores(a: pd.DataFrame, at: np.ndarray, b: pd.DataFrame, there: np.ndarray, draws: int, seed: int) -> Scores:
    """Scores of `a` relative to `b` on paired windows; what a window is, and its series, is taken from `b`."""
    _, model, seconds = rows.from_frame(a.iloc[at])
    table, baseline, _ = rows.from_frame(b.iloc[there])
    return Scores(table, model, baseline, seconds, draws, seed)


def verdict(interval: Interval) -> str:
    """In a word what a ratio to the first run says; only an interval that leaves 1 out decides."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return "better" if interval.high < 1 else "worse" if interval.low > 1 else "no clear difference"


def notes(found: Sequence[Standing]) -> list[str]:
    """How many windows each comparison rests on, and what is missing for one."""
    first, lines = found[0].run, []
    for s in found:
        if s.run.frame is None:
            lines.append(f"{s.run.name}: no rows.parquet, so no paired comparison.")
        elif s is not found[0] and s.paired is not None:
            line = f"{s.run.name}: compared on {s.paired.windows:,} windows"
            if s.lacks or s.extra:
                line += f"; {s.lacks:,} only {first.name} has, {s.extra:,} only it has"
            if s.changed:
                line += f"; {s.changed:,} with other labels are left out"
            if s.lacks or s.extra or s.changed:
                line += "; not ranked, the windows differ"
            lines.append(f"{line}.")
        elif s is not found[0] and first.frame is not None:
            lines.append(f"{s.run.name}: no window in common with {first.name}.")
        if s.run.frame is not None and s.run.naive is None:
            lines.append(f"{s.run.name}: no seasonal_naive.parquet.")
        if s is not found[0] and s.paired is not None:
            for metric, o in s.paired.overall.items():
                if o.excluded:
                    what = f"{metric.upper()} against {first.name} leaves out {len(o.excluded)} tasks without a ratio"
                    lines.append(f"{s.run.name}: {what}: {', '.join(o.excluded)}.")
    return lines


def text(found: Sequence[Standing]) -> str:
    """A short table: a line a run."""
    wide = max(3, *(len(s.run.name) for s in found))
    first = found[0].run.name
    lines = [
        f"{'run':<{wide}}  {'points':>14}  {'best val':>8}  {'rel. MWQL':>9}  {'rel. MASE':>9}  MWQL against {first}"
    ]
    for s in found:
        _, validated = s.run.curve("val/mwql", "step")
        values = [validated.min() if len(validated) else math.nan]
        values += [s.own[m].value if m in s.own else math.nan for m in ("mwql", "mase")]
        cells = [f"{v:.3f}" if math.isfinite(v) else "-" for v in values]
        points = s.run.last("points")
        against = "" if s is not found[0] else "(first)"
        if s is not found[0] and s.paired is not None:
            o = s.paired.overall["mwql"]
            against = f"{o.value:.3f} [{o.low:.3f}, {o.high:.3f}] {verdict(o)}".rstrip()
        count = f"{points:,.0f}" if math.isfinite(points) else "-"
        lines.append(f"{s.run.name:<{wide}}  {count:>14}  {cells[0]:>8}  {cells[1]:>9}  {cells[2]:>9}  {against}")
    return "\n".join(line.rstrip() for line in [*lines, *notes(found)])
