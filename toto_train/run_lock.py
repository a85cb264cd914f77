"""One writer of a run folder: a lock that a live run keeps, and that a dead node does not keep from its successor.

The file .lock is locked (flock) and says who holds it, in a line that changes every few seconds. On one host the lock
alone decides: the system gives it back with the process. Between hosts it may not be given back for long (NFS, after a
node died), or not be seen at all (mounts without locks), so there the line decides: while it changes its run lives.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from toto_train.config import ConfigError

log = logging.getLogger(__name__)

BEAT = 10.0
"""Seconds between two changes of the line."""
SILENT = 60.0
"""Seconds without one after which a run on another host is taken for dead."""
SETTLE = 1.0
"""Seconds in which another that took a dead run's folder at the same moment shows."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run folder from other processes, on this host or another.

    Waits for SILENT seconds where the holder on another host may be dead. Raises ConfigError where a live run has it.
    This process ends, at once and without a save, when another has taken the folder because this one was silent.
    """
    path, me = folder / ".lock", _Holder()
    file = _take(path, me)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, file, me, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with file:
            if _owner(path) == me.id:
                file.truncate(0)  # nobody: the next one need not wait


def is_held(folder: Path) -> bool:
    """Whether a process works on the run: the lock that it holds is asked for, and given back at once."""
    try:
        with (folder / ".lock").open() as file:
            return _lock(file, fcntl.LOCK_SH) is False
    except FileNotFoundError:
        return False


class _Holder:
    def __init__(self) -> None:
        self.host, self.id, self.beats = socket.gethostname(), uuid.uuid4().hex, 0

    def write(self, file: IO[bytes]) -> None:
        self.beats += 1
        os.pwrite(file.fileno(), f"{self.host} {os.getpid()} {self.id} {self.beats:012d}\n".encode(), 0)
        os.fsync(file.fileno())


def _take(path: Path, me: _Holder) -> IO[bytes]:
    first, since, told = "", time.monotonic(), False
    while True:
        file = _open(path)
        locked, line = _lock(file, fcntl.LOCK_EX), _line(path)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # another was put there in between
            file.close()
            continue
        host, process, *_ = line.split() or ["", ""]
        alone = locked and host in ("", me.host)
        if alone or (locked is None and not line):
            break
        if locked is False and host in ("", me.host):
            raise _taken(path, f" (process {process})" if process else "")
        if not first:
            first = line
        if line != first:
            raise _taken(path, f" (process {process} on {host})")
        if time.monotonic() - since > SILENT:
            log.warning("process %s on %s has been silent for %g s: this run takes %s over", process, host, SILENT,
                        path.parent)  # fmt: skip
            break
        if not told:
            log.warning("process %s on %s did not give %s back: waiting %g s for a sign of life", process, host,
                        path.parent, SILENT)  # fmt: skip
            told = True
        file.close()
        time.sleep(min(1.0, SILENT / 10))
    if locked is None:
        log.warning("%s is on a disk that locks no files: start no two runs of this name at once", path.parent)
    if locked is False:  # the dead keep their lock on the file, so there has to be another one
        file.close()
        new = path.with_name(f".lock.{me.id}")
        file = _open(new)
        _lock(file, fcntl.LOCK_EX)
        me.write(file)
        os.replace(new, path)
    else:
        file.truncate(0)
        me.write(file)
    if not alone:
        time.sleep(SETTLE)
        if _owner(path) != me.id:
            raise _taken(path, "")
    return file


def _beat(path: Path, file: IO[bytes], me: _Holder, over: threading.Event) -> None:
    while not over.wait(BEAT):
        try:
            if (owner := _owner(path)) and owner != me.id:
                log.error("%s was taken over by another run, as this one gave no sign of life for %g s; this one ends "
                          "without a save", path.parent, SILENT)  # fmt: skip
                logging.shutdown()
                os._exit(1)
            me.write(file)
        except OSError as error:  # a disk that is full or away: the next beat may get through
            log.debug("no sign of life in %s: %s", path, error)


def _open(path: Path) -> IO[bytes]:
    """To read and write, made where it is not there, as it is where it is."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")


def _lock(file: IO[bytes] | IO[str], kind: int) -> bool | None:
    """Whether the lock was to be had; None where the file system has none (Lustre without -o flock, say)."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        return None
    return True


def _line(path: Path) -> str:
    """What the holder says, read anew; '' where there is none or it is not whole."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return text if len(text.split()) == 4 else ""


def _owner(path: Path) -> str:
    return (_line(path).split() or ["", "", ""])[2]


def _taken(path: Path, who: str) -> ConfigError:
    return ConfigError([f"name={path.parent.name!r}: another run is writing {path.parent}{who}"])
