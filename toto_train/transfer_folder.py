"""A study over sizes in a folder: which runs are missing, and what those that ended have found.

results.jsonl has a finished run a line, curves/ its losses, and sweep.json what all runs of the folder share, so that
only what compares is compared.
"""

from __future__ import annotations

import csv
import fcntl
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from toto_train.data.rows import Rows
from toto_train.files import write_text
from toto_train.transfer import Result, Shared, Trial, heldout_config, train, training_config

CURVE = ("step", "points", "train", "heldout")


def sweep(
    out: Path, trials: Iterable[Trial], shared: Shared, processes: int, tell: Callable[[Result], None]
) -> tuple[list[Result], dict[Trial, str]]:
    """Train the trials that `out` does not hold, `processes` at a time; tell() is called as each ends.

    Returns the results of all trials in their order, without those that failed, and why these did. A run is kept the
    moment it ends: a sweep that was stopped goes on with what is missing. Raises ValueError where a setting is wrong,
    or where `out` holds a sweep with another `shared` or other data.
    """
    trials = list(trials)
    for trial in trials:
        training_config(trial, shared)
    fingerprints = _fingerprints(shared)
    with _held(out, {**asdict(shared), "fingerprints": fingerprints}):
        return _train_missing(out, trials, shared, processes, tell)


def _train_missing(
    out: Path, trials: list[Trial], shared: Shared, processes: int, tell: Callable[[Result], None]
) -> tuple[list[Result], dict[Trial, str]]:
    done, failed = read_results(out), {}
    todo = [trial for trial in trials if trial not in done]
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    with ProcessPoolExecutor(min(processes, len(todo)) or 1, context, torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(train, trial, shared): trial for trial in todo}
        try:
            for future in as_completed(running):
                trial = running[future]
                if error := future.exception():
                    failed[trial] = f"{type(error).__name__}: {error}"
                    continue
                done[trial] = future.result()
                _keep(out, done)
                tell(done[trial])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done[trial] for trial in trials if trial in done], failed


def _fingerprints(shared: Shared) -> dict[str, str]:
    """What is in the two folders of series."""
    train, held = training_config(Trial("spectral", shared.head_width, 2, 1.0, 0), shared), heldout_config(shared)
    found = {}
    for key, config in (("path", train), ("heldout", held)):
        try:
            found[key] = Rows(config).order.fingerprint
        except (ValueError, OSError) as error:
            raise ValueError(f"{key}={getattr(shared, key)}: {error}") from error
    return found


@contextmanager
def _held(out: Path, facts: dict[str, Any]) -> Iterator[None]:
    """The folder of a sweep with these facts, made or found, and held against a second process."""
    file = out / "sweep.json"
    if not file.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty and holds no sweep; choose another out=")
    former = json.loads(file.read_text()) if file.exists() else facts
    if differ := [
        f"{k}={former.get(k)}, not {facts.get(k)}" for k in {**facts, **former} if former.get(k) != facts.get(k)
    ]:
        raise ValueError(f"out={out} holds a sweep with {'; '.join(differ)}; choose another out=")
    (out / "curves").mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(facts, indent=1) + "\n")
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out={out}: another process is sweeping there") from None
        yield


def _keep(out: Path, done: dict[Trial, Result]) -> None:
    """The newest result: its curve first, so that a line in results.jsonl means a whole run."""
    newest = list(done.values())[-1]
    lines = [",".join(CURVE), *(",".join(f"{row[c]:.8g}" for c in CURVE) for row in newest.curve)]
    write_text(out / "curves" / f"{newest.trial}.csv", "\n".join(lines) + "\n")
    kept = ("heldout", "train", "points", "cpu_seconds")
    rows = [{**_row(r.trial), **{k: getattr(r, k) for k in kept}} for r in done.values()]
    write_text(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _row(trial: Trial) -> dict[str, Any]:
    """Where the learning rate is swept there is no value beside it."""
    return {
        key: value for key, value in asdict(trial).items() if trial.value is not None or key not in ("setting", "value")
    }


def read_results(out: Path) -> dict[Trial, Result]:
    """All finished runs of a sweep's folder."""
    found: dict[Trial, Result] = {}
    file = out / "results.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        row = json.loads(line)
        trial = Trial(**{f.name: row.pop(f.name) for f in fields(Trial) if f.name in row})
        with (out / "curves" / f"{trial}.csv").open() as curve:
            rows = [{k: float(v) for k, v in r.items()} for r in csv.DictReader(curve)]
        found[trial] = Result(trial, **row, curve=rows)
    return found
