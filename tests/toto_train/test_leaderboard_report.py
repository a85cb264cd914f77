"""The report of a leaderboard: what it says, and what it is made from."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from toto_train.evaluation.examples import Example
from toto_train.evaluation.leaderboards import board, boom, examples, gift_eval, report, results
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options
from toto_train.evaluation.leaderboards.measures import CRPS, MASE, spread
from toto_train.evaluation.leaderboards.windows import score

from .pages import check_page
from .saved_datasets import save, seasonal

SHAPES = {"A/H/short": ("H", 1, ["web"]), "A/H/long": ("H", 1, ["web"]), "<b>/10S/short": ("10S", 40, ["db", "web"])}


def line(name: str, crps: float, frequency: str, variates: int, domains: list[str]) -> dict:
    """Of the results: the model's CRPS is `crps`, Seasonal Naive's 1; its bands are twice as wide."""
    counts = {"points": 100, "absolute": 100.0}
    metrics = {"MAE[0.5]": 1.0, MASE: 2.0, CRPS: crps}
    return {
        "configuration": name, "dataset": name[:3],
        "domain": str(domains), "num_variates": variates, "term": name.rsplit("/", 1)[1],
        "frequency": frequency, "groups": {"domain": domains, "metric type": ["gauge"]}, "horizon": 48, "series": 3,
        "windows": 6, "forecasts": 10, "seconds": 0.5, "seconds_per_series": 0.05, "model": metrics,
        results.NAIVE: dict.fromkeys(metrics, 1.0),
        "spread": {
            "model": counts | {"below": [*range(10, 100, 10)], "width": [8.0, 6.0, 4.0, 2.0]},
            results.NAIVE: counts | {"below": [45] * 4 + [50] + [55] * 4, "width": [4.0, 3.0, 2.0, 1.0]},
        },
        "examples": {"best": {"window": 0, "variate": 0, "loss": 0.1}},
    }  # fmt: skip


def make(benchmark: Benchmark, crps: dict[str, float], others: dict[str, float] | None = None) -> board.Board:
    """others: forecaster -> its CRPS everywhere."""
    lines = [line(name, value, *SHAPES[name]) for name, value in crps.items()]
    scores = {"small <&>": {one["configuration"]: one["model"] for one in lines}}
    for other, value in (others or {}).items():
        scores[other] = {one["configuration"]: {"MAE[0.5]": 1.0, MASE: 1.0, CRPS: value} for one in lines}
    scores[benchmark.naive] = {one["configuration"]: one[results.NAIVE] for one in lines}
    tables = results.tables(scores, benchmark.naive)
    wave = np.sin(np.arange(80) / 4).astype(np.float32)
    example = Example("A/H/short", "i", "v0", 3600.0, "best", 0.1, wave[:60], wave[60:], np.tile(wave[60:], (9, 1)))
    return board.Board(
        benchmark, "small <&>", benchmark.naive, "computed here", lines, tables, benchmark.summary(tables),
        {"Peer-1B": (0.7, 0.6)}, [example],
    )  # fmt: skip


def text_of(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text()))


def test_the_page_shows_scores_ranks_bands_forecasts_and_time(tmp_path):
    made = make(gift_eval.GIFT_EVAL, dict(zip(SHAPES, (0.25, 0.5, 1.0), strict=True)), {"other": 0.4})
    path = report.write_report(tmp_path / "report.html", made, {"limit": "none"})
    page, text = path.read_text(), text_of(path)
    check_page(page)
    assert page.count('<svg class="plot"') == 5  # ranks, ratios, calibration, sharpness, one forecast
    assert "small &lt;&amp;&gt; on GIFT-Eval" in text
    assert "&lt;b&gt;/10S/short" in text
    assert "Relative CRPS 0.500" in text  # (0.25 * 0.5 * 1) ** (1 / 3)
    assert "Peer-1B published" in text
    ranks = made.ranks.mean()
    assert ranks.to_dict() == pytest.approx({"small <&>": 5.5 / 3, "other": 4 / 3, "seasonal_naive": 8.5 / 3})
    assert f"{5.5 / 3:.2f} · 58%" in text  # of the duels with each of the others
    assert "Inside the 80% band 80%" in text
    assert re.search(r"80% 80% 2.000 10% 1.000", text)  # holds, width; Seasonal Naive's
    assert "Time a series 50 ms" in text
    # each group: configurations, windows, time, model and other by CRPS, both by MASE
    for group, row in {
        "web": "3 18 50 ms 0.500 0.400 2.000 1.000", "db": "1 6 50 ms 1.000 0.400 2.000 1.000",
        "short": "2 12 50 ms 0.500 0.400 2.000 1.000", "1 h": "2 12 50 ms 0.354 0.400 2.000 1.000",
        "10 to 99": "1 6 50 ms 1.000 0.400 2.000 1.000",
    }.items():  # fmt: skip
        assert f" {group} {row} " in text, group


def test_boom_is_averaged_by_its_own_mean(tmp_path):
    made = make(boom.BOOM, dict(zip(SHAPES, (0.0, 0.5, 1.0), strict=True)))
    path = report.write_report(tmp_path / "report.html", made, {})
    shifted = math.exp(np.log(np.array([0.0, 1.0]) + 1e-5).mean()) - 1e-5
    assert made.overall("CRPS", ["A/H/short", "<b>/10S/short"])["small <&>"] == pytest.approx(shifted)
    assert f" short 2 12 50 ms {shifted:.3f} " in text_of(path)
    assert "by metric type" not in text_of(path)  # there is one


def test_a_page_without_anything_to_compare(tmp_path):
    made = make(gift_eval.GIFT_EVAL, {"A/H/short": 0.0})
    path = report.write_report(tmp_path / "report.html", made, {})
    check_page(path.read_text())
    assert "CRPS leaves out 1 of 1 configuration" in text_of(path)
    alone = make(boom.BOOM, {"A/H/short": 0.5})
    for table in alone.tables.values():
        table["seasonalnaive"] = 0.0  # split off
    alone.summary = boom.summary(alone.tables)
    path = report.write_report(tmp_path / "report.html", alone, {})
    check_page(path.read_text())
    assert "Split off 1 configuration where" in text_of(path)


def test_a_table_of_thousands_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROWS", 2)
    made = make(gift_eval.GIFT_EVAL, dict(zip(SHAPES, (0.9, 0.5, 1.0), strict=True)))
    text = text_of(report.write_report(tmp_path / "report.html", made, {}))
    shown = text[text.index("By configuration") :]
    assert "A/H/long" in shown
    assert "A/H/short" not in shown
    assert "The 1 best and the 1 worst; scores.json has all 3" in shown


def test_configurations_are_picked_from_best_to_worst():
    made = make(gift_eval.GIFT_EVAL, dict(zip(SHAPES, (0.9, 0.5, 1.0), strict=True)))
    assert [of["configuration"] for of in board.pick(made, 2)] == ["A/H/long", "<b>/10S/short"]
    assert [of["configuration"] for of in board.pick(made, 9)] == ["A/H/long", "A/H/short", "<b>/10S/short"]
    made.lines[1]["examples"] = {}  # nothing to draw
    assert [of["configuration"] for of in board.pick(made, 1)] == ["A/H/short"]


def guess(contexts: np.ndarray, horizon: int) -> np.ndarray:
    last = np.nan_to_num(contexts[..., -1:], nan=1.0)
    return (last[:, None] + np.linspace(-0.4, 0.5, 9)[:, None, None] + np.zeros((horizon,))).astype(np.float32)


def test_bands_and_examples_by_hand(tmp_path):
    target = seasonal([500, 430], 3, 24, gaps=0.1)
    target[0][1] = 2.0  # never moves
    save(tmp_path / "ett1/H", target, "H", past_feat_dynamic_real=[t[:2].tolist() for t in target])
    windows = gift_eval.windows(Configuration("ett1/H/short", "ett1/H"), Options(tmp_path), 128)
    rows = score(guess, windows, max_points=400)
    labels, forecasts = [], []
    for i in range(len(windows)):
        batch = windows.read(np.array([i]))
        labels.append(batch.labels)
        forecasts.append(guess(batch.contexts, batch.horizon))
    y, q = np.concatenate(labels)[:, None], np.concatenate(forecasts)
    known = np.isfinite(y)
    found = spread(rows.model)
    assert found["points"] == known.sum()
    assert found["below"] == (known & (y <= q)).sum((0, 2, 3)).tolist()
    wide = [((q[:, 8 - k] - q[:, k]) * known[:, 0]).sum() for k in range(4)]
    assert found["width"] == pytest.approx(wide, rel=1e-6)
    # the loss that is kept is that of the forecast that is drawn
    drawn = examples.draw(guess, windows, "ett1/H/short", examples.find(rows))
    assert [e.rank for e in drawn] == ["best", "median", "worst"]
    losses = []
    for e in drawn:
        seen = np.isfinite(e.label)
        error = (e.label - e.quantiles)[:, seen]
        loss = 2 * np.abs(error * ((error <= 0) - np.arange(1, 10)[:, None] / 10))
        losses.append(loss.sum(1).mean() / np.abs(e.label[seen]).sum())
        assert e.loss == pytest.approx(losses[-1], rel=1e-6)
        assert len(np.unique(e.label[seen])) > 1
        assert len(e.context) == 128
    assert losses == sorted(losses)
