"""What the report of a leaderboard shows: scored configurations of one model beside other forecasters' scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from toto_train.evaluation.examples import Example
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Tables
from toto_train.evaluation.leaderboards.results import NAIVE

Scored = dict[str, dict[str, Any]]
"""Configuration -> what is known of a forecaster there."""
SIZES = {"1": 1, "2 to 9": 9, "10 to 99": 99, "100 and more": np.inf}
"""Variates of a configuration -> most of them."""


@dataclass
class Board:
    """One benchmark, as far as it is scored."""

    benchmark: Benchmark
    model: str
    naive: str
    """Column of Seasonal Naive."""
    source: str
    """Where its scores are from."""
    lines: Sequence[dict[str, Any]]
    """Of the results, one a configuration."""
    tables: Tables
    """Of the configurations that all forecasters have."""
    summary: dict[str, Any]
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Model -> MASE and CRPS over the whole benchmark, not measured here."""
    examples: list[Example] = field(default_factory=list)
    baselines: Mapping[str, Scored] = field(default_factory=dict)
    """Scored here, by name: spread, forecasts, fallbacks and seconds of every configuration."""

    @cached_property
    def ratios(self) -> Tables:
        """Metric -> scores over Seasonal Naive's, [configurations that count, forecasters]."""
        return self.benchmark.ratios({name: self.tables[column] for name, column in self.benchmark.metrics.items()})

    @property
    def main(self) -> str:
        """Metric that forecasters are ordered by."""
        return next(iter(self.benchmark.metrics))

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """By the main metric in each configuration that counts, the lowest error is 1."""
        return self.ratios[self.main].rank(axis=1, method="average", na_option="bottom")

    def overall(self, metric: str, among: Sequence[str] | None = None) -> pd.Series:
        """Mean of the ratios of each forecaster, over some configurations or all."""
        table = self.ratios[metric]
        table = table if among is None else table.loc[table.index.isin(among)]
        return self.benchmark.mean(table) if len(table) else pd.Series(np.nan, table.columns)

    def forecasters(self, most: int) -> list[str]:
        """The model and the best of the others without Seasonal Naive, at most so many in all."""
        others = self.overall(self.main).drop([self.model, self.naive]).sort_values()
        return [self.model, *map(str, others.index[: most - 1])]

    @cached_property
    def counted(self) -> list[dict[str, Any]]:
        """Lines of the configurations that have a ratio by the main metric: an error of 0 says nothing of its bands."""
        return [line for line in self.lines if line["configuration"] in self.ratios[self.main].index]

    @cached_property
    def groups(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """What tells configurations apart -> group -> its lines among the counted ones; a line may be in several."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for line in self.counted:
            kinds = {"domain": [line["domain"]], **line["groups"]}
            kinds |= {"frequency": [line["frequency"]], "term": [line["term"]]}
            kinds["variates"] = [next(name for name, most in SIZES.items() if line["num_variates"] <= most)]
            for kind, names in kinds.items():
                for name in filter(None, names):
                    found.setdefault(kind, {}).setdefault(name, []).append(line)
        return {kind: of for kind, of in found.items() if len(of) > 1}

    @property
    def computed(self) -> list[str]:
        """Forecasters that were scored here, so that more than their scores is known: model, baselines, Seasonal
        Naive."""
        return [self.model, *self.baselines, self.naive]

    def coverage(self, forecaster: str) -> np.ndarray:
        """Share of values at or below each quantile by one of the `computed`, [configurations that count, 9]."""
        found = [self._spread(forecaster, line) for line in self.counted]
        shares = [np.array(s["below"]) / s["points"] if s["points"] else np.full(9, np.nan) for s in found]
        return np.array(shares).reshape(-1, 9)

    def widths(self, forecaster: str) -> np.ndarray:
        """Width of the central 80, 60, 40 and 20 % over Seasonal Naive's, [configurations that count, 4]."""
        mine, naive = (
            np.array([self._spread(name, line)["width"] for line in self.counted], float).reshape(-1, 4)
            for name in (forecaster, self.naive)
        )
        return np.divide(mine, naive, out=np.full_like(mine, np.nan), where=naive > 0)

    def _spread(self, forecaster: str, line: Mapping[str, Any]) -> dict[str, Any]:
        if forecaster in self.baselines:
            return self.baselines[forecaster][line["configuration"]]["spread"]
        return line["spread"]["model" if forecaster == self.model else NAIVE]

    def seconds_per_series(self, forecaster: str) -> float:
        """Mean time of the model or of a baseline to forecast one window of one variate."""
        lines = [*self.baselines[forecaster].values()] if forecaster in self.baselines else self.lines
        return sum(line["seconds"] for line in lines) / max(sum(line["forecasts"] for line in lines), 1)

    def undefined(self) -> dict[str, list[str]]:
        """Metric -> configurations that its overall score leaves out."""
        return {str(m): names for part in self.summary.values() for m, names in part.get("without_ratio", {}).items()}


def pick(board: Board, count: int) -> list[dict[str, Any]]:
    """Lines of `count` configurations, evenly from the best to the worst ratio of the model."""
    lines = {line["configuration"]: line for line in board.lines if line["examples"]}
    order = board.ratios[board.main][board.model].sort_values(kind="stable").index
    names = [name for name in order if name in lines] or [*lines]
    places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    return [lines[names[place]] for place in places]
