"""From a checked config to the processes that train: this one, or the ranks of this machine and a watch over them.

The config is composed once; ranks read it from runs/<name>/launch.yaml and never compose. On several nodes the same
file goes to `torchrun ... -m toto_train.rank runs/<name>/launch.yaml` on each (see docs/launching.md).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from toto_train.config import GAVE_UP, Config, ConfigError, RunStopped, to_yaml
from toto_train.files import write_text
from toto_train.watchdog import stacks

log = logging.getLogger(__name__)

SAVED = 128 + signal.SIGTERM
"""Exit status of a run that was asked to stop and has saved: the same command goes on from there."""
GRACE = 15.0
"""Seconds that ranks get to end by themselves once one of them has failed."""


def launch(config: Config) -> None:
    """Train. Raises ConfigError, RunStopped with an exit status, or what one process of a run raises."""
    p = config.parallel
    if config.plan or "RANK" in os.environ or p.mode == "single":
        _here(config)
        return
    if p.nodes > 1:
        raise ConfigError([
            f"parallel.nodes={p.nodes}: every node starts its own ranks; use scripts/launch_slurm.py, or torchrun on "
            "each (docs/launching.md)"
        ])  # fmt: skip
    from toto_train.ranks import free_port, pick_device, resolve_devices

    resolve_devices(config, pick_device(p.device, "parallel.device"))
    if p.devices == 1:
        _here(config)
        return
    file = Path(config.out) / config.name / "launch.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, to_yaml(config))
    for old in stacks(file.parent):
        old.unlink()
    status, what = watch([sys.executable, "-m", "toto_train.rank", str(file)], p.devices, free_port())
    if status:
        if found := stacks(file.parent):
            what = f"no step within the time-out; where every rank stood: {', '.join(map(str, found))}; {what}"
        raise RunStopped(what, status)


def _here(config: Config) -> None:
    from toto_train.run import run

    run(config)


def watch(command: list[str], ranks: int, port: int) -> tuple[int, str]:
    """Start a command once a rank and wait; returns the exit status of all together and what happened.

    SIGTERM and SIGINT are passed on. When a rank fails the others, which may wait for it forever, are killed soon.
    """
    env = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # threads that spin while they wait take the cores from each other's processes
    env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), "OMP_WAIT_POLICY": "PASSIVE", **env}
    env = {"TORCH_CPP_LOG_LEVEL": "ERROR", **env}  # warnings of torch's C++ that a user can do nothing about
    running = {
        r: subprocess.Popen(
            command, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, start_new_session=True, preexec_fn=_die_with_us
        )
        for r in range(ranks)
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


def _die_with_us() -> None:
    """In a new rank: a launcher that is killed leaves none behind (Linux)."""
    set_parent_death_signal = 1  # of prctl.h
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(set_parent_death_signal, signal.SIGTERM)
