"""What a run would take, from the command line: nothing is allocated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plan.py"), *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_a_plan_says_parameters_flops_memory_messages_and_time():
    done = run_plan("model=xl", "gpus=8", "gpu=h100", "parallel=fsdp2")
    assert done.returncode == 0, done.stderr
    for part in (
        "1,041,033,024",
        "8 x h100, fsdp2",
        "6 N patches 1.637e+15",
        "It fits",
        "reduce-scatter",
        "GPU-hours",
        "cost              left out; hardware.dollars_per_hour=",
    ):
        assert part in done.stdout, part


@pytest.mark.slow
def test_what_does_not_fit_and_unknown_devices_are_said():
    done = run_plan("model=xxl", "gpus=1", "gpu=a10g", "parallel=ddp")
    assert "not fit" in done.stdout + done.stderr
    assert "h100" in run_plan("model=xl", "gpus=8", "gpu=gpu9000", "parallel=fsdp2").stderr
