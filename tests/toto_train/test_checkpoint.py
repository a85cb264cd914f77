"""Which checkpoints are kept and which is the best: both follow from the files alone."""

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from toto_train import checkpoint, checkpoint_files
from toto_train.checkpoint import Position
from toto_train.checkpoint_saver import Saver
from toto_train.checkpoint_settings import RULES, data_changes, rule
from toto_train.checkpoint_storage import read_metadata
from toto_train.config import Config, ConfigError, ModelConfig
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


def test_those_of_every_so_many_steps_are_kept_for_good(run):
    run.config.checkpoint.keep_every = 4
    for step in range(1, 12):
        run.save(step, None)
    assert run.steps() == [4, 8, 10, 11]


def test_a_save_holds_the_state_of_its_moment_and_is_named_when_it_is_whole(run, caplog):
    caplog.set_level("INFO")
    latest = run.folder / "checkpoints" / "latest"
    for step in (1, 2, 3):
        with torch.no_grad():
            for p in run.model.parameters():
                p.fill_(step)
        run.saver.save(run.model, run.optimizer, Position(step, step))  # waits for the one before
        for p in run.model.parameters():
            p.data.fill_(-1)  # training goes on
        done = [f"saved {checkpoint_files.folder_of(run.folder, s)}" for s in range(1, step)]
        assert [r.message for r in caplog.records if r.message.startswith("saved")][: step - 1] == done
        assert step == 1 or latest.read_text() in {f"step-{s:08d}\n" for s in (step - 1, step)}
    run.saver.close()
    model, meta = checkpoint.load_model(run.folder, "last")
    assert meta["step"] == 3
    assert all(bool((p == 3).all()) for p in model.parameters())
    assert latest.read_text() == "step-00000003\n"
    assert not list((run.folder / "checkpoints").glob("*.tmp"))


def test_what_saves_that_were_killed_leave_behind_is_removed(run):
    kept = run.save(1, None)
    for name in ("step-00000002.tmp", "step-00000001.old.tmp"):
        (kept.with_name(name) / "deep").mkdir(parents=True)
    kept.with_name(".latest.tmp").write_text("step-0")
    checkpoint_files.remove_leftovers(run.folder)
    assert {p.name for p in kept.parent.iterdir()} == {"step-00000001", "latest"}


def test_a_checkpoint_says_what_made_it(run):
    meta = checkpoint_files.read_meta(run.save(5, None))
    assert (meta["step"], meta["points"], meta["data_fingerprint"], meta["extra"]) == (5, 500, "data", [])
    assert (
        meta["versions"]["torch"] == torch.__version__.split("+")[0] or meta["versions"]["torch"] in torch.__version__
    )
    assert {g["kind"] for g in meta["schedule"]} == {"normuon", "adamw"}
    assert meta["config"]["schedule"]["max_steps"] == run.config.schedule.max_steps
    assert {name: f["bytes"] for name, f in meta["files"].items()} == {
        p.name: p.stat().st_size for p in checkpoint_files.folder_of(run.folder, 5).iterdir() if p.name != "meta.json"
    }


def test_meta_json_that_somebody_changed_is_damaged(run):
    file = run.save(1, None) / "meta.json"
    file.write_text(file.read_text().replace('"step": 1', '"step": 9'))
    with pytest.raises(ValueError, match=r"meta\.json is damaged \(its sha256 is another\)"):
        checkpoint.load_model(run.folder)
    meta = json.loads(file.read_text())
    del meta["sha256"]
    file.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json has no sha256: an earlier version of toto-train wrote it"):
        checkpoint.load_model(run.folder)


def test_extra_tensors_come_back_where_they_fit(run, caplog):
    run.saver.save(run.model, run.optimizer, Position(4, 4), extra={"guard": {"losses": torch.arange(4.0)}, "none": {}})
    run.saver.wait()
    losses, ema, longer = torch.zeros(4), torch.ones(2), torch.ones(7)
    checkpoint.load_extra(run.folder, Position(4, 4), {"guard": {"losses": losses}, "ema": {"weight": ema}})
    assert losses.tolist() == [0, 1, 2, 3]
    assert ema.tolist() == [1, 1]
    assert "ema begins anew at step 4: it was not kept" in caplog.text
    checkpoint.load_extra(run.folder, Position(4, 4), {"guard": {"losses": longer}})
    assert longer.tolist() == [1] * 7
    assert "guard begins anew at step 4: " in caplog.text
    assert "Size mismatch" in caplog.text
    with pytest.raises(TypeError, match=r"extra\.guard\.count is no tensor"):
        run.saver.save(run.model, run.optimizer, Position(5, 5), extra={"guard": {"count": 3}})


def test_averaged_weights_are_what_is_loaded_where_they_were_kept(run):
    ema = {name: torch.full_like(p, 7) for name, p in run.model.named_parameters()}
    run.saver.save(run.model, run.optimizer, Position(1, 1), extra={"ema": ema})
    run.saver.wait()
    assert all(bool((p == 7).all()) for p in checkpoint.load_model(run.folder)[0].parameters())
    checkpoint.resume(run.folder, run.config, run.model, run.optimizer, "data")
    assert not any(bool((p == 7).all()) for p in run.model.parameters() if p.ndim == 2)


def test_a_list_of_tensors_that_holds_objects_or_other_places_is_refused(tmp_path):
    for state in ({"a": torch.zeros(2), "b": {"c": "text"}}, {"a": torch.zeros(2)}):
        dcp.save(state, checkpoint_id=tmp_path / "folder", no_dist=True)
        if "b" not in state:
            with (tmp_path / "folder" / ".metadata").open("rb") as file:
                metadata = pickle.load(file)
            metadata.storage_meta = None
            for place in metadata.storage_data.values():
                place.relative_path = "../elsewhere"
            (tmp_path / "folder" / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(ValueError, match=r"folder/\.metadata is no list of tensors"):
            read_metadata(tmp_path / "folder")


def leaves(tree: dict, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]


def test_every_setting_has_its_line_in_the_table_and_the_docs_have_the_table():
    settings = set(leaves(dataclasses.asdict(Config())))
    assert {rule(key)[0] for key in settings} == {"yes", "no", "no effect", "allow_data_change=true"}
    for line in RULES:
        assert any(key == line or key.startswith(line + ".") for key in settings), line
    rows = [f"| `{key}` | {may} | {why} |" for key, (may, why) in RULES.items()]
    assert "\n".join(rows) in (Path(__file__).parents[2] / "docs" / "resuming.md").read_text()


def test_a_setting_of_the_model_that_an_older_checkpoint_lacks_had_its_default(run):
    folder = run.save(3, None)
    meta = checkpoint_files.read_meta(folder)
    del meta["config"]["model"]["qk_norm"]
    checkpoint_files.write_meta(folder, meta)
    other = copy.deepcopy(run.config)
    assert checkpoint.resume(run.folder, other, run.model, run.optimizer, "data").step == 3
    other.model.qk_norm = True
    with pytest.raises(ConfigError, match=r"model\.qk_norm=True, but .* was made with False"):
        checkpoint.resume(run.folder, other, run.model, run.optimizer, "data")


def test_settings_that_may_not_change_are_refused_by_name_and_those_that_may_are_said(run, caplog):
    caplog.set_level("INFO")
    run.save(3, None)
    other = copy.deepcopy(run.config)
    other.seed, other.model.d_ff, other.data.length, other.optimizer.stack = 1, 24, 64, "adamw"
    other.schedule.max_steps, other.optimizer.normuon.lr = 2, 0.5
    with pytest.raises(ConfigError) as error:
        checkpoint.resume(run.folder, other, run.model, run.optimizer, "data")
    names = [problem.partition("=")[0] for problem in error.value.problems]
    assert sorted(names) == ["data.length", "model.d_ff", "optimizer.stack", "schedule.max_steps", "seed"]
    other = copy.deepcopy(run.config)
    other.schedule.max_steps, other.optimizer.normuon.lr, other.parallel.mode = 3, 0.5, "ddp"
    assert checkpoint.resume(run.folder, other, run.model, run.optimizer, "data").step == 3
    assert "optimizer.normuon.lr=0.5 (was 0.652)" in caplog.text
    assert "parallel.mode='ddp' (was 'single')" in caplog.text
    with pytest.raises(ConfigError, match="allow_data_change=true"):
        checkpoint.resume(run.folder, other, run.model, run.optimizer, "other rows")
    other.allow_data_change = True
    assert checkpoint.resume(run.folder, other, run.model, run.optimizer, "other rows").step == 3
    assert "goes on with other data from step 3" in caplog.text
