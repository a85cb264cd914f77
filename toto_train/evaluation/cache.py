"""What lies beside a task set: shards made of its files, and the baselines' scores, so that both are made once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines import shards
from data_pipelines.assemble import write_shards
from data_pipelines.sources.files import FileSource
from toto_train.evaluation import peers, rows
from toto_train.evaluation.baselines import seasonal_naive
from toto_train.evaluation.metrics import VERSION, Sums, window_sums
from toto_train.evaluation.processes import share
from toto_train.evaluation.tasks import TaskSet

log = logging.getLogger(__name__)

_READER = 2
"""Version of what `FileSource` makes of a file; a higher one makes shards be built anew."""
SEASONAL_NAIVE = "seasonal_naive"
_CHUNK = 8
"""Windows that a process takes at once."""


def cache_folder(path: str | Path, given: str = "") -> Path:
    """The folder beside the task set at `path` (DIR.eval), or `given`; made, and ValueError where it cannot be."""
    folder = Path(given) if given else Path(path).resolve().with_name(Path(path).resolve().name + ".eval")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {folder} ({error.strerror}); give another folder with cache=") from error
    return folder


def as_shards(path: str | Path, options: FileSource, cache: Path) -> Path:
    """The dataset folder for `path`: itself, or shards made once from the Parquet files at or below it.

    Every series and variate of the files is kept as it is: what is scored is not chosen by quality rules.
    """
    if (Path(path) / shards.MANIFEST).is_file():
        return Path(path)
    if not Path(path).exists():
        raise ValueError(f"tasks.path={path} does not exist; give a folder of shards or of Parquet files")
    source = replace(options, path=str(path))
    try:
        files = source.files()
    except ValueError as error:
        hint = "a leaderboard's saved datasets take tasks=gift_eval, boom, boomlet, fev or time"
        raise ValueError(
            f"{str(error).replace('source.path', 'tasks.path')}, nor shards ({shards.MANIFEST}); {hint}"
        ) from error
    facts = [[str(Path(source.where(f)).resolve()), f.version] for f in files]
    settings = {k: v for k, v in asdict(options).items() if k != "path"}
    made = cache / f"shards-{_digest(shards.SCHEMA, _READER, facts, settings)}"
    with held(made):
        if (made / shards.MANIFEST).is_file():
            return made
        series = (s for unit in source.units() for s in source.read(unit, Counter()))
        manifest = write_shards(made, series, {"source": source.kind, **settings}, replace=made.exists())
    log.info("%s: %d series -> %s", path, manifest["series"], made)
    return made


@dataclass
class Baseline:
    """A baseline's sums on every window of a task set."""

    name: str
    sums: Sums
    seconds: np.ndarray
    """[W]"""
    fallbacks: int
    """Variates for which the method failed and Seasonal Naive stood in."""


def baseline(
    name: str,
    tasks: TaskSet,
    cache: Path,
    context: int = 1024,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Baseline:
    """Scores of 'seasonal_naive' (from the whole past) or of one of `peers.PEERS` (from the last `context` steps).

    Kept in `cache` under a key of data, windows, context and package version; an interrupted call is gone on with.
    """
    naive = name == SEASONAL_NAIVE
    version = "" if naive else f"{peers.version(name)}, rules {peers.RULES}, context {context}"
    stem = f"{name}-{_digest(VERSION, tasks.fingerprint, version)}"
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{stem}.parquet"
    with held(file):
        return _baseline(name, tasks, file, context, workers, progress)


def _baseline(
    name: str, tasks: TaskSet, file: Path, context: int, workers: int, progress: Callable[[int], None] | None
) -> Baseline:
    if file.is_file():
        try:
            frame = rows.read(file)
            _, sums, seconds = rows.from_frame(frame)
            return Baseline(name, sums, seconds, int(frame["fallbacks"].sum()))
        except ValueError as error:
            log.warning("%s; computing it again", error)
            file.unlink()
    count = len(tasks)
    sums, seconds, fallbacks = Sums.zeros(count), np.zeros(count), np.zeros(count)
    parts = rows.Parts(vars(sums) | {"seconds": seconds, "fallbacks": fallbacks}, file.with_suffix(".parts"))
    try:
        left = np.flatnonzero(~parts.done)
        chunks = [left[at : at + _CHUNK] for at in range(0, len(left), _CHUNK)]
        scorer = partial(_scorer, name, tasks, context)
        for indices, values in share(scorer, chunks, 1 if name == SEASONAL_NAIVE else workers):
            parts.put(indices, values)
            if progress:
                progress(int(parts.done.sum()))
    finally:
        parts.flush()
    rows.write(file, rows.to_frame(tasks.table(), sums, seconds).assign(fallbacks=fallbacks.astype(int)))
    parts.remove()
    return Baseline(name, sums, seconds, int(fallbacks.sum()))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`: a second one waits, then finds it there."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _scorer(
    name: str, tasks: TaskSet, context: int, rank: int
) -> Callable[[np.ndarray], dict[str, np.ndarray | float]]:
    return partial(_score, None if name == SEASONAL_NAIVE else peers.load(name), tasks, context)


def _score(peer: peers.Peer | None, tasks: TaskSet, context: int, indices: np.ndarray) -> dict[str, np.ndarray | float]:
    sums, seconds, fallbacks = Sums.zeros(len(indices)), np.zeros(len(indices)), np.zeros(len(indices))
    for n, i in enumerate(indices):
        w, season = tasks.window(int(i)), int(tasks.windows["season"][i])
        past, horizon = tasks.past(int(i)), w.label.shape[1]
        begin = time.perf_counter()
        if peer is None:
            quantiles = seasonal_naive(past, horizon, season)
        else:
            quantiles, fallbacks[n] = peer.forecast(past[:, -context:], horizon, season, w.task.frequency)
        seconds[n] = time.perf_counter() - begin
        scored = window_sums(quantiles[None], w.label[None], w.seasonal_error[None])
        for field, array in vars(sums).items():
            array[n] = getattr(scored, field)[0]
    return vars(sums) | {"seconds": seconds, "fallbacks": fallbacks}


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]
