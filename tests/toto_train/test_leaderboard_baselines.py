"""Statistical baselines on a benchmark: the same scores as among local tasks, kept by configuration, computed once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import TasksConfig
from toto_train.evaluation import cache, peers
from toto_train.evaluation.baselines import seasonal_naive
from toto_train.evaluation.leaderboards import gift_eval, job
from toto_train.evaluation.leaderboards.baselines import Baselines
from toto_train.evaluation.leaderboards.benchmarks import Options
from toto_train.evaluation.leaderboards.measures import CRPS, MASE
from toto_train.evaluation.tasks import TaskSet

from .pages import check_page
from .saved_datasets import save, seasonal
from .test_leaderboard_fev_time import task, write_fev


@pytest.fixture
def data(tmp_path) -> Path:
    save(tmp_path / "data/electricity/D", seasonal([500, 420], 0, 7), "D")
    save(tmp_path / "data/ett1/W", seasonal([300], 2, 7), "W-SUN")
    save(tmp_path / "data/hospital", seasonal([84] * 3, 0, 12), "M")
    return tmp_path / "data"


@pytest.fixture
def asked(model, data, tmp_path) -> job.LeaderboardJob:
    return job.LeaderboardJob(
        model, "gift_eval", Options(data, limit=3), tmp_path / "out", baselines=["point"], device="cpu", workers=1,
        examples=0,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> list[tuple[int, int, str]]:
    """A peer of ours, Seasonal Naive without intervals, that fails on the first of several variates: what it sees."""
    seen: list[tuple[int, int, str]] = []

    def forecast(past: np.ndarray, horizon: int, season: int, frequency: str) -> tuple[np.ndarray, int]:
        seen.append((past.shape[1], season, frequency))
        return seasonal_naive(past, horizon, season, intervals=False), int(len(past) > 1)

    monkeypatch.setitem(peers.PEERS, "point", peers.Peer("point", "Point", "numpy", forecast, 0.01))
    return seen


def test_a_baseline_stands_in_table_ranks_report_and_a_folder_of_its_own(asked, calls, capsys, caplog):
    caplog.set_level("INFO")
    found = job.run(asked)["overall"]["forecasters"]
    assert set(found) == {"small", "point", "seasonal_naive"}
    assert found["point"]["MASE"] == pytest.approx(1)  # the same medians as Seasonal Naive
    assert found["point"]["CRPS"] > 1  # without its intervals
    table = pd.read_csv(asked.out / "point/all_results.csv")
    naive = pd.read_csv(asked.out / "seasonal_naive/all_results.csv")
    assert [*table.columns] == [*naive.columns]
    np.testing.assert_allclose(table[f"eval_metrics/{MASE}"], naive[f"eval_metrics/{MASE}"], rtol=1e-9)
    assert json.loads((asked.out / "point/config.json").read_text())["model_type"] == "statistical"
    scores = json.loads((asked.out / "scores.json").read_text())
    assert scores["baselines"]["point"]["forecasts"] == 3 + 3 * 2 + 3
    assert scores["baselines"]["point"]["fallbacks"] == 3  # a variate of each wide window
    assert scores["scores"]["ett1/W/short"]["point"][CRPS] == table[f"eval_metrics/{CRPS}"][1]
    assert {(season, frequency) for _, season, frequency in calls} == {(1, "D"), (1, "W"), (12, "M")}
    page = (asked.out / "report.html").read_text()
    check_page(page)
    assert page.count(">point<") >= 4  # ladders, ranks, bands
    assert "3 of 12 forecasts fell back to Seasonal Naive" in page
    assert "Point: 12 forecasts, roughly" in caplog.text
    printed = capsys.readouterr().out
    assert printed.count("GIFT-Eval: overall") == 2  # the model's table is seen before the baseline begins
    assert printed.index("a series takes small") < printed.index("point")
    job.run(asked)
    assert capsys.readouterr().out.count("GIFT-Eval: overall") == 1  # nothing is left to compute


def test_a_baseline_is_computed_once(calls, tmp_path, data):
    chosen = gift_eval.configurations(data)
    kept = Baselines("gift_eval", Options(data, limit=3), chosen, 1024, tmp_path, 1)
    progress: list[int] = []
    first = kept.compute("point", progress.append)
    assert (len(calls), progress[-1]) == (9, 12)  # windows, variates
    assert kept.compute("point") == first
    assert kept.compute("point") == dataclasses.replace(kept, chosen=chosen[:1]).compute("point") | first
    assert len(calls) == 9
    dataclasses.replace(kept, context=50).compute("point")
    assert len(calls) == 18
    assert max(calls[9:])[0] == 50
    save(data / "hospital", seasonal([90] * 3, 0, 12, seed=1), "M")
    assert [c.name for c in kept.left("point")] == ["hospital/M/short"]
    assert kept.compute("point") != first
    assert len(calls) == 21


def test_a_killed_baseline_goes_on_with_the_next_configuration(asked, calls, monkeypatch):
    peer = peers.PEERS["point"]

    def killed(*arguments):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return peer.forecast(*arguments)

    monkeypatch.setitem(peers.PEERS, "point", dataclasses.replace(peer, forecast=killed))
    with pytest.raises(KeyboardInterrupt):
        job.run(asked)
    assert (asked.out / "small/all_results.csv").is_file()
    assert not (asked.out / "point").exists()
    (kept,) = asked.options.path.with_name("data.eval").glob("gift_eval-point-*.jsonl")
    assert [json.loads(line)["configuration"] for line in kept.read_text().splitlines()] == ["electricity/D/short"]
    kept.write_text(kept.read_text() + '{"configuration": "ett1/W/sh')  # the line that was being written
    monkeypatch.setitem(peers.PEERS, "point", peer)
    whole = job.run(dataclasses.replace(asked, cache=str(asked.out.with_name("cache")), out=asked.out.with_name("b")))
    del calls[:]
    assert job.run(asked) == whole
    assert len(calls) == 6


def test_what_against_has_is_not_computed(asked, calls, tmp_path):
    job.run(dataclasses.replace(asked, baselines=[]))
    assert not calls
    theirs = pd.read_csv(asked.out / "seasonal_naive/all_results.csv")
    (tmp_path / "results/Point").mkdir(parents=True)
    theirs.to_csv(tmp_path / "results/Point/all_results.csv", index=False)
    found = job.run(dataclasses.replace(asked, against=str(tmp_path / "results")))["overall"]["forecasters"]
    assert set(found) == {"small", "Point", "seasonal_naive"}
    assert not calls


def test_scores_are_those_of_local_tasks(data, tmp_path):
    """GIFT-Eval cuts its windows as local tasks are cut, so one baseline has one score, whoever asks."""
    values = [np.atleast_2d(x).astype(np.float32) for x in seasonal([500, 420], 0, 7)]
    write_shards(tmp_path / "set", [Series(x, 86_400.0, "days", f"i{k}") for k, x in enumerate(values)], {})
    tasks = TaskSet.open(TasksConfig(path=str(tmp_path / "set")))
    local = cache.baseline("point", tasks, tmp_path / "cache", context=100).sums
    (c,) = [c for c in gift_eval.table() if c.name == "electricity/D/short"]
    found = Baselines("gift_eval", Options(data), [c], 100, tmp_path, 1).compute("point")[c.name]
    assert found["scores"][MASE] == pytest.approx(local.mase(), rel=1e-9)
    assert found["scores"][CRPS] == pytest.approx(local.mwql(), rel=1e-9)
    np.testing.assert_allclose(found["spread"]["below"], local.below.sum(0))


def test_fev_has_its_time_beside_its_scores(asked, tmp_path):
    write_fev(tmp_path / "fev", "one", {k: seasonal([200], 1, 24, seed=ord(k))[0] for k in "ab"})
    (tmp_path / "fev/tasks.yaml").write_text(yaml.safe_dump({"tasks": [task("one", num_windows=2)]}))
    found = job.run(dataclasses.replace(asked, benchmark="fev", options=Options(tmp_path / "fev")))
    assert set(found["SQL"]["forecasters"]) == {"small", "point", "seasonal_naive"}
    table = pd.read_csv(asked.out / "point/all_results.csv")
    assert table["inference_time_s"][0] > 0
    assert table["model_name"][0] == "point"


@pytest.mark.slow
def test_processes_share_the_windows_of_a_configuration(data, tmp_path):
    (c,) = [c for c in gift_eval.table() if c.name == "electricity/D/short"]
    lines = []
    for workers in (1, 2):
        made = Baselines("gift_eval", Options(data, limit=4), [c], 100, tmp_path / str(workers), workers)
        made.folder.mkdir()
        lines.append(made.compute("flair")[c.name])
        lines[-1].pop("seconds")
    assert lines[0] == lines[1]
    assert lines[0]["fallbacks"] == 0
