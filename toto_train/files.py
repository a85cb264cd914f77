"""Files that appear under their names whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A disk that is full is an error that names the file; the system's own, raised by a write, does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` when the block ends, removed where it fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, as fsync does for the bytes of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(path: Path, kind: str, is_kind: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder to fill; renamed to `path` when the block ends, removed where it fails.

    What is at `path` before gives way only if it is empty or `is_kind` knows it; `kind` says what that is.
    """
    if path.exists() and not (path.is_dir() and (is_kind(path) or not any(path.iterdir()))):
        raise ValueError(f"{path} exists and is no {kind}; choose another out=")
    temporary, former = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old.tmp")
    for leftover in (temporary, former):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():  # half of a folder is never under its name, should this be killed
            os.replace(path, former)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)
