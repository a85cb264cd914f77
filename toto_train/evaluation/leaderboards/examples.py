"""Best, median and worst forecasts of a configuration: which they are is kept, and drawn once more for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toto_train.evaluation.examples import Example, ranked
from toto_train.evaluation.leaderboards.windows import Rows, Windows, forecast
from toto_train.evaluation.tasks import Forecaster


def find(rows: Rows) -> dict[str, dict[str, Any]]:
    """Rank -> window, variate and weighted quantile loss, of rows whose label moves, if there are any."""
    sums = rows.model.sums
    known = sums.absolute > 0
    kept = np.flatnonzero(known & rows.moves if (known & rows.moves).any() else known)
    loss = sums.quantile_loss[kept].mean(1) / sums.absolute[kept]
    return {
        rank: {"window": int(rows.window[kept[at]]), "variate": int(rows.variate[kept[at]]), "loss": float(loss[at])}
        for rank, at in ranked(loss).items()
    }


def draw(forecaster: Forecaster, windows: Windows, name: str, found: Mapping[str, Mapping[str, Any]]) -> list[Example]:
    """Forecast again what `find` chose; windows: those that were scored."""
    examples = []
    for rank, which in found.items():
        i = which["window"]
        batch, window = windows.read(np.array([i])), windows.window(i)
        v = 0 if windows.windows["variate"][i] >= 0 else which["variate"]
        quantiles, _ = forecast(forecaster, windows, batch)
        context = batch.contexts[0, v, batch.contexts.shape[2] - window.context.shape[1] :]
        task, names = windows.tasks[0], window.variate_names
        variate = names[v] if len(names) > 1 else window.item_id
        label, forecasts = batch.labels[0, v], quantiles[0, :, v]
        examples.append(
            Example(name, window.item_id, variate, task.interval, rank, which["loss"], context, label, forecasts)
        )
    return examples
