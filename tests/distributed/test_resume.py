"""Runs of several processes that stop and go on: what follows is what an undisturbed run does."""

from __future__ import annotations

import csv
import logging
import warnings
from pathlib import Path

import pytest
import torch

from toto_train import checkpoint
from toto_train.cli import config_from_overrides
from toto_train.run import run

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
MODES = {
    "single": ("parallel=single",),
    "ddp": ("parallel=ddp",),
    "owner": ("parallel=ddp", "optimizer.normuon.replicated_state=owner"),
    "fsdp2": ("parallel=fsdp2",),
    "hsdp": ("parallel=hsdp", "parallel.shards=1"),
}


def train(rank, world, overrides):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    run(config_from_overrides([*overrides, f"parallel.devices={world}"], ROOT / "configs"))


@pytest.fixture
def job(small_job):
    return [
        *small_job, "parallel.precision=fp32", "optimizer.normuon.orthogonalize_dtype=fp32", "global_rows=4",
        "micro_rows=1", "schedule.decay_steps=0", "validate_every=0", "report=false", "logger.every_steps=1",
        "data.workers=0", "ema_decay=0.9",
    ]  # fmt: skip


def outcome(folder: Path) -> tuple[list[dict[str, str]], dict[str, torch.Tensor]]:
    """metrics.csv but for what clocks decide, and the averaged weights of the last step."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    kept = [{k: v for k, v in row.items() if not k.startswith(("perf/", "seconds"))} for row in rows]
    return kept, dict(checkpoint.load_model(folder, "last")[0].named_parameters())


@pytest.mark.parametrize("mode", ["ddp", "owner", "fsdp2", "hsdp"])
def test_in_the_same_mode_on_as_many_ranks_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    processes, job, tmp_path, mode
):
    job = [*job, *MODES[mode]]
    processes(2, train, [*job, "name=whole", "schedule.max_steps=6"])
    for steps in (3, 6):
        processes(2, train, [*job, "name=parts", f"schedule.max_steps={steps}"])
    (rows, weights), (other_rows, others) = (outcome(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert len(rows) == 6
    assert rows == other_rows
    assert not [name for name, t in weights.items() if not torch.equal(t, others[name])]


def test_in_other_modes_on_other_numbers_of_ranks_the_same_rows_follow_and_losses_agree(processes, job, tmp_path):
    """To the order of sums: relative differences of 9e-8 were seen."""
    processes(1, train, [*job, *MODES["single"], "name=whole", "schedule.max_steps=8"])
    for steps, world, mode in ((2, 4, "fsdp2"), (4, 2, "owner"), (6, 1, "single"), (8, 4, "hsdp")):
        processes(world, train, [*job, *MODES[mode], "name=parts", f"schedule.max_steps={steps}"])
    (rows, _), (other_rows, _) = (outcome(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert [(r["step"], r["points"]) for r in rows] == [(r["step"], r["points"]) for r in other_rows]
    for a, b in zip(rows, other_rows, strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), rel=5e-6)
