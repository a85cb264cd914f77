"""Several runs of one command: each has its folder, one that fails is named and does not stop the others."""

import csv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("where", ["executor=local", "hydra/launcher=submitit_local"])
def test_runs_of_a_sweep(where, small_job, train_py, tmp_path):
    if "submitit" in where:  # what executor=slurm does, without SLURM
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    job = [*small_job, "schedule.max_steps=8", "report=false", "heldout.path=''"]
    done = train_py("-m", *job, where, "seed=-1,0", "data.augment.mixup=0.5")
    assert done.returncode == 1, done.stderr
    runs = tmp_path / "runs"
    rows = {row["run"]: row for row in csv.DictReader((runs / "sweep.csv").open())}
    assert {name: row["state"] for name, row in rows.items()} == {"small-seed=-1": "failed", "small-seed=0": "done"}
    assert "seed=-1 must not be negative" in rows["small-seed=-1"]["message"]
    assert float(rows["small-seed=0"]["loss"]) > 0
    assert "2 runs: 1 failed, 1 done" in done.stdout
    assert [p.name for p in runs.glob("*/config.yaml") if finished(p.parent)] == ["config.yaml"]
    assert finished(runs / "small-seed=0")


def finished(run: Path) -> bool:
    return (run / "checkpoints" / "step-00000008" / "meta.json").is_file()
