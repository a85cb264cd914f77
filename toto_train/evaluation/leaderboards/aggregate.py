"""How the leaderboards sum up: scores against Seasonal Naive, ranks, win rates.

Tables hold one row a configuration and one column a forecaster; `naive` names the column of Seasonal Naive.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from toto_train.evaluation.metrics import geometric_mean

SHIFT = 1e-5
"""Of BOOM's geometric mean."""
CLIP = (1e-2, 100.0)
"""Bounds of fev's relative errors."""


def ratios(table: pd.DataFrame, naive: str) -> pd.DataFrame:
    """Each forecaster over Seasonal Naive; NaN unless both are above 0 and finite."""
    known = table.where(np.isfinite(table) & (table > 0))
    return known.div(known[naive], axis=0)


def compared(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Ratios to Seasonal Naive, the last column: GIFT-Eval, TIME.

    Configurations where some forecaster has no ratio (a score of 0, infinite or missing) count for none of them.
    """
    return {metric: ratios(table, table.columns[-1]).dropna() for metric, table in tables.items()}


def mean(table: pd.DataFrame) -> pd.Series:
    """Geometric mean of the ratios of each forecaster."""
    return pd.Series(geometric_mean(table.to_numpy(float)), table.columns)


def relative(table: pd.DataFrame, naive: str) -> pd.Series:
    """`mean` of the ratios that can be compared."""
    return mean(ratios(table, naive).dropna())


def undefined(table: pd.DataFrame, naive: str) -> list[str]:
    """Configurations that `compared` leaves out."""
    found = ratios(table, naive)
    return [str(name) for name in found.index[found.isna().any(axis=1)]]


def mean_ranks(table: pd.DataFrame) -> pd.Series:
    """Mean over configurations of the rank among the forecasters, the lowest is 1; equal ones share their mean rank.

    What is missing ranks last.
    """
    return table.rank(axis=1, method="average", na_option="bottom").mean()


def ratio_summary(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """`relative` and `mean_ranks` of some metrics whose tables end with Seasonal Naive, as one part of a summary."""
    naive = next(iter(tables.values())).columns[-1]
    columns = {name: relative(table, naive) for name, table in tables.items()}
    columns |= {f"{name} rank": mean_ranks(table) for name, table in tables.items()}
    forecasters = {f: {name: float(column[f]) for name, column in columns.items()} for f in columns["MASE"].index}
    left_out = {name: undefined(table, naive) for name, table in tables.items()}
    return {"overall": {"forecasters": forecasters, "without_ratio": left_out}}


def shifted_mean(values: pd.DataFrame) -> pd.Series:
    """exp(mean(log(x + 1e-5))) - 1e-5 of each column: a geometric mean that a 0 does not annihilate (BOOM)."""
    return np.exp(np.log(values + SHIFT).mean(skipna=False)) - SHIFT


def cleaned(table: pd.DataFrame) -> pd.DataFrame:
    """Infinite and missing scores replaced by the mean of their forecaster's others (BOOM)."""
    known = table.where(np.isfinite(table))
    return known.fillna(known.mean())


def split_off(mase: pd.DataFrame, naive: str, low_variance: Collection[str]) -> pd.Series:
    """[configurations] whether BOOM keeps one apart: all terms of the datasets in `low_variance`, and of those where
    Seasonal Naive's MASE is 0 in any term."""
    dataset = mase.index.str.split("/").str[0]
    apart = set(dataset[mase[naive].to_numpy() == 0]) | set(low_variance)
    return pd.Series(dataset.isin(apart), mase.index)


def boom_ratios(tables: Mapping[str, pd.DataFrame], low_variance: Collection[str] = ()) -> dict[str, pd.DataFrame]:
    """CRPS and MASE over Seasonal Naive's, the last column, where BOOM compares; each is cleaned before."""
    naive = tables["MASE"].columns[-1]
    keep = ~split_off(tables["MASE"], naive, low_variance)
    return over({metric: cleaned(table[keep]) for metric, table in tables.items()}, naive)


def over(tables: Mapping[str, pd.DataFrame], naive: str) -> dict[str, pd.DataFrame]:
    """Each table divided by its column of Seasonal Naive, whatever comes of a 0 there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {metric: table.div(table[naive], axis=0) for metric, table in tables.items()}


def boom(
    mase: pd.DataFrame, crps: pd.DataFrame, mae: pd.DataFrame, naive: str, low_variance: Collection[str] = ()
) -> dict[str, pd.DataFrame]:
    """BOOM's two tables, one row a forecaster: 'scaled' with MASE and CRPS over Seasonal Naive's, 'unscaled' with MAE
    and CRPS as they are on the configurations split off; both with the mean rank by CRPS.

    Scores are cleaned within each part, then divided, then averaged: the order matters.
    """
    apart = split_off(mase, naive, low_variance)
    found = {}
    for part, keep, first, name in (("scaled", ~apart, mase, "MASE"), ("unscaled", apart, mae, "MAE")):
        if not keep.any():
            continue
        tables = {name: cleaned(first[keep]), "CRPS": cleaned(crps[keep])}
        rank = mean_ranks(tables["CRPS"])
        if part == "scaled":
            tables = over(tables, naive)
        found[part] = pd.DataFrame({metric: shifted_mean(table) for metric, table in tables.items()} | {"rank": rank})
        found[part].attrs["configurations"] = int(keep.sum())
    return found


def clipped(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """fev's errors over Seasonal Naive's, the last column, within CLIP; a missing one counts as Seasonal Naive's."""
    return {m: t.div(t[t.columns[-1]], axis=0).clip(*CLIP).fillna(1.0) for m, t in tables.items()}


def fev(table: pd.DataFrame, draws: int = 1000, seed: int = 123) -> pd.DataFrame:
    """fev's leaderboard, one row a forecaster, Seasonal Naive being the last column: skill score (1 - geometric mean of
    the `clipped` errors) and win rate (share of tasks and opponents with the lower error, half for equal ones), both
    with 95 % bootstrap intervals over tasks.
    """
    errors = clipped({"error": table})["error"].to_numpy()
    tasks = np.random.default_rng(seed).integers(0, len(errors), (draws, len(errors)))
    found: dict[str, np.ndarray] = {}
    for name, statistic in {"win_rate": _win_rate, "skill_score": _skill_score}.items():
        sampled = np.stack([statistic(errors[chosen]) for chosen in tasks])
        low, high = np.quantile(sampled, [0.025, 0.975], axis=0)
        found |= {name: statistic(errors), f"{name}_lower": low, f"{name}_upper": high}
    return pd.DataFrame(found, index=table.columns)


def _win_rate(errors: np.ndarray) -> np.ndarray:
    """[tasks, forecasters] -> [forecasters]."""
    mine, other = errors[:, :, None], errors[:, None, :]
    wins = (mine < other).mean(0) + 0.5 * (mine == other).mean(0)
    count = errors.shape[1]
    return (wins.sum(1) - 0.5) / max(count - 1, 1)  # without the tie with itself


def _skill_score(errors: np.ndarray) -> np.ndarray:
    """[tasks, forecasters] -> [forecasters]."""
    return 1 - np.exp(np.log(errors).mean(0))
