"""Validation while training: it decides what is saved, shows in the progress bar, and is the same on several ranks."""

import csv
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train import checkpoint, checkpoint_files
from toto_train.callbacks.validation import Validation
from toto_train.checkpoint import Position
from toto_train.cli import config_from_overrides
from toto_train.config import Config, ModelConfig, ScheduleConfig, TasksConfig
from toto_train.evaluation.score import evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.forecast import Forecaster
from toto_train.module import TrainingModule
from toto_train.optim.recipe import build_optimizer
from toto_train.parallel import build
from toto_train.ranks import ALONE, Ranks
from toto_train.run import run

CONFIGS = Path(__file__).parents[2] / "configs"
WRECK = ("optimizer.adamw.lr=30", "schedule.decay_steps=0")
"""A learning rate that ruins any model within a step."""


@pytest.fixture
def train(small_job, tmp_path):
    """Train in this process; gives the run folder."""

    def start(*overrides: str) -> Path:
        run(config_from_overrides([*small_job, "data.workers=0", "report=false", *overrides], CONFIGS))
        return tmp_path / "runs" / "small"

    return start


def validated(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> scores in metrics.csv."""
    table = csv.DictReader((folder / "metrics.csv").open())
    return {int(r["step"]): {m: float(r[f"val/{m}"]) for m in ("mase", "mwql")} for r in table if r["val/mwql"]}


def saved(folder: Path) -> dict[int, dict[str, float] | None]:
    metas = [checkpoint_files.read_meta(p) for p in checkpoint_files.folders(folder)]
    scores = {meta["step"]: meta["validation"] for meta in metas}
    return {step: of and {metric: of[metric] for metric in ("mase", "mwql")} for step, of in scores.items()}


@pytest.mark.e2e
def test_a_new_best_is_saved_between_checkpoints_with_the_scores_of_its_step(train):
    folder = train("checkpoint.keep_last=10")  # saves every 4 steps, validates every 6
    scores = validated(folder)
    assert list(scores) == [6, 12]
    assert saved(folder) == {4: None, 6: scores[6], 8: None, 12: scores[12]}


@pytest.mark.e2e
def test_the_best_outlives_worse_steps_and_a_worse_validation_saves_nothing(train):
    folder = train("schedule.max_steps=6")
    train("schedule.max_steps=20", *WRECK)
    assert list(saved(folder)) == [6, 16, 20]  # 18 was validated, and worse than 6
    assert checkpoint_files.best(folder) == folder / "checkpoints" / "step-00000006"
    assert saved(folder)[20]["mwql"] > 2 * saved(folder)[6]["mwql"]
    best, last = (checkpoint.load_model(folder, which)[0] for which in ("best", "last"))
    assert not torch.equal(best.head.skip.weight, last.head.skip.weight)


@pytest.mark.e2e
def test_what_the_best_checkpoint_says_is_what_it_scores(train, corpus):
    folder = train("schedule.max_steps=6")
    train("schedule.max_steps=12", *WRECK)
    tasks = TaskSet.open(TasksConfig(path=str(corpus / "validation"), context=256))
    for which in ("best", "last"):
        model, meta = checkpoint.load_model(folder, which)
        again = evaluate(Forecaster(model), tasks, draws=0).overall["mwql"].value
        assert again == pytest.approx(meta["validation"]["mwql"], rel=1e-6)


@pytest.mark.e2e
def test_the_run_exports_and_reports_the_best(train, corpus):
    folder = train("schedule.max_steps=6")
    train("schedule.max_steps=12", "report=true", *WRECK)
    model, meta = checkpoint.load_model(folder, "best")
    assert meta["step"] == 6
    training = json.loads((folder / "export" / "training.json").read_text())
    assert (training["steps"], training["points"]) == (6, meta["points"])
    said = f"step 6 of 12 (chosen by validation, MWQL {meta['validation']['mwql']:.3f})"
    assert said in (folder / "export" / "README.md").read_text()
    assert said in (folder / "report.html").read_text()
    assert f"{meta['points']:,}" in (folder / "report.html").read_text()
    scored = json.loads((folder / "scores.json").read_text())["overall"]["relative"]["mwql"]["value"]
    heldout = TaskSet.open(TasksConfig(path=str(corpus / "heldout"), context=256))
    assert evaluate(Forecaster(model), heldout, draws=0).overall["mwql"].value == pytest.approx(scored, rel=1e-6)


@pytest.mark.e2e
def test_the_bar_shows_newest_and_best_from_the_first_validation_on(train, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder = train("schedule.max_steps=10", "schedule.decay_steps=0")
    first = validated(folder)[6]["mwql"]
    shown = bar(capsys.readouterr().err)
    assert shown[4] == ""
    assert shown[6] == shown[8] == f"val {first:#.3g} (best {first:#.3g})"

    train("schedule.max_steps=18", *WRECK)
    best = min(scores["mwql"] for scores in validated(folder).values())
    shown = bar(capsys.readouterr().err)
    assert shown[12] == f"val {validated(folder)[12]['mwql']:#.3g} (best {best:#.3g})"
    assert shown[12] == shown[14] == shown[16]


@pytest.mark.e2e
def test_a_resumed_run_knows_the_best_before_it_validates(train, caplog):
    caplog.set_level(logging.INFO)
    folder = train("schedule.max_steps=6")
    caplog.clear()
    train("schedule.max_steps=10", "validate_every=0")
    assert f"val (best {saved(folder)[6]['mwql']:#.3g})" in caplog.text


def bar(text: str) -> dict[int, str]:
    """Step -> what the bar last said about validation there."""
    frames = (
        re.search(r" (\d+)/\d+ \[.*data wait \d+%(?:  MFU \d+%)?(.*)]", frame) for frame in re.split(r"[\r\n]", text)
    )
    return {int(f[1]): f[2].strip() for f in frames if f}


def test_a_score_that_does_not_exist_is_no_improvement_and_an_equal_one_is(tmp_path):
    m, kind = training_module(), dict(interval=3600.0, domain="observability", licence="Apache-2.0")
    flat = [Series(np.full((1, 400), 5, np.float32), source="flat", item_id="a", **kind)]  # the baseline makes no error
    write_shards(tmp_path / "flat", flat, {"test": True})
    callback = Validation(TaskSet.open(TasksConfig(path=str(tmp_path / "flat"), context=256)))
    validate(callback, m)
    assert np.isnan(callback.scores_at(1)["mwql"])
    assert not callback.chosen
    assert callback.summary == "val nan"
    callback = Validation(callback.tasks, best=0.9)
    validate(callback, m)
    assert (callback.chosen, callback.best) == (False, 0.9)

    moving = [Series(np.arange(400, dtype=np.float32)[None] % 30, source="saw", item_id="a", **kind)]
    write_shards(tmp_path / "moving", moving, {"test": True})
    callback = Validation(TaskSet.open(TasksConfig(path=str(tmp_path / "moving"), context=256)))
    for _ in range(2):  # of two equal checkpoints the later is taken
        validate(callback, m)
        assert callback.chosen
    assert callback.scores_at(1) is callback.scores
    assert callback.scores_at(2) is None
    callback = Validation(callback.tasks, best=callback.best / 2)
    validate(callback, m)
    assert not callback.chosen


def training_module(ranks: Ranks = ALONE) -> TrainingModule:
    config = Config(model=ModelConfig(d_model=32, d_ff=64), schedule=ScheduleConfig(max_steps=1, warmup_steps=0))
    config.micro_rows = config.global_rows
    model = build(config, ALONE)
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, config.model.num_layers)
    return TrainingModule(config, model, optimizer, Position(step=1), ranks)


def validate(callback: Validation, module: TrainingModule) -> None:
    trainer = SimpleNamespace(is_global_zero=module.ranks.first)
    callback.on_train_batch_end(trainer, module, None, None, 0)


def on_a_rank(rank: int, world: int, folder: Path, tasks: TaskSet) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world)
    m = training_module(Ranks(torch.device("cpu"), rank, rank, world))
    windows = 0

    class Counting(Forecaster):
        def __call__(self, contexts, horizon):
            nonlocal windows
            windows += len(contexts)
            return super().__call__(contexts, horizon)

    shares = {"rank": rank, "world": world, "gather": m.ranks.sum}
    scores = evaluate(Counting(m.model), tasks, draws=0, max_points=2000, **shares)
    np.savez(folder / f"{rank}.npz", windows=windows, **vars(scores.model))
    callback = Validation(tasks)
    validate(callback, m)
    (folder / f"{rank}.json").write_text(json.dumps([callback.scores, callback.chosen]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_ranks_share_the_windows_and_end_with_the_scores_of_one_process(corpus, tmp_path):
    tasks = TaskSet.open(TasksConfig(path=str(corpus / "heldout"), context=256))
    m = training_module()
    expected = evaluate(Forecaster(m.model), tasks, draws=0, max_points=2000).model
    alone = Validation(tasks)
    validate(alone, m)
    mp.start_processes(on_a_rank, (2, tmp_path, tasks), nprocs=2, start_method="fork")
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert sum(int(p["windows"]) for p in parts) == len(tasks)
    assert all(p["windows"] > 0 for p in parts)
    for part in parts:
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(part[name], value, err_msg=name)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two == [alone.scores, True]
