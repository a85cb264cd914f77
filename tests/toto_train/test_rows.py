"""Rows as arrays: values land where they belong, gaps and padding are zero and masked, masks come from n alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import AugmentConfig, Config, DataConfig, MixtureEntry, ModelConfig
from toto_train.data.rows import Rows, verify_shards
from toto_train.model.decoder import group_ids
from toto_train.model.toto import mask_flags

LENGTH, VARIATES, PATCH = 128, 8, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "set"
    data = []
    for i in range(30):
        variates, length = 1 + i % 5, (40, 128, 300)[i % 3]
        values = rng.standard_normal((variates, length)).astype(np.float32)
        values[rng.random(values.shape) < 0.2] = np.nan
        values[0, 5] = np.inf
        data.append(Series(values, 60.0, f"source{i % 2}", str(i)))
    write_shards(path, data, {})
    return path


def config(folder: Path, **fields) -> Config:
    data = DataConfig({"main": MixtureEntry(str(folder))}, variates=VARIATES, length=LENGTH)
    return Config(data=data, model=ModelConfig(patch_size=PATCH), **fields)


def test_rows_hold_their_windows(folder):
    rows = Rows(config(folder))
    batch = rows.batch(range(60))
    assert {k: (v.dtype.str, v.shape) for k, v in batch.items()} == {
        "target": ("<f4", (60, VARIATES, LENGTH)),
        "target_mask": ("|b1", (60, VARIATES, LENGTH)),
        "cpm_mask": ("|b1", (60, VARIATES, LENGTH)),
        "series_ids": ("<i8", (60, VARIATES)),
        "row": ("<i8", (60,)),
        "flags": ("|b1", (2,)),
        "points": ("<i8", ()),
        "source": ("<i8", (60,)),
        "stratum": ("<i8", (60, VARIATES)),
        "seconds": ("<f8", (60,)),
        "lost": ("<i8", (60,)),
    }
    assert [rows.labels[k] for k in batch["source"]] == [rows.order.row(n).source for n in range(60)]
    assert not batch["lost"].any()
    seen = set()
    for n in range(60):
        spec = rows.order.row(n)
        shards, source = rows.order.open(spec.source)
        top = 0
        for k, (i, start, steps) in enumerate(spec.windows):
            values = shards.values(source, i)[:, start : start + steps]
            expected = np.full((len(values), LENGTH), np.nan, np.float32)
            first = -steps % PATCH  # shorter series end with a whole patch, as early as they can
            expected[:, first : first + steps] = values
            here = slice(top, top + len(values))
            np.testing.assert_array_equal(batch["target_mask"][n, here], np.isfinite(expected))
            np.testing.assert_array_equal(batch["target"][n, here], np.nan_to_num(expected, posinf=0))
            assert (batch["series_ids"][n, here] == k).all()
            top += len(values)
            seen.add((len(values), steps < LENGTH))
        empty = batch["series_ids"][n, top:]
        assert len(set(empty)) == len(empty)
        assert not set(empty) & set(range(len(spec.windows)))
        assert not batch["target_mask"][n, top:].any()
        assert not batch["target"][n, top:].any()
    assert len(seen) >= 8, "every width, padded and not"


def test_flags_ask_for_the_masks_that_the_model_would(tmp_path):
    """Short windows stand first in their rows: only holes of a patch or more need a mask over time."""
    rng, cases = np.random.default_rng(0), {"whole": (8, 128), "short": (8, 40), "holes": (8, 128), "narrow": (3, 40)}
    for source, (variates, length) in cases.items():
        values = rng.standard_normal((variates, length)).astype(np.float32)
        if source == "holes":
            values[:, 2 * PATCH : 5 * PATCH] = np.nan
        write_shards(tmp_path / source, [Series(values, 60.0, source, "0")], {})
    found = {}
    for source in cases:
        rows = Rows(config(tmp_path / source))
        for n in range(10):
            batch = rows.batch([n])
            mask, cpm, ids = (torch.from_numpy(batch[name]) for name in ("target_mask", "cpm_mask", "series_ids"))
            assert tuple(batch["flags"]) == mask_flags(group_ids(ids, mask, cpm, PATCH))
            found.setdefault(source, set()).add(tuple(batch["flags"].tolist()))
    assert found["whole"] == found["short"] == {(False, False)}
    assert (True, False) in found["holes"]
    assert found["narrow"] == {(False, True)}


def test_missing_and_infinite_values_are_zero_and_masked(folder):
    batch = Rows(config(folder)).batch(range(40))
    assert np.isfinite(batch["target"]).all()
    assert not batch["target"][~batch["target_mask"]].any()


def test_hidden_patches_are_whole_shared_within_a_series_and_keep_the_first(folder):
    batch = Rows(config(folder)).batch(range(80))
    patches = batch["cpm_mask"].reshape(80, VARIATES, -1, PATCH)
    assert (patches.all(-1) | ~patches.any(-1)).all()
    hidden = ~patches[..., 0]
    observed = batch["target_mask"].reshape(patches.shape).any(-1)
    assert 0.05 < hidden[observed].mean() < 0.4
    for row in range(80):
        for v in np.flatnonzero(observed[row].any(-1)):
            assert not hidden[row, v, observed[row, v].argmax()]


def test_masks_depend_on_seed_and_row_only(folder):
    rows = Rows(config(folder))
    together, alone = rows.batch([3, 4, 5]), Rows(config(folder)).batch([4])
    assert alone.pop("points") == alone["target_mask"].sum()
    for name in ("target", "target_mask", "cpm_mask", "series_ids", "row"):
        array = alone[name]
        np.testing.assert_array_equal(array[0], together[name][1], err_msg=name)
    other = Rows(config(folder, seed=1)).batch(range(20))["cpm_mask"]
    assert (other != rows.batch(range(20))["cpm_mask"]).any()


def test_read_error_names_row_series_and_shard(folder, tmp_path):
    values = np.ones((1, 200), np.float32)
    write_shards(tmp_path / "set", [Series(values, 1.0, "s", str(i)) for i in range(4)], {})
    rows = Rows(config(tmp_path / "set"))
    shard = tmp_path / "set" / "s.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"row 7: cannot read series \d of main/s \(.*s\.tar\).*shorter"):
        rows.batch([7])


def two_sources(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    data = [
        Series(rng.standard_normal((1, 300)).astype(np.float32), 60.0, source, str(i))
        for source in ("a", "b")
        for i in range(40)
    ]
    write_shards(tmp_path / "set", data, {})
    return tmp_path / "set"


def faulty(folder: Path, **fields) -> Config:
    made = config(folder)
    for key, value in fields.items():
        setattr(made.data, key, value)
    return made


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_bad_shard_is_quarantined_and_moves_no_other_row(tmp_path, damage, caplog):
    folder = two_sources(tmp_path)
    whole = Rows(config(folder)).batch(range(40))
    shard = folder / "a.tar"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        data[3000] ^= 1
        shard.write_bytes(data if damage == "flipped" else data[:2000])
    if damage == "flipped":  # what sizes do not show, checksums do
        with pytest.raises(AssertionError):
            assert_marked(Rows(config(folder)))
    else:
        with pytest.raises(ValueError, match=r"a\.tar"):
            Rows(config(folder))
    rows = Rows(faulty(folder, on_fault="quarantine"))
    verify_shards(rows.order)
    assert_marked(rows)
    batch = rows.batch(range(40))
    for n in range(40):
        spec = rows.order.row(n)
        assert batch["lost"][n] == (len(spec.windows) if spec.source == "main/a" else 0)
        if spec.source == "main/a":
            assert not batch["target_mask"][n].any()
        else:
            np.testing.assert_array_equal(batch["target"][n], whole["target"][n])
            np.testing.assert_array_equal(batch["cpm_mask"][n], whole["cpm_mask"][n])
    assert "quarantine: row" in caplog.text


def test_what_can_be_read_of_a_row_is_kept(tmp_path):
    """A row whose windows lie in several shards, one of which breaks while the run reads."""
    rng = np.random.default_rng(0)
    data = [Series(rng.standard_normal((1, 100)).astype(np.float32), 60.0, "s", str(i)) for i in range(24)]
    write_shards(tmp_path / "set", data, {}, shard_bytes=2**13)
    whole, rows = Rows(config(tmp_path / "set")), Rows(faulty(tmp_path / "set", on_fault="quarantine"))
    good = whole.batch(range(9))
    shards, source = rows.order.open("main/s")
    names = [shards.shard_name(source, i) for i in range(24)]
    assert len(set(names)) > 2
    with open(tmp_path / "set" / names[12], "r+b") as file:
        file.truncate(600)
    with pytest.raises(ValueError, match="shorter than its index"):
        whole.batch(range(9))
    found = rows.batch(range(9))
    assert 0 < found["lost"].sum() < found["lost"].size * VARIATES
    for n in range(9):
        for k, (series, _, _) in enumerate(rows.order.row(n).windows):
            if names[series] == names[12]:
                assert not found["target_mask"][n, k].any()
            else:
                np.testing.assert_array_equal(found["target"][n, k], good["target"][n, k])
                assert found["target_mask"][n, k].any()


DESCRIPTORS = """
import json, resource, sys
from toto_train.config_check import from_tree
from toto_train.data.rows import Rows
from data_pipelines import store

assert store._OPEN > 100
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
rows = Rows(from_tree(json.loads(sys.argv[1])))
print(rows.batch(range(200))["lost"].sum(), len(store._open))
"""


@pytest.mark.slow
def test_rows_do_not_depend_on_how_many_files_may_be_open(tmp_path):
    """More shards than descriptors, and fewer of those than were counted on at the start."""
    made = config(tmp_path)
    made.validate_every, made.validation.context, made.heldout.context = 0, LENGTH, LENGTH
    made.data.on_fault, made.data.mixture = "quarantine", {}
    for k in range(3):
        data = [Series(np.ones((1, 100), np.float32), 60.0, f"s{i}", "x") for i in range(30)]
        write_shards(tmp_path / str(k), data, {})
        made.data.mixture[f"e{k}"] = MixtureEntry(str(tmp_path / str(k)))
    arguments = [sys.executable, "-c", DESCRIPTORS, json.dumps(dataclasses.asdict(made))]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost, opened = map(int, done.stdout.split())
    assert lost == 0
    assert opened > 5


def assert_marked(rows: Rows) -> None:
    assert set(rows.order.open("main/a")[0].bad) == {"a.tar"}


def test_downsampled_rows_are_means_of_what_was_observed(tmp_path):
    values = np.arange(2 * 700, dtype=np.float32).reshape(2, 700)
    values[0, ::2] = np.nan
    values[1, :8] = np.inf
    write_shards(tmp_path / "set", [Series(values, 10.0, "s", "x")], {})
    made = config(tmp_path / "set")
    made.data.mixture["main"].downsample = 4
    rows = Rows(made)
    for n in range(3):
        ((_, start, steps),) = rows.order.row(n).windows
        assert steps == 128
        raw = values[:, 4 * start : 4 * (start + steps)].reshape(2, steps, 4)
        batch = rows.batch([n])
        expected = [np.mean(block[np.isfinite(block)]) if np.isfinite(block).any() else 0 for v in raw for block in v]
        np.testing.assert_allclose(batch["target"][0, :2].ravel(), expected, rtol=1e-6)
        np.testing.assert_array_equal(batch["target_mask"][0, :2], np.isfinite(raw).any(-1))


def test_augmentations_belong_to_the_row_and_spare_entries_that_ask(folder):
    def made(augment: bool) -> Config:
        out = faulty(folder, augment=AugmentConfig(sign_flip=0.5, missing=0.5, mixup=0.5))
        out.data.mixture["main"].augment = augment
        return out

    plain, altered = Rows(config(folder)).batch(range(12)), Rows(made(True))
    together = altered.batch(range(12))
    assert (together["target"] != plain["target"]).any()
    assert (together["target_mask"] <= plain["target_mask"]).all()
    np.testing.assert_array_equal(altered.batch([7])["target"][0], together["target"][7])
    np.testing.assert_array_equal(Rows(made(False)).batch(range(12))["target"], plain["target"])
    assert altered.order.fingerprint != Rows(config(folder)).order.fingerprint


def test_rows_over_http_and_memory_are_the_rows_of_the_disk(folder, ranged_server):
    local = Rows(config(folder)).batch(range(30))
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/rows/", recursive=True)
    for url in ("memory://rows", ranged_server(folder)):
        rows = Rows(config(url))
        assert rows.order.fingerprint == Rows(config(folder)).order.fingerprint
        remote = rows.batch(range(30))
        for name in ("target", "target_mask", "cpm_mask", "series_ids"):
            np.testing.assert_array_equal(remote[name], local[name])
