"""Processes that train, each with a log of its own. Standard library alone: Ray workers, too, import it at once."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""What the processes import this package from."""


def start(
    command: list[str], log: Path, threads: int, before: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that appends what it says to `log`.

    threads: of OpenMP, unless the environment says. before: runs in the new process (`die_with_parent`), which then is
    in a session of its own: Ctrl-C reaches it through us alone.
    """
    # threads that spin while they wait take the cores from each other's processes
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env,
                                start_new_session=before is not None, preexec_fn=before)  # fmt: skip


def run_task(command: list[str], log: str, folder: str) -> int:
    """What a Ray worker does in `folder`: exit status of the command. Ray ends the process group of a worker."""
    os.chdir(folder)
    return start(command, Path(log), 1).wait()


def die_with_parent() -> None:
    """In a new process, before it becomes another: a launcher that is killed leaves none behind (Linux)."""
    set_parent_death_signal = 1  # of prctl.h
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(set_parent_death_signal, signal.SIGTERM)


def end_as_init() -> None:
    """Make SIGTERM end this process where it is the first of a container, until a run handles the signal.

    The kernel hides signals without a handler from process 1: a pod that is asked to go while it starts or reports
    would be killed only when its time is over. Orphans are not waited for: the run ends soon after a rank is killed.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
