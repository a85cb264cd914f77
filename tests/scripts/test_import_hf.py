"""Official folders become runs that training starts from, and come out again as they went in."""

import hashlib
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toto_train import checkpoint, checkpoint_files, hub
from toto_train.config import ModelConfig
from toto_train.evaluation import job
from toto_train.model.toto import Toto

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str, *arguments: str) -> int:
    return runpy.run_path(str(SCRIPTS / name))["main"](list(arguments))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.fixture(scope="module", params=["one file", "shards"])
def official(request, tmp_path_factory) -> Path:
    """A folder as the official package and huggingface_hub write them, with random weights."""
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    torch.manual_seed(11)
    model = toto2.Toto2Model(toto2.Toto2ModelConfig(**hub.config_to_official(ModelConfig())))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    folder = tmp_path_factory.mktemp("official") / "Toto-nano"
    model.save_pretrained(folder)
    if request.param == "shards":
        from huggingface_hub import save_torch_state_dict

        (folder / "model.safetensors").unlink()
        save_torch_state_dict(model.state_dict(), folder, max_shard_size="400KB")
    return folder


@pytest.mark.parametrize("limit", ["5GB", "600KB"])
def test_official_to_run_to_official_is_bitwise(official, tmp_path, limit):
    assert script("import_hf.py", f"path={official}", f"out={tmp_path / 'run'}") == 0
    out = tmp_path / "out"
    assert script("export_hf.py", f"run={tmp_path / 'run'}", f"out={out}", f"max_shard={limit}") == 0
    before, after = tensors(official), tensors(out)
    assert before.keys() == after.keys()
    assert all(a.dtype == before[name].dtype and torch.equal(a, before[name]) for name, a in after.items())
    assert json.loads((out / "config.json").read_text()) == json.loads((official / "config.json").read_text())
    assert (out / "README.md").read_text() == (official / "README.md").read_text()  # its licence too
    assert len(list(out.glob("*.safetensors"))) == (1 if limit == "5GB" else 3)


def test_an_import_says_what_it_is_and_can_be_scored(official, tmp_path, capsys):
    run = tmp_path / "run"
    assert script("import_hf.py", f"path={official}", f"out={run}") == 0
    printed = capsys.readouterr().out
    assert "(nano, 348,480 parameters)" in printed
    assert f"model=nano init_from={run}" in printed
    model, meta = checkpoint.load_model(run)
    assert (meta["step"], meta["points"], model.config) == (0, 0, ModelConfig())
    assert checkpoint_files.describe(run, meta) == f"imported from {official}"
    assert checkpoint_files.facts(run, model, meta)["model"] == "nano, 348,480 parameters"
    for name, facts in meta["imported"]["files"].items():
        assert facts["sha256"] == hashlib.sha256((official / name).read_bytes()).hexdigest()
    assert {p.name for p in official.glob("*.safetensors")} < set(meta["imported"]["files"])
    assert set(meta["versions"]) == {"torch", "lightning", "numpy", "toto-train"}
    scored, about, trained = job.load(str(run), "best")
    assert (about["model"], trained) == ("run", 4096)
    assert torch.equal(scored.layers[0].mlp.up.weight, tensors(official)["transformer.layers.0.ffn.fc1.weight"])


def test_an_export_of_ours_keeps_its_training_facts(tmp_path):
    training = {"context_length": 256, "steps": 70, "points": 12345}
    ours = hub.save_pretrained(Toto.create(ModelConfig(), seed=1), tmp_path / "ours", "our card", training)
    assert script("import_hf.py", f"path={ours}", f"out={tmp_path / 'run'}") == 0
    assert script("export_hf.py", f"run={tmp_path / 'run'}", f"out={tmp_path / 'again'}") == 0
    for file in ours.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_an_import_replaces_an_import_and_nothing_else(official, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        assert script("import_hf.py", f"path={official}", f"out={out}") == 0
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no imported model"):
        script("import_hf.py", f"path={official}", f"out={out}")
    assert (out / "notes.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def cut(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])


def poison(folder: Path) -> None:
    model = hub.load_pretrained(folder)
    model.layers[0].mlp.up.weight.data[0, 0] = float("nan")
    hub.save_pretrained(model, folder, "card")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is no folder; `hf download"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (cut, "safetensors cannot be read"),
        (poison, r"layers\.0\.mlp\.up\.weight and 0 more tensors hold NaN"),
    ],
)
def test_what_cannot_be_imported_is_said_and_leaves_nothing(official, tmp_path, damage, message):
    folder = Path(shutil.copytree(official, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(ValueError, match=message):
        script("import_hf.py", f"path={folder}", f"out={tmp_path / 'run'}")
    assert {p.name for p in tmp_path.iterdir()} <= {"copy"}
