"""A bucket behind the real S3 API, served on this machine: from tables there to a dataset there to rows of training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.build import Options, build
from data_pipelines.series import Series
from data_pipelines.shards import ShardSet, read_manifest
from data_pipelines.sources import series_parquet
from data_pipelines.sources.files import FileSource
from data_pipelines.verify import verify
from toto_train.config import Config, DataConfig, MixtureEntry
from toto_train.data.rows import Rows

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NEEDS = "needs an S3 server and its client: pip install 'moto[s3]' flask flask-cors s3fs"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A file system with the empty bucket `lake`."""
    moto, s3fs = pytest.importorskip("moto.server", reason=NEEDS), pytest.importorskip("s3fs", reason=NEEDS)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (names | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("lake")
        yield files
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture
def tables(tmp_path, s3) -> Path:
    """A folder of files, which lies at s3://lake/in as well."""
    rng = np.random.default_rng(0)
    for k, source in enumerate(("web", "db")):
        values = rng.normal(size=(12, 1 + k, 900)).cumsum(axis=2).astype(np.float32)
        series = [Series(v, 60.0, source, f"host {i}", "observability", licence="MIT") for i, v in enumerate(values)]
        series_parquet.write(tmp_path / "in" / f"{source}.parquet", series)
        s3.put_file(str(tmp_path / "in" / f"{source}.parquet"), f"lake/in/{source}.parquet")
    return tmp_path / "in"


def command(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    line = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_from_a_bucket_to_a_bucket_to_rows(tables, s3, tmp_path):
    shards = {"shard_bytes": 20_000, "workers": 1}
    build(FileSource(str(tables), "parquet"), tmp_path / "set", {}, options=Options(**shards))
    arguments = ["source=parquet", "source.path=s3://lake/in", "out=s3://lake/set", f"work={tmp_path / 'work'}"]
    ran = command("build_shards.py", *arguments, f"shard_mb={20_000 / 2**20}", "workers=1")
    assert ran.returncode == 0, ran.stderr
    local = {f.name: f.read_bytes() for f in (tmp_path / "set").iterdir() if f.suffix in (".tar", ".npy")}
    assert len(local) > 8
    assert {name: s3.cat_file(f"lake/set/{name}") for name in local} == local
    assert not list((tmp_path / "work").iterdir())
    ran = command("verify_shards.py", "s3://lake/set")
    assert ran.returncode == 0, ran.stdout
    assert "s3://lake/set: whole. 24 series" in ran.stdout
    here, there = ShardSet(tmp_path / "set"), ShardSet("s3://lake/set")
    assert there.fingerprint == here.fingerprint
    np.testing.assert_array_equal(there.values("db", 7), here.values("db", 7))

    def rows(path: str) -> Rows:
        return Rows(Config(data=DataConfig({"main": MixtureEntry(path)}, variates=8, length=256)))

    expected, found = (rows(path).batch(range(16)) for path in (str(tmp_path / "set"), "s3://lake/set"))
    assert expected["target_mask"].any()
    for name in ("target", "target_mask", "cpm_mask", "series_ids"):
        np.testing.assert_array_equal(found[name], expected[name])

    ran = command("build_shards.py", *arguments)
    assert "s3://lake/set exists" in ran.stderr
    source = FileSource("s3://lake/in/web.parquet", "parquet")
    build(source, "s3://lake/set", {}, options=Options(**shards, replace=True, work=str(tmp_path / "work")))
    s3.invalidate_cache()
    left = {Path(f).name for f in s3.find("lake/set") if f.endswith(".tar")}
    assert left == {s["name"] for s in read_manifest("s3://lake/set")["shards"]}
    assert {s["source"] for s in read_manifest("s3://lake/set")["shards"]} == {"web"}


def test_damage_in_a_bucket_is_found(tables, s3, tmp_path):
    build(FileSource("s3://lake/in", "parquet"), "s3://lake/hurt", {}, options=Options(work=str(tmp_path)))
    assert verify("s3://lake/hurt") == []
    data = bytearray(s3.cat_file("lake/hurt/web.tar"))
    data[5000] ^= 1
    s3.pipe_file("lake/hurt/web.tar", bytes(data))
    s3.rm_file("lake/hurt/db.tar")
    gone, changed = verify("s3://lake/hurt")
    assert gone.startswith("s3://lake/hurt/db.tar is missing")
    assert changed.startswith("s3://lake/hurt/web.tar: checksum differs")


def test_a_store_that_cannot_be_reached_is_named(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    type(s3).clear_instance_cache()
    source = FileSource("s3://lake/in", "parquet")
    for attempt in (
        source.units,
        lambda: build(FileSource(str(tmp_path), "csv"), "s3://lake/set", {}),
        lambda: verify("s3://lake/set"),
    ):
        with pytest.raises(OSError, match=r"s3://lake/\S+ cannot be reached \(EndpointConnectionError"):
            attempt()
    type(s3).clear_instance_cache()


def test_what_is_not_there_is_named(s3, tmp_path):
    for path, problem in (("lake/nothing", "does not exist or is empty"), ("ocean/in", "bucket does not exist")):
        with pytest.raises(ValueError, match=f"source.path=s3://{path}.* {problem}"):
            build(FileSource(f"s3://{path}", "parquet"), tmp_path / "set", {})
    assert "holds no manifest.json" in verify("s3://lake/nothing")[0]
