"""A run of several nodes, each a process of this machine: started by an sbatch file or by torchrun, it ends with the
bits of a run that train.py started, also when the cluster took it back in between."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toto_train.jobs import prepare
from toto_train.ranks import free_port

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.distributed, pytest.mark.slow]

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
echo "${pids[@]}" > "$STEP.tmp"; mv "$STEP.tmp" "$STEP"
worst=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; ((status > worst)) && worst=$status; done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo localhost ;;
    requeue) echo "requeued $2" ;;
esac
"""


@pytest.fixture
def job(small_job) -> list[str]:
    return [
        *small_job, "parallel=ddp", "parallel.precision=fp32", "global_rows=8", "schedule.max_steps=40",
        "checkpoint.every_steps=10", "validate_every=20", "heldout.path=''", "data.workers=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made() -> list[dict[str, torch.Tensor]]:
    """What `here` made, once for all tests."""
    return []


@pytest.fixture
def here(job, tmp_path, train_py, made) -> dict[str, torch.Tensor]:
    """The weights that two ranks of train.py end with."""
    if not made:
        done = train_py(*job, "name=here", "parallel.devices=2")
        assert done.returncode == 0, done.stderr
        made.append(weights(tmp_path / "runs" / "here"))
    return made[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def steps(run: Path) -> int:
    """The last step that metrics.csv reports."""
    if not (run / "metrics.csv").is_file():
        return 0
    whole = [line for line in (run / "metrics.csv").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return max([int(row["step"]) for row in csv.DictReader(whole)], default=0)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(two)
    assert not [name for name, tensor in one.items() if not torch.equal(tensor, two[name])]


def test_an_sbatch_file_saves_requeues_and_goes_on(job, here, tmp_path):
    run, step = tmp_path / "runs" / "slurm", tmp_path / "step"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "launch_slurm.py", *job, "name=slurm", "parallel.nodes=2",
         "parallel.devices=1", "slurm.partition=gpu"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert f"sbatch {run / 'launch.sbatch'}" in made.stdout
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STEP": str(step), "SLURM_JOB_NODELIST": "h[1-2]",
           "SLURM_JOB_ID": str(free_port() - 10000), "SLURM_CPUS_PER_TASK": "1"}  # fmt: skip

    def start() -> subprocess.Popen[str]:
        with (run / "launch.log").open("a") as log:
            return subprocess.Popen(["bash", str(run / "launch.sbatch")], env=env, stdout=log, stderr=log, text=True)

    first = start()
    deadline = time.monotonic() + 120
    while steps(run) < 12:
        assert first.poll() is None, (run / "launch.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for pid in step.read_text().split():  # as SLURM does before the time limit: the step, not the shell
        os.kill(int(pid), signal.SIGTERM)
    assert first.wait(timeout=120) == 143
    assert (run / "launch.log").read_text().count("requeued") == 1
    assert steps(run) < 40
    assert start().wait(timeout=240) == 0
    assert (run / "launch.log").read_text().count("requeued") == 1
    same(weights(run), here)


def test_torchrun_on_each_node(job, here, tmp_path):
    made = prepare([*job, "name=torchrun", "parallel.nodes=2", "parallel.devices=1"], ROOT / "configs")
    port = free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}",
             "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", f"--rdzv-conf=is_host={rank == 0}",
             "-m", "toto_train.rank", str(made.file)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    for node in nodes:
        message = node.communicate(timeout=240)[1]
        assert node.returncode == 0, message
    same(weights(tmp_path / "runs" / "torchrun"), here)


def test_ranks_of_another_number_than_the_run_asks_for_end_with_what_to_do(job):
    made = prepare([*job, "name=wrong", "parallel.nodes=2", "parallel.devices=1"], ROOT / "configs")
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    done = subprocess.run(
        [sys.executable, "-m", "toto_train.rank", str(made.file)], env={**os.environ, **place, "MASTER_PORT": "29500"},
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith(
        "train.py: WORLD_SIZE=1, but parallel.devices=1 x parallel.nodes=2 asks for 2 ranks; start 1 ranks on each of "
        "2 nodes, or write launch.yaml anew with other settings\n"
    )
