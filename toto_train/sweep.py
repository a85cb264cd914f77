"""Sweeps: every combination of values as a run of its own, some at a time, and one table of what became of them.

A run is a process with a folder, settings (launch.yaml) and a log (launch.log) of its own, so whatever happens to it
happens to no other. launch.failed says why one ended that nobody asked to; it goes when the run is started again.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from toto_train.cli import STOPPED, config_from_overrides, parse_overrides
from toto_train.config import Config, ConfigError
from toto_train.launch import FAILED, note_failure
from toto_train.processes import die_with_parent, run_task, start
from toto_train.run_folder import write_launch
from toto_train.run_lock import is_held
from toto_train.sweep_table import is_done, read_state

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Trial:
    """A run to be; without a config where that is wrong, and then `problem` says what is."""

    name: str
    folder: Path
    config: Config | None = None
    problem: str = ""


def expand(overrides: Sequence[str], configs: Path) -> list[Trial]:
    """Every combination of values with commas, in folders named as `train.py -m` names them.

    overrides: of train.py, as in ["model=tiny,small", "seed=0,1"]. A combination with wrong settings is a trial that
    fails. Raises ConfigError where an argument cannot be read, or where all combinations have wrong settings.
    """
    choices: list[list[tuple[bool, str]]] = []
    problems: list[str] = []
    for text, override in parse_overrides(overrides, problems):
        key = text.partition("=")[0]
        swept = override.is_sweep_override()
        choices.append([(swept, f"{key}={v}") for v in override.sweep_string_iterator()] if swept else [(False, text)])
    if problems:
        raise ConfigError(problems)
    trials = [make_trial([t for _, t in one], configs, sorted(t for swept, t in one if swept))
              for one in itertools.product(*choices)]  # fmt: skip
    if not any(trial.config for trial in trials):
        raise ConfigError(list(dict.fromkeys(line for trial in trials for line in trial.problem.splitlines())))
    return trials


def make_trial(overrides: Sequence[str], configs: Path, swept: Sequence[str] = ()) -> Trial:
    """One run; its name ends with what distinguishes it."""
    given = dict(text.partition("=")[::2] for text in overrides)
    what = "".join(f"-{','.join(swept)}" if swept else "").replace("/", ".")
    try:
        config = config_from_overrides(list(overrides), configs)
    except ConfigError as error:
        name = (given.get("name") or given.get("model") or "run") + what
        text = "\n".join(line.removeprefix("config: ") for line in error.problems)
        return Trial(name, Path(given.get("out") or Config().out) / name, problem=text)
    config.name += what
    if config.plan or config.fresh:
        key = "plan" if config.plan else "fresh"
        raise ConfigError([f"{key}=true has no place in a sweep: it trains what is missing; leave {key}= out"])
    return Trial(config.name, Path(config.out) / config.name, config)


def launch_all(
    trials: Sequence[Trial], processes: int, tell: Callable[[Trial, str], None], executor: str = "local"
) -> None:
    """Train the trials that are not done, `processes` at a time; tell(trial, state) as each ends.

    executor: local, processes of this machine | ray, tasks of a Ray cluster (RAY_ADDRESS, or one started here) whose
    nodes all see the folders; a task takes the run's devices. A trial that already runs is left alone; one that fails
    leaves launch.failed and stops no other. SIGINT and SIGTERM reach the runs, which save; none is started after.
    Raises ValueError on wrong arguments, or where a folder holds a finished run with other settings.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r} must be one of {', '.join(EXECUTORS)}")
    if processes < 1:
        raise ValueError(f"processes={processes} must be positive")
    todo = []
    for trial in trials:
        if trial.config is None:
            note_failure(trial.folder, trial.problem)
            tell(trial, "failed")
        elif is_held(trial.folder):  # by another sweep, or a run of that name
            tell(trial, "running")
        elif is_done(trial.folder, trial.config):
            tell(trial, "done")
        else:
            todo.append(trial)
    launcher = _by_ray if executor == "ray" else _locally
    for trial, status in launcher(todo, processes):
        if status and status not in STOPPED and not (trial.folder / FAILED).exists():
            note_failure(trial.folder, _last_words(trial.folder, status))
        tell(trial, read_state(trial.folder).state)


def _last_words(folder: Path, status: int) -> str:
    """The end of a run's log, or the signal that killed it."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    log = folder / "launch.log"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1] if lines else f"ended with status {status}"


def _command(trial: Trial) -> list[str]:
    """What trains it, once its settings are in its folder."""
    assert trial.config is not None
    file = write_launch(trial.config)
    (trial.folder / FAILED).unlink(missing_ok=True)
    return [sys.executable, "-m", "toto_train.node", str(file)]


def _locally(trials: Sequence[Trial], processes: int) -> Iterator[tuple[Trial, int]]:
    """(trial, exit status) as they end."""
    waiting = list(trials)
    running: list[tuple[Trial, subprocess.Popen[bytes]]] = []
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for _, process in running:
            process.send_signal(number)

    former = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while running or (waiting and not asked):
            while waiting and len(running) < processes and not asked:
                trial = waiting.pop(0)
                running.append((trial, start(_command(trial), trial.folder / "launch.log", threads, die_with_parent)))
            for pair in list(running):
                if pair[1].poll() is not None:
                    running.remove(pair)
                    yield pair[0], pair[1].returncode
            time.sleep(0.05)
    finally:
        for _, process in running:
            process.terminate()
        for number, handler in former.items():
            signal.signal(number, handler)
    if asked:
        raise SystemExit(128 + asked[0])


def _by_ray(trials: Sequence[Trial], processes: int) -> Iterator[tuple[Trial, int]]:
    """(trial, exit status) as they end. Ray places a task where its CPUs and GPUs are free."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("executor=ray needs Ray: pip install 'toto-train[ray]'") from error
    where: dict[str, Any] = {"address": "auto"} if os.environ.get("RAY_ADDRESS") else {"num_cpus": processes}
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: beside other work, nothing moves
    ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False, **where)
    try:
        task = ray.remote(max_retries=0)(run_task)
        running = {}
        for trial in trials:
            assert trial.config is not None
            p = trial.config.parallel
            gpus = 0 if p.device == "cpu" or not ray.cluster_resources().get("GPU") else max(1, p.devices)
            job = task.options(num_cpus=1, num_gpus=gpus)
            running[job.remote(_command(trial), str((trial.folder / "launch.log").resolve()), os.getcwd())] = trial
        while running:
            for done in ray.wait(list(running))[0]:
                try:
                    status = ray.get(done)
                except ray.exceptions.RayError as error:  # the node is gone, or the task was killed
                    note_failure(running[done].folder, str(error).splitlines()[0])
                    status = 1
                yield running.pop(done), status
    finally:
        ray.shutdown()
