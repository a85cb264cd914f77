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


def test_the_official_package_loads_the_folder_and_forecasts_the_same(model, folder):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    peer = toto2.Toto2Model.from_pretrained(str(folder)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 200, generator=generator).cumsum(-1) * 4 + 50
    mask = torch.rand(x.shape, generator=generator) > 0.1
    mask[0, 0, :90] = False
    ids = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3]])
    pad = -x.shape[-1] % 32  # the official forecast wants whole patches
    padded, padded_mask = (torch.nn.functional.pad(t, (pad, 0)) for t in (torch.where(mask, x, 0.0), mask))
    for horizon in (1, 32, 50, 96):
        ours = forecast(model.eval(), x, mask, ids, horizon)
        theirs = peer.forecast({"target": padded, "target_mask": padded_mask, "series_ids": ids}, horizon)
        assert ours.shape == (9, 3, 4, horizon)
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def test_round_trip_is_bitwise(model, folder):
    again = hub.load_pretrained(folder)
    assert again.config == ModelConfig(name="export")
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    second = hub.save_pretrained(again, folder.with_name("second"), "card")
    one, two = (load_file(f / "model.safetensors") for f in (folder, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_names_map_one_to_one(model):
    names = hub.official_names(model.config)
    assert set(names) == {n for n, _ in model.named_parameters()}
    assert len(set(names.values())) == len(names)


def test_a_model_without_attention_bias_exports_too(tmp_path):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    model = Toto.create(ModelConfig(attn_bias=False, mlp_bias=True, layer_group_size=2), seed=0)
    folder = hub.save_pretrained(model, tmp_path / "m", "card")
    toto2.Toto2Model.from_pretrained(str(folder), strict=True)
    assert hub.load_pretrained(folder).config.layer_group_size == 2


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


def broken_config(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"qk_norm": True}))


def truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.layers.2.ffn.fc1.weight"]
    save_file(tensors, folder / "model.safetensors")


def wrong_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["patch_proj.linear1.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_config, "qk_norm=True"),
        (truncated_weights, "model.safetensors cannot be read"),
        (missing_tensor, "transformer.layers.2.ffn.fc1.weight is missing"),
        (wrong_shape, r"patch_proj.linear1.weight has shape \(3, 3\)"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "lacks patch_size"),
    ],
)
def test_damaged_folders_are_refused_by_name(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        hub.load_pretrained(folder)
