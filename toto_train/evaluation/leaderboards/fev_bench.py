"""fev-bench (Shchur et al. 2025, arXiv:2509.26468): tasks.yaml, and a folder of Parquet files for each dataset.

A row of a file is a series: an id, a list of timestamps, lists of values by column. Rules as in fev 0.10. Targets alone
are read: covariates are not given to the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from toto_train.evaluation.baselines import LEVELS, seasonal_scale
from toto_train.evaluation.leaderboards import aggregate
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options, Tables
from toto_train.evaluation.leaderboards.measures import of_fev
from toto_train.evaluation.leaderboards.windows import Cut, Windows
from toto_train.evaluation.tasks import Task

TASKS = "tasks.yaml"
RULES = "0.10.0"
"""Version of fev whose rules these are."""
COLUMNS = ("SQL", "MASE", "WQL", "WAPE")
SUMMED = COLUMNS[:3]
_DEFAULTS: dict[str, Any] = {
    "dataset_path": None, "dataset_config": None, "horizon": 1, "num_windows": 1, "initial_cutoff": None,
    "window_step_size": None, "min_context_length": 1, "max_context_length": None, "seasonality": 1,
    "eval_metric": "MASE", "extra_metrics": [], "quantile_levels": [], "id_column": "id",
    "timestamp_column": "timestamp", "target": "target", "generate_univariate_targets_from": None,
    "known_dynamic_columns": [], "past_dynamic_columns": [], "static_columns": [], "task_name": None,
}  # fmt: skip
"""Fields of a task."""


def complete(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task with all its fields; ValueError for what is not a task or asks for other quantiles than ours."""
    if unknown := set(task) - set(_DEFAULTS):
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    found = {name: task.get(name, default) for name, default in _DEFAULTS.items()}
    if not found["dataset_config"]:
        raise ValueError("a task without dataset_config")
    name = found["task_name"] = found["task_name"] or found["dataset_config"]
    if sorted(found["quantile_levels"]) != LEVELS.tolist():
        raise ValueError(f"{name}: quantile_levels={found['quantile_levels']} are not 0.1 ... 0.9")
    for key in ("target", "known_dynamic_columns", "past_dynamic_columns", "static_columns"):
        if isinstance(found[key], list):
            found[key] = sorted(found[key])
    step = found["window_step_size"] = found["window_step_size"] or found["horizon"]
    if found["initial_cutoff"] is None:
        found["initial_cutoff"] = -found["horizon"] - (found["num_windows"] - 1) * step
    if not isinstance(found["initial_cutoff"], int):
        found["initial_cutoff"] = pd.Timestamp(found["initial_cutoff"]).isoformat()
    return found


def configurations(path: Path, file: Path | None = None) -> list[Configuration]:
    """Tasks whose dataset is there."""
    file = file or path / TASKS
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: it lies in benchmarks/fev_bench of github.com/autogluon/fev (tasks.list=FILE)"
        )
    try:
        tasks = [complete(task) for task in yaml.safe_load(file.read_text(encoding="utf-8"))["tasks"]]
        names = [t["task_name"] for t in tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no list of tasks ({error})") from error
    found = [
        Configuration(str(t["task_name"]), str(t["dataset_config"]), num_variates=_width(t), settings=t)
        for t in sorted(tasks, key=lambda t: str(t["dataset_config"]))
        if any((path / str(t["dataset_config"])).glob("*.parquet"))
    ]
    if not found:
        raise ValueError(
            f"tasks.path={path} holds no dataset of {TASKS}, such as {tasks[0]['dataset_config']}/*.parquet; "
            "huggingface-cli download autogluon/fev_datasets --repo-type dataset --local-dir DIR fetches them"
        )
    return found


def _width(task: Mapping[str, Any]) -> int:
    return len(task["target"]) if isinstance(task["target"], list) else 1


class Series:
    """Targets of one task, in the order of their ids; a store of one source for `TaskSet`."""

    def __init__(self, path: Path, task: Mapping[str, Any]):
        import pyarrow.parquet as pq

        key, clock, self.name = task["id_column"], task["timestamp_column"], str(task["dataset_config"])
        folder = path / self.name
        target, among = task["target"], task["generate_univariate_targets_from"]
        table = pq.read_table(sorted(folder.glob("*.parquet")))
        lists = [f.name for f in table.schema if hasattr(f.type, "value_type") and f.name != clock]
        columns = lists if among == "__ALL__" else among or ([target] if isinstance(target, str) else target)
        present = {*lists, *{key, clock}.intersection(table.column_names)}
        if missing := [c for c in (key, clock, *columns) if c not in present]:
            raise ValueError(f"{folder}: there is no column {missing[0]!r} with a list of values a series")
        if not table.num_rows:
            raise ValueError(f"{folder} holds no series")
        ids = [str(i) for i in table[key].to_pylist()]
        groups = [[c] for c in columns] if among else [list(columns)]
        entries = [(f"{i}_{g[0]}" if among else i, n, g) for n, i in enumerate(ids) for g in groups]
        self._table, self._clock, self.sources = table, clock, (self.name,)
        self._entries = sorted(entries, key=lambda entry: entry[0])
        lengths = np.array([len(table[clock][n]) for n in range(table.num_rows)])
        self._index = np.ones(len(entries), [("length", "i8"), ("variates", "i8")])
        self._index["length"] = lengths[[n for _, n, _ in self._entries]]
        self._index["variates"] = len(groups[0])

    @property
    def fingerprint(self) -> str:
        return self.name

    def index(self, source: str) -> np.ndarray:
        return self._index

    def values(self, source: str, i: int) -> np.ndarray:
        """float32 [V, T] of series i."""
        _, n, columns = self._entries[i]
        return np.stack([self._table[c][n].values.to_numpy(zero_copy_only=False).astype(np.float32) for c in columns])

    def past_features(self, i: int) -> np.ndarray:
        return np.empty((0, int(self._index["length"][i])), np.float32)

    def meta(self, source: str, i: int) -> dict[str, Any]:
        item, _, columns = self._entries[i]
        return {"item_id": item, "variate_names": columns}

    def timestamps(self, i: int) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self._table[self._clock][self._entries[i][1]].values.to_pandas())


@lru_cache(maxsize=1)
def _opened(path: Path, task: str, version: str) -> Series:
    return Series(path, yaml.safe_load(task))


def cutoffs(store: Series, task: Mapping[str, Any]) -> np.ndarray:
    """[windows, S] steps before each evaluation window in every series; a date cuts after the last step up to it."""
    first, step, count = task["initial_cutoff"], task["window_step_size"], int(task["num_windows"])
    lengths = store.index("")["length"]
    if isinstance(first, int):
        found = np.array([first + k * step for k in range(count)])[:, None]
        return np.clip(np.where(found >= 0, found, lengths + found), 0, lengths)
    if isinstance(step, str):
        offset = pd.tseries.frequencies.to_offset(step)
    else:
        offset = pd.tseries.frequencies.to_offset(pd.infer_freq(store.timestamps(0))) * step
    begin = pd.Timestamp(first)
    dates = [begin + k * offset if k else begin for k in range(count)]  # an anchored offset would move the first
    clocks = [store.timestamps(i) for i in range(len(lengths))]
    return np.array([[int(clock.searchsorted(date, side="right")) for clock in clocks] for date in dates])


def windows(c: Configuration, options: Options, context: int) -> Windows:
    """Of every series with enough steps before and after the cutoff."""
    task = c.settings
    store = _opened(options.path, yaml.safe_dump(dict(task)), fingerprint(c, options))
    lengths, horizon, most = store.index("")["length"], int(task["horizon"]), task["max_context_length"]
    starts, rounds = [], []
    for number, cut in enumerate(cutoffs(store, task)):
        fits = np.flatnonzero((cut >= task["min_context_length"]) & (lengths - cut >= horizon)).tolist()
        starts += [(i, int(cut[i])) for i in fits]
        rounds += [number] * len(fits)
    clock = store.timestamps(0)
    interval = float(np.median(np.diff(clock.to_numpy()).astype("timedelta64[ms]").astype(float)) / 1000)

    def seasonal_error(past: np.ndarray, season: int) -> np.ndarray:
        past = past[:, -most:] if most else past
        return seasonal_scale(past, season)[0] if season < past.shape[1] else np.full(len(past), np.nan)

    steps = min(options.context or context, most or np.inf)
    made = Cut(c.name, horizon, int(task["seasonality"]), starts, int(steps), options.split, rounds)
    return Windows(store, Task(store.name, interval, c.term, ""), made, options.limit, seasonal_error)


def fingerprint(c: Configuration, options: Options) -> str:
    """Of the task, and of names, sizes and times of its files."""
    digest = hashlib.sha256(repr(sorted(c.settings.items())).encode())
    for file in sorted((options.path / c.folder).glob("*.parquet")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def row(name: str, line: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """A summary as fev writes it, which fev.leaderboard() reads beside the published ones."""
    task = line["settings"]
    metric = task["eval_metric"]
    return {
        "model_name": name,
        **task,
        "test_error": metrics[metric["name"] if isinstance(metric, dict) else metric],
        "training_time_s": 0.0,
        "inference_time_s": line["seconds"] if name != FEV.naive else None,
        "num_forecasts": line["forecasts"],
        "trained_on_this_dataset": False,
        "fev_version": RULES,
        **metrics,
    }


def summary(tables: Tables) -> dict[str, Any]:
    """By SQL, MASE and WQL: win rate and skill score, each with its 95 % interval over tasks."""
    found = {}
    for metric in SUMMED:
        board = aggregate.fev(tables[metric])
        forecasters = {str(f): {str(k): float(v) for k, v in of.items()} for f, of in board.iterrows()}
        found[metric] = {"forecasters": forecasters}
    return found


FEV = Benchmark(
    "fev-bench",
    4096,
    100,
    "autogluon/fev_datasets",
    configurations,
    windows,
    fingerprint,
    of_fev,
    COLUMNS,
    row,
    summary,
    {name: name for name in SUMMED},
    aggregate.clipped,
    higher=True,
)
