"""The gluonts predictor: in `evaluate_model`, and against the official one with the same weights."""

import numpy as np
import pandas as pd
import pytest
import torch

from toto_train import hub
from toto_train.config import ModelConfig
from toto_train.forecast import Forecaster, ForecastOptions
from toto_train.model.toto import Toto

pytest.importorskip("gluonts", reason="gluonts is installed by the extras dev and eval")

from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model

from toto_train.predictor import create_predictor

HORIZON = 24


@pytest.fixture(scope="module")
def model() -> Toto:
    model = Toto.create(ModelConfig(), seed=3).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return model


def official(model: Toto, prediction_length: int, context_length: int, target_dim: int, **config):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    peer = toto2.Toto2Model(toto2.Toto2ModelConfig(**hub.config_to_official(model.config))).eval()
    peer.load_state_dict(hub.to_official(model))
    settings = toto2.Toto2GluonTSModelConfig(prediction_length, context_length, target_dim, **config)
    return toto2.Toto2GluonTSModel(peer, settings).create_predictor(batch_size=4, device="cpu")


def dataset(variates: int, lengths: tuple[int, ...], features: int = 0, horizon: int = HORIZON) -> list[dict]:
    """Hourly series: days, noise, a level of their own; gaps, also at both ends."""
    entries = []
    for i, steps in enumerate(lengths):
        rng, t = np.random.default_rng([variates, i]), np.arange(steps + horizon)
        x = 10.0 ** rng.integers(-1, 4) * (np.sin(t / 24 * 2 * np.pi) + 0.3 * rng.normal(size=(variates, len(t))) + 3)
        x[rng.random(x.shape) < 0.03] = np.nan
        x[0, :5] = x[-1, steps - 4 : steps] = np.nan
        entry = {
            "start": pd.Period("2024-02-27 05:00", "h"),
            "target": x[:, :steps].astype(np.float32),
            "item_id": str(i),
        }
        if variates == 1:
            entry["target"] = entry["target"][0]
        if features:
            entry["feat_dynamic_real"] = (x[:1] * rng.normal(size=(features, 1)) + t % 7).astype(np.float32)
        entries.append(entry)
    return entries


LENGTHS = (300, 40, 9, 128, 700, 33, 5)


def relative(ours, theirs) -> float:
    """Largest relative difference of any forecast; the official arrays are [9, V, H] for several variates."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.item_id, a.start_date, a.forecast_keys) == (b.item_id, b.start_date, b.forecast_keys)
        array = b.forecast_array if b.forecast_array.ndim == 2 else b.forecast_array.swapaxes(1, 2)
        assert a.forecast_array.shape == array.shape
        worst = max(worst, float(np.abs(a.forecast_array - array).max() / np.abs(array).max()))
    return worst


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("variates", [1, 3])
@pytest.mark.parametrize(("horizon", "context"), [(24, 128), (33, 100), (100, 512), (200, 128), (7, 20)])
def test_forecasts_are_the_official_ones(model, variates, features, horizon, context):
    data = dataset(variates, LENGTHS, features, horizon)
    ours = create_predictor(model, horizon, context, variates, features, batch_size=3)
    theirs = official(model, horizon, context, variates, feat_dynamic_real_dim=features)
    assert relative(ours.predict(data), theirs.predict(data)) <= 1e-5


@pytest.mark.parametrize("variates", [1, 3])
def test_block_decoding_is_the_official_one(model, variates):
    data = dataset(variates, LENGTHS, 1, 200)
    ours = create_predictor(model, 200, 640, variates, 1, options=ForecastOptions(64, 8, 1e4))
    theirs = official(model, 200, 640, variates, feat_dynamic_real_dim=1, decode_block_size=64)
    assert relative(ours.predict(data), theirs.predict(data)) <= 1e-5


@pytest.mark.parametrize("features", [0, 1])
@pytest.mark.parametrize("variates", [1, 3])
def test_it_runs_in_evaluate_model(model, variates, features):
    data = ListDataset(dataset(variates, (300, 400, 555), features, 0), freq="h", one_dim_target=variates == 1)
    pairs = split(data, offset=-2 * HORIZON)[1].generate_instances(HORIZON, windows=2)
    metrics = [MASE(), MeanWeightedSumQuantileLoss(list(Forecaster.levels))]
    predictor = create_predictor(model, HORIZON, 256, variates, features)
    settings = {"test_data": pairs, "metrics": metrics, "axis": None, "batch_size": 1, "seasonality": 24}
    scores = evaluate_model(predictor, **settings).iloc[0]
    assert scores.gt(0).all()
    assert np.isfinite(scores).all()
    if variates == 1:  # the official arrays [9, V, H] do not fit in there
        theirs = official(model, HORIZON, 256, 1, feat_dynamic_real_dim=features)
        np.testing.assert_allclose(scores, evaluate_model(theirs, **settings).iloc[0], rtol=1e-4)


def test_a_batch_changes_no_forecast_and_keeps_the_order(model):
    data = dataset(1, LENGTHS)
    alone, together = (create_predictor(model, HORIZON, 128, batch_size=n).predict(data) for n in (1, 100))
    assert relative(alone, together) <= 1e-5


def test_a_target_of_one_row_keeps_its_axis(model):
    entry = dataset(1, (64,))[0]
    flat, row = (next(create_predictor(model, HORIZON, 64).predict([entry | {"target": t}])).forecast_array
                 for t in (entry["target"], entry["target"][None]))  # fmt: skip
    assert flat.shape == (9, HORIZON)
    np.testing.assert_array_equal(row[..., 0], flat)


@pytest.mark.parametrize("target", [np.zeros(0, np.float32), np.full(50, np.nan, np.float32)])
def test_a_series_without_any_value_is_forecast_too(model, target):
    entry = {"start": pd.Period("2024-01-01", "D"), "target": target}
    (forecast,) = create_predictor(model, 8, 64).predict([entry])
    assert np.isfinite(forecast.forecast_array).all()
    assert forecast.start_date == entry["start"] + len(target)


@pytest.mark.parametrize("name", ["prediction_length", "context_length", "target_dim", "batch_size"])
def test_sizes_below_one_are_errors(model, name):
    given = {"prediction_length": 8, "context_length": 64, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        create_predictor(model, **given)


def test_entries_that_do_not_fit_are_named(model):
    (entry,) = dataset(2, (64,), features=1, horizon=HORIZON)
    with pytest.raises(ValueError, match=r"item 0: the target has shape \(2, 64\).*target_dim=1"):
        next(create_predictor(model, HORIZON, 64).predict([entry]))
    with pytest.raises(ValueError, match=r"item 0: feat_dynamic_real has shape \(1, 88\), expected \[1, 89\]"):
        next(create_predictor(model, HORIZON + 1, 64, 2, 1).predict([entry]))
    del entry["feat_dynamic_real"]
    with pytest.raises(ValueError, match=r"item 0: feat_dynamic_real has shape .*expected \[1, 88\]"):
        next(create_predictor(model, HORIZON, 64, 2, 1).predict([entry]))
