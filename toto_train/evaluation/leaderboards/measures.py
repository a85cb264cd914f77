"""The metrics of each benchmark, from the rows of a scored configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from toto_train.evaluation.leaderboards.windows import Forecasts, Rows

MASE = "MASE[0.5]"
CRPS = "mean_weighted_sum_quantile_loss"
COLUMNS = ("MSE[mean]", "MSE[0.5]", "MAE[0.5]", MASE, "MAPE[0.5]", "sMAPE[0.5]", "MSIS", "RMSE[mean]", "NRMSE[mean]",
           "ND[0.5]", CRPS)  # fmt: skip
"""Of GIFT-Eval's and BOOM's all_results.csv, behind the prefix eval_metrics/."""

Measure = Callable[[Rows, Forecasts, Mapping[str, Any]], dict[str, float]]
"""The rows, what one forecaster scored on them and the configuration's settings -> metrics by name."""


def pooled(rows: Rows, forecasts: Forecasts, settings: Mapping[str, Any] = MappingProxyType({})) -> dict[str, float]:
    """COLUMNS as gluonts gives them over all axes, which the mean stands for the median: quantile forecasts have none.

    As there, a metric without any point is NaN, and what is divided by labels that are all 0 is infinite (NaN for an
    error of 0).
    """
    sums, points = forecasts.sums, forecasts.points

    def ratio(error: np.ndarray, over: np.ndarray) -> np.float64:
        return np.float64(error.sum()) / np.float64(over.sum())

    with np.errstate(invalid="ignore", divide="ignore"):
        squared, absolute = ratio(points.squared_error, sums.points), ratio(points.absolute_error, sums.points)
        size = ratio(sums.absolute, sums.points)
        values = (
            squared,
            squared,
            absolute,
            ratio(sums.scaled_error, sums.scaled_points),
            ratio(points.percentage_error, points.percentage_points),
            ratio(points.symmetric_error, points.symmetric_points),
            ratio(points.interval_score, sums.scaled_points),
            np.sqrt(squared),
            np.sqrt(squared) / size,
            absolute / size,
            ratio(sums.quantile_loss.mean(1), sums.absolute),
        )
    return {name: float(value) for name, value in zip(COLUMNS, values, strict=True)}


def of_fev(rows: Rows, forecasts: Forecasts, settings: Mapping[str, Any]) -> dict[str, float]:
    """SQL, MASE, WQL and WAPE of fev: for each evaluation window and variate the mean over series and steps (WQL and
    WAPE divided by the mean of |y|, or the task's epsilon), then the mean over variates, then over windows.

    SQL and MASE leave out series without a seasonal error (history no longer than the season) or with one of 0.
    """
    sums, found = forecasts.sums, []
    scaled = np.isfinite(rows.scale) & (rows.scale > 0)
    inverse = np.divide(1, rows.scale, out=np.zeros_like(rows.scale), where=scaled)
    loss, absolute = sums.quantile_loss.mean(1), forecasts.points.absolute_error
    metrics = [settings.get("eval_metric"), *settings.get("extra_metrics", [])]
    epsilon = {m["name"]: m.get("epsilon", 0.0) for m in metrics if isinstance(m, dict)}
    for number in np.unique(rows.round):
        of_variates = []
        for variate in np.unique(rows.variate):
            cell = (rows.round == number) & (rows.variate == variate)
            take = cell & scaled
            with np.errstate(invalid="ignore", divide="ignore"):
                points, used = np.float64(sums.points[cell].sum()), np.float64(sums.points[take].sum())
                size = sums.absolute[cell].sum() / points
                of_variates.append(
                    (
                        (loss * inverse)[take].sum() / used,
                        (absolute * inverse)[take].sum() / used,
                        loss[cell].sum() / points / np.maximum(size, epsilon.get("WQL", 0.0)),
                        absolute[cell].sum() / points / np.maximum(size, epsilon.get("WAPE", 0.0)),
                    )
                )
        found.append(np.mean(of_variates, axis=0))
    return dict(zip(("SQL", "MASE", "WQL", "WAPE"), map(float, np.mean(found, axis=0)), strict=True))


def of_time(rows: Rows, forecasts: Forecasts, settings: Mapping[str, Any]) -> dict[str, float]:
    """MASE, CRPS, MAE and MSE of TIME: of every window and variate alone, then the plain mean of those that exist.

    A row without a seasonal error above 0 has no MASE, one whose labels are all 0 no CRPS.
    """
    sums, points = forecasts.sums, forecasts.points

    def mean(error: np.ndarray, over: np.ndarray) -> float:
        known = np.isfinite(over) & (over > 0) & (sums.points > 0)
        return float((error[known] / over[known]).mean()) if known.any() else float("nan")

    return {
        "MASE": mean(points.absolute_error, sums.points * rows.scale),
        "CRPS": mean(sums.quantile_loss.mean(1), sums.absolute),
        "MAE": mean(points.absolute_error, sums.points),
        "MSE": mean(points.squared_error, sums.points),
    }


def spread(forecasts: Forecasts) -> dict[str, Any]:
    """What calibration and sharpness follow from, added up over all rows: points observed and their |y|, points at or
    below each of the nine quantiles, width of the central 80, 60, 40 and 20 %."""
    sums = forecasts.sums
    return {
        "points": int(sums.points.sum()),
        "absolute": float(sums.absolute.sum()),
        "below": sums.below.sum(0).astype(int).tolist(),
        "width": sums.width.sum(0).tolist(),
    }
