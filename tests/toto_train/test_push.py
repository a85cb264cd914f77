"""Pushing to the Hugging Face Hub, against a hub of our own on this machine: what arrives is what was exported."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from toto_train import hub
from toto_train.checkpoint_saver import save_import
from toto_train.config import ModelConfig
from toto_train.model.toto import Toto
from toto_train.push import push_to_hub

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(fake_hub, monkeypatch):
    """This process's client talks to the fake hub, with a token that may write."""
    point_at(fake_hub.url, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "writer")
    return fake_hub


def point_at(url: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")  # nor one of who runs the tests


@pytest.fixture(scope="module")
def model() -> Toto:
    return Toto.create(ModelConfig(), seed=3)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return hub.save_pretrained(model, tmp_path / "out", "card", {"context_length": 64})


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


PULL = """
import sys
from pathlib import Path
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from toto2 import Toto2Model
for name, place in {"toto": "org/toto", "shards": snapshot_download("org/shards")}.items():
    save_file(dict(Toto2Model.from_pretrained(place).state_dict()), Path(sys.argv[1], f"{name}.safetensors"))
"""


@pytest.mark.slow
def test_what_is_pushed_is_what_the_official_package_pulls(here, model, folder, tmp_path):
    """Pulled in a fresh interpreter: the client reads the place of the hub when it is imported."""
    pytest.importorskip("toto2", reason="the official package is installed by make test")
    push_to_hub(folder, "org/toto")
    push_to_hub(hub.save_pretrained(model, tmp_path / "shards", "card", max_shard_bytes=500_000), "org/shards")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": here.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    (tmp_path / "pulled").mkdir()
    command = [sys.executable, "-c", PULL, str(tmp_path / "pulled")]
    pulled = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert pulled.returncode == 0, pulled.stderr
    expected = hub.to_official(model)
    for file in ("toto.safetensors", "shards.safetensors"):
        found = load_file(tmp_path / "pulled" / file)
        assert found.keys() == expected.keys()
        assert all(bool((found[name] == expected[name]).all()) for name in found)


def test_the_command_exports_and_pushes(here, model, folder, tmp_path, monkeypatch, capsys):
    export = runpy.run_path(str(ROOT / "scripts/export_hf.py"))["main"]
    run = save_import(tmp_path / "run", model, hub.origin(folder))
    keys = [f"run={run}", f"out={tmp_path / 'sent'}"]
    with pytest.raises(ValueError, match=r"private=True needs push_to=ORG/NAME"):
        export([*keys, "private=true"])
    with pytest.raises(ValueError, match=r"push_to='toto' must be ORG/NAME"):
        export([*keys, "push_to=toto"])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="set HF_TOKEN, or run `hf auth login`"):
        export([*keys, "push_to=org/toto"])
    assert not (tmp_path / "sent").exists()  # found before the export was made
    assert export([*keys, "push_to=org/toto", "dry_run=true"]) == 0
    assert "would send to org/toto:" in capsys.readouterr().out
    assert here.log == []
    monkeypatch.setenv("HF_TOKEN", "writer")
    assert export([*keys, "push_to=org/toto", "private=true", "max_shard=500KB"]) == 0
    assert "sent to the private org/toto:" in capsys.readouterr().out
    assert here.repos["org/toto"]["private"]
    assert here.repos["org/toto"]["branches"]["main"] == files_of(tmp_path / "sent")
    assert len(list((tmp_path / "sent").glob("*.safetensors"))) == 3


def test_other_shards_of_a_former_push_go_in_the_same_commit(here, model, folder, tmp_path):
    push_to_hub(folder, "org/toto")
    shards = hub.save_pretrained(model, tmp_path / "shards", "card", max_shard_bytes=500_000)
    (shards / "notes.txt").write_text("mine")
    push_to_hub(shards, "org/toto")
    assert sum("/commit/" in line for line in here.log) == 2
    assert here.repos["org/toto"]["branches"]["main"] == {
        "training.json": (folder / "training.json").read_bytes(),  # only weights are cleared away
        **files_of(shards),
    }


def test_a_push_can_be_private_and_go_to_a_branch(here, folder):
    push_to_hub(folder, "org/toto", private=True, revision="step-1")
    repo = here.repos["org/toto"]
    assert repo["private"]
    assert repo["branches"] == {"main": {}, "step-1": files_of(folder)}
    push_to_hub(folder, "org/toto", private=True)
    assert repo["branches"]["main"] == files_of(folder)


def test_private_weights_do_not_go_to_a_public_repository(here, folder):
    here.repos["org/toto"] = {"private": False, "branches": {"main": {}}}
    with pytest.raises(ValueError, match="there already and public"):
        push_to_hub(folder, "org/toto", private=True)
    assert here.repos["org/toto"]["branches"]["main"] == {}


@pytest.mark.parametrize(
    ("token", "message"),
    [("reader", "answered 403: .*HF_TOKEN"), ("stranger", "answered 401: .*HF_TOKEN"), ("writer", "no space left")],
)
def test_a_push_that_fails_says_so_in_a_line_and_leaves_nothing_half_done(here, folder, monkeypatch, token, message):
    here.fail_uploads = True
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=message) as error:
        push_to_hub(folder, "org/toto")
    assert "\n" not in str(error.value)
    assert here.repos.get("org/toto", {"branches": {"main": {}}})["branches"] == {"main": {}}
    hub.check_folder(folder)


def test_a_hub_that_is_not_there_is_said(folder, monkeypatch):
    point_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "writer")
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9 cannot be reached") as error:
        push_to_hub(folder, "org/toto")
    assert "\n" not in str(error.value)


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(here, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (folder / ".notes").write_text("mine")
    text = push_to_hub(folder, "org/toto", private=True, dry_run=True, revision="v2")
    assert here.log == []
    files = [p for p in folder.iterdir() if p.name != ".notes"]
    assert text.startswith("would send to the private org/toto (branch v2):")
    for file in files:
        assert re.search(rf"  {file.name} +{file.stat().st_size:,} bytes\n", text)
    assert re.search(rf"total, 4 files +{sum(f.stat().st_size for f in files):,} bytes", text)
    assert ".notes" not in text


@pytest.mark.parametrize("name", ["toto", "a/b/c", "org/", "org/-x", "org/my model", ""])
def test_names_that_are_no_repository_are_refused(folder, name):
    with pytest.raises(ValueError, match="must be ORG/NAME"):
        push_to_hub(folder, name, dry_run=True)


def test_a_damaged_folder_is_not_pushed(here, folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        push_to_hub(folder, "org/toto")
    assert here.log == []
