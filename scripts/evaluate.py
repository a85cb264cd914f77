"""Score a model: python scripts/evaluate.py model=RUN-OR-FOLDER tasks=local tasks.path=DIR [out=DIR] [limit=N]

model=      a run folder (checkpoint=best|last) or a Hugging Face folder in the official format
tasks=local every source, frequency and term of a folder of shards or Parquet files becomes a task by GIFT-Eval's rules
            tasks.terms=short,medium,long   tasks.groups=keep|split (variates forecast together or each alone)
            tasks.include= tasks.exclude= (globs of sources, with commas)   tasks.max_windows=20 (of one series)
            tasks.context=0 (steps of history; 0: what the model was trained on, less the horizon)
tasks=gift_eval|boom|boomlet|fev|time  a leaderboard by its own protocol, from its datasets at tasks.path
            (without: from the Hugging Face hub or its cache)   tasks.list=FILE (its own list of tasks, if elsewhere)
            tasks.include= tasks.exclude= (globs of configurations, 'electricity/*')   tasks.terms= (default: all)
            tasks.groups=keep|split   tasks.context=0 (the benchmark's)   against=DIR (MODEL/all_results.csv of others)
tasks=long_horizon  sums of sinusoids to 8192 steps, in one pass and in blocks; limit=8 series, tasks.context=
            model=A,B,C takes several, plots of each
limit=0     most windows of one task, a fixed random choice; 0 scores all
baselines=  auto_theta,flair (needs pip install 'toto-train[eval]'; the default takes those installed), or none: on a
            whole leaderboard they take many hours, after the model. baselines.context=1024 is their history;
            workers=0 their processes (0: all cores); their scores are kept in DIR.eval, or in cache=
engine=     of local tasks: kernel, or gluonts to have every task scored by gluonts too and see how far the two differ
Tables: source.name= source.domain=observability source.time= source.item= (as in scripts/build_shards.py).
Any: device=auto|cpu|cuda precision=fp32|bf16 processes=1 (for the model, a GPU each where there are enough)
max_points=1048576 (values in a batch) examples=8 (tasks with forecasts drawn) draws=1000 (bootstrap) seed=0
replace=true.

Writes to out=, by default evaluations/MODEL-TASKS: of local tasks scores.json, rows.parquet (every window; one file a
baseline too) and report.html; of a leaderboard MODEL/all_results.csv and config.json, the baselines' beside them,
scores.json and results.jsonl (a line a configuration); of long horizons long_horizon.json and results.jsonl. Killed,
the same command goes on where it was.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.sources.files import FileSource
from toto_train.arguments import fail_on, parse
from toto_train.config import TasksConfig
from toto_train.evaluation import peers

if TYPE_CHECKING:
    from toto_train.evaluation.job import Job
    from toto_train.evaluation.leaderboards.job import LeaderboardJob

TABLE_KEYS = ("name", "domain", "time", "item")
TASKS = TasksConfig(context=0)
DEFAULTS: dict[str, Any] = {
    "tasks": "local",
    "tasks.path": "",
    "tasks.include": "*",
    "tasks.exclude": "",
    "tasks.terms": "",
    "tasks.groups": TASKS.groups,
    "tasks.context": TASKS.context,
    "tasks.max_windows": TASKS.max_windows,
    "limit": TASKS.limit,
    "baselines": "installed",
    "baselines.context": 1024,
    **{f"source.{k}": getattr(FileSource("", "parquet"), k) for k in TABLE_KEYS},
    "out": "",
    "engine": "kernel",
    "checkpoint": "best",
    "device": "auto",
    "precision": "fp32",
    "cache": "",
    "against": "",
    "tasks.list": "",
    "workers": 0,
    "processes": 1,
    "max_points": 2**20,
    "examples": 8,
    "draws": 1000,
    "seed": 0,
    "replace": False,
}
LOCAL_ONLY = ["engine", "tasks.max_windows", "draws", "seed", *(f"source.{key}" for key in TABLE_KEYS)]

STUDY = ["tasks", "out", "tasks.context", "limit", "checkpoint", "device", "precision", "processes", "max_points",
         "seed", "replace"]  # fmt: skip
"""Keys of tasks=long_horizon, beside model."""


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(__doc__, argv, required={"model": str}, optional=DEFAULTS)
    _check(args)
    if args["tasks"] == "long_horizon":
        from toto_train.evaluation import long_horizon

        if other := [key for key in DEFAULTS if args[key] != DEFAULTS[key] and key not in STUDY]:
            raise ValueError(f"{other[0]}= is not for tasks=long_horizon; it takes {', '.join(STUDY)}")
        models = [args["model"]] if Path(args["model"]).exists() else args["model"].split(",")
        study = long_horizon.LongHorizonJob(
            models,
            Path(args["out"] or f"evaluations/{'+'.join(map(_name, models))}-long_horizon"),
            args["tasks.context"],
            args["limit"] or 8,
            **{key: args[key] for key in STUDY[4:]},
        )
        long_horizon.run(study)
        _say_where(study.out, {"report": "report.html", "scores": "long_horizon.json"})
        return 0
    if args["tasks"] != "local":
        from toto_train.evaluation.leaderboards import job as leaderboards

        board = leaderboard_request(args)
        leaderboards.run(board)
        _say_where(board.out, {"report": "report.html", "scores": "scores.json"})
        return 0
    from toto_train.evaluation import job  # here, so that the baselines' processes do without torch

    asked = request(args)
    job.run(asked)
    _say_where(asked.out, {"report": "report.html", "scores": "scores.json", "every window": "rows.parquet"})
    return 0


def _say_where(out: Path, files: dict[str, str]) -> None:
    for what, name in files.items():
        print(f"  {what:<14}{out / name}")


def _check(args: dict[str, Any]) -> None:
    if not args["tasks.path"] and args["tasks"] == "local":
        raise ValueError("missing tasks.path=, the folder of the tasks")
    if args["tasks.groups"] not in ("keep", "split"):
        raise ValueError(f"tasks.groups={args['tasks.groups']} must be keep or split")
    for key in ("limit", "tasks.context", "draws", "workers", "examples"):
        if args[key] < 0:
            raise ValueError(f"{key}={args[key]} must not be negative")
    for key in ("tasks.max_windows", "max_points", "baselines.context", "processes"):
        if args[key] < 1:
            raise ValueError(f"{key}={args[key]} must be positive")


def leaderboard_request(args: dict[str, Any]) -> LeaderboardJob:
    from toto_train.evaluation.leaderboards.benchmarks import Options
    from toto_train.evaluation.leaderboards.job import LeaderboardJob
    from toto_train.evaluation.leaderboards.registry import BENCHMARKS

    if args["tasks"] not in BENCHMARKS:
        raise ValueError(f"tasks={args['tasks']} must be one of local, {', '.join(BENCHMARKS)}, long_horizon")
    if other := [key for key in LOCAL_ONLY if args[key] != DEFAULTS[key]]:
        raise ValueError(f"{other[0]}= is for tasks=local; tasks={args['tasks']} follows its own protocol")
    path = Path(args["tasks.path"])
    return LeaderboardJob(
        model=args["model"],
        benchmark=args["tasks"],
        options=Options(path, args["tasks.context"], args["limit"], args["tasks.groups"] == "split"),
        out=Path(args["out"] or f"evaluations/{_name(args['model'])}-{args['tasks']}"),
        include=_words(args["tasks.include"]),
        exclude=_words(args["tasks.exclude"]),
        terms=_words(args["tasks.terms"]),
        hub=not args["tasks.path"],
        list_of_tasks=args["tasks.list"],
        baselines=_baselines(args["baselines"]),
        baseline_context=args["baselines.context"],
        **{
            key: args[key]
            for key in (
                "against", "cache", "checkpoint", "device", "examples", "max_points", "precision", "processes",
                "replace", "workers",
            )
        },
    )  # fmt: skip


def request(args: dict[str, Any]) -> Job:
    from toto_train.evaluation.job import Job

    if args["against"]:
        raise ValueError(
            "against= is for leaderboards; scripts/compare.py sets evaluations of local tasks side by side"
        )
    path = Path(args["tasks.path"])
    return Job(
        model=args["model"],
        tasks=TasksConfig(
            path=args["tasks.path"],
            include=_words(args["tasks.include"]),
            exclude=_words(args["tasks.exclude"]),
            terms=_words(args["tasks.terms"]) or TASKS.terms,
            groups=args["tasks.groups"],
            context=args["tasks.context"],
            max_windows=args["tasks.max_windows"],
            limit=args["limit"],
        ),
        out=Path(args["out"] or f"evaluations/{_name(args['model'])}-{path.resolve().name}"),
        baselines=_baselines(args["baselines"]),
        baseline_context=args["baselines.context"],
        source=FileSource("", "parquet", **{k: args[f"source.{k}"] for k in TABLE_KEYS}),
        **{
            key: args[key]
            for key in (
                "engine", "checkpoint", "device", "precision", "cache", "workers", "processes", "max_points",
                "examples", "draws", "seed", "replace",
            )
        },
    )  # fmt: skip


def _name(model: str) -> str:
    path = Path(model)
    return path.resolve().parent.name if path.name == "export" else path.resolve().name


def _baselines(text: str) -> list[str]:
    if text == "none":
        return []
    if text != "installed":
        return [name for name in _words(text) if name != "seasonal_naive"]  # that one is always there
    there = [name for name in peers.PEERS if peers.installed(name)]
    if missing := [peer.title for name, peer in peers.PEERS.items() if name not in there]:
        print(f"not scored: {', '.join(missing)}; pip install 'toto-train[eval]' brings them", file=sys.stderr)
    return there


def _words(text: str) -> list[str]:
    return [word for word in text.replace(" ", "").split(",") if word]


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="evaluate"):
        sys.exit(main(sys.argv[1:]))
