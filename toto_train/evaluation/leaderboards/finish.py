"""What is made of scored configurations: the board of all forecasters, its tables, its report, what is printed."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toto_train.evaluation import peers
from toto_train.evaluation.leaderboards.benchmarks import Benchmark
from toto_train.evaluation.leaderboards.board import Board, Scored
from toto_train.evaluation.leaderboards.published import PUBLISHED
from toto_train.evaluation.leaderboards.report import write_report
from toto_train.evaluation.leaderboards.results import NAIVE, tables, text, write_folder, write_scores
from toto_train.evaluation.page import seconds
from toto_train.forecast import DTYPES

if TYPE_CHECKING:
    from toto_train.evaluation.leaderboards.job import LeaderboardJob

log = logging.getLogger(__name__)


def board_of(
    job: LeaderboardJob,
    benchmark: Benchmark,
    model: str,
    lines: list[dict[str, Any]],
    others: dict[str, Scored],
    baselines: dict[str, Scored],
) -> Board:
    """The model beside the others and one Seasonal Naive, theirs where they have it."""
    ours = {key: {line["configuration"]: line[key] for line in lines} for key in ("model", NAIVE)}
    own = next((name for name in others if plain(name) == "seasonalnaive"), None)
    naive = own or benchmark.naive
    scores = {**others, model: ours["model"]}
    scores |= {name: {c: line["scores"] for c, line in of.items()} for name, of in baselines.items()}
    scores.setdefault(naive, ours[NAIVE])
    found = tables(scores, naive)
    if not found:
        raise ValueError(f"against={job.against} has no configuration in common with the {len(lines)} scored here")
    source = f"{own} of {job.against}" if own else "computed here"
    return Board(
        benchmark, model, naive, source, lines, found, benchmark.summary(found), PUBLISHED.get(job.benchmark, {}),
        baselines=baselines,
    )  # fmt: skip


def plain(name: str) -> str:
    """Leaderboards write auto_theta or autotheta."""
    return name.lower().replace("_", "").replace("-", "")


def sum_up(job: LeaderboardJob, board: Board, about: Mapping[str, Any], show: bool = True) -> dict[str, Any]:
    """Write the tables and the report, print the summary if it is to be shown."""
    benchmark, summary, lines = board.benchmark, board.summary, board.lines
    compared = len(next(iter(board.tables.values())))
    facts: dict[str, Any] = {
        "model": board.model,
        "compared": compared,
        "limit": job.options.limit,
        "seasonal_naive": board.source,
        "published": {name: list(pair) for name, pair in board.published.items()},
        "baselines": {
            name: {
                "version": peers.version(name),
                "context": job.baseline_context,
                "forecasts": sum(line["forecasts"] for line in of.values()),
                "fallbacks": sum(line["fallbacks"] for line in of.values()),
                "seconds_per_series": board.seconds_per_series(name),
            }
            for name, of in board.baselines.items()
        },
    }
    with_baselines = [
        line | {name: of[line["configuration"]]["scores"] for name, of in board.baselines.items()} for line in lines
    ]
    write_scores(job.out, benchmark, summary, with_baselines, facts)
    dtype = str(DTYPES[job.precision]).removeprefix("torch.")
    for name, key in ((board.model, "model"), (benchmark.naive, NAIVE)):
        rows = [benchmark.row(name, line, line[key]) for line in lines]
        write_folder(job.out, name, rows, dtype if key == "model" else "float32", key == "model")
    for name, of in board.baselines.items():
        made = [(line, of[line["configuration"]]) for line in lines]
        rows = [benchmark.row(name, line | {"seconds": own["seconds"]}, own["scores"]) for line, own in made]
        write_folder(job.out, name, rows, "float64", False)
    shown = {**about, "benchmark": benchmark.title, "datasets": job.options.path, "Seasonal Naive": board.source}
    shown["precision"] = job.precision
    shown |= {"limit": f"{job.options.limit} windows of a configuration"} if job.options.limit else {}
    shown |= {"against": job.against} if job.against else {}
    for name, of in facts["baselines"].items():
        shown[peers.PEERS[name].title] = (
            f"{of['version']}, last {of['context']} steps, {of['fallbacks']:,} of {of['forecasts']:,} forecasts fell "
            "back to Seasonal Naive"
        )
    write_report(job.out / "report.html", board, {key: str(value) for key, value in shown.items()})
    if show:
        _show(job, board, compared)
    return summary


def _show(job: LeaderboardJob, board: Board, compared: int) -> None:
    benchmark, summary = board.benchmark, board.summary
    share = f"{compared:,} of {benchmark.size:,} configurations"
    if job.options.limit:
        share += f", at most {job.options.limit} windows of each"
    spent = {name: board.seconds_per_series(name) for name in (board.model, *board.baselines)}
    for part, of in summary.items():
        published = board.published if part != "unscaled" else {}
        note = f"{part} ({of['configurations']:,}), {share}" if "configurations" in of else f"{part}, {share}"
        sys.stdout.write(text(benchmark, note, of["forecasters"], published) + "\n")
        for metric, left_out in of.get("without_ratio", {}).items():
            if left_out:
                log.warning("%s leaves out %d configurations without a ratio: %s", metric, len(left_out), left_out[:9])
        if not all(math.isfinite(v) for row in of["forecasters"].values() for v in row.values()):
            log.warning("%s: a score of 0 of Seasonal Naive makes a mean infinite or undefined", part)
    sys.stdout.write(f"a series takes {', '.join(f'{name} {seconds(value)}' for name, value in spent.items())}\n")
    if board.published and (compared < benchmark.size or job.options.limit):
        log.warning("the published scores are of all %d configurations, whole", benchmark.size)
