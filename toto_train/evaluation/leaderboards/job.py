"""One benchmark by one model: every configuration scored once, then the leaderboard's tables."""

from __future__ import annotations

import fnmatch
import logging
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toto_train.evaluation.job import check_out, load, open_out, progress_bar, weights_hash
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options
from toto_train.evaluation.leaderboards.boom import BOOM, BOOMLET, boomlet_table
from toto_train.evaluation.leaderboards.fev_bench import FEV
from toto_train.evaluation.leaderboards.gift_eval import GIFT_EVAL
from toto_train.evaluation.leaderboards.published import PUBLISHED
from toto_train.evaluation.leaderboards.results import (
    NAIVE,
    RESULTS,
    Results,
    read_others,
    tables,
    text,
    write_folder,
    write_scores,
)
from toto_train.evaluation.leaderboards.time_bench import TIME
from toto_train.evaluation.leaderboards.windows import score
from toto_train.evaluation.tasks import TERMS
from toto_train.forecast import Forecaster, history_steps
from toto_train.ranks import pick_device

log = logging.getLogger(__name__)

BENCHMARKS: dict[str, Benchmark] = {
    "gift_eval": GIFT_EVAL, "boom": BOOM, "boomlet": BOOMLET, "fev": FEV, "time": TIME,
}  # fmt: skip


@dataclass
class LeaderboardJob:
    """What scripts/evaluate.py is asked for with tasks= one of BENCHMARKS."""

    model: str
    benchmark: str
    options: Options
    out: Path
    include: list[str] = field(default_factory=lambda: ["*"])
    """Globs of configurations; all of a term: */short."""
    exclude: list[str] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    """Empty: all that the benchmark has."""
    hub: bool = False
    """Take the datasets from the Hugging Face hub or its cache, whatever options.path is."""
    list_of_tasks: str = ""
    """The benchmark's own file of tasks (BOOM, fev, TIME); empty: it lies beside the datasets."""
    against: str = ""
    """A leaderboard's folder of results: MODEL/all_results.csv of other forecasters, Seasonal Naive's perhaps."""
    checkpoint: str = "best"
    device: str = "auto"
    max_points: int = 2**20
    replace: bool = False


def run(job: LeaderboardJob) -> dict[str, Any]:
    """Score, write `job.out`, print the table; returns the summary. The same call goes on with a killed one."""
    if wrong := [term for term in job.terms if term not in TERMS]:
        raise ValueError(f"tasks.terms: {wrong[0]!r} is not one of {', '.join(TERMS)}")
    benchmark = BENCHMARKS[job.benchmark]
    check_out(job.out)
    others = read_others(job.against, benchmark.columns)
    if job.hub:
        job = replace(job, options=replace(job.options, path=from_hub(benchmark)))
    chosen = _chosen(job, benchmark)
    device = pick_device(job.device)
    model, about, _ = load(job.model, job.checkpoint)
    request = {
        "weights": weights_hash(model),
        "benchmark": job.benchmark,
        **{k: v for k, v in vars(job.options).items() if k != "path"},
        "precision": "fp32",
    }
    with open_out(job.out, about, request, job.replace):
        results = Results(job.out / RESULTS)
        forecaster = Forecaster(model.to(device), device)
        with progress_bar(len(chosen), benchmark.title) as advance:
            for n, c in enumerate(chosen):
                data = benchmark.fingerprint(c, job.options)
                if not results.done(c.name, data):
                    line = scored(benchmark, c, job.options, forecaster, job.max_points)
                    results.add(line | {"data": data})
                advance(n + 1)
        lines = [results.lines[c.name] for c in chosen]
        return _sum_up(job, benchmark, str(about["model"]), lines, others)


def from_hub(benchmark: Benchmark) -> Path:
    """The benchmark's datasets from the Hugging Face hub, or from its cache on this machine (HF_HUB_OFFLINE=1)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    only = [f"{c.folder}/*" for c in boomlet_table()] if benchmark is BOOMLET else None
    try:
        return Path(snapshot_download(benchmark.repository, repo_type="dataset", allow_patterns=only))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{benchmark.title}: {benchmark.repository} is neither in the cache nor to be had from the hub "
            f"({type(error).__name__}); give the folder of its datasets, tasks.path="
        ) from error


def _chosen(job: LeaderboardJob, benchmark: Benchmark) -> list[Configuration]:
    found = benchmark.configurations(job.options.path, Path(job.list_of_tasks) if job.list_of_tasks else None)
    kept = [
        c
        for c in found
        if (not job.terms or c.term in job.terms)
        and any(fnmatch.fnmatchcase(c.name, glob) for glob in job.include)
        and not any(fnmatch.fnmatchcase(c.name, glob) for glob in job.exclude)
    ]
    if not kept:
        raise ValueError(
            f"no configuration is left of {len(found)} such as {found[0].name}; see tasks.include={job.include}, "
            f"tasks.exclude={job.exclude} and tasks.terms={job.terms}"
        )
    return kept


def scored(
    benchmark: Benchmark, c: Configuration, options: Options, forecaster: Forecaster, max_points: int = 2**20
) -> dict[str, Any]:
    """One line of the results."""
    windows = benchmark.windows(c, options, benchmark.context)
    horizon = int(windows.windows["horizon"][0])
    if not options.context:  # the published models' context_length counts the patches that a pass appends
        history = history_steps(benchmark.context, horizon, forecaster.model.config.patch_size)
        windows.windows["context"] = windows.windows["context"].clip(max=history)
    rows = score(forecaster, windows, max_points)
    return {
        "configuration": c.name,
        "domain": c.domain,
        "num_variates": c.num_variates,
        "term": c.term,
        "horizon": horizon,
        "season": int(windows.windows["season"][0]),
        "context": int(windows.windows["context"].max()),
        "series": rows.series,
        "windows": rows.windows,
        "forecasts": len(rows.variate),
        "seconds_per_series": rows.seconds / max(len(rows.variate), 1),
        **({"settings": c.settings} if c.settings else {}),
        "seconds": rows.seconds,
        "model": benchmark.measure(rows, rows.model, c.settings),
        NAIVE: benchmark.measure(rows, rows.naive, c.settings),
    }


def _sum_up(
    job: LeaderboardJob,
    benchmark: Benchmark,
    model: str,
    lines: list[dict[str, Any]],
    others: dict[str, dict[str, dict[str, float]]],
) -> dict[str, Any]:
    """Write the tables and print the summary."""
    ours = {key: {line["configuration"]: line[key] for line in lines} for key in ("model", NAIVE)}
    own = next((name for name in others if name.lower().replace("_", "") == "seasonalnaive"), None)
    naive = own or benchmark.naive
    scores = {**others, model: ours["model"]}
    scores.setdefault(naive, ours[NAIVE])
    found = tables(scores, naive)
    compared = len(next(iter(found.values()))) if found else 0
    if not compared:
        raise ValueError(f"against={job.against} has no configuration in common with the {len(lines)} scored here")
    summary = benchmark.summary(found)
    facts = {
        "model": model,
        "compared": compared,
        "limit": job.options.limit,
        "seasonal_naive": f"{own} of {job.against}" if own else "computed here",
        "published": {name: list(pair) for name, pair in PUBLISHED.get(job.benchmark, {}).items()},
    }
    write_scores(job.out, benchmark, summary, lines, facts)
    for name, key in ((model, "model"), (benchmark.naive, NAIVE)):
        write_folder(job.out, name, key, lines, benchmark)
    share = f"{compared:,} of {benchmark.size:,} configurations"
    if job.options.limit:
        share += f", at most {job.options.limit} windows of each"
    for part, of in summary.items():
        published = PUBLISHED.get(job.benchmark, {}) if part != "unscaled" else {}
        note = f"{part} ({of['configurations']:,}), {share}" if "configurations" in of else f"{part}, {share}"
        sys.stdout.write(text(benchmark, note, of["forecasters"], published) + "\n")
        for metric, left_out in of.get("without_ratio", {}).items():
            if left_out:
                log.warning("%s leaves out %d configurations without a ratio: %s", metric, len(left_out), left_out[:9])
        if not all(math.isfinite(v) for row in of["forecasters"].values() for v in row.values()):
            log.warning("%s: a score of 0 of Seasonal Naive makes a mean infinite or undefined", part)
    if PUBLISHED.get(job.benchmark) and (compared < benchmark.size or job.options.limit):
        log.warning("the published scores are of all %d configurations, whole", benchmark.size)
    return summary
