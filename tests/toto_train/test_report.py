"""The report is one whole file that shows the numbers and loads nothing."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import TasksConfig
from toto_train.evaluation.baselines import seasonal_naive
from toto_train.evaluation.page import Scale, points, seconds
from toto_train.evaluation.plots import duration, short_number
from toto_train.evaluation.report import read_metrics, write_report
from toto_train.evaluation.score import Scores, evaluate
from toto_train.evaluation.tables import interval_name, left_out
from toto_train.evaluation.tasks import TaskSet

from .pages import check_page

CSV = """step,points,train/loss,train/lr_normuon,val/relative_mwql
0,0,0.9,0.0,
1,1000,0.8,0.1,
1,,,,0.95
2,2000,nan,0.1,
3,3000,0.5,,oops
3,,,,0.75
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("report") / "set"
    wave = 5 + np.sin(np.arange(400) * 2 * np.pi / 24)
    records = [
        Series(
            values=(wave + 0.3 * random.normal(size=(2, 400))).astype(np.float32),
            interval=3600,
            source=source,
            item_id=f"<i>{k}",
            variate_names=("cpu&mem", "<script>alert(1)</script>"),
        )
        for source in ("left", "right")
        for k in range(3)
    ]
    records.append(Series(values=np.ones((1, 400), np.float32), interval=3600, source="still", item_id="x"))
    write_shards(path, records, {})

    def damped(contexts: np.ndarray, horizon: int) -> np.ndarray:
        days = contexts[..., -240:].reshape(*contexts.shape[:2], 10, 24)
        mean = np.tile(days.mean(2), 2)[..., :horizon]
        naive = np.stack([seasonal_naive(c, horizon, 24) for c in contexts])
        return mean[:, None] + 0.6 * (naive - naive[:, 4:5])

    return evaluate(damped, TaskSet.open(TasksConfig(path=str(path), context=320)), examples=2)


@pytest.fixture(scope="module")
def peers(scores):
    """A forecaster a tenth worse in quantile loss, and Seasonal Naive itself."""
    worse = scores.model.take(np.arange(len(scores.table)))
    worse.quantile_loss *= 1.1
    times = np.full(len(scores.table), 0.25)
    return {
        "Auto<Theta>": Scores(scores.table, worse, scores.baseline, times),
        "FLAIR": Scores(scores.table, scores.baseline, scores.baseline, times),
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory, scores):
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.csv").write_text(CSV)
    return write_report(folder, "run & more", {"model": "nano <tiny>"}, folder / "metrics.csv", scores).read_text()


def test_report_shows_the_scores(page, scores):
    text = re.sub(r"<[^>]+>", " ", page)
    for metric in ("mwql", "mase"):
        o = scores.overall[metric]
        assert f"{o.value:.3f}" in text
        assert f"{o.low:.3f} – {o.high:.3f}" in text
    for row in scores.tasks().values():
        for value in (row["mwql"], row["seasonal_naive"]["mwql"], row["relative"]["mase"]):
            assert np.isnan(value) or f"{value:.3f}" in text
    assert "leaves out 1 of 3 tasks, where a score is 0 or undefined: still/H/short" in text
    assert seconds(scores.seconds_per_series) in text
    assert "Beside other forecasters" not in text
    assert "0.750" in text  # the best validation score
    assert page.count('<svg class="plot"') == 2 + len(scores.examples) + 4  # ranks, ratios, calibration, sharpness
    assert len(scores.examples) == 6


def test_report_sets_peers_beside_the_model(tmp_path, scores, peers):
    page = write_report(tmp_path, "run", {}, None, scores, peers).read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    for other in peers.values():
        o = other.overall["mwql"]
        assert f"{o.value:.3f}" in text
        assert f"{o.low:.3f} – {o.high:.3f}" in text
    order = re.findall(r"</i>(?:<b>)?([^<]+)(?:</b>)?</th>", page[: page.index("Relative MASE, ")])
    value = {
        "this model": scores.overall["mwql"].value,
        "Auto&lt;Theta&gt;": peers["Auto<Theta>"].overall["mwql"].value,
    }
    assert order == sorted(order, key=lambda name: value.get(name, 1.0))
    assert sorted(order) == ["Auto&lt;Theta&gt;", "FLAIR", "Seasonal Naive", "this model"]
    assert page.count("<mark>") == 2  # the model is best where there is a ratio
    assert seconds(peers["FLAIR"].seconds_per_series) in text
    check_page(page)


def test_ranks_and_sharpness_by_hand(tmp_path, scores, peers):
    text = re.sub(
        r"\s+", " ", re.sub(r"<[^>]+>", " ", write_report(tmp_path, "run", {}, None, scores, peers).read_text())
    )
    # of two tasks with a ratio the model is best in both, the peer next; FLAIR and Seasonal Naive share the last place
    for name, mean in {"this model": "1.00 · 100%", "Auto&lt;Theta&gt;": "2.00 · 67%", "FLAIR": "3.50 · 17%"}.items():
        assert mean in text, name
    assert text.count("3.50 · 17%") == 2
    w = scores.table["source"].to_numpy()
    wide = [[s.width[w == source].sum(0) for source in ("left", "right")] for s in (scores.model, scores.baseline)]
    width = np.exp(np.log(np.divide(*wide)).mean(0))
    held = [s.below[w == "left"].sum(0) / s.points[w == "left"].sum() for s in (scores.model, scores.baseline)]
    held += [s.below[w == "right"].sum(0) / s.points[w == "right"].sum() for s in (scores.model, scores.baseline)]
    inside = [[of[8 - k] - of[k] for k in range(4)] for of in (np.mean(held[::2], 0), np.mean(held[1::2], 0))]
    for k, band in enumerate((80, 60, 40, 20)):
        mine, naive = (f"{share[k]:.0%}" for share in inside)
        row = f" {band}% {mine} {width[k]:.3f} {mine} {width[k]:.3f} {naive} 1.000 {naive} 1.000 "
        assert row in text
    assert width[0] == pytest.approx(0.6, abs=0.05)  # as the forecaster was made


def test_peers_must_share_the_windows(tmp_path, scores):
    table = scores.table.assign(start=scores.table["start"] + 1)
    other = Scores(table, scores.model, scores.baseline, scores.seconds, 0)
    with pytest.raises(ValueError, match="FLAIR was scored on other windows"):
        write_report(tmp_path, "run", {}, None, scores, {"FLAIR": other})


def test_report_is_one_sound_page(page):
    check_page(page)


def test_names_are_escaped(page):
    assert "run &amp; more" in page
    assert "nano &lt;tiny&gt;" in page
    assert "&lt;i&gt;" in page
    assert "<i>0" not in page
    assert "<script>alert" not in page


def test_report_without_metrics_or_scores(tmp_path):
    page = write_report(tmp_path, "bare", {}, tmp_path / "absent.csv").read_text()
    assert "bare" in page
    assert "<svg" not in page
    (tmp_path / "empty.csv").write_text("step,train/loss,val/mwql\n1,,\n2,,\n")
    assert "<svg" not in write_report(tmp_path, "bare", {}, tmp_path / "empty.csv").read_text()


def test_metrics_tolerate_gaps(tmp_path):
    (tmp_path / "m.csv").write_text(CSV + "4,4000\n")  # the row that a kill cut short
    metrics = read_metrics(tmp_path / "m.csv")
    np.testing.assert_array_equal(metrics["train/loss"], [0.9, 0.8, np.nan, np.nan, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(metrics["val/relative_mwql"][[2, 4, 5]], [0.95, np.nan, 0.75])


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path, "first", {})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, "second", {})
    assert "first" in path.read_text()
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.24, "0.24 s"),
        (600, "10 min"),
        (48 * 3600, "2 d"),
        (60 * 86_400, "60 d"),
        (12 * 2_629_800, "1 y"),
        (4 * 31_557_600, "4 y"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_short_numbers():
    assert [short_number(v) for v in (0, -0.5, 999, 15_000, 2.5e6, 1e9)] == ["0", "−0.5", "999", "15 k", "2.5 M", "1 G"]


def test_short_texts():
    assert [seconds(v) for v in (2.5, 0.00123, 4.2e-6, float("nan"))] == ["2.5 s", "1.23 ms", "4.2 µs", "–"]
    assert [points(v) for v in (0.031, -0.06, -0.001, float("nan"))] == ["+3 pts", "−6 pts", "0 pts", "–"]
    assert [interval_name(code) for code in ("10T", "H", "L", "odd")] == ["10 min", "1 h", "1 ms", "odd"]


def test_many_excluded_tasks_fold_up():
    assert left_out("MASE", ["a", "<b>"], 9) == (
        '<p class="note">MASE leaves out 2 of 9 tasks, where a score is 0 or undefined: a, &lt;b&gt;.</p>'
    )
    assert left_out("MASE", list("abcde"), 9).startswith('<details class="note"><summary>MASE leaves out 5 of 9 tasks')


def test_scale_holds_one_and_its_values():
    scale = Scale.around([0.4, float("nan"), 0.0])
    assert scale.place(0.4) > 0
    assert scale.place(1.0) < 100
    assert scale.place(0.0) == 0
    assert scale.place(1e9) == 100
    assert 1 in scale.ticks()
