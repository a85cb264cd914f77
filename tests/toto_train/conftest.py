"""Runs in this process, a model, and servers of our own on this machine: a hub, for the tests of pushing, and one of
files, for reading rows."""

import base64
import hashlib
import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from toto_train import hub
from toto_train.cli import config_from_overrides
from toto_train.config import ModelConfig
from toto_train.model.toto import Toto
from toto_train.run import run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def train_here(small_job, tmp_path):
    """train_here(*overrides): the small job in this process, without scores; gives the run folder."""

    def train(*overrides: str) -> Path:
        quick = ("data.workers=0", "report=false", "validate_every=0", "checkpoint.every_steps=1000")
        run(config_from_overrides([*small_job, *quick, *overrides], CONFIGS))
        return tmp_path / "runs" / "small"

    return train


class FakeHub(ThreadingHTTPServer):
    """What huggingface_hub's client asks of a hub: repositories of files in memory, large files through LFS."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict] = {}
        """Repository -> {"private": bool, "branches": {name: {path: bytes}}}."""
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.fail_uploads = False


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body: bytes | dict | list = b"", status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = b""
        while size := int(self.rfile.readline(), 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def do(self) -> None:
        hub, body, path = self.server, self.body(), self.path.split("?")[0]
        hub.log.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.command in ("POST", "PUT") and not path.startswith("/lfs/") and token != "writer":
            self.answer({"error": "Invalid credentials"}, 401 if token != "reader" else 403)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):
            self.store(path.removeprefix("/lfs/"), body)
        elif found := re.fullmatch(r"/(\w+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            self.batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(\w+)/([\w.-]+))?", path):
            self.repository(*found.groups(), body)
        elif found := re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
            self.file(*found.groups())
        else:
            self.answer({"error": "not found"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        if name in self.server.repos:
            return self.answer(answer | {"error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.server.repos[name] = {"private": private, "branches": {"main": {}}}
        self.answer(answer)

    def store(self, oid: str, body: bytes) -> None:
        if self.server.fail_uploads or hashlib.sha256(body).hexdigest() != oid:
            return self.answer({"error": "no space left"}, 400)
        self.server.blobs[oid] = body
        self.answer()

    def batch(self, asked: dict) -> None:
        objects = []
        for wanted in asked["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.blobs else {"actions": upload}))
        self.answer({"transfer": "basic", "objects": objects})

    def repository(self, name: str, what: str | None, revision: str | None, body: bytes) -> None:
        if name not in self.server.repos:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        repo = self.server.repos[name]
        branches = repo["branches"]
        if what == "branch":
            taken = revision in branches
            branches.setdefault(revision, dict(branches["main"]))
            return self.answer({}, 409 if taken else 200)
        files = branches[revision or "main"] if (revision or "main") in branches else branches["main"]
        if what == "preupload":
            names = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith(".safetensors") else "regular"} for n in names]
            return self.answer({"files": [m | {"shouldIgnore": False} for m in modes]})
        if what == "commit":
            self.commit(files, [json.loads(line) for line in body.splitlines()])
            return self.answer({"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40})
        if what == "tree":
            blank = {"type": "file", "oid": "0" * 40}
            return self.answer([blank | {"path": path, "size": len(data)} for path, data in files.items()])
        siblings = [{"rfilename": path} for path in files]
        self.answer({"id": name, "sha": "1" * 40, "private": repo["private"], "siblings": siblings})

    def commit(self, files: dict[str, bytes], operations: list[dict]) -> None:
        for operation in operations:
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]

    def file(self, name: str, revision: str, path: str) -> None:
        branches = self.server.repos.get(name, {"branches": {"main": {}}})["branches"]
        data = branches.get(revision, branches["main"]).get(path)
        if data is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit="1" * 40)
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.answer(data, ETag=tag, X_Repo_Commit="1" * 40, X_Linked_Size=str(len(data)))


@pytest.fixture
def fake_hub():
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class RangedHandler(SimpleHTTPRequestHandler):
    """Files of a folder, whole or in ranges, as object stores give them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        file = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not file.is_file() or not asked:
            return super().do_GET()
        first, last = map(int, asked.groups())
        data = file.read_bytes()
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def ranged_server():
    """serve(folder) -> URL."""
    servers = []

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangedHandler, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """Folder of a random model in the official format, trained (it says) on rows of 256 steps; nobody may change it."""
    out = tmp_path_factory.mktemp("model") / "small"
    toto = Toto.create(ModelConfig(d_model=32, num_layers=2, num_heads=2, d_ff=64), seed=0)
    hub.save_pretrained(toto, out, "card", {"context_length": 256})
    return str(out)
