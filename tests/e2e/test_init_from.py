"""Training that starts from weights made before, from the command line."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from toto_train import checkpoint, hub
from toto_train.checkpoint_saver import save_import
from toto_train.cli import main
from toto_train.config import ModelConfig
from toto_train.model.toto import Toto

CONFIGS = Path(__file__).parents[2] / "configs"
pytestmark = pytest.mark.e2e


def losses(run: Path) -> list[float]:
    return [float(row["train/loss"]) for row in csv.DictReader((run / "metrics.csv").open())]


STILL = ["optimizer.normuon.lr=1e-30", "optimizer.adamw.lr=1e-30", "optimizer.normuon.weight_decay=0"]
"""Steps too small to see: the weights at the end are those at the start."""


def test_a_run_starts_from_another_and_goes_on_without_it(small_job, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "toto_train")
    source, again = tmp_path / "runs" / "small", tmp_path / "runs" / "again"
    job = [
        *small_job,
        "heldout.path=''",
        "validate_every=0",
        "data.workers=0",
        "schedule.decay_steps=0",
        "report=false",
    ]
    assert main([*job, "schedule.max_steps=40"], CONFIGS) == 0
    more = [*job, "name=again", f"init_from={source}"]

    assert main([*more, "model.d_ff=96", "model.mlp_bias=true"], CONFIGS) == 2
    said = capsys.readouterr().err
    assert f"model.d_ff=96, but init_from={source} was made with 64; use model.d_ff=64" in said
    assert "use model.mlp_bias=False" in said
    assert main([*more, "plan=true"], CONFIGS) == 0
    assert f"starts from {source / 'checkpoints' / 'step-00000040'}: nano, step 40" in capsys.readouterr().out
    assert not again.exists()

    assert main([*more, *STILL, "schedule.max_steps=4"], CONFIGS) == 0
    assert f"starts from the weights of {source}" in caplog.text
    assert "the rows will be those" in caplog.text  # which the loss shows: those of the source's first steps
    assert max(losses(again)) < 0.9 * losses(source)[0]
    (trained, _), (started, meta) = checkpoint.load_model(source), checkpoint.load_model(again)
    assert meta["step"] == 4
    for (name, a), b in zip(trained.named_parameters(), started.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-20, msg=name)

    shutil.rmtree(source)
    goes_on = [a for a in job if a != "report=false"]
    assert main([*goes_on, "name=again", "schedule.max_steps=6"], CONFIGS) == 0
    assert f"resumed {again} at step 4" in caplog.text
    assert f"init_from: {source}" in (again / "config.yaml").read_text()
    assert f"| started from | {source} |" in (again / "export" / "README.md").read_text()


def test_a_run_named_like_an_import_is_refused_with_the_way_out(small_job, tmp_path, capsys):
    model = Toto.create(ModelConfig(), 0)
    folder = hub.save_pretrained(model, tmp_path / "export", "card")
    out = save_import(tmp_path / "runs" / "small", model, hub.origin(folder))
    assert main(small_job, CONFIGS) == 2
    assert f"choose another name=; init_from={out} starts from its weights" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["checkpoints"]
