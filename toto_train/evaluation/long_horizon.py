"""Long horizons: does a forecast stay on a sum of sinusoids for thousands of steps, in one pass and in blocks?

The study of the Toto 2.0 release: periods of 500, 100 and 20 steps, no noise, horizons to 8192. A forecast that loses
phase or fades shows in Pearson's r between median and truth.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation.baselines import seasonal_scale
from toto_train.evaluation.job import check_out, forecaster_of, load, open_out, progress_bar, weights_hash
from toto_train.evaluation.lines import Lines, without_nan
from toto_train.evaluation.long_horizon_page import Scores, Times, write_report
from toto_train.evaluation.metrics import MEDIAN
from toto_train.evaluation.processes import share
from toto_train.evaluation.tasks import Forecaster as Forecast
from toto_train.files import write_text
from toto_train.forecast import PUBLISHED, Forecaster, ForecastOptions, check_precision
from toto_train.ranks import pick_device

PERIODS = (500, 100, 20)
HORIZONS = (96, 192, 384, 768, 1536, 2048, 4096, 8192)
PUBLISHED_R: dict[str, dict[int, float]] = {
    name: dict(zip((2048, 4096, 8192), values, strict=True))
    for name, values in {
        "Toto-2.0-2.5B": (0.990, 0.979, 0.818),
        "Toto-2.0-1B": (0.984, 0.945, 0.643),
        "Toto-2.0-313m": (0.986, 0.947, 0.681),
        "Toto-2.0-22m": (0.805, 0.484, 0.315),
        "Toto-2.0-4m": (0.538, 0.371, 0.173),
        "Toto-1.0": (0.816, 0.627, 0.333),
    }.items()
}
"""Pearson r of block decoding by horizon: others' figures, not measured here."""

RESULTS = "results.jsonl"


@dataclass
class LongHorizonJob:
    """What scripts/evaluate.py is asked for with tasks=long_horizon."""

    models: list[str]
    """Run folders or Hugging Face folders, of different names."""
    out: Path
    context: int = 0
    """Steps of history; 0: as long as the rows that each model was trained on."""
    series: int = 8
    block: int = 768
    """Steps decoded at once, whole patches."""
    horizons: tuple[int, ...] = HORIZONS
    checkpoint: str = "best"
    device: str = "auto"
    precision: str = "fp32"
    """fp32 | bf16: what forecasts are computed in."""
    max_points: int = 2**20
    """Values of context and horizon forecast at once."""
    processes: int = 1
    seed: int = 0
    replace: bool = False


def sinusoids(count: int, steps: int, seed: int = 0) -> np.ndarray:
    """float32 [count, 1, steps]: one sinusoid of amplitude 1 a period, each with a phase of its own."""
    phases = np.random.Generator(np.random.Philox(seed)).uniform(0, 2 * np.pi, (count, len(PERIODS), 1))
    waves = np.sin(2 * np.pi * np.arange(steps) / np.array(PERIODS)[:, None] + phases)
    return waves.sum(1, keepdims=True).astype(np.float32)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation along the last axis; 0 where one of the two does not move."""
    a, b = (x - x.mean(-1, keepdims=True, dtype=np.float64) for x in (a, b))
    size = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.zeros_like(size), where=size > 1e-9)


def measure(forecaster: Forecast, values: np.ndarray, context: int, horizon: int) -> dict[str, np.ndarray]:
    """Pearson r and MASE of the median for each series [N]: values [N, 1, context + horizon at least].

    MASE is scaled by the mean step y[t] - y[t-1]: the seasonal error of the common period is 0.
    """
    past, label = values[:, :, :context], values[:, :, context : context + horizon].astype(np.float64)
    median = np.asarray(forecaster(past, horizon))[:, MEDIAN].astype(np.float64)
    scale = np.stack([seasonal_scale(y, 1)[0] for y in past])
    return {"r": pearson(median, label)[:, 0], "mase": (np.abs(median - label).mean(-1) / scale)[:, 0]}


@dataclass(frozen=True)
class Subject:
    """A model under study."""

    path: str
    weights: str
    """Their hash."""
    context: int


@dataclass(frozen=True)
class Piece:
    """What is forecast and written at once: some of the series."""

    model: str
    way: str
    horizon: int
    first: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.way}, {self.horizon} steps, series {self.first} to {self.end - 1}"


def run(job: LongHorizonJob) -> dict[str, Scores]:
    """Measure every model both ways at every horizon; writes long_horizon.json and report.html to `job.out`, prints a
    table. Returns the scores by the models' names. The same call goes on with a killed one."""
    check_precision(job.precision)
    check_out(job.out)
    device = pick_device(job.device)
    subjects = _subjects(job)
    request = {
        "weights": {name: s.weights for name, s in subjects.items()}, "study": "long_horizon",
        "context": {name: s.context for name, s in subjects.items()}, "series": job.series,
        "block": job.block, "horizons": list(job.horizons), "seed": job.seed, "precision": job.precision,
    }  # fmt: skip
    with open_out(job.out, {"models": {name: s.path for name, s in subjects.items()}}, request, job.replace):
        pieces, kept = _pieces(job, subjects), Lines(job.out / RESULTS, "piece")
        todo = [piece for piece in pieces if piece.name not in kept.lines]
        with progress_bar(len(pieces), "long horizons", "forecast") as advance:
            advance(len(pieces) - len(todo))
            for k, (_, line) in enumerate(share(partial(_scorer, job, subjects, device), todo, job.processes), 1):
                kept.add(line)
                advance(len(pieces) - len(todo) + k)
        found, times = _joined(job, pieces, kept)
        result = {**request, "scores": found, "seconds_per_series": times, "published_r": PUBLISHED_R}
        write_text(job.out / "long_horizon.json", json.dumps(without_nan(result), indent=2, allow_nan=False))
        lead = f"A sum of sinusoids of {', '.join(map(str, PERIODS))} steps: {job.series} series, {job.precision}."
        contexts = {name: s.context for name, s in subjects.items()}
        write_report(job.out / "report.html", lead, contexts, found, times, PUBLISHED_R)
    sys.stdout.write(table(found) + "\n")
    return found


def _subjects(job: LongHorizonJob) -> dict[str, Subject]:
    """The models by name, each looked at once: a process that forecasts loads what it needs again."""
    found: dict[str, Subject] = {}
    for path in job.models:
        model, about, trained = load(path, job.checkpoint)
        name, patch = str(about["model"]), model.config.patch_size
        if name in found:
            raise ValueError(
                f"model={','.join(job.models)}: two are named {name}; give them folders of different names"
            )
        if job.block < 1 or job.block % patch:
            raise ValueError(f"block={job.block} must be a positive multiple of the patch size {patch}")
        found[name] = Subject(path, weights_hash(model), job.context or trained)
    return found


def _ways(job: LongHorizonJob) -> dict[str, ForecastOptions]:
    return {"one pass": PUBLISHED, f"blocks of {job.block}": replace(PUBLISHED, block=job.block)}


def _pieces(job: LongHorizonJob, subjects: Mapping[str, Subject]) -> list[Piece]:
    """Model by model, so that a process loads each once; the longest first, so that none is waited for at the end."""
    found = []
    for (name, subject), horizon, way in product(subjects.items(), sorted(job.horizons, reverse=True), _ways(job)):
        step = max(1, job.max_points // (subject.context + horizon))
        starts = range(0, job.series, step)
        found += [Piece(name, way, horizon, at, min(at + step, job.series)) for at in starts]
    return found


def _scorer(
    job: LongHorizonJob, subjects: Mapping[str, Subject], device: str, rank: int
) -> Callable[[Piece], dict[str, Any]]:
    """In a process: a line of the results."""

    @lru_cache(maxsize=1)
    def forecaster(name: str) -> Forecaster:
        return forecaster_of(subjects[name].path, job.checkpoint, subjects[name].weights, device, job.precision, rank)

    def line(piece: Piece) -> dict[str, Any]:
        context, model = subjects[piece.model].context, forecaster(piece.model)
        values = sinusoids(job.series, context + max(job.horizons), job.seed)[piece.first : piece.end]
        asked = Forecaster(model.model, model.device, _ways(job)[piece.way], job.precision)
        begin = time.perf_counter()
        scores = measure(asked, values, context, piece.horizon)
        return {
            "piece": piece.name,
            **{kind: of.tolist() for kind, of in scores.items()},
            "seconds": time.perf_counter() - begin,
        }

    return line


def _joined(job: LongHorizonJob, pieces: Sequence[Piece], kept: Lines) -> tuple[dict[str, Scores], dict[str, Times]]:
    """Means over series, and the seconds of one."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for piece in pieces:
        groups.setdefault((piece.model, piece.way, piece.horizon), []).append(kept.lines[piece.name])
    scores: dict[str, Scores] = {}
    times: dict[str, Times] = {}
    for (model, way, horizon), lines in sorted(groups.items(), key=lambda item: item[0][2]):
        means = {kind: float(np.mean([v for line in lines for v in line[kind]])) for kind in ("r", "mase")}
        scores.setdefault(model, {}).setdefault(way, {})[horizon] = means
        spent = sum(line["seconds"] for line in lines) / job.series
        times.setdefault(model, {}).setdefault(way, {})[horizon] = spent
    names = dict.fromkeys(piece.model for piece in pieces)
    return {name: scores[name] for name in names}, times


def table(found: Mapping[str, Scores]) -> str:
    """Pearson r and MASE by horizon of every model, the published r below."""
    horizons = list(next(of for ways in found.values() for of in ways.values()))
    rows = {
        f"{model}, {way}, {kind}": [of[h][kind] for h in horizons]
        for model, ways in found.items()
        for way, of in ways.items()
        for kind in ("r", "mase")
    }
    rows |= {f"{name}, r (published)": [of.get(h, np.nan) for h in horizons] for name, of in PUBLISHED_R.items()}
    wide = max(map(len, rows)) + 2
    lines = [f"{'horizon':<{wide}}" + "".join(f"{h:>8,}" for h in horizons)]
    for label, row in rows.items():
        lines.append(f"{label:<{wide}}" + "".join(f"{'' if np.isnan(v) else f'{v:z.3f}':>8}" for v in row))
    return "\n".join(lines)
