"""The commands that hand a run to a cluster, with a cluster of one script."""

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toto_train.config import Config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tmp_path, small_job):
    """launch(script, *arguments): as a user would, where sbatch and kubectl say what they are given."""
    for name in ("sbatch", "kubectl"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} takes $*"\nexit 7\n')
        (tmp_path / name).chmod(0o755)

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / script), *small_job, *arguments],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip

    return run


def test_slurm_gets_the_file_and_its_answer_is_the_status(launch, tmp_path):
    done = launch("launch_slurm.py", "slurm.partition=gpu", "submit=true")
    assert done.returncode == 7, done.stderr
    assert "106,944" in done.stdout  # parameters, of the plan
    assert f"sbatch takes {tmp_path / 'runs' / 'small' / 'launch.sbatch'}" in done.stdout
    assert "#SBATCH --partition=gpu\n" in (tmp_path / "runs" / "small" / "launch.sbatch").read_text()


def test_kubernetes_gets_the_file_and_pods_that_wait_for_each_other(launch, tmp_path):
    done = launch("launch_kubernetes.py", "image=i", "claim=c", "submit=true")
    assert done.returncode == 7, done.stderr
    file = tmp_path / "runs" / "small" / "launch.kubernetes.yaml"
    assert f"kubectl takes apply -f {file}" in done.stdout
    assert "rendezvous_timeout: 86400.0" in file.read_text()


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        (
            "launch_slurm.py",
            ["parallel.devces=8", "slurm.exclusive"],
            ["did you mean 'devices'?", "'slurm.exclusive' is not"],
        ),
        ("launch_slurm.py", ["grace=soon"], ["grace='soon' is not a valid int"]),
        ("launch_kubernetes.py", ["image=i"], ["missing claim="]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(launch, tmp_path, script, arguments, expected):
    done = launch(script, *arguments)
    assert done.returncode in (1, 2)
    assert all(problem in done.stderr for problem in expected), done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", ["launch_slurm.py", "launch_kubernetes.py"])
def test_no_argument_of_a_launcher_hides_a_setting(script):
    source = ast.parse((ROOT / "scripts" / script).read_text())
    dicts = [node.value for node in source.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    own = {key.value for d in dicts for key in d.keys}
    assert "submit" in own
    assert not own & {field.name for field in dataclasses.fields(Config)}
