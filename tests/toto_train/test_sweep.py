"""Sweeps: which runs they are, what becomes of each, and the one table of them."""

import csv
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import launch_sweep as script

from toto_train.config import ConfigError
from toto_train.ladder import make_trials, observe, parse_sizes, repeats
from toto_train.launch import FAILED
from toto_train.multirun import sweep
from toto_train.sweep import expand, launch_all
from toto_train.sweep_table import is_done, read_state, read_states, table

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
QUICK = ["schedule.max_steps=2", "schedule.warmup_steps=0", "schedule.decay_steps=1", "data.workers=0", "report=false",
         "validate_every=0"]  # fmt: skip


def test_every_combination_is_a_run_named_by_what_is_swept(tmp_path):
    trials = expand([f"out={tmp_path}", "model=nano,tiny", "seed=0,1", "name=a", "data.lanes=1"], CONFIGS)
    assert [t.name for t in trials] == [f"a-model={m},seed={s}" for m in ("nano", "tiny") for s in (0, 1)]
    assert [(t.config.model.name, t.config.seed) for t in trials] == [
        ("nano", 0), ("nano", 1), ("tiny", 0), ("tiny", 1)]  # fmt: skip
    assert trials[0].folder == tmp_path / "a-model=nano,seed=0"
    (one,) = expand([f"out={tmp_path}", "data.mixture.synthetic.include=[a,b]"], CONFIGS)  # a list is one value
    assert one.name == "nano"


def test_wrong_settings_of_one_run_fail_that_run_and_of_all_the_sweep(tmp_path):
    good, bad = expand([f"out={tmp_path}", "seed=0,-1"], CONFIGS)
    assert good.config
    assert not bad.config
    assert "seed=-1 must not be negative" in bad.problem
    for wrong, message in (
        (["seeds=0,1"], "unknown key 'seeds'"),
        (["seed"], "'seed' is not key=value"),
        (["plan=true"], "plan=true has no place in a sweep"),
    ):
        with pytest.raises(ConfigError, match=message):
            expand([f"out={tmp_path}", *wrong], CONFIGS)
    assert not any(tmp_path.iterdir())


def test_where_runs_are_is_checked_before_any_begins(tmp_path):
    for wrong, message in (
        (["executor=slrum"], "executor='slrum' must be one of local, ray, slurm"),
        (["processes=0"], "processes=0 must be positive"),
        (["hydra.launcher.partition=gpu"], "is for a launcher of Hydra's; give executor=slurm"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep([f"out={tmp_path}", "model=nano", "seed=0,1", *wrong], CONFIGS)
    assert not any(tmp_path.iterdir())


def test_states_and_the_table(train_here, corpus, tmp_path):
    done = train_here("schedule.max_steps=2", "schedule.warmup_steps=0", "schedule.decay_steps=1")
    out = done.parent
    state = read_state(done)
    assert (state.state, state.step, state.steps) == ("done", 2, 2)
    assert 0 < state.scores["loss"] < 5
    text = (done / "config.yaml").read_text()
    for name, change in {"longer": ("max_steps: 2", "max_steps: 9"), "queued": ("seed: 0", "seed: 7")}.items():
        (out / name).mkdir()
        file = "launch.yaml" if name == "queued" else "config.yaml"
        (out / name / file).write_text(text.replace(*change))
    (out / "broken").mkdir()
    (out / "broken" / FAILED).write_text("ValueError: no such folder\nand more\n")
    found = {s.name: s.state for s in read_states(out)}
    assert found == {"broken": "failed", "longer": "stopped", "queued": "waiting", "small": "done"}
    with (out / "longer" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_state(out / "longer").state == "running"
    assert script.main([f"out={out}"]) == 0
    rows = {row["run"]: row for row in csv.DictReader((out / "sweep.csv").open())}
    assert (rows["queued"]["seed"], rows["small"]["seed"]) == ("7", "0")
    assert rows["longer"]["schedule.max_steps"] == "9"
    assert rows["broken"]["message"] == "ValueError: no such folder\nand more"
    assert float(rows["small"]["loss"]) == pytest.approx(state.scores["loss"], abs=1e-4)
    shown = table(read_states(out))
    assert "ValueError: no such folder and more" in shown
    assert shown.endswith("4 runs: 1 failed, 1 stopped, 1 waiting, 1 done")
    with pytest.raises(ValueError, match="holds no runs"):
        script.main([f"out={tmp_path / 'empty'}"])


def test_a_finished_run_is_not_run_again_nor_taken_for_another(train_here, small_job, tmp_path):
    folder = train_here(*QUICK)
    (trial,) = expand([*small_job, *QUICK], CONFIGS)
    told = []
    launch_all([trial], 1, lambda t, state: told.append((t.name, state)))
    assert told == [("small", "done")]
    assert not (folder / "launch.log").exists()
    (other,) = expand([*small_job, *QUICK, "optimizer.normuon.lr=0.1", "micro_rows=4"], CONFIGS)
    with pytest.raises(ValueError, match=r"other settings: optimizer.normuon.lr=0.1 \(was 0.652\); choose another"):
        launch_all([other], 1, print)
    with pytest.raises(ValueError, match="executor='slurm' must be one of local, ray"):
        launch_all([], 1, print, "slurm")


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_run_that_fails_stops_no_other(executor, small_job, tmp_path):
    if executor == "ray":
        pytest.importorskip("ray")
    job = [a for a in small_job if not a.startswith("out=")] + QUICK
    swept = ["seed=-1,0", f"data.mixture.corpus.path={tmp_path / 'nowhere'},{_corpus(small_job)}"]
    command = [
        sys.executable,
        str(ROOT / "scripts" / "launch_sweep.py"),
        f"out={tmp_path}/runs",
        f"executor={executor}",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *job, *swept], capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 1, done.stderr
    states = {s.name: s for s in read_states(tmp_path / "runs")}
    assert sorted(s.state for s in states.values()) == ["done", "failed", "failed", "failed"]
    assert "nowhere" in next(s.message for name, s in states.items() if "nowhere" in name and "seed=0" in name)
    assert sum("seed=-1 must not be negative" in s.message for s in states.values()) == 2
    assert "4 runs: " in done.stdout
    assert (tmp_path / "runs" / "sweep.csv").exists()


def _corpus(job: list[str]) -> str:
    return next(a for a in job if a.startswith("data.mixture.corpus.path=")).partition("=")[2]


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_goes_on(small_job, tmp_path):
    out = tmp_path / "runs"
    job = [a for a in small_job if not a.startswith("out=")] + [*QUICK, "schedule.max_steps=100000"]
    command = [sys.executable, str(ROOT / "scripts" / "launch_sweep.py"), f"out={out}", *job, "seed=0,1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    first = out / "small-seed=0"
    deadline = time.monotonic() + 200
    while not (list(first.glob("checkpoints/step-*")) or process.poll() is not None or time.monotonic() > deadline):
        time.sleep(0.2)
    assert read_state(first).state == "running"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 143
    assert read_state(first).state == "stopped"
    assert not (out / "small-seed=1").exists()


def test_the_ladder_is_of_train_pys_runs(small_job, corpus, tmp_path, train_here):
    settings = [a for a in small_job if not a.startswith(("out=", "name=", "model", "schedule"))] + ["data.workers=0"]
    sizes = parse_sizes("32x2,64x2", 16)
    trials = make_trials(tmp_path / "runs", sizes, [2, 4], [0, 1], settings, CONFIGS)
    assert len(trials) == 8
    assert trials[0].name[:6] == "64x2-4"  # what takes longest begins
    config = trials[0].config
    assert (config.model.d_model, config.model.num_heads, config.model.d_ff) == (64, 4, 176)
    assert (config.optimizer.normuon.lr_rule, config.schedule.decay_steps) == ("unit_scaled", 1)
    pair = [t for t in trials if t.config.seed == 0 and t.config.schedule.max_steps == 2]
    for t in pair:
        train_here(*settings, *(f"{k}={v}" for k, v in {"name": t.name, "model.name": t.config.model.name,
                   "model.d_model": t.config.model.d_model, "model.num_layers": 2, "model.num_heads":
                   t.config.model.num_heads, "model.d_ff": t.config.model.d_ff, "schedule.max_steps": 2,
                   "schedule.warmup_steps": 0, "schedule.decay_steps": 0, "optimizer.normuon.lr_rule": "unit_scaled",
                   "optimizer.normuon.lr": 0.035}.items()))  # fmt: skip
        assert is_done(t.folder, t.config)
    wide, narrow = observe(pair, 4)
    assert (wide.size, narrow.size) == ("64x2", "32x2")
    assert wide.parameters > narrow.parameters
    assert wide.points == narrow.points > 0
    assert 0.1 < wide.loss != narrow.loss < 2
    assert observe(pair, 4) == [wide, narrow]
    assert 1 <= repeats(config) < 10
    for wrong, message in (
        ({"settings": [*settings, "seed=3"]}, "seed=3: the ladder sets this itself"),
        ({"settings": [*settings, "global_rows=3"]}, "global_rows=3"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_trials(tmp_path, sizes, [2], [0], wrong["settings"], CONFIGS)
    for text in ("64", "64x", "0x4", "40x4"):
        with pytest.raises(ValueError, match="sizes="):
            parse_sizes(text, 16)
