"""One benchmark by one model: every configuration scored once, then the leaderboard's tables."""

from __future__ import annotations

import fnmatch
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from toto_train.evaluation.job import check_out, forecaster_of, load, open_out, progress_bar, weights_hash
from toto_train.evaluation.leaderboards import examples
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options
from toto_train.evaluation.leaderboards.board import Board, pick
from toto_train.evaluation.leaderboards.boom import BOOM, BOOMLET, boomlet_table
from toto_train.evaluation.leaderboards.fev_bench import FEV
from toto_train.evaluation.leaderboards.gift_eval import GIFT_EVAL
from toto_train.evaluation.leaderboards.measures import spread
from toto_train.evaluation.leaderboards.published import PUBLISHED
from toto_train.evaluation.leaderboards.report import write_report
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
from toto_train.evaluation.leaderboards.windows import Windows, score
from toto_train.evaluation.processes import share
from toto_train.evaluation.tasks import TERMS
from toto_train.forecast import DTYPES, Forecaster, check_precision, history_steps
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
        "precision": job.precision,
    }
    with open_out(job.out, about, request, job.replace):
        results = Results(job.out / RESULTS)
        forecaster = Forecaster(model.to(device), device, precision=job.precision)
        todo = [c for c in chosen if not results.done(c.name, benchmark.fingerprint(c, job.options))]
        forecasters: Callable[[int], Forecaster] = lambda _: forecaster  # noqa: E731
        if job.processes > 1:
            forecasters = partial(forecaster_of, job.model, job.checkpoint, request["weights"], device, job.precision)
        with progress_bar(len(chosen), benchmark.title) as advance:
            done = len(chosen) - len(todo)
            advance(done)
            for _, line in share(partial(_scorer, job, forecasters), todo, job.processes):
                results.add(line)
                done += 1
                advance(done)
        board = _board(job, benchmark, str(about["model"]), [results.lines[c.name] for c in chosen], others)
        by_name = {c.name: c for c in chosen}
        for line in pick(board, job.examples):
            windows = cut(benchmark, by_name[line["configuration"]], job.options, forecaster)
            board.examples += examples.draw(forecaster, windows, line["configuration"], line["examples"])
        return _sum_up(job, board, about)


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
        "series": rows.series,
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


def _board(
    job: LeaderboardJob,
    benchmark: Benchmark,
    model: str,
    lines: list[dict[str, Any]],
    others: dict[str, dict[str, dict[str, float]]],
) -> Board:
    """The model beside the others and one Seasonal Naive, theirs where they have it."""
    ours = {key: {line["configuration"]: line[key] for line in lines} for key in ("model", NAIVE)}
    own = next((name for name in others if name.lower().replace("_", "") == "seasonalnaive"), None)
    naive = own or benchmark.naive
    scores = {**others, model: ours["model"]}
    scores.setdefault(naive, ours[NAIVE])
    found = tables(scores, naive)
    if not found:
        raise ValueError(f"against={job.against} has no configuration in common with the {len(lines)} scored here")
    source = f"{own} of {job.against}" if own else "computed here"
    return Board(
        benchmark, model, naive, source, lines, found, benchmark.summary(found), PUBLISHED.get(job.benchmark, {})
    )


def _sum_up(job: LeaderboardJob, board: Board, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the tables and the report, print the summary."""
    benchmark, summary, lines = board.benchmark, board.summary, board.lines
    compared = len(next(iter(board.tables.values())))
    facts = {
        "model": board.model,
        "compared": compared,
        "limit": job.options.limit,
        "seasonal_naive": board.source,
        "published": {name: list(pair) for name, pair in board.published.items()},
    }
    write_scores(job.out, benchmark, summary, lines, facts)
    dtype = str(DTYPES[job.precision]).removeprefix("torch.")
    for name, key in ((board.model, "model"), (benchmark.naive, NAIVE)):
        write_folder(job.out, name, key, lines, benchmark, dtype if key == "model" else "float32")
    shown = {**about, "benchmark": benchmark.title, "datasets": job.options.path, "Seasonal Naive": board.source}
    shown["precision"] = job.precision
    shown |= {"limit": f"{job.options.limit} windows of a configuration"} if job.options.limit else {}
    shown |= {"against": job.against} if job.against else {}
    write_report(job.out / "report.html", board, {key: str(value) for key, value in shown.items()})
    share = f"{compared:,} of {benchmark.size:,} configurations"
    if job.options.limit:
        share += f", at most {job.options.limit} windows of each"
    for part, of in summary.items():
        published = board.published if part != "unscaled" else {}
        note = f"{part} ({of['configurations']:,}), {share}" if "configurations" in of else f"{part}, {share}"
        sys.stdout.write(text(benchmark, note, of["forecasters"], published) + "\n")
        for metric, left_out in of.get("without_ratio", {}).items():
            if left_out:
                log.warning("%s leaves out %d configurations without a ratio: %s", metric, len(left_out), left_out[:9])
        if not all(math.isfinite(v) for row in of["forecasters"].values() for v in row.values()):
            log.warning("%s: a score of 0 of Seasonal Naive makes a mean infinite or undefined", part)
    if board.published and (compared < benchmark.size or job.options.limit):
        log.warning("the published scores are of all %d configurations, whole", benchmark.size)
    return summary
