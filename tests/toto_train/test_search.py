"""Rounds of a search: what is drawn, who wins, and that workers may come, die and come again."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="the extra `search` is not installed")
import optuna

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import search as script

from toto_train.cli import config_from_overrides
from toto_train.config import ConfigError
from toto_train.search import Round, Search, bounded, name_of
from toto_train.search_finals import BASE, LEVEL, Final, freeze, noise, winner
from toto_train.search_report import write_report
from toto_train.search_runs import Runs

from .pages import check_page

ROOT = Path(__file__).parents[2]


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.05, 1)), min_size=1, max_size=6))
def test_shares_sum_to_one_below_their_bounds(drawn):
    most = {f"e{i}": bound for i, (_, bound) in enumerate(drawn)}
    if sum(most.values()) < 1:
        most["e0"] = 1.0
    shares = bounded({f"e{i}": part for i, (part, _) in enumerate(drawn)}, most)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert all(0 <= share <= most[name] + 1e-6 for name, share in shares.items())


def test_what_a_bound_cuts_off_goes_to_the_others_in_proportion():
    assert bounded({"a": 6, "b": 1, "c": 3}, {"a": 0.2, "b": 1, "c": 1}) == {"a": 0.2, "b": 0.2, "c": 0.6}
    assert bounded({"a": 6, "b": 1, "c": 3}, {"a": 0.2, "b": 1, "c": 0.4}) == {"a": 0.2, "b": 0.4, "c": 0.4}


@pytest.mark.parametrize("name", ["architecture", "mixture", "optimizer", "decay"])
def test_the_rounds_that_ship_name_settings_of_train_py(name):
    found = Round.read(ROOT / "configs" / "search" / f"{name}.yaml")
    config = config_from_overrides(["data=toto2", "plan=true"], ROOT / "configs")
    assert found.space or found.shares
    assert set(found.shares) <= set(config.data.mixture)
    for key in found.space:
        place = config
        for part in key.split("."):
            place = getattr(place, part)


def test_draws_keep_to_the_space():
    found = Round(
        "r", {"a": {"log": [1e-3, 1.0]}, "b": {"int": [2, 5]}, "c": {"values": ["x", "y"]}}, {"k": 0.7, "l": 0.6}
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [found.draw(study.ask()) for _ in range(200)]
    assert all(1e-3 <= d["a"] <= 1 and d["b"] in (2, 3, 4, 5) and d["c"] in ("x", "y") for d in drawn)
    assert {d["b"] for d in drawn} == {2, 3, 4, 5}
    assert sum(d["a"] < 0.03 for d in drawn) == pytest.approx(100, abs=35)  # half on a log scale; 5 standard errors
    assert all(d["data.mixture.k.weight"] <= 0.7 and d["data.mixture.l.weight"] <= 0.6 for d in drawn)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {optimizer.clip_norm: {log: [0, 3]}}", r"clip_norm: needs \[low, high\]"),
        ("space: {optimizer.clip_norm: [1, 3]}", "must be one of values"),
        ("shares: {a: 0.3, b: 0.4}", "all together at least 1"),
        ("rooms: 3", "must have space: or shares:"),
    ],
)
def test_what_is_wrong_with_a_round_is_said_with_its_file(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as said:
        Round.read(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(said.value)


def test_a_winner_beats_the_base_by_more_than_noise_seed_by_seed():
    base = Final(BASE, {}, [1.00, 1.10, 0.90])
    clear = Final("trial 1", {"a": 1}, [0.95, 1.04, 0.86])  # lower by .05, .06, .04: seeds differ more than that
    noisy = Final("trial 2", {"a": 2}, [0.70, 1.20, 0.85])
    assert winner([clear, base]) is clear
    assert winner([noisy, base]) is base
    assert winner([clear]) is None
    failed = Final("trial 3", {"a": 3}, [math.inf, 0.9, 0.8])
    assert winner([base, failed, clear]) is clear
    assert winner([Final("trial 1", {"a": 1}, [0.9]), Final(BASE, {}, [1.0])]).name == "trial 1"  # one seed: no error
    assert winner([Final(BASE, {}, [0.9]), Final("trial 1", {"a": 1}, [1.0])]).name == BASE


def test_noise_is_that_of_paired_differences():
    base, other = Final(BASE, {}, [1.0, 2.0, 4.0]), Final("trial 1", {"a": 1}, [0.7, 1.9, 3.5])
    gains = np.array(base.scores) - other.scores
    paired = scipy.stats.ttest_1samp(gains, 0.0)
    assert noise([base, other]).error == pytest.approx(gains.std(ddof=1) / math.sqrt(3))
    assert gains.mean() / noise([base, other]).error == pytest.approx(paired.statistic)
    assert noise([base, other]).bar == pytest.approx(noise([base, other]).error * scipy.stats.t.ppf(0.95, 2))


@pytest.mark.parametrize(("finalists", "seeds"), [(1, 3), (3, 3), (5, 2)])
def test_chance_seldom_wins(finalists, seeds):
    """Choices that are all alike: a round has a winner in LEVEL of the cases at most, and not much less often."""
    rng = np.random.default_rng(finalists)
    wins, rounds = 0, 1500
    for _ in range(rounds):
        scores = 1 + 0.1 * rng.normal(size=(1, seeds)) + 0.02 * rng.normal(size=(1 + finalists, seeds))
        finals = [Final(BASE if k == 0 else f"trial {k}", {}, list(row)) for k, row in enumerate(scores)]
        wins += winner(finals).name != BASE
    low, high = scipy.stats.binom.ppf([1e-4, 1 - 1e-4], rounds, LEVEL) / rounds
    assert low / 2 < wins / rounds < high


STUB = """
import os, pathlib, sys, time
given = dict(text.split("=", 1) for text in sys.argv[1:])
run = pathlib.Path(given["out"], given["name"])
run.mkdir(parents=True)
(run / "pid").write_text(str(os.getpid()))
(run / "metrics.csv").write_text("step,val/mwql,val/mase\\n6,0.5,0.5\\n")
time.sleep(float(given["seconds"]))
"""
"""Stands for train.py: one validation, then some more time."""


@pytest.mark.parametrize(("steps", "state"), [(6, "done"), (12, "behind")])
def test_none_is_stopped_at_its_last_step(tmp_path, steps, state):
    runs = Runs(tmp_path, [sys.executable, "-c", STUB], [f"seconds={1 if state == 'done' else 60}"], steps)
    told = []
    outcome = runs.follow("t", {"a": 1}, 0, lambda step, score: bool(told.append((step, score))) or True)
    assert (outcome.state, told) == (state, [(6, 0.5)])
    assert runs.result("t", 0) == (0.5 if state == "done" else None)


def test_a_run_ends_with_the_search_that_follows_it(tmp_path):
    """Else it goes on beside the worker that takes its trial up."""
    follow = f"""
import pathlib, sys
from toto_train.search_runs import Runs
runs = Runs(pathlib.Path(sys.argv[1]), [sys.executable, "-c", {STUB!r}], ["seconds=60"], 12)
runs.follow("t", {{}}, 0, lambda step, score: False)
"""
    search = subprocess.Popen([sys.executable, "-c", follow, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    ready, pid = tmp_path / "runs" / "t-s0" / "metrics.csv", tmp_path / "runs" / "t-s0" / "pid"
    deadline = time.monotonic() + 60
    while not ready.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    search.kill()
    search.wait()
    stat = Path("/proc") / pid.read_text() / "stat"
    while stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_round_that_cannot_be_run_is_refused_at_its_bounds():
    job = ["schedule.max_steps=48", "schedule.warmup_steps=5", "schedule.decay_steps=19"]
    config = config_from_overrides(["experiment=quickstart", *job], ROOT / "configs")
    found = Round.read(ROOT / "configs" / "search" / "optimizer.yaml")
    (problem,) = script.impossible(found, config)
    assert problem.startswith("optimizer: schedule.warmup_steps=1000: schedule.max_steps=48 is shorter than")
    assert script.impossible(Round("r", {"schedule.warmup_steps": {"int": [1, 9], "log": True}}), config) == []


def test_a_round_is_won_when_all_is_done(tmp_path):
    """Not by the base while trials or finals are still at other workers."""
    runs = Runs(tmp_path, [], [], 6)
    search = Search(Round("r", {"a": {"uniform": [0, 1]}}), runs, trials=2, finalists=1, seeds=2)
    values = {"a": 0.5}
    space = {"a": optuna.distributions.FloatDistribution(0, 1)}
    study = search.study()
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"values": {}}))
    (tmp_path / "results").mkdir()

    def done(settings, seed, score):
        (tmp_path / "results" / f"{name_of(settings)}-s{seed}.json").write_text(json.dumps({"score": score}))

    for seed, score in enumerate([0.5, 1.0, 1.1]):  # the first is the trial's
        done({}, seed, score)
    assert search.won() is None  # a trial is to come
    other = optuna.trial.create_trial(value=0.8, params=values, distributions=space, user_attrs={"values": values})
    study.add_trial(other)
    done(values, 0, 0.8)
    done(values, 1, 0.8)
    assert search.won() is None  # its second seed is
    done(values, 2, 0.9)
    assert search.won().name == "trial 1"  # though it was worse on the seed that chose it


SCORED = """
import pathlib, sys
given = dict(text.split("=", 1) for text in sys.argv[1:])
run = pathlib.Path(given["out"], given["name"])
run.mkdir(parents=True)
score = float(given.get("a", 9)) + (0 if given["seed"] == "0" else 1) + int(given["seed"]) / 100
(run / "metrics.csv").write_text(f"step,val/mwql,val/mase\\n6,{score},{score}\\n")
"""
"""Stands for train.py: lower where `a` is, and always lower with seed 0."""


def test_a_round_ends_with_the_best_on_new_seeds(tmp_path):
    runs = Runs(tmp_path, [sys.executable, "-c", SCORED], [], 6)
    search = Search(Round("r", {"a": {"uniform": [1, 8]}}), runs, trials=4, finalists=1, seeds=2)
    said = []
    search.work(said.append)
    won = search.won()
    assert won.values == min((t.user_attrs["values"] for t in search.finished()[:3]), key=lambda v: v.get("a", 9))
    assert won.scores == pytest.approx([won.values["a"] + 1.01, won.values["a"] + 1.02])
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(names) == 4 + 2 * 2  # trials, and two new seeds of the best and of the base
    before = len(said)
    search.work(said.append)
    assert len(said) == before  # nothing is left to do


def test_the_page_shows_settings_over_all_that_could_be_drawn(tmp_path):
    search = Search(Round("r", {"a": {"uniform": [0, 7]}}), Runs(tmp_path, [], [], 6), trials=9, finalists=1, seeds=1)
    space = {
        "a": optuna.distributions.FloatDistribution(0, 7),
        "b.c": optuna.distributions.CategoricalDistribution(["left", "right"]),
    }
    study = search.study()
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"values": {}}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{BASE}-s0.json").write_text('{"score": 1.0}')
    for k in range(8):
        values = {"a": 2 + k / 8, "b.c": ["left", "right"][k % 2]}
        study.add_trial(optuna.trial.create_trial(
            value=0.9 - k / 100, params=values, distributions=space, user_attrs={"values": values}))  # fmt: skip
    assert "The finals are not complete" in write_report(search, tmp_path / "report.html").read_text()
    (tmp_path / "results" / f"{name_of(values)}-s0.json").write_text('{"score": 0.83}')
    page = write_report(search, tmp_path / "report.html").read_text()
    check_page(page)
    assert "trial 8 is 0.1700 lower than the settings as they were. One seed" in page
    slices, parallel, importances = re.findall("<svg.*?</svg>", page, re.S)
    assert all(label in plot for plot in (slices, parallel) for label in (">0<", ">7<", ">left<", ">right<"))
    assert ">score<" in parallel
    assert "importance" in importances


def test_a_frozen_winner_is_an_experiment(tmp_path):
    configs = tmp_path / "configs"
    subprocess.run(["cp", "-r", str(ROOT / "configs"), str(configs)], check=True)
    values = {"optimizer.normuon.lr": 0.3, "model.attn_bias": False}
    base = ["model=tiny", "experiment=toto2_small", "global_rows=32", "data.mixture.corpus.path=x"]
    freeze(Final("trial 3", values, [0.9]), base, configs / "experiment" / "won.yaml", "Winner.")
    frozen = config_from_overrides(["experiment=won"], configs)
    meant = config_from_overrides([*base, *(f"{k}={str(v).lower()}" for k, v in values.items())], configs)
    assert frozen == meant


SPACE = {"space": {"optimizer.normuon.lr": {"log": [0.1, 1.0]}, "objective.max_span": {"int": [2, 9]}}}


@pytest.mark.e2e
def test_a_search_survives_the_death_of_its_worker(small_job, tmp_path):
    """Killed in its second trial, with the run it follows; the next worker takes that trial up and ends the round."""
    (tmp_path / "round.yaml").write_text(yaml.safe_dump(SPACE))
    out = tmp_path / "search"
    job = [a for a in small_job if a.partition("=")[0] not in ("out", "name", "schedule.max_steps")]
    command = [sys.executable, str(ROOT / "scripts" / "search.py"), f"round={tmp_path / 'round.yaml'}", f"out={out}",
               "trials=2", "finalists=1", "seeds=1", "schedule.max_steps=30", *job]  # fmt: skip
    copy = tmp_path / "project"  # where the winner is frozen
    copy.mkdir()
    for part in ("configs", "scripts", "train.py", "toto_train", "data_pipelines"):
        subprocess.run(["cp", "-r", str(ROOT / part), str(copy / part)], check=True)
    command[1] = str(copy / "scripts" / "search.py")
    environment = os.environ | {"PYTHONPATH": str(copy)}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    deadline = time.monotonic() + 280
    while not [p for p in out.glob("runs/*/checkpoints/latest") if p.parents[1].name != "base-s0"]:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (died,) = [p for p in (out / "runs").iterdir() if p.name != "base-s0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resumed" in (out / "logs" / f"{died.name}.txt").read_text()  # not begun anew
    assert (out / "results" / f"{died.name}.json").is_file()
    assert len(list((out / "results").glob("*-s0.json"))) == 2  # base and a trial, none twice, none lost
    assert (copy / "configs" / "experiment" / "search.yaml").is_file()
    assert "Finals" in (out / "report.html").read_text()
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert "trial" not in again.stdout.split("Winner")[0]  # nothing is left to do
