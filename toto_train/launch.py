"""From a checked config to the processes that train: this one, or the ranks of this machine and a watch over them.

The config is composed once; ranks read it from runs/<name>/launch.yaml and never compose. On several nodes the same
file goes to `python -m toto_train.node runs/<name>/launch.yaml` on each (see docs/launching.md).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from toto_train.config import GAVE_UP, Config, ConfigError, RunStopped
from toto_train.files import write_text
from toto_train.processes import die_with_parent
from toto_train.run_folder import folder_of, write_launch
from toto_train.watchdog import stacks

log = logging.getLogger(__name__)

SAVED = 128 + signal.SIGTERM
"""Exit status of a run that was asked to stop and has saved: the same command goes on from there."""
GRACE = 15.0
"""Seconds that ranks get to end by themselves once one of them has failed."""
FAILED = "launch.failed"
"""In a run's folder: why it ended that nobody asked to. Runs of a sweep leave it, the next start removes it."""


def launch(config: Config) -> None:
    """Train. Raises ConfigError, RunStopped with an exit status, or what one process of a run raises."""
    p = config.parallel
    if not config.plan:
        with suppress(OSError):  # a folder that cannot be written is said below, or by the run
            (folder_of(config) / FAILED).unlink(missing_ok=True)
    if config.plan or "RANK" in os.environ or p.mode == "single":
        _here(config)
        return
    if p.nodes > 1:
        raise ConfigError([
            f"parallel.nodes={p.nodes}: every node starts its own ranks; use scripts/launch_slurm.py, or "
            "toto_train.node on each (docs/launching.md)"
        ])  # fmt: skip
    from toto_train.ranks import free_port, pick_device, resolve_devices

    resolve_devices(config, pick_device(p.device, "parallel.device"))
    if p.devices == 1:
        _here(config)
        return
    run_ranks(write_launch(config), config, Place(port=free_port()))


def note_failure(folder: Path, message: str) -> None:
    """Say in a run's folder why it failed, for the table of its sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FAILED, message.strip() + "\n")


def _here(config: Config) -> None:
    from toto_train.run import run

    run(config)


@dataclass(frozen=True)
class Place:
    """Of a node among those of a run: its number, and where its ranks meet rank 0."""

    port: int
    address: str = "127.0.0.1"
    node: int = 0
    nodes: int = 1


def run_ranks(file: Path, config: Config, place: Place) -> None:
    """Run the ranks of a node, which read their config from `file`. Raises RunStopped with an exit status."""
    folder, ranks = folder_of(config), config.parallel.devices
    for old in stacks(folder):
        old.unlink(missing_ok=True)  # of the run's last try; other nodes do the same
    status, what = watch([sys.executable, "-m", "toto_train.rank", str(file)], ranks, place)
    if status:
        if found := stacks(folder):
            what = f"no step within the time-out; where every rank stood: {', '.join(map(str, found))}; {what}"
        raise RunStopped(what, status)


def watch(command: list[str], ranks: int, place: Place) -> tuple[int, str]:
    """Start a command once for every rank of a node and wait; returns the exit status of these together and what
    happened.

    SIGTERM and SIGINT are passed on. When a rank fails the others, which may wait for it forever, are killed soon.
    """
    env = {**os.environ, "WORLD_SIZE": str(ranks * place.nodes), "LOCAL_WORLD_SIZE": str(ranks)}
    env |= {"GROUP_RANK": str(place.node), "MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
    # threads that spin while they wait take the cores from each other's processes
    env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), "OMP_WAIT_POLICY": "PASSIVE", **env}
    env = {"TORCH_CPP_LOG_LEVEL": "ERROR", **env}  # warnings of torch's C++ that a user can do nothing about
    running = {
        place.node * ranks + local: subprocess.Popen(
            command,
            env={**env, "RANK": str(place.node * ranks + local), "LOCAL_RANK": str(local)},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        for local in range(ranks)
    }

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in running.values():
            process.send_signal(number)

    former = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    failed: dict[int, int] = {}
    deadline = float("inf")
    try:
        while running:
            for rank, process in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[rank]
                    if code:
                        failed[rank] = code if code > 0 else 128 - code
            if failed and deadline == float("inf") and not set(failed.values()) <= {SAVED, 128 + signal.SIGINT}:
                deadline = time.monotonic() + GRACE
            if time.monotonic() > deadline:
                for process in running.values():
                    os.killpg(process.pid, signal.SIGKILL)  # its loader's processes, too
                deadline = time.monotonic() + GRACE
            time.sleep(0.05)
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGKILL)
        for number, handler in former.items():
            signal.signal(number, handler)
    return _verdict(failed)


def _verdict(failed: dict[int, int]) -> tuple[int, str]:
    if not failed:
        return 0, ""
    first = next(iter(failed))  # the others ended because of it
    status = failed[first]
    if set(failed.values()) == {status} and status in (SAVED, 128 + signal.SIGINT):
        return status, "stopped by a signal; the same command goes on"
    if set(failed.values()) == {GAVE_UP}:
        return status, "stopped by a guard, for the reason that rank 0 gave"
    how = f"was killed by {signal.Signals(status - 128).name}" if status > 128 else f"failed with exit status {status}"
    return status, f"rank {first} {how}, the run ends; the same command goes on from the last checkpoint"
