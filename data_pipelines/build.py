"""Source -> quality -> groups no wider than a training row -> parts -> shards and a report."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import assemble, executors, workplace
from data_pipelines.counts import Counts
from data_pipelines.leakage import Refused
from data_pipelines.parts import Part, PartWriter
from data_pipelines.quality import Rules, clean, reject, split_wide
from data_pipelines.report import write_report
from data_pipelines.shards import SCHEMA
from data_pipelines.sources import Source, Unit
from data_pipelines.windows import near_duplicates

log = logging.getLogger(__name__)

_ALONE = 32 * 2**20  # bytes of source below which starting processes takes longer than the work
MAX_VARIATES = 32  # a training row of the recipe holds this many
Progress = Callable[[str, int, int], None]
"""Called with (what is done, how much now, how much in all): bytes of units read, then shards written."""


@dataclass(frozen=True)
class Options:
    """How a build runs and what its shards look like."""

    max_variates: int = MAX_VARIATES
    """Wider groups are split evenly."""
    shard_bytes: int = assemble.SHARD_BYTES
    """A shard with more is divided."""
    executor: str = "local"
    """local: processes of this machine | ray: a Ray cluster, whose nodes all see `work`."""
    workers: int = 0
    """Processes (local), or CPUs of a Ray started here; 0 = all cores, or none but this one for a small source."""
    work: str = ""
    """Folder of the unfinished build; '' = beside the dataset, or here where that is a URL."""
    replace: bool = False
    """Whether a dataset that stands there may be replaced, once the new one is whole."""

    def __post_init__(self) -> None:
        if self.max_variates < 1:
            raise ValueError(f"max_variates={self.max_variates} must be at least 1")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_mb={self.shard_bytes / 2**20:g} must be positive")
        if self.executor not in executors.EXECUTORS:
            raise ValueError(f"executor={self.executor} is not one of {', '.join(executors.EXECUTORS)}")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative (0: all cores)")


def build(
    source: Source,
    out: str | Path,
    config: dict[str, Any],
    rules: Rules | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write what a source holds as a dataset at `out` (a folder or a URL); returns its manifest.

    The bytes depend on the source, the rules and the options that shape shards alone. A build that was interrupted goes
    on with the units it had not read. config is what made the source, for the record; "quality" in the manifest says
    what was rejected. Raises ValueError where nothing is left to write.
    """
    rules, options, tell = rules or Rules(), options or Options(), progress or (lambda *_: None)
    shape = {"max_variates": options.max_variates, "shard_bytes": options.shard_bytes}
    record = {**config, "quality": dataclasses.asdict(rules), **shape}
    workplace.check_free(out, options.replace)
    units = source.units()
    refuse = _version(rules.refuse)
    _refused(rules.refuse, refuse)  # what is wrong with it shows now
    settings = {**record, "schema": SCHEMA, "refuse": refuse}
    with workplace.workplace(out, options.replace, settings, options.work) as work:
        jobs = [
            StageJob(source, unit, rules, refuse, options.max_variates, work / "parts" / _folder(unit))
            for unit in units
        ]
        keep = {job.folder.name for job in jobs}
        for stray in (work / "parts").iterdir():  # of units that have changed since, or were being written
            if stray.name not in keep:
                shutil.rmtree(stray, ignore_errors=True)
        waiting = sorted((job for job in jobs if not job.folder.exists()), key=lambda j: -j.unit.size)
        if len(waiting) < len(jobs):
            log.warning("%d of %d pieces were read by an interrupted build", len(jobs) - len(waiting), len(jobs))
        size = sum(unit.size for unit in units)
        workers = options.workers or int(options.executor == "local" and size < _ALONE)
        tell("read", size - sum(job.unit.size for job in waiting), size)
        for i, _ in executors.run(options.executor, workers, stage, waiting):
            tell("read", waiting[i].unit.size, size)
        parts = [Part(job.folder) for job in jobs]
        counts = Counts()
        for part in parts:
            counts.merge(Counts.from_json(part.quality))
        dropped = drop_near_duplicates(parts, rules.near_duplicate, counts)
        if not counts.series_kept:
            raise workplace.NothingToWrite(f"{out}: nothing to write: {_why_empty(counts)}")

        def run(function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
            found: dict[int, Any] = {}
            tell("shards", 0, len(jobs))
            for i, result in executors.run(options.executor, workers, function, jobs):
                found[i] = result
                tell("shards", 1, len(jobs))
            return iter([found[i] for i in range(len(jobs))])

        manifest = assemble.write_all(work, parts, record, options.shard_bytes, run, dropped)
        manifest["quality"] = counts.as_dict()
        assemble.save_manifest(work, manifest)
        write_report(work / "shards" / assemble.REPORT, manifest, counts, f"Build of {Path(str(out)).name}")
        workplace.publish(work, out)
    return manifest


def _version(path: str) -> str:
    """What tells that a file or folder has changed; '' for none."""
    if not path:  # which Path takes for the folder we are in
        return ""
    files = sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hashlib.sha256(repr(facts).encode()).hexdigest() if facts else ""


@lru_cache(maxsize=1)
def _refused(path: str, version: str) -> Refused | None:
    """Opened once in each process: the index of a large benchmark is too much to send with every unit."""
    return Refused.open(path) if path else None


def _why_empty(counts: Counts) -> str:
    if not counts.series_read:
        return "the source holds no series"
    reasons = ", ".join(f"{name} {n}" for name, n in counts.series_rejected.most_common())
    return f"all {counts.series_read} series were rejected ({reasons}); see the quality.* settings"


@dataclass(frozen=True)
class StageJob:
    """One unit to read. Picklable."""

    source: Source
    unit: Unit
    rules: Rules
    refuse: str
    """Version of what rules.refuse names."""
    max_variates: int
    folder: Path


def _folder(unit: Unit) -> str:
    return hashlib.sha256(f"{unit.key}\0{unit.version}".encode()).hexdigest()[:24]


def stage(job: StageJob) -> None:
    """Read, clean and split one unit into a part."""
    counts = Counts()
    refused = _refused(job.rules.refuse, job.refuse)
    with PartWriter(job.folder, job.unit.key, similar=job.rules.near_duplicate > 0) as part:
        for series in job.source.read(job.unit, counts.table_rows):
            fit = clean(series, job.rules, counts, refused)
            if fit is not None:
                part.add(fit, split_wide(fit, job.max_variates, counts))
        part.quality = counts.to_json()


def drop_near_duplicates(parts: Sequence[Part], threshold: float, counts: Counts) -> list[np.ndarray]:
    """Per part the groups that nearly repeat another one, which comes earlier in the order of name hashes.

    That order knows nothing of files and processes, so the same corpus always loses the same series.
    """
    if not threshold:
        return [np.empty(0, np.int64) for _ in parts]
    found = [np.array(part.groups) for part in parts]
    where = np.concatenate([np.stack([np.full(len(f), p), np.arange(len(f))], 1) for p, f in enumerate(found)])
    groups = np.concatenate(found)
    order = np.lexsort([groups["low"], groups["high"]])
    groups, where = groups[order], where[order]
    same = np.flatnonzero((groups["high"][1:] == groups["high"][:-1]) & (groups["low"][1:] == groups["low"][:-1]))
    if len(same):  # rather than drop one of them as a near duplicate, and keep either by chance
        (p, g), (q, _) = where[same[0] : same[0] + 2].tolist()
        raise assemble.twice(parts[p].group(g), parts[p], parts[q])
    like = near_duplicates(groups["sketch"], threshold)
    drop = np.flatnonzero(like >= 0)
    for at in drop.tolist():
        series = parts[where[at][0]].group(int(where[at][1]))
        other = parts[where[like[at]][0]].group(int(where[like[at]][1]))
        reject(counts, "near_duplicate", series, f"like {other.source}/{other.item_id}", kept=True)
    dropped = where[drop][np.argsort(where[drop][:, 0], kind="stable")]
    return np.split(dropped[:, 1], np.searchsorted(dropped[:, 0], np.arange(1, len(parts))))
