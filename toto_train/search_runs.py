"""Trials as runs of train.py: each in a folder and a process of its own, followed by its validation scores."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_train import checkpoint_files
from toto_train.files import write_text
from toto_train.processes import die_with_parent

POLL = 0.5
"""Seconds between looks at a run."""
LEAVE = 60.0
"""Seconds a run that is told to stop may take to save and leave."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: done, behind (stopped by the pruner) or failed (`why`). score: geometric mean of MASE and MWQL
    over Seasonal Naive's on the validation tasks at the last step."""

    state: str
    score: float = math.nan
    why: str = ""

    def __str__(self) -> str:
        return f"{self.score:.4f}" if self.state == "done" else f"{self.state} {self.why}".strip()


@dataclass(frozen=True)
class Runs:
    """command: what starts train.py. base: overrides of all runs. steps: where a run ends, unless its trial says so.
    branch: a run folder whose newest checkpoint every run goes on from."""

    folder: Path
    command: list[str]
    base: list[str]
    steps: int
    branch: Path | None = None
    keep: bool = False
    """Whether checkpoints stay after the end of a run."""

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process alone works on a run; the claim ends with the process, however that ends."""
        (self.folder / "claims").mkdir(parents=True, exist_ok=True)
        with (self.folder / "claims" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def result(self, name: str, seed: int) -> float | None:
        """Score of a run that is done; infinite where it failed."""
        path = self._result(name, seed)
        return float(json.loads(path.read_text())["score"] or math.inf) if path.is_file() else None

    def follow(self, name: str, values: dict[str, Any], seed: int, behind: Callable[[int, float], bool]) -> Outcome:
        """Train to the end, or until behind(step, score) says so; a run that was broken off goes on. Claim it before.

        At the last step nothing is left to save: whoever came that far counts as done, with its score.
        """
        last = int(values.get("schedule.max_steps", self.steps))
        run = self.folder / "runs" / f"{name}-s{seed}"
        self._branch_off(run)
        overrides = [*self.base, *(f"{key}={_as_override(value)}" for key, value in values.items())]
        own = [f"name={run.name}", f"out={run.parent}", "report=false"]
        own += [f"seed={seed}"] if self.branch is None else []  # a run keeps the seed it began with
        log = self.log(name, seed)
        log.parent.mkdir(parents=True, exist_ok=True)
        told = -1
        with log.open("a") as sink:
            command = [*self.command, *overrides, *own]
            process = subprocess.Popen(command, stdout=sink, stderr=sink, preexec_fn=die_with_parent)
            try:
                ended = False
                while not ended:
                    ended = process.poll() is not None
                    for step, score in scores(run / "metrics.csv"):
                        if step > told:
                            told = step
                            if behind(step, score) and step < last and not ended:
                                return self._stopped(process, run)
                    if not ended:
                        time.sleep(POLL)
            finally:
                _stop(process)
        known = scores(run / "metrics.csv")
        if process.returncode:
            said = log.read_text().strip().splitlines()
            why = f"train.py ended with status {process.returncode}: {said[-1] if said else ''}"
            outcome = Outcome("failed", math.nan, f"{why} ({log})")
        elif not known or not math.isfinite(known[-1][1]):
            outcome = Outcome("failed", math.nan, f"no finite validation score in {run / 'metrics.csv'}")
        else:
            outcome = Outcome("done", known[-1][1])
        finite = outcome.score if math.isfinite(outcome.score) else None
        self._result(name, seed).parent.mkdir(exist_ok=True)
        write_text(self._result(name, seed), json.dumps({"score": finite, "why": outcome.why}))
        self._clear(run)
        return outcome

    def _stopped(self, process: subprocess.Popen[bytes], run: Path) -> Outcome:
        _stop(process)
        self._clear(run)
        return Outcome("behind", math.nan, f"after {scores(run / 'metrics.csv')[-1][0]} steps")

    def log(self, name: str, seed: int) -> Path:
        """What a run says."""
        return self.folder / "logs" / f"{name}-s{seed}.txt"

    def _result(self, name: str, seed: int) -> Path:
        return self.folder / "results" / f"{name}-s{seed}.json"

    def _branch_off(self, run: Path) -> None:
        """Give a run that does not exist yet the newest checkpoint of `branch`, by links where the disk has them."""
        if self.branch is None or run.exists():
            return
        found = checkpoint_files.folders(self.branch)
        if not found:
            raise ValueError(f"branch={self.branch} holds no checkpoint; name the folder of a run that has saved one")
        made = run.with_name(run.name + ".tmp")
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(found[-1], made / "checkpoints" / found[-1].name, copy_function=_link)
        write_text(made / "checkpoints" / checkpoint_files.LATEST, found[-1].name + "\n")
        for file in ("config.yaml", "metrics.csv"):
            shutil.copy(self.branch / file, made / file)
        os.replace(made, run)

    def _clear(self, run: Path) -> None:
        if not self.keep:
            shutil.rmtree(run / "checkpoints", ignore_errors=True)


def scores(path: Path) -> list[tuple[int, float]]:
    """(step, geometric mean of the relative scores) of every validation in a metrics.csv."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/mwql") and row.get("val/mase")]
    return [(int(r["step"]), math.sqrt(float(r["val/mwql"]) * float(r["val/mase"]))) for r in rows]


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _as_override(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
