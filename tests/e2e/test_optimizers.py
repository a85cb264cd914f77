"""Every choice of optimizer trains, says in the run folder who trains what, and ends with another loss."""

import csv
from pathlib import Path

import pytest

from toto_train.cli import config_from_overrides
from toto_train.run import run

pytestmark = pytest.mark.e2e

CONFIGS = Path(__file__).parents[2] / "configs"
CHOICES = {
    "toto2": ([], "normuon"),
    "muon": (["optimizer=muon"], "normuon"),
    "adamw": (["optimizer=adamw"], "adamw"),
    "blocks": (["optimizer.normuon.split=heads", "optimizer.normuon.momentum_warmup_steps=5"], "normuon"),
    "unit_scaled": (["optimizer.normuon.lr_rule=unit_scaled", "optimizer.normuon.lr=0.1"], "normuon"),
}


def test_choices_train_and_differ(small_job, tmp_path):
    losses = {}
    for name, (overrides, trainer) in CHOICES.items():
        run(
            config_from_overrides([*small_job, f"name={name}", "report=false", "validate_every=0", *overrides], CONFIGS)
        )
        folder = tmp_path / "runs" / name
        table = (folder / "routing.txt").read_text().splitlines()
        assert next(line for line in table if "mlp.up.weight" in line).split()[3] == trainer, table
        with (folder / "metrics.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        assert (last["step"], last["train/skipped_steps"]) == ("12", "0")
        assert (float(last["train/lr_normuon"]) > 0) == (trainer == "normuon")
        losses[name] = last["train/loss"]
    assert len(set(losses.values())) == len(losses), losses
