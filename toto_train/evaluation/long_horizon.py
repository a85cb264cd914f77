"""Long horizons: does a forecast stay on a sum of sinusoids for thousands of steps, in one pass and in blocks?

The study of the Toto 2.0 release: periods of 500, 100 and 20 steps, no noise, horizons to 8192. A forecast that loses
phase or fades shows in Pearson's r between median and truth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from itertools import count, product
from pathlib import Path

import numpy as np

from toto_train.evaluation import plots
from toto_train.evaluation.baselines import seasonal_scale
from toto_train.evaluation.job import check_out, load, open_out, progress_bar, weights_hash
from toto_train.evaluation.lines import without_nan
from toto_train.evaluation.metrics import MEDIAN
from toto_train.evaluation.page import write_page
from toto_train.evaluation.tasks import Forecaster as Forecast
from toto_train.files import write_text
from toto_train.forecast import PUBLISHED, Forecaster, check_precision
from toto_train.model.toto import Toto
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

Scores = dict[str, dict[int, dict[str, float]]]
"""Way of decoding -> horizon -> r and mase."""


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


def measure(forecaster: Forecast, values: np.ndarray, context: int, horizon: int, max_points: int) -> dict[str, float]:
    """Pearson r and MASE of the median, means over series: values [N, 1, context + horizon at least].

    MASE is scaled by the mean step y[t] - y[t-1]: the seasonal error of the common period is 0.
    """
    past, label = values[:, :, :context], values[:, :, context : context + horizon].astype(np.float64)
    step = max(1, max_points // (context + horizon))
    parts = [np.asarray(forecaster(past[at : at + step], horizon)) for at in range(0, len(past), step)]
    median = np.concatenate(parts)[:, MEDIAN].astype(np.float64)
    scale = np.stack([seasonal_scale(y, 1)[0] for y in past])
    return {
        "r": float(pearson(median, label).mean()),
        "mase": float((np.abs(median - label).mean(-1) / scale).mean()),
    }


def run(job: LongHorizonJob) -> dict[str, Scores]:
    """Measure every model both ways at every horizon; writes long_horizon.json and report.html to `job.out`, prints a
    table. Returns the scores by the models' names."""
    check_precision(job.precision)
    check_out(job.out)
    device = pick_device(job.device)
    loaded = [load(path, job.checkpoint) for path in job.models]
    names = [str(about["model"]) for _, about, _ in loaded]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"model={','.join(job.models)}: two are named {twice[0]}; give them folders of different names"
        )
    for model, _, _ in loaded:
        if job.block < 1 or job.block % model.config.patch_size:
            raise ValueError(
                f"block={job.block} must be a positive multiple of the patch size {model.config.patch_size}"
            )
    contexts = {name: job.context or trained for name, (_, _, trained) in zip(names, loaded, strict=True)}
    weights = {name: weights_hash(model) for name, (model, _, _) in zip(names, loaded, strict=True)}
    request = {
        "weights": weights, "study": "long_horizon", "context": contexts, "series": job.series,
        "block": job.block, "horizons": list(job.horizons), "seed": job.seed, "precision": job.precision,
    }  # fmt: skip
    paths = dict(zip(names, job.models, strict=True))
    with open_out(job.out, {"models": paths}, request, job.replace):
        found: dict[str, Scores] = {}
        with progress_bar(2 * len(names) * len(job.horizons), "long horizons") as advance:
            done = count(1)
            for name, (model, _, _) in zip(names, loaded, strict=True):
                model.to(device)
                found[name] = _scores(job, model, device, contexts[name], lambda: advance(next(done)))
                model.cpu()
        result = {**request, "scores": found, "published_r": PUBLISHED_R}
        write_text(job.out / "long_horizon.json", json.dumps(without_nan(result), indent=2, allow_nan=False))
        _page(job, contexts, found)
    sys.stdout.write(table(found) + "\n")
    return found


def _scores(job: LongHorizonJob, model: Toto, device: str, context: int, advance: Callable[[], None]) -> Scores:
    """Of one model."""
    ways = {
        "one pass": Forecaster(model, device, precision=job.precision),
        f"blocks of {job.block}": Forecaster(model, device, replace(PUBLISHED, block=job.block), job.precision),
    }
    values = sinusoids(job.series, context + max(job.horizons), job.seed)
    found: Scores = {way: {} for way in ways}
    for way, horizon in product(ways, job.horizons):
        found[way][horizon] = measure(ways[way], values, context, horizon, job.max_points)
        advance()
    return found


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


def _page(job: LongHorizonJob, contexts: Mapping[str, int], found: Mapping[str, Scores]) -> None:
    """A section a model: r and error against the horizon, both ways."""
    lead = f"A sum of sinusoids of {', '.join(map(str, PERIODS))} steps: {job.series} series, {job.precision}."
    sections = [f'<section><p class="lead">{lead}</p></section>']
    for n, (model, ways) in enumerate(found.items()):
        cards = []
        for kind, title in {"r": "Pearson r with the truth", "mase": "MASE"}.items():
            curves = {
                way: (np.array([*of], float), np.array([score[kind] for score in of.values()]))
                for way, of in ways.items()
            }
            plot = plots.run_curves(curves, title, "horizon", f"long-{n}-{kind}", last=True)
            cards.append(f'<figure class="card"><figcaption>{escape(title)}</figcaption>{plot}</figure>')
        about = f'<p class="lead">{contexts[model]:,} steps of history.</p>'
        sections.append(f'<section><h2>{escape(model)}</h2>{about}<div class="pair">{"".join(cards)}</div></section>')
    write_page(job.out / "report.html", f"{', '.join(found)} at long horizons", sections)
