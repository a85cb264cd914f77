"""A full check of a dataset: every byte of every shard, the index beside it and the counts of the manifest."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipelines.series import DOMAINS
from data_pipelines.shards import (
    INDEX,
    INDEX_FILE,
    MANIFEST,
    add_counts,
    check_sizes,
    count_series,
    index_name,
    manifest_sha256,
    no_counts,
    read_manifest,
    read_npy_header,
)
from data_pipelines.store import Store

log = logging.getLogger(__name__)

_BLOCK = 2**20  # bytes read at a time
_SHARD_COUNTS = ("series", "points", "missing", "intervals", "domains", "licences")


def verify(path: str | Path) -> list[str]:
    """Read every byte of a dataset (folder or URL) once; returns problems, none if whole.

    Holds one series and the index at a time. Dull series (all missing, constant) are logged.
    """
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return [str(error)]
    store = Store(path)
    if manifest.get("sha256") != manifest_sha256(manifest):  # then nothing it says can be relied on
        return [f"{store.where(MANIFEST)} does not have the checksum it holds; copy or build the dataset again"]
    problems = check_sizes(store, manifest["shards"])
    counts = {source: no_counts() for source in manifest["sources"]}
    local: dict[str, int] = {}
    indexes: list[np.ndarray] = []
    for shard in manifest["shards"]:
        name, source = shard["name"], shard["source"]
        local[source] = number = local.get(source, -1) + 1
        try:
            if name not in problems:
                indexes.append(_index(store, index_name(name), shard["index_sha256"]))
                found, own = _content(store, shard, number)
                if not np.array_equal(found, indexes[-1]):
                    raise ValueError("the index beside it does not describe its content; rebuild the dataset")
                if any(own[key] != shard[key] for key in _SHARD_COUNTS):
                    raise ValueError(f"its counts in {MANIFEST} differ from its content; rebuild the dataset")
                add_counts(counts[source], own)
        except (ValueError, KeyError, OSError) as error:
            where, said = store.where(name), str(error) if isinstance(error, ValueError) else repr(error)
            problems[name] = said if store.where("") in said else f"{where}: {said}"
    try:
        whole = _index(store, INDEX_FILE, manifest["index_sha256"])
        if not problems and not np.array_equal(whole, np.concatenate(indexes)):
            raise ValueError(f"{store.where(INDEX_FILE)}: differs from the indexes of the shards; rebuild the dataset")
    except (ValueError, KeyError, OSError) as error:
        problems[INDEX_FILE] = str(error)
    if problems:
        return list(problems.values())
    total = no_counts()
    for of_source in counts.values():
        add_counts(total, of_source)
    off = [source for source in counts if counts[source] != manifest["sources"][source]]
    off += ["all sources"] * any(manifest[key] != value for key, value in total.items())
    return [f"{store.where(MANIFEST)}: the counts of {name} differ from its shards'; rebuild it" for name in off]


def _index(store: Store, name: str, sha256: str) -> np.ndarray:
    data = store.load(name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{store.where(name)}: checksum differs from the manifest's; copy or build it again")
    return np.load(io.BytesIO(data))


def _content(store: Store, shard: dict[str, Any], number: int) -> tuple[np.ndarray, dict]:
    """(INDEX entries, counts) of a shard from its content alone. ValueError where its checksum or content is wrong."""
    where, counts = store.where(shard["name"]), no_counts()
    entries, error = [], None
    with store.open(shard["name"]) as raw:
        stream = _Hashed(raw)
        try:
            entries = list(_members(stream, where, shard["source"], number, counts))
        except Exception as found:  # a damaged tar can raise anything
            error = found
        while stream.read(_BLOCK):
            pass
    if stream.sha256.hexdigest() != shard["sha256"]:  # then what it holds is no wonder
        raise ValueError(f"{where}: checksum differs from the manifest's; copy or build it again")
    if error is not None:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error!r}") from error
    return np.array(entries, INDEX), counts


class _Hashed:
    """What was read of a file so far has this sha256."""

    def __init__(self, raw: IO[bytes]):
        self.raw, self.sha256 = raw, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.raw.read(size)
        self.sha256.update(data)
        return data


def _members(stream: Any, where: str, source: str, number: int, counts: dict) -> Iterator[tuple]:
    """Rebuild the index rows of a shard from its content alone, adding to counts."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        while npy := tar.next():
            data = tar.extractfile(npy).read()  # type: ignore[union-attr]
            text = tar.next()
            if text is None or npy.name.removesuffix(".npy") != text.name.removesuffix(".json"):
                raise ValueError(f"{where}: {npy.name} is not followed by its .json")
            raw = tar.extractfile(text).read()  # type: ignore[union-attr]
            shape, header = read_npy_header(data[:4096], f"{where}: {npy.name}")
            if len(data) != header + 4 * math.prod(shape):
                raise ValueError(f"{where}: {npy.name} has the wrong size for {shape}")
            values, meta = np.frombuffer(data, "<f4", offset=header).reshape(shape), json.loads(raw)
            if meta["source"] != source:
                raise ValueError(f"{where}: {text.name} belongs to source {meta['source']!r}, not {source!r}")
            points = count_series(counts, values, meta["interval"], meta["domain"], meta["licence"])
            seen = values[np.isfinite(values)]
            if seen.size == 0 or seen.min() == seen.max():
                what = "has no observed value" if seen.size == 0 else "is constant"
                log.warning("%s: series %s/%s %s", where, source, meta["item_id"], what)
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            at = npy.offset_data + header
            domain = DOMAINS.index(meta["domain"])
            yield number, at, *shape, points, meta["interval"], text.offset_data, text.size, domain
