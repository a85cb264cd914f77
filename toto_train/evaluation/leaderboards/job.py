"""One benchmark by one model: every configuration scored once, then the leaderboard's tables."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation import cache, peers
from toto_train.evaluation.job import check_out, forecaster_of, load, open_out, progress_bar, weights_hash
from toto_train.evaluation.leaderboards import examples
from toto_train.evaluation.leaderboards.baselines import Baselines
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options
from toto_train.evaluation.leaderboards.board import Scored, pick
from toto_train.evaluation.leaderboards.boom import BOOMLET, boomlet_table
from toto_train.evaluation.leaderboards.finish import board_of, plain, sum_up
from toto_train.evaluation.leaderboards.measures import spread
from toto_train.evaluation.leaderboards.registry import BENCHMARKS
from toto_train.evaluation.leaderboards.results import NAIVE, RESULTS, Results, read_others
from toto_train.evaluation.leaderboards.windows import Windows, score
from toto_train.evaluation.plots import duration
from toto_train.evaluation.processes import cores, share
from toto_train.evaluation.tasks import TERMS
from toto_train.forecast import Forecaster, check_precision, history_steps
from toto_train.ranks import pick_device

log = logging.getLogger(__name__)


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
    baselines: list[str] = field(default_factory=list)
    """Of `peers.PEERS`; what `against` has of them is taken from there."""
    baseline_context: int = 1024
    cache: str = ""
    """Folder of the baselines' scores; empty: beside the datasets."""
    workers: int = 0
    """Processes for baselines; 0: as many as cores."""
    checkpoint: str = "best"
    device: str = "auto"
    precision: str = "fp32"
    """fp32 | bf16: what forecasts are computed in."""
    max_points: int = 2**20
    processes: int = 1
    """Configurations scored side by side."""
    examples: int = 8
    """Configurations whose forecasts the report shows."""
    replace: bool = False


def run(job: LeaderboardJob) -> dict[str, Any]:
    """Score, write `job.out`, print the table; returns the summary. The same call goes on with a killed one."""
    if wrong := [term for term in job.terms if term not in TERMS]:
        raise ValueError(f"tasks.terms: {wrong[0]!r} is not one of {', '.join(TERMS)}")
    check_precision(job.precision)
    peers.check(job.baselines)
    benchmark = BENCHMARKS[job.benchmark]
    check_out(job.out)
    others = read_others(job.against, benchmark.columns)
    beside = job.cache
    if job.hub:
        beside = beside or str(job.out.parent / f"{job.benchmark}.eval")  # the hub's cache is not ours to write to
        job = replace(job, options=replace(job.options, path=from_hub(benchmark)))
    chosen = _chosen(job, benchmark)
    # a reader that is missing is told before the model is loaded
    benchmark.windows(chosen[0], job.options, benchmark.context)
    device = pick_device(job.device)
    model, about, _ = load(job.model, job.checkpoint)
    names = [name for name in job.baselines if plain(name) not in map(plain, others)]
    if about["model"] in (*names, benchmark.naive):
        raise ValueError(f"model={job.model} has the name of a baseline; rename the folder")
    kept = cache.cache_folder(job.options.path, beside) if names else job.out
    baselines = Baselines(job.benchmark, job.options, chosen, job.baseline_context, kept, job.workers or cores())
    request = {
        "weights": weights_hash(model),
        "benchmark": job.benchmark,
        **{k: v for k, v in vars(job.options).items() if k != "path"},
        "precision": job.precision,
    }
    with open_out(job.out, about, request, job.replace):
        results = Results(job.out / RESULTS)
        forecaster = Forecaster(model.to(device), device, precision=job.precision)
        todo = [c for c in chosen if not results.done(c.name, benchmark.fingerprint(c, job.options))]
        forecasters: Callable[[int], Forecaster] = lambda _: forecaster  # noqa: E731
        if job.processes > 1:
            forecasters = partial(forecaster_of, job.model, job.checkpoint, request["weights"], device, job.precision)
        with progress_bar(len(chosen), str(about["model"]), "configuration") as advance:
            done = len(chosen) - len(todo)
            advance(done)
            for _, line in share(partial(_scorer, job, forecasters), todo, job.processes):
                results.add(line)
                done += 1
                advance(done)
        lines = [results.lines[c.name] for c in chosen]
        by_name = {c.name: c for c in chosen}

        def finish(made: dict[str, Scored], show: bool = True) -> dict[str, Any]:
            """Tables and report of what is there."""
            board = board_of(job, benchmark, str(about["model"]), lines, others, made)
            for line in pick(board, job.examples):
                windows = cut(benchmark, by_name[line["configuration"]], job.options, forecaster)
                board.examples += examples.draw(forecaster, windows, line["configuration"], line["examples"])
            return sum_up(job, board, about, show)

        made: dict[str, Scored] = {}
        seen = False
        for name in sorted(names, key=lambda name: peers.PEERS[name].seconds):
            if count := sum(results.lines[c.name]["forecasts"] for c in baselines.left(name)):
                finish(made, show=not seen)  # safe, and the model's seen, before a slower one begins
                seen = True
            made[name] = _baseline(baselines, name, count)
        return finish(made)


def _baseline(baselines: Baselines, name: str, count: int) -> Scored:
    """Scores of a baseline; the user hears what `count` forecasts take."""
    peer = peers.PEERS[name]
    if count:
        log.info(
            "%s: %s forecasts, roughly %s on %d cores; kept in %s, so that the next model has them at once. "
            "Killed, the same command goes on; baselines=none does without", peer.title, f"{count:,}",
            duration(max(1.0, count * peer.seconds / baselines.workers)), baselines.workers, baselines.folder,
        )  # fmt: skip
    with progress_bar(count, peer.title, "forecast") as advance:
        return baselines.compute(name, advance)


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
    if not job.options.path.is_dir():
        raise ValueError(f"tasks.path={job.options.path} is no folder; give that of the datasets of {benchmark.title}")
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


def cut(benchmark: Benchmark, c: Configuration, options: Options, forecaster: Forecaster) -> Windows:
    """Windows of a configuration, with as much history as the benchmark's context leaves."""
    windows = benchmark.windows(c, options, benchmark.context)
    if not options.context:  # the published models' context_length counts the patches that a pass appends
        horizon = int(windows.windows["horizon"][0])
        history = history_steps(benchmark.context, horizon, forecaster.model.config.patch_size)
        windows.windows["context"] = windows.windows["context"].clip(max=history)
    return windows


def _scorer(
    job: LeaderboardJob, forecasters: Callable[[int], Forecaster], rank: int
) -> Callable[[Configuration], dict[str, Any]]:
    forecaster, benchmark = forecasters(rank), BENCHMARKS[job.benchmark]

    def line(c: Configuration) -> dict[str, Any]:
        data = benchmark.fingerprint(c, job.options)  # before it is read: what changes meanwhile is scored again
        return scored(benchmark, c, job.options, forecaster, job.max_points) | {"data": data}

    return line


def scored(
    benchmark: Benchmark, c: Configuration, options: Options, forecaster: Forecaster, max_points: int = 2**20
) -> dict[str, Any]:
    """One line of the results."""
    windows = cut(benchmark, c, options, forecaster)
    rows = score(forecaster, windows, max_points)
    assert rows.naive is not None
    return {
        "configuration": c.name,
        "dataset": c.folder,
        "domain": c.domain,
        "num_variates": c.num_variates,
        "term": c.term,
        "frequency": windows.tasks[0].frequency,
        "groups": c.groups,
        "horizon": int(windows.windows["horizon"][0]),
        "season": int(windows.windows["season"][0]),
        "context": int(windows.windows["context"].max()),
        "series": len(np.unique(windows.windows["series"])),
        "windows": rows.windows,
        "forecasts": len(rows.variate),
        "seconds_per_series": rows.seconds / max(len(rows.variate), 1),
        **({"settings": c.settings} if c.settings else {}),
        "seconds": rows.seconds,
        "model": benchmark.measure(rows, rows.model, c.settings),
        NAIVE: benchmark.measure(rows, rows.naive, c.settings),
        "spread": {"model": spread(rows.model), NAIVE: spread(rows.naive)},
        "examples": examples.find(rows),
    }
