"""What a benchmark is: its configurations, how their windows are cut and measured, and how it sums them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from toto_train.evaluation.leaderboards import aggregate
from toto_train.evaluation.leaderboards.measures import Measure
from toto_train.evaluation.leaderboards.windows import Windows

Tables = dict[str, pd.DataFrame]
"""Metric -> one row a configuration, one column a forecaster."""


@dataclass(frozen=True)
class Configuration:
    """One row of a benchmark's results."""

    name: str
    """As the leaderboard calls it, 'electricity/15T/short'."""
    folder: str
    """Of the dataset, below tasks.path."""
    term: str = "short"
    domain: str = ""
    num_variates: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    """What else the benchmark's own files say of it."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Further kinds that it is of, by what tells them apart; a domain here goes before `domain`."""


@dataclass(frozen=True)
class Options:
    """What the user may change about the windows. context: 0 keeps the benchmark's; limit: most windows of one."""

    path: Path
    context: int = 0
    limit: int = 0
    split: bool = False


@dataclass(frozen=True)
class Benchmark:
    """One leaderboard."""

    title: str
    context: int
    """Steps that the network reads, as the published results have it."""
    size: int
    """Configurations of the whole benchmark."""
    repository: str
    """Of the datasets on the Hugging Face hub."""
    configurations: Callable[[Path, Path | None], list[Configuration]]
    """All that can be scored with what lies at a path, those of one folder together; ValueError where nothing can.
    The file is the benchmark's own list of tasks, where it has one; None: it lies there, too."""
    windows: Callable[[Configuration, Options, int], Windows]
    """Windows of a configuration with at most so many steps of context."""
    fingerprint: Callable[[Configuration, Options], str]
    """Tells whether the data of a configuration changed."""
    measure: Measure
    columns: tuple[str, ...]
    """Metrics that a table of the leaderboard must have."""
    row: Callable[[str, Mapping[str, Any], Mapping[str, float]], dict[str, Any]]
    """Forecaster, line of the results and its metrics there -> a row of the leaderboard's table."""
    summary: Callable[[Tables], dict[str, Any]]
    """Metrics of all forecasters, the last column Seasonal Naive's -> {part: {forecasters: {name: {score: value}}}}."""
    metrics: Mapping[str, str]
    """Those that are summed up, by name and column; the main one first."""
    ratios: Callable[[Tables], Tables] = aggregate.compared
    """Of those: scores over Seasonal Naive's (the last column) on the configurations that count."""
    mean: Callable[[pd.DataFrame], pd.Series] = aggregate.mean
    """Of ratios, over configurations."""
    naive: str = "seasonal_naive"
    """What the leaderboard calls Seasonal Naive."""
    higher: bool = False
    """The table begins with the highest scores."""


PREFIX = "eval_metrics/"


def plain_row(name: str, line: Mapping[str, Any], metrics: Mapping[str, float], prefix: str = PREFIX) -> dict[str, Any]:
    """A row of GIFT-Eval's all_results.csv."""
    found: dict[str, Any] = {"dataset": line["configuration"], "model": name}
    found |= {prefix + metric: value for metric, value in metrics.items()}
    return found | {"domain": line["domain"], "num_variates": line["num_variates"]}
