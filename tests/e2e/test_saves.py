"""Saves of whole jobs that go wrong or are cut short, and what a resumed run needs to be the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from toto_train import checkpoint_files
from toto_train.cli import config_from_overrides
from toto_train.run import run as train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


def weights(run: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(run / "export" / "model.safetensors").items()}


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir())


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """disk(size) -> a file system of so many bytes of memory; asked again it changes its size."""
    place = tmp_path / "disk"

    def resize(limit: int) -> Path:
        again = "remount," if place.exists() else ""
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={limit}", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounts are not permitted here: {done.stderr.strip()}")
        return place

    yield resize
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_stops_the_run_which_goes_on_once_there_is_room(small_job, train_py, tmp_path, disk):
    job = [*small_job, "heldout.path=''", "validate_every=0"]
    assert train_py(*job, "name=whole").returncode == 0
    whole = tmp_path / "runs" / "whole"
    one = size(whole / "checkpoints" / "step-00000012")
    place = disk(int(2.5 * one))  # the third does not fit
    job += [f"out={place}"]
    full = train_py(*job, "name=full")
    run = place / "full"
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    assert "the checkpoint of step 12 could not be saved ([Errno 28] No space left on device" in full.stderr
    assert f"the newest whole one is {run}/checkpoints/step-00000008" in full.stderr
    assert full.stderr.count(f"saved {run}") == 2  # steps 4 and 8: nothing else is said to be
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["latest", "step-00000004", "step-00000008"]
    disk(10 * one)
    again = train_py(*job, "name=full")
    assert again.returncode == 0, again.stderr
    assert "at step 8" in again.stderr
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_beside_training_costs_nothing_but_its_steps(small_job, train_py, tmp_path):
    job = [
        *small_job, "heldout.path=''", "validate_every=0", "model.d_model=256", "model.num_heads=4", "model.d_ff=688",
        "schedule.max_steps=8", "checkpoint.every_steps=1", "logger.every_steps=1",
    ]  # fmt: skip
    assert train_py(*job, "name=whole").returncode == 0
    run = tmp_path / "runs" / "killed"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *job, "name=killed"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (begun := list(run.glob("checkpoints/step-0000000[345].tmp/*.distcp"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = int(begun[0].parent.name[5:13])
    assert begun[0].parent.is_dir(), "the save was done before the kill"
    assert [int(p.name[5:]) for p in checkpoint_files.folders(run)] == [step - 2, step - 1]
    resumed = train_py(*job, "name=killed")
    assert resumed.returncode == 0, resumed.stderr
    assert f"at step {step - 1}" in resumed.stderr
    assert weights(run) == weights(tmp_path / "runs" / "whole")


def test_averaged_weights_go_on_with_the_run(small_job, train_py, tmp_path):
    """The export is made of them."""
    job = [*small_job, "heldout.path=''", "validate_every=0", "schedule.decay_steps=0"]
    assert train_py(*job, "ema_decay=0.9", "name=whole").returncode == 0
    for steps in (4, 12):
        assert train_py(*job, "ema_decay=0.9", "name=parts", f"schedule.max_steps={steps}").returncode == 0
    whole, parts = (weights(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert whole == parts
    late = [*job, "name=late"]
    assert train_py(*late, "schedule.max_steps=11").returncode == 0
    begun = train_py(*late, "ema_decay=0.9")
    assert "ema begins anew at step 11: it was not kept" in begun.stderr
    assert weights(tmp_path / "runs" / "late") != whole


def global_states() -> list[str]:
    """Of torch, numpy and Python."""
    return [str(torch.get_rng_state().tolist()), str(np.random.get_state(legacy=False)), str(random.getstate())]  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 2])
def test_training_draws_from_no_global_generator(small_job, workers):
    """Why a checkpoint holds no state of one: making, training, validating, saving and resuming a model moves none."""
    job = [*small_job, f"data.workers={workers}", "report=false", "data.augment.mixup=0.5"]
    before = global_states()
    for steps in (8, 12):
        train(config_from_overrides([*job, f"schedule.max_steps={steps}"], ROOT / "configs"))
    assert global_states() == before
