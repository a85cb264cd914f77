"""Where a dataset is made and how it gets to its place: in a hidden folder, which an interrupted build finds again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.shards import MANIFEST, index_name
from data_pipelines.store import filesystem, is_url, join, reaching

log = logging.getLogger(__name__)


class NothingToWrite(ValueError):
    """A build that found no series: nothing of it is worth keeping."""


@contextmanager
def workplace(out: str | Path, replace: bool, settings: dict | None, work: str | Path = "") -> Iterator[Path]:
    """The folder an unfinished dataset lies in: what an interrupted build of the same settings left is used again.

    It has a name of its own in `work`, or beside the dataset. settings None keeps nothing after an error. ValueError
    where `out` is taken or another build writes it.
    """
    check_free(out, replace)
    if is_url(out):
        name, beside = f"build-{hashlib.sha256(str(out).encode()).hexdigest()[:12]}", Path()
    else:
        name, beside = Path(os.path.abspath(out)).name, Path(os.path.abspath(out)).parent
    folder = Path(os.path.abspath(work or beside), f".{name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another build is writing {out} (it works in {folder})") from None
        text = json.dumps(settings, sort_keys=True)
        record = folder / "settings.json"
        if settings is None or not record.is_file() or record.read_text() != text:
            if record.is_file() and settings is not None:
                log.warning("%s is of a build with other settings and is begun anew", folder)
            for child in folder.iterdir():
                if child.name != ".lock":
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
            record.write_text(text)
        (folder / "parts").mkdir(exist_ok=True)
        (folder / "shards").mkdir(exist_ok=True)
        whole = False
        try:
            yield folder
            whole = True
        except NothingToWrite:
            settings = None
            raise
        finally:
            if whole or settings is None:
                shutil.rmtree(folder, ignore_errors=True)


def check_free(out: str | Path, replace: bool) -> None:
    """Whether a dataset may be written at `out`; puts back what a kill between two renames left aside."""
    if is_url(out):
        fs, root = filesystem(str(out))
        with reaching(out):
            there = fs.exists(f"{root}/{MANIFEST}")
        if there and not replace:
            raise ValueError(f"{out} exists; choose another folder or replace it (replace=true)")
        return
    local = Path(os.path.abspath(out))
    old = local.with_name(f".{local.name}.old")
    if old.exists() and not local.exists():
        old.rename(local)
    shutil.rmtree(old, ignore_errors=True)
    if local.exists() and not replace:
        raise ValueError(f"{out} exists; choose another folder or replace it (replace=true)")
    if local.exists() and not (local / MANIFEST).is_file():
        raise ValueError(f"{out} is no dataset (no {MANIFEST}), so it is not replaced; choose another folder")


def publish(work: Path, out: str | Path) -> None:
    """Move a whole dataset to its place; on an object store the manifest goes last and makes it one."""
    folder = work / "shards"
    if is_url(out):
        with reaching(out):
            _upload(folder, str(out))
        return
    local = Path(os.path.abspath(out))
    old, new = local.with_name(f".{local.name}.old"), local.with_name(f".{local.name}.new")
    local.parent.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_dev != local.parent.stat().st_dev:  # what cannot be renamed is copied first
        shutil.rmtree(new, ignore_errors=True)
        folder = Path(shutil.copytree(folder, new))
    for file in folder.glob(".*"):
        file.unlink()
    if local.exists():
        local.rename(old)
    folder.rename(local)
    shutil.rmtree(old, ignore_errors=True)


def _upload(folder: Path, out: str) -> None:
    fs, root = filesystem(out)
    fs.makedirs(root, exist_ok=True)
    if fs.exists(f"{root}/{MANIFEST}"):  # from here to the end there is no dataset at `out`
        before = [s["name"] for s in json.loads(fs.cat_file(f"{root}/{MANIFEST}"))["shards"]]
        fs.rm_file(f"{root}/{MANIFEST}")
        for name in [f for s in before for f in (s, index_name(s))]:
            if not (folder / name).is_file() and fs.exists(f"{root}/{name}"):
                fs.rm_file(f"{root}/{name}")
    names = sorted(f.name for f in folder.iterdir() if not f.name.startswith("."))
    for name in sorted(names, key=lambda n: n == MANIFEST):
        log.info("uploading %s", join(out, name))
        fs.put_file(str(folder / name), f"{root}/{name}")
