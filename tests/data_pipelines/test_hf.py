"""hf:// through the hub's own client, against a hub on this machine that serves the files of a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.sources import series_parquet

ROOT = Path(__file__).resolve().parents[2]


class Hub(BaseHTTPRequestHandler):
    """The dataset org/name: its listing, and its files with ranges."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/api/datasets/org/name":
            self.answer({"id": "org/name", "sha": "a" * 40, "siblings": []})
        elif found := re.fullmatch(r"/api/datasets/org/name/tree/main/?(.*)", path):
            place = self.folder / found[1]
            if place.is_dir():
                listed = place.rglob("*") if "recursive=true" in self.path.lower() else place.iterdir()
                self.answer([self.entry(file) for file in sorted(listed)])
            else:
                self.answer({"error": "no entry"}, 404, X_Error_Code="EntryNotFound")
        elif found := re.fullmatch(r"/datasets/org/name/resolve/main/(.+)", path):
            data, span = (self.folder / found[1]).read_bytes(), self.headers.get("Range", "bytes=0-")
            first, last = span.removeprefix("bytes=").split("-")
            part = slice(int(first), int(last or len(data)) + 1)
            about = {"ETag": '"1"', "X_Repo_Commit": "a" * 40, "Content_Range": f"{span}/{len(data)}"}
            self.answer(data[part], 206 if "Range" in self.headers else 200, **about)
        else:
            self.answer({"error": "no repository"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def entry(self, file: Path) -> dict[str, object]:
        kind = "directory" if file.is_dir() else "file"
        size = 0 if file.is_dir() else file.stat().st_size
        return {"type": kind, "path": file.relative_to(self.folder).as_posix(), "oid": "1" * 40, "size": size}


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    handler = type("Hub", (Hub,), {"folder": tmp_path / "hub"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
        yield os.environ | own | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        server.shutdown()


@pytest.mark.slow
def test_tables_and_datasets_of_a_hub(tmp_path, environment):
    values = np.random.default_rng(0).normal(size=(5, 2, 400)).cumsum(axis=2).astype(np.float32)
    series = [Series(v, 60.0, "web", f"host {i}", "observability") for i, v in enumerate(values)]
    series_parquet.write(tmp_path / "hub" / "raw" / "web.parquet", series)
    write_shards(tmp_path / "hub" / "set", series, {})

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(ROOT / "scripts" / script), *arguments]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)

    build = ["source=parquet", f"out={tmp_path / 'set'}"]
    ran = run("build_shards.py", *build, "source.path=hf://datasets/org/name/raw")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "set" / "web.tar").read_bytes() == (tmp_path / "hub" / "set" / "web.tar").read_bytes()
    ran = run("verify_shards.py", "hf://datasets/org/name/set")
    assert "hf://datasets/org/name/set: whole. 5 series" in ran.stdout, ran.stderr
    ran = run("build_shards.py", *build, "source.path=hf://datasets/org/other", "replace=true")
    assert ran.stderr.startswith("build_shards: source.path=hf://datasets/org/other: cannot be read")
    assert "repository not found" in ran.stderr
