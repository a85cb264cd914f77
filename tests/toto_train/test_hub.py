"""Export and import: the official loader gets what we trained, to the bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from toto_train import hub
from toto_train.config import ModelConfig
from toto_train.forecast import forecast
from toto_train.model.toto import Toto


@pytest.fixture
def model() -> Toto:
    model = Toto.create(ModelConfig(), seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture
def folder(model, tmp_path):
    return hub.save_pretrained(model, tmp_path / "export", hub.model_card("a model", {"steps": "7"}))


@pytest.fixture
def shards(model, tmp_path):
    return hub.save_pretrained(model, tmp_path / "shards", "card", max_shard_bytes=SHARD)


SHARD = 500_000
"""Bytes of a shard that split a nano model in three."""


@pytest.mark.parametrize("made", ["folder", "shards"])
def test_the_official_package_loads_the_folder_and_forecasts_the_same(model, made, request):
    folder = request.getfixturevalue(made)
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    peer = toto2.Toto2Model.from_pretrained(str(folder)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 200, generator=generator).cumsum(-1) * 4 + 50
    mask = torch.rand(x.shape, generator=generator) > 0.1
    mask[0, 0, :90] = False
    ids = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3]])
    x = torch.where(mask, x, 0.0)  # the last patch is read also where it is masked
    pad = -x.shape[-1] % 32  # the official forecast wants whole patches
    padded, padded_mask = (torch.nn.functional.pad(t, (pad, 0)) for t in (x, mask))
    for horizon in (1, 32, 50, 96):
        ours = forecast(model.eval(), x, mask, ids, horizon)
        theirs = peer.forecast({"target": padded, "target_mask": padded_mask, "series_ids": ids}, horizon)
        assert ours.shape == (9, 3, 4, horizon)
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def test_round_trip_is_bitwise(model, folder):
    again = hub.load_pretrained(folder)
    assert again.config == ModelConfig()
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    second = hub.save_pretrained(again, folder.with_name("second"), "card")
    one, two = (load_file(f / "model.safetensors") for f in (folder, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_shards_lie_below_the_limit_and_are_found_by_the_index(model, folder, shards):
    files = {p.name: load_file(p) for p in shards.glob("*.safetensors")}
    assert sorted(files) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((shards / hub.INDEX).read_text())
    assert {name: file for file, tensors in files.items() for name in tensors} == index["weight_map"]
    sizes = [sum(t.nbytes for t in tensors.values()) for tensors in files.values()]
    assert max(sizes) <= SHARD
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * (348_480 + 8)
    whole = load_file(folder / "model.safetensors")
    together = {name: t for tensors in files.values() for name, t in tensors.items()}
    assert together.keys() == whole.keys()
    assert all(torch.equal(together[k], whole[k]) for k in whole)
    for (name, a), b in zip(model.named_parameters(), hub.load_pretrained(shards).parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_folder_has_shards_or_one_file_never_both(model, folder):
    hub.save_pretrained(model, folder, "card", max_shard_bytes=SHARD)
    assert not (folder / "model.safetensors").exists()
    hub.save_pretrained(model, folder, "card")
    assert [p.name for p in folder.iterdir() if "safetensors" in p.name] == ["model.safetensors"]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_an_export_that_fails_leaves_the_former_one(model, folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(hub, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        hub.save_pretrained(model, folder, "second card")
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precision_become_float32_and_that_is_said(folder, dtype, caplog):
    stored = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors")
    model = hub.load_pretrained(folder)
    assert f"48 tensors are {str(dtype).removeprefix('torch.')}; converted to float32" in caplog.text
    for name, official in hub.official_names(model.config).items():
        assert torch.equal(model.get_parameter(name), stored[official].float())
    assert model.layers[1].mlp_tau == Toto.create(model.config, 0).layers[1].mlp_tau  # not the rounded one


def test_a_size_that_has_a_name_gets_it():
    tiny = {"d_model": 256, "num_layers": 4, "num_heads": 4, "d_ff": 688}
    raw = hub.config_to_official(ModelConfig(**tiny))
    assert hub.config_from_official(raw, "Toto-2.0-4m") == ModelConfig("tiny", **tiny)
    assert hub.config_from_official(raw | {"d_ff": 680}, "mine").name == "mine"
    deeper = raw | {"num_layers": 48, "layer_group_size": 48}
    assert hub.config_from_official(deeper, "mine").layer_group_size == 0
    without = {k: v for k, v in raw.items() if k not in ("residual_attn_ratio", "qk_dim")}
    assert hub.config_from_official(without, "4m") == ModelConfig("tiny", **tiny)


@pytest.mark.parametrize("key", ["qk_norm", "per_dim_scale", "use_xpos"])
def test_a_folder_says_what_the_official_package_takes_otherwise(key):
    raw = hub.config_to_official(ModelConfig())
    with pytest.raises(ValueError, match=f"lacks {key}"):
        hub.config_from_official({k: v for k, v in raw.items() if k != key}, "mine")


def test_names_map_one_to_one(model):
    names = hub.official_names(model.config)
    assert set(names) == {n for n, _ in model.named_parameters()}
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("changes", [{"attn_bias": False, "mlp_bias": True, "layer_group_size": 2}, {"qk_norm": True}])
def test_models_of_other_architectures_export_too(changes, tmp_path):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    model = Toto.create(ModelConfig("m", **changes), seed=0)
    folder = hub.save_pretrained(model, tmp_path / "m", "card")
    peer = toto2.Toto2Model.from_pretrained(str(folder), strict=True)
    x, ids = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, dtype=torch.long)
    theirs = peer.forecast({"target": x, "target_mask": torch.ones_like(x, dtype=torch.bool), "series_ids": ids}, 50)
    again = hub.load_pretrained(folder)
    assert again.config == model.config
    ours = forecast(again.eval(), x, torch.ones_like(x, dtype=torch.bool), ids, 50)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def test_model_card_has_front_matter_and_facts(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| steps | 7 |" in card


def test_an_export_replaces_an_export_but_no_other_folder(model, folder, tmp_path):
    hub.save_pretrained(model, folder, "second card")
    assert (folder / "README.md").read_text() == "second card"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="is no model folder"):
        hub.save_pretrained(model, tmp_path / "precious", "card")
    assert (tmp_path / "precious" / "thesis.txt").exists()
    assert not (tmp_path / "precious.tmp").exists()


def json_edit(file: str, **changes):
    def edit(folder):
        raw = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(raw))

    return edit


def cut(pattern: str):
    def edit(folder):
        (file,) = folder.glob(pattern)
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])

    return edit


def tensors(pattern: str, **changes):
    """Replace tensors of a file, or (None) remove them."""

    def edit(folder):
        (file,) = folder.glob(pattern)
        found = load_file(file) | {name.replace("__", "."): t for name, t in changes.items()}
        save_file({name: t for name, t in found.items() if t is not None}, file)

    return edit


def delete(name: str):
    return lambda folder: (folder / name).unlink()


SECOND = "model-00002-*"


@pytest.mark.parametrize(
    ("made", "damage", "message"),
    [
        ("folder", json_edit("config.json", norm_include_weight=True), r"export: .*another architecture: norm_incl"),
        (
            "folder",
            json_edit("config.json", qk_norm=True, qk_norm_include_weight=True),
            r"another architecture: qk_norm_include_weight=True \(built here: False\)",
        ),
        ("folder", json_edit("config.json", qk_norm=None), "config.json lacks qk_norm"),  # officially that means true
        ("folder", json_edit("config.json", qk_norm="yes"), "values of the wrong type: qk_norm='yes'"),
        (
            "folder",
            tensors("*.safetensors", transformer__layers__0__attn__q_norm__weight=torch.ones(32)),
            "unknown tensor transformer.layers.0.attn.q_norm.weight",
        ),
        ("folder", json_edit("config.json", d_model="64"), "values of the wrong type: d_model='64'"),
        ("folder", json_edit("config.json", num_heads=3), "model.num_heads=3 must split"),
        ("folder", delete("config.json"), "no config.json"),
        ("folder", lambda folder: (folder / "config.json").write_text("{}"), "lacks patch_size"),
        ("folder", lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        ("folder", lambda folder: (folder / "config.json").write_text("[]"), r"config\.json is damaged"),
        ("folder", delete("model.safetensors"), r"no model\.safetensors \(or model\.safetensors\.index\.json\)"),
        ("folder", cut("*.safetensors"), r"model\.safetensors cannot be read"),
        (
            "folder",
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            r"model\.safetensors cannot be read",
        ),
        (
            "folder",
            tensors("*.safetensors", transformer__layers__2__ffn__fc1__weight=None),
            "2.ffn.fc1.weight is missing",
        ),
        ("folder", tensors("*.safetensors", transformer__layers__1__mlp_tau=None), "1.mlp_tau is missing"),
        (
            "folder",
            tensors("*.safetensors", patch_proj__linear1__weight=torch.zeros(3, 3)),
            r"model\.safetensors: tensor patch_proj\.linear1\.weight has shape \(3, 3\), config\.json says \(256, 64\)",
        ),
        (
            "folder",
            tensors("*.safetensors", patch_proj__gate__weight=torch.zeros(3)),
            r"model\.safetensors: unknown tensor patch_proj\.gate\.weight; .*another architecture",
        ),
        (
            "folder",
            tensors("*.safetensors", patch_proj__linear1__bias=torch.zeros(256, dtype=torch.int8)),
            "patch_proj.linear1.bias is I8; weights must be one of F32",
        ),
        (
            "folder",
            tensors("*.safetensors", transformer__layers__1__mlp_tau=torch.tensor(0.5)),
            "1.mlp_tau is 0.5, but residual_mult and residual_attn_ratio of config.json give 0.0",
        ),
        (
            "shards",
            delete("model-00002-of-00003.safetensors"),
            r"index\.json names model-00002-of-00003\.safetensors, missing",
        ),
        ("shards", cut(SECOND), r"model-00002-of-00003\.safetensors cannot be read"),
        (
            "shards",
            tensors(SECOND, transformer__layers__1__ffn__fc2__weight=None),
            r"model-00002-of-00003\.safetensors: tensor \S+1\.ffn\.fc2\.weight is missing, which .*index\.json",
        ),
        ("shards", json_edit(hub.INDEX, weight_map={"a": "../a.safetensors"}), "weight_map must say"),
        ("shards", json_edit(hub.INDEX, weight_map=None), "weight_map must say"),
        ("shards", lambda folder: (folder / hub.INDEX).write_text("{"), r"index\.json is damaged"),
    ],
)
def test_damaged_folders_are_refused_by_name(made, damage, message, request):
    folder = request.getfixturevalue(made)
    hub.load_pretrained(folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        hub.load_pretrained(folder)
    assert "\n" not in str(error.value)
