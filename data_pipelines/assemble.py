"""Parts -> shards, manifest, dataset folder: a function of the set of series, not of how the work was divided.

Series of a source are ordered by the hash of their names. A shard holds those whose hash begins with certain bits:
where a prefix has more than `shard_bytes`, it is divided in two by the next bit. So a series that is added or removed
changes one shard (or divides one, or joins two) and leaves the others byte for byte as they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.parts import BLOCK, ROW, Part, PartWriter, stem
from data_pipelines.series import DOMAINS, Series
from data_pipelines.shards import (
    INDEX,
    INDEX_FILE,
    MANIFEST,
    SCHEMA,
    add_counts,
    index_name,
    manifest_sha256,
    no_counts,
)
from data_pipelines.store import Store
from data_pipelines.workplace import NothingToWrite, publish, workplace

log = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
REPORT = "report.html"
_ORIGINS = 20  # units a shard's entry names; a shard of many small files would list them all
_PICK = np.dtype([("part", "<i8"), ("row", "<i8"), *((name, ROW[name]) for name in ("high", "low", "size"))])
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Calls a function on every job, anywhere, and yields the results in the order of the jobs."""


def write_shards(
    out: str | Path, series: Iterable[Series], config: dict, shard_bytes: int = SHARD_BYTES, replace: bool = False
) -> dict:
    """Write series as a dataset folder and return its manifest; they may arrive in any order.

    Nothing stands at `out` before it is whole. ValueError on two series of one name, or none at all.
    """
    with workplace(out, replace, settings=None) as work:
        with PartWriter(work / "parts" / "0") as part:
            for s in series:
                part.add(s)
        parts = [Part(work / "parts" / "0")]
        if not len(parts[0].rows):
            raise NothingToWrite("no series to write: the sources are empty or every series was rejected")
        manifest = write_all(work, parts, config, shard_bytes)
        publish(work, out)
    return manifest


def write_all(
    work: Path,
    parts: Sequence[Part],
    config: dict,
    shard_bytes: int = SHARD_BYTES,
    run: Run = map,
    dropped: Sequence[np.ndarray] | None = None,
) -> dict:
    """Write all shards, the index and the manifest into work/shards; returns the manifest.

    dropped: per part, groups that are left out (near duplicates).
    """
    config = json.loads(json.dumps(config))  # fails now rather than after the last shard
    jobs = list(_plan(work, parts, shard_bytes, dropped))
    if not jobs:
        raise NothingToWrite("no series to write: the sources are empty or every series was rejected")
    shards = list(run(write_shard, jobs))
    folder = work / "shards"
    keep = {s["name"] for s in shards} | {index_name(s["name"]) for s in shards} | {INDEX_FILE}
    keep |= {_done(folder, s["name"]).name for s in shards}
    for stray in folder.iterdir():  # of an interrupted build whose sources have changed since
        if stray.name not in keep:
            stray.unlink()
    index = np.concatenate([np.load(folder / index_name(s["name"])) for s in shards])
    data = io.BytesIO()
    np.save(data, index)
    (folder / INDEX_FILE).write_bytes(data.getvalue())
    sources: dict[str, dict] = {}
    total = no_counts()
    for shard in shards:
        counts = shard.pop("counts")
        add_counts(sources.setdefault(shard["source"], no_counts()), counts)
        add_counts(total, counts)
        shard |= {k: counts[k] for k in ("series", "points", "missing", "intervals", "domains", "licences")}
    manifest = {
        "schema": SCHEMA, **total, "sources": sources, "shards": shards, "config": config,
        "index_sha256": hashlib.sha256(data.getbuffer()).hexdigest(),
    }  # fmt: skip
    save_manifest(work, manifest)
    return manifest


def save_manifest(work: Path, manifest: dict) -> None:
    manifest["sha256"] = manifest_sha256(manifest)
    (work / "shards" / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _done(folder: Path, shard: str) -> Path:
    """Holds a shard's entry for the manifest once the shard is whole."""
    return folder / f".{shard}.done"


@dataclass(frozen=True)
class ShardJob:
    """What one shard is made of. Picklable."""

    folder: Path
    name: str
    source: str
    number: int
    """Of the shard within its source."""
    parts: tuple[Path, ...]
    picks: np.ndarray
    """int64 [series, 2]: (position in `parts`, row of that part), in the order of the shard."""


def _plan(
    work: Path, parts: Sequence[Part], shard_bytes: int, dropped: Sequence[np.ndarray] | None
) -> Iterator[ShardJob]:
    by_source: dict[str, list[np.ndarray]] = {}
    for p, part in enumerate(parts):
        rows, sources = part.rows, part.facts["sources"]
        picks = np.empty(len(rows), _PICK)
        picks["part"], picks["row"] = p, np.arange(len(rows))
        for field in ("high", "low", "size"):
            picks[field] = rows[field]
        keep = np.ones(len(rows), bool) if dropped is None else ~np.isin(rows["group"], dropped[p])
        for k, at in _groups(np.where(keep, rows["source"], -1)):
            if k >= 0:
                by_source.setdefault(sources[k], []).append(picks[at])
    for source in sorted(by_source):
        picks = np.concatenate(by_source.pop(source))
        picks = picks[np.lexsort((picks["low"], picks["high"]))]
        same = (picks["high"][1:] == picks["high"][:-1]) & (picks["low"][1:] == picks["low"][:-1])
        for at in np.flatnonzero(same)[:1]:
            one, other = (parts[p] for p in picks["part"][at : at + 2])
            raise twice(one.group(int(one.rows[picks["row"][at]]["group"])), one, other)
        for number, (bits, first, last) in enumerate(leaves(picks["high"], picks["size"], shard_bytes)):
            used, place = np.unique(picks["part"][first:last], return_inverse=True)
            chosen = np.stack([place, picks["row"][first:last]], axis=1)
            name = ".".join(filter(None, (stem(source), bits, "tar")))
            yield ShardJob(work / "shards", name, source, number, tuple(parts[p].folder for p in used), chosen)


def twice(series: Series, one: Part, other: Part) -> ValueError:
    where = " and in ".join(dict.fromkeys(filter(None, (one.facts["unit"], other.facts["unit"]))))
    return ValueError(
        f"series {series.source}/{series.item_id} appears twice{where and f' (in {where})'}; item ids must be unique "
        "within a source: rename one, or, for files of one name in several folders, give source.name="
    )


def _groups(keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(key, positions that hold it, ascending)"""
    used, count = np.unique(keys, return_counts=True)
    order = np.argsort(keys, kind="stable")
    yield from zip(used.tolist(), np.split(order, np.cumsum(count))[:-1], strict=True)


def leaves(high: np.ndarray, size: np.ndarray, limit: int) -> Iterator[tuple[str, int, int]]:
    """(prefix bits, first, last) of each shard, given ascending uint64 hashes and bytes of a source's series."""
    upto = np.concatenate([[0], np.cumsum(size)])
    todo = [("", 0, len(high))]
    while todo:
        bits, first, last = todo.pop()
        if last - first > 1 and upto[last] - upto[first] > limit and len(bits) < 64:
            middle = int(bits + "1", 2) << (63 - len(bits))
            cut = first + int(np.searchsorted(high[first:last], np.uint64(middle)))
            todo += [(bits + "1", cut, last), (bits + "0", first, cut)]
        elif last > first:
            yield bits, first, last


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one shard and its index; returns its entry for the manifest. What an interrupted build wrote is kept."""
    digest = hashlib.sha256(repr((job.number, [p.name for p in job.parts])).encode())
    digest.update(job.picks.tobytes())
    done = _done(job.folder, job.name)
    if done.is_file() and (job.folder / job.name).is_file():
        found = json.loads(done.read_text())
        if found["digest"] == digest.hexdigest():
            return found["entry"]
    done.unlink(missing_ok=True)
    counts, checksum, offset = no_counts(), hashlib.sha256(), 0
    rows, entries = np.empty(len(job.picks), ROW), np.zeros(len(job.picks), INDEX)
    origins: Counter[str] = Counter()
    for p, at in _groups(job.picks[:, 0]):
        part = Part(job.parts[p])
        rows[at] = part.rows[job.picks[at, 1]]
        _count(counts, part, rows[at])
        origins[part.facts["unit"]] += len(at)
    partial = job.folder / f"{job.name}.{secrets.token_hex(4)}.tmp"
    store = Store(job.parts[0].parent)
    with open(partial, "wb") as out:
        for i, (p, row) in enumerate(zip(job.picks[:, 0].tolist(), rows, strict=True)):
            sample = np.empty(int(row["size"]), np.uint8)
            store.read_into([(f"{job.parts[p].name}/data", int(row["offset"]), sample)])
            out.write(sample.data)
            checksum.update(sample.data)
            entries[i] = (
                job.number, offset + row["values"], row["variates"], row["length"], row["points"], row["interval"],
                offset + row["meta"], row["meta_size"], row["domain"],
            )  # fmt: skip
            offset += len(sample)
        out.write(bytes(2 * BLOCK))  # the end of a tar
        checksum.update(bytes(2 * BLOCK))
    os.replace(partial, job.folder / job.name)
    index = io.BytesIO()
    np.save(index, entries)
    partial.write_bytes(index.getvalue())
    os.replace(partial, job.folder / index_name(job.name))
    entry = {
        "name": job.name,
        "source": job.source,
        "bytes": offset + 2 * BLOCK,
        "sha256": checksum.hexdigest(),
        "index_sha256": hashlib.sha256(index.getbuffer()).hexdigest(),
        "counts": counts,
        "origins": dict(sorted(origins.most_common(_ORIGINS))),
        "more_origins": max(0, len(origins) - _ORIGINS),
    }
    partial.write_text(json.dumps({"digest": digest.hexdigest(), "entry": entry}))
    os.replace(partial, done)
    return entry


def _count(counts: dict, part: Part, rows: np.ndarray) -> None:
    """Add the rows of one part, as count_series would one by one."""
    slots = rows["variates"].astype(np.int64) * rows["length"]
    points = int(rows["points"].sum())
    found = {
        "series": len(rows), "variates": int(rows["variates"].sum()), "points": points,
        "missing": int(slots.sum()) - points,
        "domains": {DOMAINS[k]: n for k, n in _tally(rows["domain"])},
        "licences": {part.facts["licences"][k]: n for k, n in _tally(rows["licence"])},
        "intervals": {f"{k:.12g}": n for k, n in _tally(rows["interval"])},
        "variate_counts": {str(k): n for k, n in _tally(rows["variates"])},
    }  # fmt: skip
    add_counts(counts, found)


def _tally(values: np.ndarray) -> list[tuple[Any, int]]:
    found, times = np.unique(values, return_counts=True)
    return list(zip(found.tolist(), times.tolist(), strict=True))
