"""Whole jobs from the command line: what they leave, how they resume, how they fail."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from toto_train import checkpoint, checkpoint_files
from toto_train.config import Config
from toto_train.run_folder import open_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


def weights(run: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(run / "export" / "model.safetensors").items()}


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def untimed(row: dict[str, str]) -> dict[str, str]:
    """What of a row of metrics.csv no clock decides."""
    return {k: v for k, v in row.items() if k != "seconds" and not k.startswith("perf/")}


def test_a_job_leaves_everything_it_promises(small_job, train_py, tmp_path):
    done = train_py(*small_job)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    for name in ("config.yaml", "metrics.csv", "scores.json", "report.html", "checkpoints", "export"):
        assert (run / name).exists(), name
        assert str(run / name) in done.stdout
    assert not list(run.rglob("*.tmp"))
    kept = [p.name for p in sorted((run / "checkpoints").glob("step-*"))]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000012\n"
    assert kept[-2:] == ["step-00000008", "step-00000012"]
    assert kept[:-2] in ([], ["step-00000006"])  # the best by validation

    table = rows(run)
    assert [int(r["step"]) for r in table] == [2, 4, 6, 8, 10, 12]
    assert all(np.isfinite(float(r["train/loss"])) for r in table)
    assert [r["step"] for r in table if r["val/mwql"]] == ["6", "12"]
    assert float(table[-1]["train/lr_normuon"]) == pytest.approx(0.652 / 4)

    scores = json.loads((run / "scores.json").read_text())
    assert list(scores["sources"]) == ["queue"]  # held out: none of the training sources
    assert scores["tasks"]["queue/H/short"]["mase"] > 0
    assert scores["sources"]["queue"]["relative"]["mwql"] == scores["overall"]["relative"]["mwql"]["value"]
    for name in ("rows.parquet", "seasonal_naive.parquet"):
        assert (
            len(pd.read_parquet(run / name))
            == scores["overall"]["windows"] + scores["overall"]["windows_without_label"]
        )
    relative = scores["overall"]["relative"]["mwql"]
    assert relative["low"] <= relative["value"] <= relative["high"]

    again = train_py(*small_job)  # a finished run is not trained again
    assert again.returncode == 0
    assert [r["step"] for r in rows(run)] == [r["step"] for r in table]


def test_the_official_package_loads_the_export(small_job, train_py, tmp_path):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    assert train_py(*small_job, "heldout.path=''").returncode == 0
    toto2.Toto2Model.from_pretrained(str(tmp_path / "runs" / "small" / "export"), strict=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(small_job, train_py, tmp_path, workers):
    job = [*small_job, "schedule.max_steps=30", f"data.workers={workers}", "report=true", "heldout.path=''"]
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert train_py(*job, "name=whole").returncode == 0
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    target = int(rng.integers(5, 27))
    command = [sys.executable, str(ROOT / "train.py"), *job, "name=killed"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (killed / "metrics.csv").exists() and any(int(r["step"] or 0) >= target for r in rows(killed)):
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "export").exists()
    resumed = train_py(*job, "name=killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in resumed.stderr, f"killed at step {target}"
    assert weights(killed) == weights(whole), f"killed at step {target}"
    assert not list(killed.rglob("*.tmp"))
    for a, b in zip(rows(whole), rows(killed), strict=True):
        assert untimed(a) == untimed(b)


def test_a_run_killed_after_its_best_exports_the_same_best(small_job, train_py, tmp_path):
    job = [*small_job, "heldout.path=''", "schedule.decay_steps=0"]
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert train_py(*job, "name=whole", "schedule.max_steps=6").returncode == 0
    shutil.copytree(whole, killed)
    ruin = "optimizer.adamw.lr=30"  # from here on every validation is worse
    process = stop([*job, ruin, "name=killed"], killed, signal.SIGKILL)
    process.communicate(timeout=120)
    total = f"schedule.max_steps={int(rows(killed)[-1]['step']) + 10}"
    for name in ("whole", "killed"):
        assert train_py(*job, ruin, total, f"name={name}").returncode == 0
    for run in (whole, killed):
        assert checkpoint_files.best(run) == run / "checkpoints" / "step-00000006"
        assert json.loads((run / "export" / "training.json").read_text())["steps"] == 6
    assert weights(whole) == weights(killed)
    best, one, two = (checkpoint.load_model(r, w)[0] for r, w in ((whole, "best"), (whole, "last"), (killed, "last")))
    for b, p, q in zip(best.parameters(), one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.ndim < 2 or not torch.equal(b, p)
    validated = [[(r["step"], r["val/mwql"]) for r in rows(run) if r["val/mwql"]] for run in (whole, killed)]
    assert validated[0] == validated[1]


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_print_no_warnings_that_a_user_can_do_nothing_about(small_job, train_py, monkeypatch):
    """Each would come from every rank."""
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    done = train_py(*small_job, "parallel=fsdp2", "parallel.devices=2", "parallel.precision=fp32", "validate_every=0",
                    "report=false", "data.workers=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_accumulation_gives_the_step_of_the_whole_batch(small_job, train_py, tmp_path):
    job = [*small_job, "heldout.path=''", "schedule.max_steps=6", "optimizer.normuon.orthogonalize_dtype=fp32"]
    for micro in (1, 4):
        assert train_py(*job, f"micro_rows={micro}", f"name=micro{micro}").returncode == 0
    # gradients first: NorMuon and AdamW would hide a wrong scale, the norm of the gradient does not
    for a, b in zip(*(rows(tmp_path / "runs" / f"micro{m}") for m in (1, 4)), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), rel=1e-3)
        assert float(a["train/grad_norm"]) == pytest.approx(float(b["train/grad_norm"]), rel=1e-2)
    one, four = (load_file(tmp_path / "runs" / f"micro{m}" / "export" / "model.safetensors") for m in (1, 4))
    # matrices only: a key bias shifts all logits alike, so its gradient is rounding noise, which AdamW scales to a step
    for name in (n for n in one if one[n].ndim == 2):
        assert float((one[name] - four[name]).norm()) <= 1e-3 * float(four[name].norm()), name


def test_bf16_autocast_trains(small_job, train_py, tmp_path):
    assert train_py(*small_job, "parallel.precision=bf16", "heldout.path=''").returncode == 0
    losses = [float(r["train/loss"]) for r in rows(tmp_path / "runs" / "small")]
    assert np.isfinite(losses).all()


def test_plan_allocates_nothing_and_needs_no_data(train_py):
    done = train_py("experiment=toto2_xxl", "plan=true")
    assert done.returncode == 0
    assert "2,454,281,792" in done.stdout
    assert "8,388,608" in done.stdout
    assert "FLOPs per step" in done.stdout
    assert train_py("model=xl", "plan=true").returncode == 0


def test_a_plan_shows_the_mixture_and_refuses_what_does_not_fit(train_py, corpus, tmp_path):
    mine = ["data=shards", f"data.mixture.corpus.path={corpus / 'train'}", "plan=true"]
    shown = train_py(*mine)
    assert shown.returncode == 0
    assert "corpus/web" in shown.stdout
    narrow = train_py(*mine, "data.variates=2")  # db has three
    assert narrow.returncode == 1
    assert "a series of 3 variates, a row takes data.variates=2" in narrow.stderr
    missing = train_py("data=shards", f"data.mixture.corpus.path={tmp_path / 'nowhere'}", "plan=true")
    assert missing.stdout.count("nowhere") == 1
    assert "data: not looked at, missing: " in missing.stdout


def test_scores_on_trained_sources_are_said_to_be_that(small_job, train_py, corpus):
    done = train_py(*small_job, f"validation.path={corpus / 'train'}", "heldout.path=''")
    assert done.returncode == 0, done.stderr
    assert "validation: db, web are trained on too" in done.stderr


def test_a_changed_model_or_corpus_is_refused_by_name(small_job, train_py, corpus, tmp_path):
    assert train_py(*small_job, "heldout.path=''", "schedule.max_steps=8").returncode == 0
    before = weights(tmp_path / "runs" / "small")
    wrong = train_py(*small_job, "model.num_layers=5", "seed=2")
    assert wrong.returncode == 2
    assert "model.num_layers=5, but" in wrong.stderr
    assert "seed=2, but" in wrong.stderr
    other = train_py(*small_job, f"data.mixture.corpus.path={corpus / 'validation'}")
    assert other.returncode == 2
    assert "data.sources.corpus/web is gone" in other.stderr
    assert "data.sources.corpus/cache is new" in other.stderr
    assert weights(tmp_path / "runs" / "small") == before
    fresh = train_py(*small_job, "model.num_layers=5", "seed=2", "fresh=true", "heldout.path=''")
    assert fresh.returncode == 0, fresh.stderr


def test_fresh_removes_what_runs_leave_and_nothing_else(small_job, train_py, tmp_path):
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    (folder / "config.yaml").write_text("editor: vim\n")
    for fresh in ("fresh=true", "fresh=false"):
        done = train_py(*small_job, fresh)
        assert done.returncode == 2
        assert "no run folder" in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "thesis.txt"]
    (folder / "config.yaml").unlink()
    (folder / "thesis.txt").unlink()

    assert train_py(*small_job, "heldout.path=''").returncode == 0
    (folder / "notes.txt").write_text("what I saw")
    first = weights(folder)
    wrong = train_py(*small_job, "fresh=true", "heldout.path=nowhere")
    assert wrong.returncode != 0
    assert weights(folder) == first  # found wrong before anything was removed
    assert train_py(*small_job, "fresh=true", "seed=7", "heldout.path=''").returncode == 0
    assert weights(folder) != first
    assert (folder / "notes.txt").exists()


def stop(job: list[str], run: Path, number: int) -> subprocess.Popen[str]:
    """Start a job and send it a signal once it has trained some steps."""
    command = [sys.executable, str(ROOT / "train.py"), *job, "schedule.max_steps=2000", "heldout.path=''"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.csv").exists() and len(rows(run)) > 6:
            break
        time.sleep(0.05)
    os.killpg(process.pid, number)  # workers get it too, as from a terminal or a scheduler
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_says_so_and_goes_on_from_there(small_job, train_py, tmp_path, number, status):
    run = tmp_path / "runs" / "small"
    job = [*small_job, "checkpoint.every_steps=1000", "validate_every=0"]
    process = stop(job, run, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert not (run / "export").exists()
    (saved,) = (run / "checkpoints").glob("step-*")
    step = int(saved.name.removeprefix("step-"))
    assert f"stopped at step {step} of 2000, saved" in stderr
    more = train_py(*job, f"schedule.max_steps={step + 6}", "heldout.path=''")
    assert more.returncode == 0, more.stderr
    assert f"at step {step}" in more.stderr
    assert int(rows(run)[-1]["step"]) == step + 6


def test_a_second_ctrl_c_stops_at_once_with_the_status_of_one(small_job, tmp_path):
    """Waiting for data that take long: no step ends meanwhile, so the first Ctrl-C alone would wait as well."""
    job = [*small_job, "validate_every=0", "data.workers=0", "report=false"]
    code = f"""
import os, signal, sys, time
from pathlib import Path
from toto_train import cli
from toto_train.data.rows import Rows
made = Rows.batch
def batch(self, numbers, out=None):
    if numbers[0] >= 16:  # of the fifth step; the checkpoint of the fourth is whole by then
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(100)
    return made(self, numbers, out)
Rows.batch = batch
sys.exit(cli.main({job}, Path({str(ROOT / "configs")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 130, done.stderr
    assert "stopped at once, without another save; the same command goes on" in done.stderr
    assert [p.name for p in checkpoint_files.folders(tmp_path / "runs" / "small")] == ["step-00000004"]


def test_two_runs_of_one_name_do_not_share_a_folder(small_job, train_py, tmp_path):
    import fcntl

    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = train_py(*small_job)
    assert done.returncode == 2
    assert "another run is writing" in done.stderr


def test_a_disk_that_locks_no_files_is_said_and_used(tmp_path, monkeypatch, caplog):
    """Lustre mounted without -o flock."""
    import errno
    import fcntl

    def flock(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_folder(Config(name="mine", out=str(tmp_path))) as folder:
        assert (folder / "config.yaml").is_file()
    assert f"{tmp_path / 'mine'} is on a disk that locks no files" in caplog.text


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(small_job, train_py, tmp_path):
    job = [*small_job, "heldout.path=''", "schedule.decay_steps=0"]
    whole, run = tmp_path / "runs" / "whole", tmp_path / "runs" / "small"
    assert train_py(*job, "name=whole").returncode == 0
    assert train_py(*job, "schedule.max_steps=8").returncode == 0
    file = run / "checkpoints" / "step-00000008" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = train_py(*job)
    assert again.returncode == 0, again.stderr
    assert f"{file} does not hold the bytes that were written" in again.stderr
    assert "going on from step-00000006" in again.stderr
    assert file.parent.with_name("step-00000008.damaged").is_dir()
    assert [r["step"] for r in rows(run)] == ["2", "4", "6", "8", "10", "12"]
    for a, b in zip(rows(whole), rows(run), strict=True):
        assert untimed(a) == untimed(b)
    assert weights(run) == weights(whole)

    for folder in (run / "checkpoints").glob("step-????????"):
        (folder / "meta.json").write_text("")
    lost = train_py(*job)
    assert lost.returncode == 1
    assert f"no checkpoint of {run} is whole:" in lost.stderr
    assert f"{run}/checkpoints/step-00000012/meta.json is damaged" in lost.stderr
    assert "fresh=true" in lost.stderr
    assert "Traceback" not in lost.stderr


def test_a_half_written_metrics_row_does_not_stop_a_resume(small_job, train_py, tmp_path):
    job = [*small_job, "heldout.path=''"]
    assert train_py(*job, "schedule.max_steps=8").returncode == 0
    file = tmp_path / "runs" / "small" / "metrics.csv"
    file.write_text(file.read_text() + "9,12")
    assert train_py(*job).returncode == 0
    assert [r["step"] for r in rows(file.parent)] == ["2", "4", "6", "8", "10", "12"]


def broken_copy(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus / "train", tmp_path / "broken"))


def test_bad_input_ends_with_a_message_and_nothing_half_made(small_job, train_py, corpus, tmp_path):
    shards = broken_copy(corpus, tmp_path)
    victim = sorted(shards.glob("*.tar"))[0]
    whole = victim.read_bytes()
    cases = []
    victim.write_bytes(whole[: len(whole) // 2])
    cases.append((train_py(*small_job, f"data.mixture.corpus.path={shards}"), victim.name))
    victim.unlink()
    cases.append((train_py(*small_job, f"data.mixture.corpus.path={shards}"), victim.name))
    cases.append((train_py(*small_job, f"data.mixture.corpus.path={tmp_path / 'nowhere'}"), "nowhere"))
    cases.append((train_py(*small_job, "model=huge"), "unknown model=huge"))
    cases.append((train_py(*small_job, "model.d_modell=3"), "did you mean 'd_model'"))
    for done, message in cases:
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs a place nobody can write")
def test_a_run_folder_that_cannot_be_written_is_said(small_job, train_py):
    place = "out=/proc/self" if os.geteuid() == 0 else "out=/"  # root may write anywhere else
    done = train_py(*[o for o in small_job if not o.startswith("out=")], place)
    assert done.returncode != 0
    assert "cannot write the run folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_cfg_job_shows_the_config(train_py):
    done = train_py("model=small", "--cfg", "job")
    assert done.returncode == 0
    assert "d_model: 512" in done.stdout
    assert train_py("--help").returncode == 0
    wrong = train_py("modle=small", "--cfg", "job")
    assert wrong.returncode == 2
    assert "did you mean 'model'" in wrong.stderr


def test_other_data_is_refused_by_name_and_taken_when_told(train_py, small_job, tmp_path):
    assert train_py(*small_job, "report=false", "schedule.max_steps=8").returncode == 0
    without = [*small_job, "report=false", "data.mixture.corpus.exclude=[db]"]
    refused = train_py(*without)
    assert refused.returncode != 0
    assert "data.sources.corpus/db is gone" in refused.stderr
    assert "allow_data_change=true" in refused.stderr
    taken = train_py(*without, "allow_data_change=true", "data.verify=full")
    assert taken.returncode == 0, taken.stderr
    lines = (tmp_path / "runs" / "small" / "sources.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in lines[1:] if int(line.split(",")[0]) > 8} == {"corpus/web"}
    assert any(",corpus/db," in line for line in lines)
