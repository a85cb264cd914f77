"""Configs: everything composes, and everything wrong is said at once with a way out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.synthetic.prior import DEFAULT_WEIGHTS
from toto_train.cli import config_from_overrides
from toto_train.config import Config, ConfigError, to_yaml
from toto_train.config_check import check, from_tree, get
from toto_train.initial import choose_source

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = [p for p in CONFIGS.iterdir() if p.is_dir() and p.name != "search"]  # rounds are for scripts/search.py
GROUPS = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in FOLDERS}


def compose(*overrides: str) -> Config:
    return config_from_overrides(list(overrides), CONFIGS)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    return error.value.problems


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g, choices in GROUPS.items() for c in choices])
def test_every_choice_of_every_group_composes(group, choice):
    with_it = {"deepspeed": ["optimizer=adamw"], "deepspeed_muon": ["parallel=deepspeed", "parallel.zero_stage=3"]}
    compose(f"{group}={choice}", "plan=true", *with_it.get(choice, []))


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_composes_with_the_recipe(model):
    config = compose("experiment=toto2_xl", f"model={model}", "plan=true")
    assert config.model.name == model == config.name
    assert config.points_per_step == 8_388_608


def test_a_composed_config_survives_its_file(tmp_path):
    from omegaconf import OmegaConf

    config = compose("model=tiny", "seed=3", "optimizer.normuon.lr=0.3")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_tree(OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))) == config


def test_all_problems_are_reported_together():
    found = problems("modl=xl", "+typo=1", "model=tinny", "model.d_model=wide", "optimizer.normuon.lrr=1", "seed=true")
    text = "\n".join(found)
    assert len(found) == 6
    assert "unknown key 'modl'" in text
    assert "did you mean 'model'?" in text
    assert "unknown key 'typo'" in text
    assert "unknown model=tinny; did you mean 'tiny'?" in text
    assert "model.d_model='wide' is not a valid int" in text
    assert "at 'lrr' did you mean 'lr'?" in text
    assert "seed=True is not a valid int" in text


def test_an_unknown_key_in_a_config_file_is_found(tmp_path):
    import shutil

    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs/schedule/toto2.yaml").write_text("max_step: 5\n")
    with pytest.raises(ConfigError, match=r"unknown key 'schedule\.max_step'; did you mean 'max_steps'"):
        config_from_overrides([], tmp_path / "configs")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_heads=3", "model.num_heads=3 must split model.d_model=64"),
        ("model.layer_group_size=3", "must divide model.num_layers=4"),
        ("model.num_variate_layers_per_group=4", "must leave a time layer"),
        ("data.length=1000", "data.length=1000 must be a multiple of model.patch_size=32"),
        ("micro_rows=3", "micro_rows=3 must divide global_rows="),
        ("schedule.max_steps=5", "schedule.max_steps=5 is shorter than"),
        ("parallel.activation_checkpointing=2", "parallel.activation_checkpointing=2.0 is a share"),
        ("parallel.mode=tripple", "parallel.mode='tripple' must be one of single"),
        ("optimizer.normuon.lr=-1", "optimizer.normuon.lr=-1.0 must be positive"),
        ("optimizer.stack=sgd", "optimizer.stack='sgd' must be one of normuon, adamw"),
        ("optimizer.normuon.split=qkv", "optimizer.normuon.split='qkv' must be one of none, fused, heads"),
        ("optimizer.normuon.bucket_mib=0", "optimizer.normuon.bucket_mib=0 must be positive"),
        ("optimizer.adamw.beta1=1", "optimizer.adamw.beta1=1.0 must be in [0, 1)"),
        ("optimizer.normuon.weight_decay=1", "optimizer.normuon.weight_decay=1.0 must be in [0, 1)"),
        ("optimizer.normuon.weight_decay=-0.1", "optimizer.normuon.weight_decay=-0.1 must be in [0, 1)"),
        ("optimizer.adamw.weight_decay=-1", "optimizer.adamw.weight_decay=-1.0 must not be negative"),
        ("optimizer.adamw.weight_decay=84", "weights by; it must be below 1"),
        ("optimizer.normuon.replicated_state=owner", "replicated_state=owner needs ranks that hold copies"),
        ("optimizer.normuon.momentum_warmup_steps=400001", "=400001 must not exceed schedule.max_steps="),
        ("data.prefetch=65", "data.prefetch=65 must be at most 64"),
        ("data.workers=129", "data.workers=129 must be at most 128"),
        ("heldout.context=100000", "heldout.context=100000 must be"),
        ("name=a/b", "name='a/b' must be a plain folder name"),
        ("data=shards", "data.mixture.corpus.path is empty; give data.mixture.corpus.path=FOLDER"),
        ("data.mixture.real.balance=fair", "data.mixture.real.balance='fair' must be one of equal, sqrt, points"),
        ("validation.path=''", "validation.path is empty"),
        ("objective.label_clamp=nan", "objective.label_clamp=nan is not a valid float"),
        ("model={}", "unknown model={}"),
    ],
)
def test_impossible_settings_name_key_value_and_remedy(override, message):
    assert message in "\n".join(problems(override))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=adamw", "optimizer.normuon.split=fused"], "split=fused does nothing under optimizer.stack=adamw"),
        (["optimizer=muon", "optimizer.stack=adamw"], "normalize=False does nothing under optimizer.stack=adamw"),
        (
            ["optimizer.normuon.momentum=0.8", "optimizer.normuon.momentum_warmup_steps=1"],
            "momentum_start=0.85 must not be above optimizer.normuon.momentum=0.8",
        ),
    ],
)
def test_settings_that_contradict_others_are_found(overrides, message):
    (found,) = problems(*overrides)
    assert message in found


def test_settings_within_their_bounds_are_not_refused():
    compose("data.prefetch=64", "data.workers=128", "optimizer.adamw.lr=0.012", "optimizer.adamw.weight_decay=83")
    compose("optimizer.normuon.momentum=0.8")  # no warm-up: its start is not read


def test_the_fine_tune_is_the_published_one_and_asks_for_its_weights():
    config = compose("experiment=finetune", "model=small", "data.mixture.corpus.path=x")
    assert (config.optimizer.normuon.lr, config.optimizer.adamw.lr, config.schedule.max_steps) == (0.05, 0.001, 10_000)
    assert (config.model.name, config.points_per_step) == ("small", 8_388_608)
    with pytest.raises(ConfigError, match="init_from: FOLDER is no folder; give a run"):
        choose_source(config)
    config.plan = True
    assert choose_source(config) is None


@pytest.mark.parametrize(
    ("experiment", "model", "steps"),
    [("toto2_tiny", "tiny", 400_000), ("toto2_small", "small", 400_000), ("toto2_large", "large", 600_500),
     ("toto2_xl", "xl", 600_500), ("toto2_xxl", "xxl", 600_500), ("toto1_mix", "tiny", 400_000)],
)  # fmt: skip
def test_the_published_recipe_by_size(experiment, model, steps):
    config = compose(f"experiment={experiment}", "plan=true")
    s, o = config.schedule, config.optimizer
    assert (config.model.name, config.points_per_step) == (model, 8_388_608)
    assert (s.max_steps, s.warmup_steps, s.decay_steps) == (steps, 6_000, 10_500)
    assert (o.normuon.lr, o.adamw.lr, o.clip_norm) == (0.652, 0.012, 7.0)
    shares = {name: entry.weight for name, entry in config.data.mixture.items()}
    assert shares == ({"observability": 0.42, "synthetic": 0.33, "public": 0.25} if experiment == "toto1_mix"
                      else {"corpus": 1.0})  # fmt: skip


def test_mixture_entries_are_checked_too():
    tree = {"data": {"mixture": {"mine": {"weigth": 2, "path": "x"}}}}
    with pytest.raises(ConfigError, match=r"unknown key 'data\.mixture\.mine\.weigth'; did you mean 'weight'"):
        from_tree(tree)
    with pytest.raises(ConfigError, match=r"data\.mixture\.mine\.path is empty; .* or data\.mixture\.mine\.families"):
        from_tree({"data": {"mixture": {"mine": {"weight": 2}}}})


def test_numbers_written_as_text_are_numbers():
    config = compose("optimizer.adamw.eps=1e-9", "schedule.max_steps=5_000", "++seed=4")
    assert (config.optimizer.adamw.eps, config.schedule.max_steps, config.seed) == (1e-9, 5000, 4)


NUMBERS = [k for k in ("model.d_model", "data.length", "schedule.max_steps", "optimizer.normuon.lr", "micro_rows")]


@given(st.sampled_from(NUMBERS), st.integers(-10, 10_000))
def test_any_single_number_is_accepted_or_refused_by_name(key, value):
    config = Config(validate_every=0)
    *parts, last = key.split(".")
    owner = get(config, ".".join(parts)) if parts else config
    setattr(owner, last, type(getattr(owner, last))(value))
    found = [p for p in check(config) if not p.startswith("data.mixture")]
    for problem in found:
        assert key.split(".")[0] in problem or last in problem
    if value <= 0:
        assert any(problem.startswith(f"{key}=") for problem in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": {"100": {"corpus": 1.0}}}, r"data\.stages\.100: .* positive multiple of data\.lanes=64"),
        ({"stages": {"128": {"corpsu": 1.0}}}, r"data\.stages\.128: no entry 'corpsu'.*did you mean 'corpus'"),
        ({"stages": {"128": {"corpus": "much"}}}, r"data\.stages\.128\.corpus='much' is not a valid float"),
        ({"stages": 3}, r"data\.stages=3 must be a group"),
        ({"on_fault": "ignore"}, r"data\.on_fault='ignore' must be one of stop, quarantine"),
        ({"augment": {"mixup": 2}}, r"data\.augment\.mixup=2\.0 must be in \[0, 1\]"),
        ({"mixture": {"corpus": {"path": "x", "downsample": 0}}}, r"mixture\.corpus\.downsample=0 must be 1 or more"),
        (
            {"mixture": {"corpus": {"path": "x", "domain": "web"}}},
            r"mixture\.corpus\.domain='web' must be empty or one",
        ),
        (
            {"mixture": {"corpus": {"path": "x", "min_interval": 60, "max_interval": 30}}},
            r"mixture\.corpus\.max_interval=30\.0 must be above min_interval=60\.0",
        ),
    ],
)
def test_settings_of_the_data_are_checked(change, message):
    tree = {"data": {"mixture": {"corpus": {"path": "x"}}, **change}, "validate_every": 0}
    with pytest.raises(ConfigError, match=message):
        from_tree(tree)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"families": {"stpe": 1}}, r"corpus\.families: no family 'stpe'; did you mean 'step'\?"),
        ({"families": {"step": -1, "spike": 1}}, r"corpus\.families\.step=-1\.0 must not be negative"),
        ({"families": {"step": "nan"}}, r"corpus\.families\.step='nan' is not a valid float"),
        ({"families": {"step": 0}}, r"corpus\.families: all weights are 0"),
        ({"families": {"step": 1}, "path": "x"}, r"path beside its families; ~data\.mixture\.corpus\.families reads"),
        ({"families": {"step": 1}, "downsample": 2}, r"corpus\.downsample=2 chooses among stored series and does"),
        ({"families": {"step": 1}, "include": ["s"]}, r"corpus\.include=\['s'\] chooses among stored series"),
        ({"families": {"step": 1}, "domain": "synthetic"}, r"corpus\.domain='synthetic' chooses among stored series"),
        ({"families": {"step": 1, "spike": 1}}, r"other\.families\.step is in corpus too"),
    ],
)
def test_families_of_an_entry_are_checked(entry, message):
    tree = {"data": {"mixture": {"corpus": entry, "other": {"families": {"step": 1}}}}, "validate_every": 0}
    with pytest.raises(ConfigError, match=message):
        from_tree(tree)


def test_the_published_mixtures_make_their_synthetic_part_or_read_it():
    for name, share in (("toto2", 0.575), ("toto1", 0.33), ("toto2_finetune", 0.23)):
        mixture = compose(f"data={name}", "data.mixture.synthetic.families.step=0.1").data.mixture
        assert sum(entry.weight for entry in mixture.values()) == pytest.approx(1)
        entry = mixture["synthetic"]
        assert (entry.weight, entry.families["kernel"], entry.families["step"]) == (share, 1.0, 0.1)
        assert "telemetry" not in entry.families
    stored = compose("data=toto2", "~data.mixture.synthetic.families", "data.mixture.synthetic.path=x")
    assert (stored.data.mixture["synthetic"].path, stored.data.mixture["synthetic"].families) == ("x", {})
    made = compose("data=synthetic")
    assert {family for entry in made.data.mixture.values() for family in entry.families} == set(DEFAULT_WEIGHTS)


def test_a_curriculum_is_read():
    tree = {"data": {"mixture": {"corpus": {"path": "x"}}, "stages": {128: {"corpus": 1}}}, "validate_every": 0}
    assert from_tree(tree).data.stages == {"128": {"corpus": 1.0}}


def test_stages_from_the_command_line_as_the_docs_write_them():
    few = ["data=shards", "data.mixture.corpus.path=x", "data.mixture.more={path: y}"]
    c = config_from_overrides([*few, "data.stages={64: {corpus: 0.2}, 128: {more: 2}}"], CONFIGS)
    assert c.data.stages == {"64": {"corpus": 0.2}, "128": {"more": 2.0}}
    assert config_from_overrides([*few, "data.stages.64={corpus: 0.2}"], CONFIGS).data.stages == {"64": {"corpus": 0.2}}
