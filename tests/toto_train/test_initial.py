"""init_from: what a run may start from, what it must equal, and when it has no say."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from toto_train import checkpoint, checkpoint_files, hub
from toto_train.checkpoint import Position
from toto_train.checkpoint_saver import Saver, save_import
from toto_train.config import Config, ConfigError, ModelConfig
from toto_train.initial import choose_source, open_source
from toto_train.model.toto import Toto
from toto_train.optim.recipe import build_optimizer

SMALL = {"d_model": 16, "num_layers": 1, "num_variate_layers_per_group": 0, "d_ff": 16}
TINY = {"name": "tiny", "d_model": 256, "num_layers": 4, "num_heads": 4, "d_ff": 688}


def save(run: Path, step: int, config: Config, mwql: float | None = None, value: float | None = None) -> Path:
    """A checkpoint whose weights are all `value`, by default the step."""
    model = Toto.create(config.model, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(step if value is None else value)
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, 1)
    record = {"mwql": mwql, "bound": 0.8, "tasks": "windows"} if mwql else None
    saver = Saver(run, config, "rows")
    saver.save(model, optimizer, Position(step, 10 * step), record)
    saver.wait()
    return checkpoint_files.folder_of(run, step)


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(name="new", out=str(tmp_path / "runs"), model=ModelConfig(**SMALL))


@pytest.fixture
def run(tmp_path, config) -> Path:
    """A run whose validation chose step 3."""
    for step, mwql in ((3, 0.8), (6, 0.9)):
        save(tmp_path / "source", step, config, mwql)
    return tmp_path / "source"


def start(config: Config, path: Path) -> torch.Tensor:
    """One weight of a new run's model."""
    config.init_from = str(path)
    source = choose_source(config)
    assert source is not None
    model = Toto.create(config.model, config.seed)
    source.load_into(model)
    values = torch.cat([p.flatten() for p in model.parameters()])
    assert bool((values == values[0]).all())
    return values[0]


def test_a_run_a_checkpoint_and_a_model_folder_can_be_started_from(run, config, tmp_path, caplog):
    caplog.set_level("INFO")
    assert start(config, run) == 3
    assert "step 3 of 400,000 (chosen by validation, MWQL 0.800)" in caplog.text
    assert start(config, run / "checkpoints" / "step-00000006") == 6
    assert start(config, run / "checkpoints" / "latest") == 6
    assert start(config, Path(shutil.copytree(run / "checkpoints" / "step-00000006", tmp_path / "kept"))) == 6
    model, _ = checkpoint.load_model(run, "last")
    assert start(config, hub.save_pretrained(model, tmp_path / "export", "card")) == 6
    assert start(config, hub.save_pretrained(model, tmp_path / "shards", "card", max_shard_bytes=5000)) == 6
    imported = save_import(tmp_path / "imported", model, hub.origin(tmp_path / "export"))
    assert start(config, imported) == 6
    assert f"imported from {tmp_path / 'export'}" in caplog.text


def test_without_init_from_the_seed_decides(config):
    assert choose_source(config) is None


def test_another_architecture_is_refused_setting_by_setting_with_the_way_out(config, tmp_path):
    config.init_from = str(hub.save_pretrained(Toto.create(ModelConfig(), 0), tmp_path / "nano", "card"))
    config.model = ModelConfig(**TINY)
    with pytest.raises(ConfigError) as error:
        choose_source(config)
    assert error.value.problems == [
        f"model.{key}={ours}, but init_from={config.init_from} was made with {theirs}; use model=nano"
        for key, ours, theirs in (("d_model", 256, 64), ("num_heads", 4, 2), ("d_ff", 688, 176))
    ]
    config.model = ModelConfig(norm_eps=1e-3)
    with pytest.raises(ConfigError, match=r"model\.norm_eps=0\.001, but .* was made with 0\.0001; use model=nano"):
        choose_source(config)


def test_an_architecture_without_a_name_is_named_by_its_settings(config, tmp_path):
    model = Toto.create(ModelConfig(**SMALL), 0)
    config.init_from = str(hub.save_pretrained(model, tmp_path / "mine", "card"))
    assert open_source(config.init_from).model.name == "mine"
    config.model.d_ff = 32
    with pytest.raises(ConfigError, match=r"model\.d_ff=32, but init_from=.*mine was made with 16; use model\.d_ff=16"):
        choose_source(config)
    config.model = ModelConfig(**SMALL, qk_norm=True)
    with pytest.raises(ConfigError, match=r"model\.qk_norm=True, but .* with False; use model\.qk_norm=False"):
        choose_source(config)
    config.model = ModelConfig(**SMALL, layer_group_size=1, name="another")  # one group of one layer: the same
    assert choose_source(config) is not None


def test_a_model_with_normed_queries_and_keys_can_be_started_from(config, tmp_path):
    config.model.qk_norm = True
    model = Toto.create(config.model, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(5)
    assert start(config, hub.save_pretrained(model, tmp_path / "export", "card")) == 5


def test_a_run_that_has_begun_goes_on_whatever_init_from_says(run, config, caplog):
    config.init_from = str(run)
    save(Path(config.out) / "new", 1, config)
    assert choose_source(config) is None
    assert config.init_from == str(run)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    config.init_from = "gone"
    assert choose_source(config) is None
    assert config.init_from == str(run)  # its records stay true
    assert f"init_from=gone changes nothing: {config.out}/new began from init_from={run}" in caplog.text
    config.fresh = True
    assert choose_source(config) is not None


def test_a_run_saved_before_init_from_was_a_setting_began_from_its_seed(run, config, caplog):
    folder = save(Path(config.out) / "new", 1, config)
    old = checkpoint_files.read_meta(folder)
    del old["config"]["init_from"]
    checkpoint_files.write_meta(folder, old)
    config.init_from = str(run)
    assert choose_source(config) is None
    assert config.init_from == ""
    assert "began from its seed" in caplog.text


def test_what_cannot_be_started_from_is_said(run, config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    for path, message in (
        ("nowhere", r"init_from: .*nowhere is no folder; give a run, one of its checkpoints, or a Hugging Face folder"),
        ("empty", r"init_from: .*empty has no checkpoints/, meta\.json or config\.json; give a run"),
        ("begun", r"init_from: .*begun holds no complete checkpoint"),
    ):
        config.init_from = str(tmp_path / path)
        with pytest.raises(ConfigError, match=message):
            choose_source(config)
    folder = hub.save_pretrained(Toto.create(config.model, 0), tmp_path / "export", "card")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    config.init_from = str(folder)
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        choose_source(config)


def test_damaged_checkpoints_are_said_when_they_are_read(run, config):
    save(run, 3, config, 0.8, value=math.nan)
    with pytest.raises(ValueError, match=r"step-00000003: \S+ and \d+ more tensors hold NaN"):
        start(config, run)
    file = next((run / "checkpoints" / "step-00000006").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-00000006/__0_0\.distcp has 1,000 bytes instead of"):
        start(config, run / "checkpoints" / "step-00000006")


def test_a_run_does_not_start_from_what_it_is_about_to_empty(run, config):
    config.out, config.name, config.fresh, config.init_from = str(run.parent), "source", True, str(run / "checkpoints")
    with pytest.raises(ConfigError, match=r"lies in .*source, which fresh=true empties; choose another name="):
        choose_source(config)
