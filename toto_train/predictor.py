"""A trained model as a gluonts predictor: for `gluonts.model.evaluate_model` and everything else that takes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from toto_train.forecast import (
    PUBLISHED,
    Covariates,
    ForecastOptions,
    as_tensors,
    fill_forward,
    forecast,
    history_steps,
)
from toto_train.model.toto import QUANTILES, Toto

try:
    from gluonts.dataset.util import forecast_start
    from gluonts.model.forecast import QuantileForecast
    from gluonts.model.predictor import Predictor
except ImportError as error:
    raise ImportError(f"toto_train.predictor needs gluonts ({error}); pip install 'toto-train[eval]'") from error

Entry = dict[str, Any]


def create_predictor(
    model: Toto,
    prediction_length: int,
    context_length: int,
    target_dim: int = 1,
    feat_dynamic_real_dim: int = 0,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    options: ForecastOptions = PUBLISHED,
) -> TotoPredictor:
    """Forecasts `prediction_length` steps of entries whose target is [T], or [target_dim, T] and forecast jointly.

    NaN in targets and features are missing values; lengths may differ. context_length: steps the network reads, as the
    official package counts them: history and the patches that one pass appends, all but the last, so longer horizons
    leave less history. feat_dynamic_real_dim: features known for the future, too; the entry's feat_dynamic_real
    [dim, T + prediction_length] is read as covariates of all variates.
    """
    sizes = {"prediction_length": prediction_length, "context_length": context_length, "batch_size": batch_size}
    for name, value in (sizes | {"target_dim": target_dim}).items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    history = history_steps(context_length, prediction_length, model.config.patch_size)
    return TotoPredictor(
        model.to(device).eval(), prediction_length, history, target_dim, feat_dynamic_real_dim, batch_size, options
    )


class TotoPredictor(Predictor):
    """Of `create_predictor`; `history` is the number of steps read of every target."""

    def __init__(
        self, model: Toto, prediction_length: int, history: int, target_dim: int, features: int, batch_size: int,
        options: ForecastOptions,
    ):  # fmt: skip
        super().__init__(prediction_length=prediction_length)
        self.model, self.history, self.options = model, history, options
        self.target_dim, self.features, self.batch_size = target_dim, features, batch_size

    def predict(self, dataset: Iterable[Entry], **_: Any) -> Iterator[QuantileForecast]:
        """One forecast per entry, in order: the nine quantiles [9, H], or [9, H, V] of a target [V, T]."""
        entries, keys = iter(dataset), [f"{level:g}" for level in QUANTILES]
        while batch := list(islice(entries, self.batch_size)):
            for entry, q in zip(batch, self._quantiles(batch), strict=True):
                array = q[:, 0] if np.ndim(entry["target"]) == 1 else q.swapaxes(1, 2)
                yield QuantileForecast(array, forecast_start(entry), keys, entry.get("item_id"))

    def _quantiles(self, batch: list[Entry]) -> np.ndarray:
        """[N, 9, V, H]"""
        device = next(self.model.parameters()).device
        horizon, targets = self.prediction_length, [self._target(entry) for entry in batch]
        steps = self.history
        if self.options.block is None:  # with blocks it matters how many empty patches stand on the left
            steps = min(steps, max(1, *(t.shape[1] for t in targets)))
        filled = np.stack([_last(fill_forward(t), steps) for t in targets])  # also from before what is read
        series = as_tensors(filled, np.stack([_last(t, steps) for t in targets]), device)
        covariates = None
        if self.features:
            known = [self._known(entry, t.shape[1] + horizon) for entry, t in zip(batch, targets, strict=True)]
            features = np.stack([_last(k, steps + horizon) for k in known])
            covariates = Covariates(*as_tensors(features, features, device))
        return forecast(self.model, *series, horizon, self.options, covariates).movedim(0, 1).cpu().numpy()

    def _target(self, entry: Entry) -> np.ndarray:
        target = np.atleast_2d(np.asarray(entry["target"], np.float32))
        if target.ndim != 2 or len(target) != self.target_dim:
            raise ValueError(
                f"item {entry.get('item_id')}: the target has shape {np.shape(entry['target'])}, the predictor was "
                f"created with target_dim={self.target_dim}; give targets of this many variates or another target_dim"
            )
        return target

    def _known(self, entry: Entry, steps: int) -> np.ndarray:
        """Features [E, steps] of an entry."""
        known = np.atleast_2d(np.asarray(entry.get("feat_dynamic_real", np.empty((0, 0))), np.float32))
        if len(known) != self.features or known.shape[1] < steps:
            raise ValueError(
                f"item {entry.get('item_id')}: feat_dynamic_real has shape {known.shape}, expected [{self.features}, "
                f"{steps}]: feat_dynamic_real_dim features over target and prediction_length; NaN = not known"
            )
        return known[:, :steps]


def _last(values: np.ndarray, steps: int) -> np.ndarray:
    """The last `steps` of [V, T], NaN on the left where T is less."""
    values = values[:, -steps:]
    return np.pad(values, ((0, 0), (steps - values.shape[1], 0)), constant_values=np.nan)
