"""TIME (Qiao et al. 2026, arXiv:2602.12147): saved datasets NAME/FREQ and datasets.yaml, which gives every one its test
length and the horizon of each term."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from toto_train.evaluation.leaderboards import aggregate, folders, gift_eval
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options, Tables, plain_row
from toto_train.evaluation.leaderboards.measures import of_time
from toto_train.evaluation.leaderboards.windows import Cut, Windows, side_by_side
from toto_train.evaluation.tasks import TERMS, Task

SETTINGS = "datasets.yaml"
COLUMNS = ("MASE", "CRPS", "MAE", "MSE")


def configurations(path: Path, file: Path | None = None) -> list[Configuration]:
    """Every term that datasets.yaml has of a dataset that is there."""
    file = file or path / SETTINGS
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: it lies in src/timebench/config of github.com/zqiao11/TIME (tasks.list=FILE)"
        )
    try:
        named = yaml.safe_load(file.read_text(encoding="utf-8"))["datasets"]
        table = [
            Configuration(
                f"{name}/{term}",
                name,
                term,
                settings={"test_length": int(of["test_length"]), "horizon": int(of[term]["prediction_length"])},
            )
            for name, of in named.items()
            for term in TERMS
            if term in of
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error!r}); fetch it again") from error
    found = [c for c in table if folders.is_saved(path / c.folder)]
    if not found:
        raise ValueError(
            f"tasks.path={path} holds none of the {len(named)} datasets that {SETTINGS} names; "
            "huggingface-cli download Real-TSF/TIME --repo-type dataset --local-dir DIR fetches them"
        )
    return found


def seasonal_error(past: np.ndarray, season: int) -> np.ndarray:
    """past [V, T] -> [V]: mean |y[t] - y[t - season]| over what is observed, gaps closed; NaN without a full season."""
    found = np.full(len(past), np.nan)
    for v, y in enumerate(past):
        y = y[np.isfinite(y)].astype(np.float64)
        if len(y) > season:
            found[v] = np.abs(y[season:] - y[:-season]).mean()
    return found


def windows(c: Configuration, options: Options, context: int) -> Windows:
    """Side by side from `test_length` steps before the end on, as many as fit, at least one."""
    store = gift_eval.opened(options.path, c.folder)
    horizon, first = c.settings["horizon"], c.settings["test_length"]
    lengths = store.index(c.folder)["length"]
    if first > lengths.min():
        raise ValueError(f"{c.name}: test_length={first} exceeds the shortest series of {lengths.min()} steps")
    starts = side_by_side(lengths.tolist(), first, horizon, max(1, first // horizon))
    season = folders.season_of_freq(store.freq)
    cut = Cut(c.name, horizon, season, starts, options.context or context, options.split)
    return Windows(store, Task(c.folder, store.interval, c.term, ""), cut, options.limit, seasonal_error)


def fingerprint(c: Configuration, options: Options) -> str:
    return f"{gift_eval.fingerprint(c, options)} {sorted(c.settings.items())}"


def summary(tables: Tables) -> dict[str, Any]:
    """MASE and CRPS: geometric mean of the ratios to Seasonal Naive, and mean rank."""
    return aggregate.ratio_summary({name: tables[name] for name in ("MASE", "CRPS")})


def row(name: str, line: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    return plain_row(name, line, metrics, prefix="")


TIME = Benchmark(
    "TIME",
    4096,
    98,
    "Real-TSF/TIME",
    configurations,
    windows,
    fingerprint,
    of_time,
    COLUMNS,
    row,
    summary,
    {"CRPS": "CRPS", "MASE": "MASE"},
)
