"""Faults in runs of several processes: each kills or starves real ones, and the same command ends with the bits of an
undisturbed run."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.distributed, pytest.mark.slow]

MEASURED = ("seconds", "perf/")
"""Columns of metrics.csv that clocks decide."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the runs of this file are."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def start(corpus, folder) -> Callable[..., subprocess.Popen[str]]:
    """start(name, *overrides): train.py of two ranks, as a user starts it."""
    job = [
        f"out={folder}", "data=shards", f"data.mixture.corpus.path={corpus / 'train'}",
        f"validation.path={corpus / 'validation'}", "validation.context=256", "heldout.context=256",
        "model.d_model=32", "model.d_ff=64", "data.variates=4", "data.length=256", "micro_rows=2",
        "schedule.warmup_steps=2", "schedule.decay_steps=4", "logger.every_steps=2", "parallel.device=cpu",
        "parallel=ddp", "parallel.devices=2", "parallel.precision=fp32", "global_rows=8",
        "schedule.max_steps=60", "checkpoint.every_steps=10", "validate_every=30", "heldout.path=''",
        "data.workers=1",
    ]  # fmt: skip

    def run(name: str, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *job, f"name={name}", *overrides],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    return run


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Processes of the ranks by rank."""
    found = [p for p in psutil.Process(launcher.pid).children() if "toto_train.rank" in p.cmdline()]
    return {int(p.environ()["RANK"]): p for p in found}


def reached(launcher: subprocess.Popen[str], run: Path, step: int) -> None:
    """Wait until a run has reported a step."""
    deadline = time.monotonic() + 120
    while not any(int(row["step"]) >= step for row in rows(run)):
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(run: Path) -> list[dict[str, str]]:
    if not (run / "metrics.csv").is_file():
        return []
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """Exported weights, and what metrics.csv says but for times."""
    kept = [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows(run)]
    return load_file(run / "export" / "model.safetensors"), kept


def same(one: Path, two: Path) -> None:
    (weights, metrics), (others, other_metrics) = outcome(one), outcome(two)
    assert metrics == other_metrics
    assert set(weights) == set(others)
    assert not [name for name, t in weights.items() if not torch.equal(t, others[name])]


def finish(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    message = launcher.communicate(timeout=240)[1]
    return launcher.returncode, message


@pytest.fixture(scope="module")
def undisturbed(start, folder) -> Path:
    status, message = finish(start("whole"))
    assert status == 0, message
    return folder / "whole"


def test_a_run_that_lost_a_rank_goes_on_to_the_same_end(start, undisturbed, folder):
    launcher = start("killed")
    reached(launcher, folder / "killed", 24)
    ranks_of(launcher)[1].kill()
    status, message = finish(launcher)
    assert status == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in message
    assert finish(start("killed"))[0] == 0
    same(folder / "killed", undisturbed)


def test_a_job_that_the_cluster_takes_back_saves_on_all_ranks_and_asks_for_another_go(start, undisturbed, folder):
    launcher = start("preempted")
    reached(launcher, folder / "preempted", 14)
    launcher.send_signal(signal.SIGTERM)
    status, message = finish(launcher)
    assert status == 128 + signal.SIGTERM
    assert "the same command goes on" in message
    assert finish(start("preempted"))[0] == 0
    same(folder / "preempted", undisturbed)


def test_a_rank_that_hangs_ends_the_run_which_says_where_all_stood(start, undisturbed, folder):
    run = folder / "hung"
    launcher = start("hung", "parallel.timeout=6", "parallel.first_timeout=60")
    reached(launcher, run, 14)
    ranks_of(launcher)[1].suspend()
    status, message = finish(launcher)
    assert status == 1
    assert str(run / "stack-rank0.txt") in message
    assert "File " in (run / "stack-rank0.txt").read_text()
    assert finish(start("hung"))[0] == 0
    assert not list(run.glob("stack-rank*"))
    same(run, undisturbed)


def test_a_shard_that_disappears_stops_the_run_which_goes_on_once_it_is_back(start, undisturbed, corpus, folder):
    run, shards = folder / "starved", folder / "shards"
    shutil.copytree(corpus / "train", shards)
    here = f"data.mixture.corpus.path={shards}"
    launcher = start("starved", here)
    reached(launcher, run, 24)
    tars = sorted(shards.rglob("*.tar"))
    for tar in tars:
        shutil.copy(tar, tar.with_suffix(".kept"))
        os.truncate(tar, 0)
    status, message = finish(launcher)
    assert status == 1
    assert str(shards) in message
    for tar in tars:
        os.replace(tar.with_suffix(".kept"), tar)
    assert finish(start("starved", here))[0] == 0
    same(run, undisturbed)


def test_a_run_whose_steps_are_all_skipped_stops_and_names_their_rows(start, folder, tmp_path):
    """Values at the end of fp32, whose deviations are infinite, in every row."""
    values = np.where(np.arange(600) % 3 == 0, 3e38, -3e38).astype(np.float32)[None]
    write_shards(tmp_path / "absurd", [Series(values, 60.0, "broken", str(i)) for i in range(4)], {})
    job = ("guards.max_skipped=5", "checkpoint.every_steps=4", "validate_every=0", "logger.every_steps=4")
    status, message = finish(start("skipping", f"data.mixture.corpus.path={tmp_path / 'absurd'}", *job))
    assert status == 3
    assert message.count("steps 0 to 4 were skipped") == 1
    assert "rows 0 to 39; these are: corpus/broken 40" in message
    assert "Traceback" not in message
    saved = [p.name for p in (folder / "skipping" / "checkpoints").glob("step-*")]
    assert saved == ["step-00000004"]


def test_losses_that_leap_on_two_ranks_are_skipped_and_stop_the_run_by_name(start, folder, tmp_path):
    """From step 40 on every row is of a source that leaps by a million of its deviations."""
    steps = np.random.Generator(np.random.Philox(7)).standard_normal((4, 1, 600)).cumsum(-1)
    steps[..., 100:] += 1e6 * np.arange(1, 501) // 90
    write_shards(
        tmp_path / "leaping", [Series(x.astype(np.float32), 60.0, "leap", str(i)) for i, x in enumerate(steps)], {}
    )
    job = (
        f"data.mixture.leaping={{path: {tmp_path / 'leaping'}, weight: 0.0}}", "checkpoint.every_steps=5",
        "data.stages={320: {corpus: 0.0, leaping: 1.0}}", "guards.window=16", "guards.max_skipped=5",
        "validate_every=0",
    )  # fmt: skip
    status, message = finish(start("leaping", *job))
    assert status == 3, message
    assert "steps 40 to 44 were skipped" in message
    assert "rows 320 to 359; these are: leaping/leap 40" in message
    rows = list(csv.DictReader((folder / "leaping" / "metrics.csv").open()))
    spikes = {int(r["step"]): int(r["train/spike_steps"]) for r in rows}
    assert spikes[40] == 0
    assert spikes[max(spikes)] == int(rows[-1]["train/skipped_steps"]) > 0
