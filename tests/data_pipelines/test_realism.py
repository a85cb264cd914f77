"""Summary features, and the classifier test that stands on them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.synthetic import prior
from data_pipelines.synthetic.summary import features

ROOT = Path(__file__).parents[2]


def made(count: int, length: int) -> np.ndarray:
    """Windows of many kinds."""
    families = ("telemetry", "kernel", "step", "anomaly")
    return np.stack([prior.generate(families[i % 4], 1, i, length).values[0] for i in range(count)])


def test_features_do_not_see_the_unit() -> None:
    """Of windows without gaps, in another unit (a power of two, so that rounding is the same)."""
    windows = np.nan_to_num(made(40, 512))
    plain, scaled = features(windows), features(windows * np.float32(1024))
    for name, value in plain.items():
        np.testing.assert_allclose(scaled[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
        assert np.isfinite(value).all(), name


def test_features_of_known_series() -> None:
    t = np.arange(2048)
    rng = np.random.default_rng(0)
    sine, line, white = np.sin(2 * np.pi * t / 24), t.astype(float), rng.standard_normal(2048)
    memory = np.zeros(2048)
    for i in range(1, 2048):
        memory[i] = 0.8 * memory[i - 1] + white[i]
    rare = np.where(t % 100 == 0, 7.0, 0.0)
    gap = np.where((t > 500) & (t < 705), np.nan, sine)
    f = features(np.stack([sine, line, white, memory, np.full(2048, 3.0), rare, gap]))
    assert f["acf_24"][0] == pytest.approx(1, abs=0.03)
    assert f["spectral_peak"][0] > 0.5
    assert f["trend_r2"][1] == pytest.approx(1)
    assert abs(f["acf_1"][2]) < 0.1
    assert f["spectral_entropy"][2] > 0.9
    assert f["turning_points"][2] == pytest.approx(2 / 3, abs=0.05)
    assert f["acf_1"][3] == pytest.approx(0.8, abs=0.06)
    assert abs(f["pacf_2"][3]) < 0.1
    assert f["spectral_slope"][3] < -0.8
    assert f["constant"].tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert f["repeats"][4] == 1
    assert f["zeros"][5] == pytest.approx(0.9897, abs=1e-3)
    assert f["missing"][6] == pytest.approx(204 / 2048)


def test_features_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least 256 steps, got 100"):
        features(np.ones((1, 100)))
    with pytest.raises(ValueError, match="no observed value"):
        features(np.full((1, 300), np.nan))


@pytest.mark.slow
def test_the_classifier_tells_what_differs_and_only_that() -> None:
    """Six sources of one law against more of it (A/A), and against a law of its own.

    Scores of A/A spread by about .04 a source, so the mean of six lies within .5 +- .1 in all but 1 in 1000 seeds.
    """
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("realism", ROOT / "scripts" / "realism.py")
    assert spec is not None
    assert spec.loader is not None
    realism = importlib.util.module_from_spec(spec)
    sys.modules["realism"] = realism
    spec.loader.exec_module(realism)
    rng = np.random.default_rng(2)

    def draw(count: int, memory: float) -> np.ndarray:
        x = rng.standard_normal((count, 300))
        for i in range(1, 300):
            x[:, i] += memory * x[:, i - 1]
        return x

    real = {f"source {k}": realism.sample(draw(60, 0.5), np.arange(60)) for k in range(6)}
    same = realism.sample(draw(360, 0.5), np.arange(360) // 20)
    other = realism.sample(draw(360, 0.8), np.arange(360) // 20)
    aucs, _ = realism.against(real, same, 0)
    assert set(aucs) == set(real)
    assert np.mean(list(aucs.values())) == pytest.approx(0.5, abs=0.1)
    aucs, importance = realism.against(real, other, 0)
    assert min(aucs.values()) > 0.95
    names = list(features(np.arange(300.0)[None]))
    assert {names[i] for i in np.argsort(-importance)[:6]} & {"acf_1", "acf_2", "spectral_slope", "change_deviation"}
