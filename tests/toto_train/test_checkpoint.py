"""Which checkpoints are kept and which is the best: both follow from the files alone."""

import json
import math
from pathlib import Path

import pytest
import torch

from toto_train import checkpoint, checkpoint_files
from toto_train.checkpoint import Position
from toto_train.checkpoint_saver import Saver
from toto_train.checkpoint_settings import data_changes
from toto_train.config import Config, ModelConfig
from toto_train.model.toto import Toto
from toto_train.optim.recipe import build_optimizer


class Run:
    """A run folder whose model holds its step in every weight."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.best, self.margin = math.inf, 1.0
        self.config = Config(model=ModelConfig(d_model=16, num_layers=1, num_variate_layers_per_group=0, d_ff=16))
        self.model = Toto.create(self.config.model, seed=0)
        self.optimizer = build_optimizer(self.model.named_parameters(), self.config.optimizer, 1)
        self.saver = Saver(folder, self.config, "data")

    def save(self, step: int, mwql: float | None, tasks: str = "windows") -> Path:
        with torch.no_grad():
            for p in self.model.parameters():
                p.fill_(step)
        self.best = min(self.best, mwql) if mwql is not None and math.isfinite(mwql) else self.best
        record = {"mase": 1.0, "mwql": mwql, "best": self.best, "bound": self.best * self.margin, "tasks": tasks}
        self.saver.save(self.model, self.optimizer, Position(step, 100 * step), None if mwql is None else record)
        self.saver.wait()
        return checkpoint_files.folder_of(self.folder, step)

    def steps(self) -> list[int]:
        return [checkpoint_files.read_meta(p)["step"] for p in checkpoint_files.folders(self.folder)]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_the_newest_and_the_best_are_kept(run):
    for step, mwql in enumerate([0.9, 0.8, None, 0.85, None, 0.95], start=1):
        run.save(step, mwql)
    assert run.steps() == [2, 5, 6]
    run.save(7, 0.7)
    assert run.steps() == [6, 7]
    for step in (8, 9, 10):
        run.save(step, None)
    assert run.steps() == [7, 9, 10]
    assert not list(run.folder.rglob("*.tmp"))


def test_of_scores_within_the_bound_the_later_wins(run):
    run.margin = 1.1
    for step, mwql in ((1, 0.9), (2, 0.8), (3, 0.86), (4, 0.95)):
        run.save(step, mwql)
    assert checkpoint_files.best(run.folder) == run.folder / "checkpoints" / "step-00000003"
    for step in (5, 6, 7):
        run.save(step, None)
    assert run.steps() == [3, 6, 7]
    run.save(8, 0.879)  # the bound stays that of step 2, though its checkpoint is gone
    assert checkpoint_files.best(run.folder) == run.folder / "checkpoints" / "step-00000008"
    run.save(9, 0.881)
    assert checkpoint_files.best(run.folder) == run.folder / "checkpoints" / "step-00000008"


def test_of_equal_scores_the_later_wins(run):
    for step, mwql in ((1, 0.5), (2, 0.5), (3, 0.6), (4, 0.6)):
        run.save(step, mwql)
    assert checkpoint_files.best(run.folder) == run.folder / "checkpoints" / "step-00000002"


def test_scores_on_other_windows_do_not_compete(run):
    for step, mwql, tasks in ((1, 0.5, "old"), (2, 0.6, "old"), (3, 0.9, "new"), (4, 0.8, "new"), (5, 0.85, "new")):
        run.best = math.inf if step == 3 else run.best
        run.save(step, mwql, tasks)
    assert checkpoint_files.best(run.folder) == run.folder / "checkpoints" / "step-00000004"
    assert checkpoint_files.best(run.folder, "elsewhere") is None


def test_nothing_validated_has_no_best(run):
    assert checkpoint_files.best(run.folder) is None
    run.save(1, None)
    assert checkpoint_files.best(run.folder) is None
    folder = run.folder / "checkpoints" / "step-00000001"
    old = checkpoint_files.read_meta(folder)
    assert old.pop("validation") is None
    checkpoint_files.write_meta(folder, old)  # as written before scores were kept
    assert checkpoint_files.best(run.folder) is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_never_wins_and_is_null(run, broken):
    run.save(1, broken)
    assert checkpoint_files.best(run.folder) is None
    good = run.save(2, 3.0)
    for folder in (good, run.save(3, broken)):
        text = (folder / "meta.json").read_text()
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert json.loads(text)["validation"] == {"mase": 1.0, "mwql": None, "best": 3.0, "bound": 3.0, "tasks": "windows"}
    assert checkpoint_files.best(run.folder) == good


def test_a_model_is_loaded_from_the_best_or_the_last(run):
    for step, mwql in ((10, None), (20, 0.912), (30, 0.95), (40, None)):
        run.config.schedule.max_steps = 1000 * step
        run.save(step, mwql)
    for which, step in (("best", 20), ("last", 40)):
        model, meta = checkpoint.load_model(run.folder, which)
        assert all(bool((p == step).all()) for p in model.parameters())
        assert (meta["step"], meta["points"]) == (step, 100 * step)
    assert checkpoint.load_model(run.folder)[1]["step"] == 20
    best, last = (checkpoint.load_model(run.folder, which)[1] for which in ("best", "last"))
    assert checkpoint_files.describe(run.folder, best) == "step 20 of 40,000 (chosen by validation, MWQL 0.912)"
    assert checkpoint_files.describe(run.folder, last) == "step 40 of 40,000"
    with pytest.raises(ValueError, match="'newest' must be best or last"):
        checkpoint.load_model(run.folder, "newest")


def test_without_validation_the_best_is_the_last(run):
    run.save(1, None)
    run.save(2, None)
    model, meta = checkpoint.load_model(run.folder, "best")
    assert meta["step"] == 2
    assert all(bool((p == 2).all()) for p in model.parameters())
    assert "best" not in checkpoint_files.describe(run.folder, meta)


def test_a_refusal_to_resume_names_what_changed_in_the_data():
    def facts(seed=0, weight=1, dataset="x", **more):
        return {"seed": seed, "stages": [{"units": weight}], "sources": {"web/cpu": {"dataset": dataset}} | more}

    assert data_changes(facts(), facts(seed=1)) == ["data.seed is 1 and was 0"]
    assert data_changes(facts(), facts(dataset="y")) == ["data.sources.web/cpu.dataset is 'y' and was 'x'"]
    assert data_changes(facts(), facts(db={})) == ["data.sources.db is new"]
    assert data_changes(facts(db={}), facts()) == ["data.sources.db is gone"]
    assert data_changes(facts(), facts(weight=2)) == ["data.stages is [{'units': 2}] and was [{'units': 1}]"]
    assert len(data_changes({}, {})) == 1
