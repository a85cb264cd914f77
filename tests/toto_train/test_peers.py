"""The statistical peers forecast what their packages do, fill gaps by rule, and count what they could not forecast."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

from toto_train.evaluation.baselines import LEVELS, seasonal_naive
from toto_train.evaluation.peers import PEERS, auto_theta, check, flair, installed, version

pytest.importorskip("statsforecast", reason="the statistical peers need the extra 'eval'")
flaircast = pytest.importorskip("flaircast", reason="the statistical peers need the extra 'eval'")

SEASON, HORIZON = 24, 30
every_peer = pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))


def daily(variates: int = 2, length: int = 240, noise: float = 1.0) -> np.ndarray:
    """Hourly series with a day of shape and white noise, float32 [variates, length]."""
    random = np.random.default_rng(7)
    wave = 10 * np.sin(2 * np.pi * np.arange(length) / SEASON)
    return (50 + wave + noise * random.normal(size=(variates, length))).astype(np.float32)


def quantile_loss(quantiles: np.ndarray, label: np.ndarray) -> float:
    error = label - quantiles
    tau = LEVELS[:, None, None]
    return float(np.mean(2 * np.maximum(tau * error, (tau - 1) * error)))


@every_peer
@pytest.mark.parametrize("season", [1, SEASON, 288, 30])  # 288 is more than the past, 30 no period of a calendar
def test_quantiles_are_whole_finite_and_sorted(peer, season):
    quantiles, fallbacks = peer.forecast(daily(3), HORIZON, season, "H")
    assert quantiles.shape == (9, 3, HORIZON)
    assert quantiles.dtype == np.float32
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=0) >= 0).all()
    assert (quantiles[8] > quantiles[0]).all()
    assert fallbacks == 0


@every_peer
def test_noise_is_averaged_out(peer):
    series = daily(4, 270, noise=2.0)
    past, label = series[:, :-HORIZON], series[:, -HORIZON:]
    quantiles, _ = peer.forecast(past, HORIZON, SEASON, "H")
    assert quantile_loss(quantiles, label) < 0.95 * quantile_loss(seasonal_naive(past, HORIZON, SEASON), label)


def test_flair_knows_the_periods_of_a_frequency():
    week = np.tile([0, 0, 0, 0, 0, 50, 60], 40)[None].astype(np.float32)
    series = week + daily(1, 280, noise=0.5) / 10
    quantiles, _ = flair(series[:, :-7], 7, 1, "D")
    assert np.abs(quantiles[4] - series[:, -7:]).max() < 10


@every_peer
def test_two_calls_are_equal_and_variates_do_not_touch_each_other(peer):
    past = daily(3)
    together, _ = peer.forecast(past, HORIZON, SEASON, "H")
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    again, _ = peer.forecast(past, HORIZON, SEASON, "H")
    alone, _ = peer.forecast(past[1:2], HORIZON, SEASON, "H")
    np.testing.assert_array_equal(again, together)
    np.testing.assert_array_equal(alone[:, 0], together[:, 1])


@every_peer
def test_gaps_follow_the_stated_rule(peer):
    past = daily(1)
    past[:, 100:103] = past[:, [99]] + (past[:, [103]] - past[:, [99]]) * np.array([0.25, 0.5, 0.75], np.float32)
    past[:, -2:] = past[:, [-3]]
    gaps = np.concatenate([np.full((1, 50), np.nan, np.float32), past], axis=1)
    gaps[:, 150:153] = np.nan
    gaps[:, -2:] = [np.nan, np.inf]  # infinite counts as missing
    expected, _ = peer.forecast(past, HORIZON, SEASON, "H")
    quantiles, fallbacks = peer.forecast(gaps, HORIZON, SEASON, "H")
    assert fallbacks == 0
    np.testing.assert_allclose(quantiles, expected, rtol=1e-4)


@every_peer
def test_what_cannot_be_forecast_is_seasonal_naive_and_counted(peer):
    past = np.full((5, 240), np.nan, np.float32)
    past[1, -4:] = [1, 2, 3, 4]  # too short
    past[2] = 7  # constant
    past[3, 5:200] = 7  # constant where observed
    past[4] = daily(1)[0]
    quantiles, fallbacks = peer.forecast(past, HORIZON, SEASON, "H")
    assert fallbacks == 4
    assert (quantiles[:, 0] == 0).all()
    np.testing.assert_array_equal(quantiles[:, :4], seasonal_naive(past, HORIZON, SEASON)[:, :4])
    np.testing.assert_array_equal(quantiles[:, 4:], peer.forecast(past[4:], HORIZON, SEASON, "H")[0])


@pytest.mark.parametrize("fault", ["raises", "nan", "overflows"])
def test_a_failing_package_is_counted(monkeypatch, fault):
    def fail(y, horizon, *_, **__):
        if fault == "raises":
            raise Exception("no model able to be fitted")
        return np.full((200, horizon), np.nan if fault == "nan" else 1e39)

    monkeypatch.setattr(flaircast, "forecast", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantiles, fallbacks = flair(daily(2), HORIZON, SEASON, "H")
    assert fallbacks == 2
    np.testing.assert_array_equal(quantiles, seasonal_naive(daily(2), HORIZON, SEASON))


def test_auto_theta_equals_statsforecast():
    from statsforecast.models import AutoTheta

    past = daily(1)
    quantiles, _ = auto_theta(past, HORIZON, SEASON, "H")
    model = AutoTheta(season_length=SEASON).fit(past[0].astype(np.float64))
    bands = model.predict(HORIZON, level=[80, 40])
    np.testing.assert_allclose(quantiles[4, 0], bands["mean"], rtol=1e-6)
    np.testing.assert_allclose(quantiles[[0, 8], 0], [bands["lo-80"], bands["hi-80"]], rtol=1e-6)  # 0.1 and 0.9
    np.testing.assert_allclose(quantiles[[2, 6], 0], [bands["lo-40"], bands["hi-40"]], rtol=1e-6)  # 0.3 and 0.7


def test_flair_equals_flaircast():
    past = daily(1)
    quantiles, _ = flair(past, HORIZON, SEASON, "H")
    samples = flaircast.FLAIR("H", seed=0).predict(past[0], HORIZON)
    np.testing.assert_allclose(quantiles[:, 0], np.quantile(samples, LEVELS, axis=0), rtol=1e-6)


def test_check_names_the_nearest_peer():
    check(list(PEERS))
    with pytest.raises(ValueError, match="'autotheta': did you mean 'auto_theta'"):
        check(["flair", "autotheta"])


def test_check_says_how_to_install(monkeypatch):
    assert installed("flair")
    monkeypatch.setitem(sys.modules, "flaircast", None)
    check(["auto_theta"])
    assert installed("auto_theta")
    assert not installed("flair")
    with pytest.raises(ValueError, match=r"'flair' needs flaircast .*pip install 'toto-train\[eval\]'"):
        check(["flair"])


def test_a_missing_package_is_no_fallback(monkeypatch):
    monkeypatch.setitem(sys.modules, "flaircast", None)
    with pytest.raises(ImportError):
        flair(daily(1), HORIZON, SEASON, "H")


def test_version_names_the_package():
    assert version("flair") == f"flaircast {flaircast.__version__}"
    assert version("auto_theta").startswith("statsforecast 2.")
