"""Several runs of one command: each has its folder, one that fails is named and does not stop the others."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_runs_of_a_sweep(launcher, small_job, train_py, tmp_path):
    if launcher == "submitit_local":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    job = [*small_job, "schedule.max_steps=8", "report=false", "heldout.path=''"]
    done = train_py("-m", *job, f"hydra/launcher={launcher}", "seed=-1,0", "data.augment.mixup=0.5")
    assert done.returncode == 1
    assert "seed=-1 ended with status 2; its own message says why" in done.stderr
    runs = tmp_path / "runs"
    assert [p.name for p in runs.glob("*/config.yaml") if finished(p.parent)] == ["config.yaml"]
    assert finished(runs / "small-seed=0")
    said = done.stderr + "".join(p.read_text() for p in runs.glob(".submitit/*/*_log.err"))
    assert "config: seed=-1 must not be negative" in said


def finished(run: Path) -> bool:
    return (run / "checkpoints" / "step-00000008" / "meta.json").is_file()
