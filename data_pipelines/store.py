"""Files of a dataset folder on a disk or behind any fsspec URL (s3://, gs://, hf://, http://, memory://)."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import math
import os
import posixpath
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
_OPEN = 8192 if _DESCRIPTORS < 0 else max(16, _DESCRIPTORS // 4)  # files all Stores keep open
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "http": "aiohttp"}
_open: dict[tuple[int, str], int] = {}  # (Store, file) -> descriptor, the least recently used first
_serial = itertools.count()
MERGE_GAP = 32 * 2**10
"""Ranges of one remote file closer than this are fetched together: as many bytes as a request's latency is worth."""


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def filesystem(url: str, **options: Any) -> tuple[Any, str]:
    """(fsspec file system, path in it); ValueError where the package of the protocol is not installed."""
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        protocol = url.split("://")[0]
        raise ValueError(
            f"{url}: reading {protocol}:// needs another package: pip install {_PACKAGES.get(protocol, protocol)}"
        ) from error
    except ValueError as error:  # an unknown protocol
        raise ValueError(f"{url}: {error}") from error


def join(folder: str | Path, name: str) -> str:
    return posixpath.join(str(folder), name) if is_url(folder) else str(Path(folder) / name)


class Missing(ValueError):
    """A file that is not there."""


@contextmanager
def reaching(url: str | Path) -> Iterator[None]:
    """What the client of an object store raises (no credentials, no connection ...) becomes an OSError with the URL."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # every client has its own
        if not is_url(url):
            raise
        raise OSError(f"{url} cannot be reached ({type(error).__name__}: {error})") from error


class Store:
    """Read access to the files of one folder by name. Copies to another process open their files anew.

    Errors are ValueError (a file is missing or shorter than what is asked of it) and OSError, both naming the file.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder)
        self.remote = is_url(folder)
        self._serial = next(_serial)
        self._fs: Any = None
        self._root = self.folder
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fs": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_serial": next(_serial)}

    def __del__(self) -> None:
        # a forked worker shares the offsets of what its parent opened, which pread does not use; closing is its own
        serial = self.__dict__.get("_serial")
        for key in [key for key in _open if key[0] == serial]:
            os.close(_open.pop(key))

    def where(self, name: str) -> str:
        return join(self.folder, name)

    def _remote(self) -> tuple[Any, str]:
        if self._fs is None or self._pid != os.getpid():
            # an instance of its own in every process: the threads of an asynchronous file system do not survive a fork
            self._fs, self._root = filesystem(self.folder, skip_instance_cache=True)
            self._pid = os.getpid()
        return self._fs, self._root

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Bytes of each file, None where it is missing. One listing for a remote folder."""
        if self.remote:
            fs, root = self._remote()
            with reaching(self.folder):
                try:
                    listed = {posixpath.basename(e["name"].rstrip("/")): e["size"] for e in fs.ls(root, detail=True)}
                except FileNotFoundError:
                    listed = {}
                if any(size is None for size in listed.values()):  # plain web servers list names only
                    listed = {name: fs.info(posixpath.join(root, name))["size"] for name in names if name in listed}
            return [listed.get(name) for name in names]
        out: list[int | None] = []
        for name in names:
            try:
                out.append(os.stat(os.path.join(self.folder, name)).st_size)
            except OSError:
                out.append(None)
        return out

    def load(self, name: str) -> bytes:
        """A whole file."""
        try:
            if self.remote:
                fs, root = self._remote()
                with reaching(self.where(name)):
                    return fs.cat_file(posixpath.join(root, name))
            return Path(self.folder, name).read_bytes()
        except FileNotFoundError as error:
            raise Missing(f"{self.where(name)} is missing") from error

    def open(self, name: str) -> Any:
        """A file, open for reading bytes from its beginning to its end."""
        if self.remote:
            fs, root = self._remote()
            with reaching(self.where(name)):
                return fs.open(posixpath.join(root, name), "rb")
        return open(os.path.join(self.folder, name), "rb")

    def sha256(self, name: str) -> str | None:
        """Checksum of a file; None where it cannot be read."""
        try:
            with self.open(name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    def array(self, name: str) -> np.ndarray:
        """The array of a .npy file; mapped where it lies on a disk."""
        try:
            if not self.remote:
                return np.load(os.path.join(self.folder, name), mmap_mode="r")
            return np.load(io.BytesIO(self.load(name)))
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{self.where(name)} cannot be read ({error})") from error

    def floats(self, name: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 of a shape in a file, from `offset` on; mapped where it lies on a disk."""
        if self.remote:
            out = np.empty(shape, np.float32)
            self.read_into([(name, offset, out)])
            out.flags.writeable = False
            return out
        file = os.path.join(self.folder, name)
        try:
            if os.path.getsize(file) < offset + 4 * math.prod(shape):
                self._raise_short(name)
            return np.memmap(file, np.float32, "r", offset, shape).view(np.ndarray)
        except FileNotFoundError as error:
            raise ValueError(f"{self.where(name)} is missing") from error

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on."""
        out = np.empty(size, np.uint8)
        self.read_into([(name, offset, out)])
        return out.tobytes()

    def read_into(self, pieces: Sequence[tuple[str, int, np.ndarray]]) -> None:
        """Fill each contiguous array of (file, offset, array) from its file; remote pieces are fetched together."""
        if self.remote:
            return self._fetch(pieces)
        for name, offset, buffer in pieces:
            got = os.preadv(self._descriptor(name), [buffer.data], offset)
            if got != buffer.nbytes:
                self._go_on(name, offset, buffer, got)

    def _go_on(self, name: str, offset: int, buffer: np.ndarray, got: int) -> None:
        """Read what is left of a piece: one call gives at most 2 GiB."""
        view = memoryview(buffer.data).cast("B")
        while got < len(view):
            more = os.preadv(self._descriptor(name), [view[got:]], offset + got)
            if not more:
                self._raise_short(name)
            got += more

    def _descriptor(self, name: str) -> int:
        key = self._serial, name
        found = _open.pop(key, None)
        if found is None:
            if len(_open) >= _OPEN:
                _close_oldest(len(_open) - _OPEN + 1)
            found = self._open_file(name)
        _open[key] = found
        return found

    def _open_file(self, name: str) -> int:
        path, flags = os.path.join(self.folder, name), os.O_RDONLY | os.O_CLOEXEC
        try:
            return os.open(path, flags)
        except FileNotFoundError as error:
            raise ValueError(f"{self.where(name)} is missing") from error
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not _open:
                raise
            _close_oldest(-(-len(_open) // 2))  # others need them too
            return os.open(path, flags)

    def _raise_short(self, name: str) -> None:
        raise ValueError(f"{self.where(name)} is shorter than its index says; copy the dataset again or rebuild it")

    def _fetch(self, pieces: Sequence[tuple[str, int, Any]]) -> None:
        fs, root = self._remote()
        merged: list[list] = []  # file, start, end, the pieces inside
        for name, offset, buffer in sorted(pieces, key=lambda p: p[:2]):
            view = memoryview(buffer.data).cast("B")
            end = offset + view.nbytes
            if merged and merged[-1][0] == name and offset <= merged[-1][2] + MERGE_GAP:
                merged[-1][2] = max(merged[-1][2], end)
                merged[-1][3].append((offset, view))
            else:
                merged.append([name, offset, end, [(offset, view)]])
        paths = [posixpath.join(root, name) for name, *_ in merged]
        starts, ends = [m[1] for m in merged], [m[2] for m in merged]
        found = fs.cat_ranges(paths, starts, ends, on_error="return")
        for (name, start, _, inside), data in zip(merged, found, strict=True):
            if isinstance(data, FileNotFoundError):
                raise ValueError(f"{self.where(name)} is missing") from data
            if isinstance(data, Exception):
                raise OSError(f"{self.where(name)} cannot be read: {data!r}") from data
            for offset, view in inside:
                part = data[offset - start : offset - start + view.nbytes]
                if len(part) != view.nbytes:
                    self._raise_short(name)
                view[:] = part


def _close_oldest(count: int) -> None:
    for key in list(itertools.islice(_open, count)):
        os.close(_open.pop(key))


def out_of_resources(error: Exception) -> bool:
    """Whether an error is about this process or machine (descriptors, memory) and says nothing about the data."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
