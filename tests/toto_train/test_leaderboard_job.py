"""A benchmark as a job: what lies in the output folder, what is gone on with, what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts import evaluate
from toto_train.evaluation.leaderboards import job, results
from toto_train.evaluation.leaderboards.benchmarks import Options

from .pages import check_page
from .saved_datasets import save, seasonal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A few datasets of GIFT-Eval and BOOMLET, by name and format."""
    path = tmp_path_factory.mktemp("data")
    save(path / "electricity/D", seasonal([500, 420], 0, 7), "D")
    save(path / "ett1/W", seasonal([300], 2, 7), "W-SUN")
    save(path / "hospital", seasonal([84] * 3, 0, 12), "M")
    save(path / "ds-2187-H", seasonal([2400], 2, 24), "H")
    save(path / "ds-1520-10S", [np.ones((2, 1200), np.float32)], "10S")  # split off, and never wrong
    return path


@pytest.fixture
def asked(model, data, tmp_path) -> job.LeaderboardJob:
    return job.LeaderboardJob(model, "gift_eval", Options(data, limit=3), tmp_path / "out", device="cpu")


def test_a_folder_for_the_leaderboard(asked, capsys, caplog):
    caplog.set_level(logging.WARNING)
    summary = job.run(asked)
    for name in ("small", "seasonal_naive"):
        table = pd.read_csv(asked.out / name / "all_results.csv")
        assert table.shape == (3, 15)
        assert [*table.columns[:3], *table.columns[-3:]] == [
            "dataset", "model", "eval_metrics/MSE[mean]", "eval_metrics/mean_weighted_sum_quantile_loss", "domain",
            "num_variates",
        ]  # fmt: skip
        assert table["dataset"].tolist() == ["electricity/D/short", "ett1/W/short", "hospital/M/short"]
        assert set(table["model"]) == {name}
        assert table["num_variates"].tolist() == [1, 7, 1]
        config = json.loads((asked.out / name / "config.json").read_text())
        assert config["model"] == name
        assert set(config) == {
            "model", "model_type", "model_dtype", "model_link", "code_link", "org", "testdata_leakage",
            "replication_code_available",
        }  # fmt: skip
    scores = json.loads((asked.out / "scores.json").read_text())
    assert set(scores["scores"]) == set(table["dataset"])
    assert scores["summary"]["overall"]["forecasters"]["small"] == summary["overall"]["forecasters"]["small"]
    printed = capsys.readouterr().out
    assert "GIFT-Eval: overall, 3 of 97 configurations, at most 3 windows of each" in printed
    assert re.search(r"Toto-2\.0-22m \(published\) +0\.719 +0\.496\n", printed)
    assert "the published scores are of all 97 configurations" in caplog.text
    page = (asked.out / "report.html").read_text()
    check_page(page)
    assert page.count("<figcaption><span") == 9  # three forecasts of each configuration
    filled = config | {"org": "Acme", "testdata_leakage": "No"}
    (asked.out / name / "config.json").write_text(json.dumps(filled))
    job.run(asked)
    assert json.loads((asked.out / name / "config.json").read_text()) == filled


def test_boom_has_its_own_layout_and_two_parts(asked, capsys):
    job.run(dataclasses.replace(asked, benchmark="boomlet", terms=["short", "medium"], options=asked.options))
    table = pd.read_csv(asked.out / "small" / "all_results.csv")
    assert table.shape == (4, 16)
    assert table.columns[-1] == "dataset_size"
    assert table["dataset"].iloc[-1] == "ds-2187-H/Medium/medium"
    assert (asked.out / "seasonalnaive" / "all_results.csv").is_file()
    printed = capsys.readouterr().out
    assert "BOOMLET: scaled (2), 4 of 96 configurations" in printed
    assert "BOOMLET: unscaled (2), 4 of 96 configurations" in printed
    assert "-0.000" not in printed
    naive = json.loads((asked.out / "scores.json").read_text())["summary"]["unscaled"]["forecasters"]["seasonalnaive"]
    assert naive["MAE"] == pytest.approx(0, abs=1e-12)  # constants
    assert "published" not in printed  # BOOM's scores are not BOOMLET's
    page = (asked.out / "report.html").read_text()
    check_page(page)
    assert "Split off" in page


def test_a_killed_evaluation_goes_on_where_it_was(asked, monkeypatch):
    whole = job.run(dataclasses.replace(asked, out=asked.out.with_name("whole")))
    calls, score = [], job.score

    def killed(forecaster, windows, max_points):
        calls.append(windows.tasks[0].source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(forecaster, windows, max_points)

    monkeypatch.setattr(job, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        job.run(asked)
    file = asked.out / results.RESULTS
    assert file.read_text().count("\n") == 1
    file.write_text(file.read_text() + '{"configuration": "ett1/W/sho')  # the line that was being written
    assert job.run(asked) == whole
    assert calls == ["electricity/D", "ett1/W", "ett1/W", "hospital"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["configuration"] for line in lines] == ["electricity/D/short", "ett1/W/short", "hospital/M/short"]


@pytest.mark.slow
def test_processes_give_the_same_tables(asked):
    job.run(asked)
    two = dataclasses.replace(asked, out=asked.out.with_name("two"), processes=2)
    job.run(two)
    for table in ("small/all_results.csv", "seasonal_naive/all_results.csv"):
        assert (two.out / table).read_bytes() == (asked.out / table).read_bytes()
    with pytest.raises(ValueError, match="has changed while it was being scored"):
        job.forecaster_of(asked.model, "best", "hash of other weights", "cpu", "fp32", rank=1)


@pytest.mark.slow
def test_a_killed_parent_leaves_whole_lines_and_no_process(model, data, tmp_path):
    save(tmp_path / "data/hospital", seasonal([84] * 3, 0, 12), "M")
    save(tmp_path / "data/us_births/D", seasonal([7000], 0, 7), "D")
    save(tmp_path / "data/solar/H", seasonal([4000] * 12, 0, 24), "H")
    arguments = [f"model={model}", "tasks=gift_eval", f"tasks.path={tmp_path / 'data'}", f"out={tmp_path / 'out'}"]
    arguments += ["device=cpu", "processes=2", "baselines=none"]
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), *arguments]
    begun = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    file = tmp_path / "out" / results.RESULTS
    while not (file.is_file() and file.read_text().count("\n")):
        assert begun.poll() is None
        time.sleep(0.02)
    children = [int(pid) for pid in Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()]
    begun.kill()
    begun.wait()
    deadline = time.monotonic() + 60
    while any(
        Path(f"/proc/{pid}/stat").is_file() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in children
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = [json.loads(line)["configuration"] for line in file.read_text().splitlines()]
    assert before
    assert len(children) >= 2
    assert subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    after = [json.loads(line)["configuration"] for line in file.read_text().splitlines()]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 5


def test_scores_in_bf16_are_near_those_in_fp32_and_kept_apart(asked):
    asked = dataclasses.replace(asked, include=["ett1*"])
    job.run(asked)
    with pytest.raises(ValueError, match="holds another evaluation"):
        job.run(dataclasses.replace(asked, precision="bf16"))
    low = dataclasses.replace(asked, precision="bf16", out=asked.out.with_name("low"))
    job.run(low)
    tables = [pd.read_csv(a.out / "small" / "all_results.csv").filter(like="eval_metrics") for a in (asked, low)]
    assert not tables[0].equals(tables[1])
    np.testing.assert_allclose(tables[1], tables[0], rtol=0.02)
    assert json.loads((low.out / "small" / "config.json").read_text())["model_dtype"] == "bfloat16"
    assert json.loads((low.out / "seasonal_naive" / "config.json").read_text())["model_dtype"] == "float32"


def test_changed_data_are_scored_again(asked, data, tmp_path, monkeypatch):
    path = tmp_path / "copy"
    save(path / "hospital", seasonal([84] * 3, 0, 12), "M")
    asked = dataclasses.replace(asked, options=Options(path))
    first = job.run(asked)
    save(path / "hospital", seasonal([90] * 3, 0, 12, seed=1), "M")
    assert job.run(asked) != first
    monkeypatch.setattr(job, "score", lambda *_: pytest.fail("scored again"))
    job.run(asked)


def test_against_the_results_of_others(asked, tmp_path, capsys):
    job.run(asked)
    others = tmp_path / "results"
    for name, factor in {"Seasonal_Naive": 2.0, "peer": 0.5}.items():
        table = pd.read_csv(asked.out / "seasonal_naive" / "all_results.csv")
        table.loc[:, table.columns.str.startswith("eval_metrics/")] *= factor
        if name == "peer":
            table = table[table["dataset"] != "hospital/M/short"]
        (others / name).mkdir(parents=True)
        table.to_csv(others / name / "all_results.csv", index=False)
    found = job.run(dataclasses.replace(asked, against=str(others)))["overall"]["forecasters"]
    assert set(found) == {"small", "peer", "Seasonal_Naive"}  # theirs is the denominator, where they have one
    assert found["peer"]["MASE"] == pytest.approx(0.25)
    assert found["peer"]["MASE rank"] < found["Seasonal_Naive"]["MASE rank"]
    assert "2 of 97 configurations" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds no MODEL"):
        job.run(dataclasses.replace(asked, against=str(tmp_path)))
    (others / "peer" / "all_results.csv").write_text("dataset,model\na,b\n")
    with pytest.raises(ValueError, match="is no table of a leaderboard"):
        job.run(dataclasses.replace(asked, against=str(others)))


def test_context_is_counted_as_the_official_package_does(asked, data):
    job.run(dataclasses.replace(asked, benchmark="boomlet", include=["ds-2187*"], options=Options(data, limit=1)))
    lines = [json.loads(line) for line in (asked.out / results.RESULTS).read_text().splitlines()]
    # 2048 less the patches that a pass appends, all but the last: 480 steps are 15 patches, 720 are 23
    assert {line["horizon"]: line["context"] for line in lines} == {48: 2016, 480: 1600, 720: 1344}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "gift-eval"}, "tasks=gift-eval must be one of local, gift_eval, boom"),
        ({"engine": "gluonts"}, "engine= is for tasks=local"),
        ({"precision": "half"}, "precision='half' must be one of fp32, bf16"),
        ({"tasks.include": "wind*"}, "no configuration is left of 3 such as electricity/D/short"),
        ({"tasks.path": "nowhere"}, "tasks.path=nowhere is no folder; give that of the datasets of GIFT-Eval"),
        ({"processes": 0}, "processes=0 must be positive"),
        ({"tasks.terms": "huge"}, "'huge' is not one of short, medium, long"),
        ({"against": "nowhere"}, "against=nowhere holds no"),
    ],
)
def test_what_is_refused(model, data, tmp_path, changes, message):
    asked = {"model": model, "tasks": "gift_eval", "tasks.path": data, "out": tmp_path / "out"} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate.main([f"{key}={value}" for key, value in asked.items()])


def test_datasets_of_the_hubs_cache_need_no_path(model, tmp_path, monkeypatch, capsys):
    commit, repository = "1" * 40, tmp_path / "hub" / "datasets--Salesforce--GiftEval"
    save(repository / "snapshots" / commit / "hospital", seasonal([84] * 3, 0, 12), "M")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = [f"model={model}", "tasks=gift_eval", f"out={tmp_path / 'out'}", "baselines=none"]
    assert evaluate.main(arguments) == 0
    assert "1 of 97 configurations" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Datadog/BOOM is neither in the cache nor to be had from the hub"):
        evaluate.main([f"model={model}", "tasks=boomlet", f"out={tmp_path / 'boomlet'}"])


def test_the_command(model, data, tmp_path, capsys):
    arguments = {"model": model, "tasks": "gift_eval", "tasks.path": data, "out": tmp_path / "out", "limit": 2}
    arguments["baselines"] = "none"
    assert evaluate.main([f"{key}={value}" for key, value in (arguments | {"tasks.include": "hosp*"}).items()]) == 0
    assert "GIFT-Eval: overall, 1 of 97 configurations, at most 2 windows of each" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds another evaluation"):  # of other windows
        evaluate.main([f"{key}={value}" for key, value in (arguments | {"limit": 3}).items()])
