"""A full check of a dataset: every byte of every shard, the index beside it and the counts of the manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.series import DOMAINS
from data_pipelines.shards import (
    INDEX,
    INDEX_FILE,
    MANIFEST,
    check_sizes,
    count_series,
    index_name,
    no_counts,
    read_manifest,
    read_npy_header,
)
from data_pipelines.store import Store

log = logging.getLogger(__name__)


def verify(path: str | Path) -> list[str]:
    """Read every byte of a dataset; returns problems, none if whole. Dull series (all missing, constant) are logged."""
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return [str(error)]
    problems: list[str] = []
    counts = {source: no_counts() for source in manifest["sources"]}
    local: dict[str, int] = {}
    indexes = []
    for shard in manifest["shards"]:
        file, source = path / shard["name"], shard["source"]
        local[source] = number = local.get(source, -1) + 1
        try:
            for problem in check_sizes(Store(path), [shard]).values():
                raise ValueError(problem)
            for what, name in (("sha256", file.name), ("index_sha256", index_name(file.name))):
                check_digest(path / name, shard[what])
            found = np.array(list(_members(file, source, number, counts[source])), INDEX)
            indexes.append(np.load(path / index_name(file.name)))
            if not np.array_equal(found, indexes[-1]):
                raise ValueError(f"{file}: the index beside it does not describe its content; rebuild the dataset")
        except (ValueError, KeyError, OSError, tarfile.TarError) as error:
            problems.append(str(error) if shard["name"] in str(error) else f"{file}: {error!r}")
    try:
        check_digest(path / INDEX_FILE, manifest["index_sha256"])
        if not problems and not np.array_equal(np.load(path / INDEX_FILE), np.concatenate(indexes)):
            raise ValueError(f"{path / INDEX_FILE}: differs from the indexes of the shards; rebuild the dataset")
    except (ValueError, KeyError, OSError) as error:
        problems.append(str(error))
    if not problems:
        for source, expected in manifest["sources"].items():
            if counts[source] != expected:
                problems.append(f"{path / MANIFEST}: the counts of source {source} differ from its shards'")
    return problems


def check_digest(file: Path, sha256: str) -> None:
    """ValueError where a file's checksum is not the given one."""
    with open(file, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != sha256:
            raise ValueError(f"{file}: checksum differs from the manifest's; copy or build it again")


def _members(file: Path, source: str, number: int, counts: dict) -> Iterator[tuple]:
    """Rebuild the index rows of a shard from its content alone, adding to counts."""
    with tarfile.open(file) as tar:
        members = tar.getmembers()
        for npy, text in zip(members[::2], members[1::2], strict=True):
            if npy.name.removesuffix(".npy") != text.name.removesuffix(".json"):
                raise ValueError(f"{file}: {npy.name} is not followed by its .json")
            data, raw = (tar.extractfile(m).read() for m in (npy, text))  # type: ignore[union-attr]
            shape, header = read_npy_header(data[:4096], f"{file}: {npy.name}")
            if len(data) != header + 4 * math.prod(shape):
                raise ValueError(f"{file}: {npy.name} has the wrong size for {shape}")
            values, meta = np.frombuffer(data, "<f4", offset=header).reshape(shape), json.loads(raw)
            if meta["source"] != source:
                raise ValueError(f"{file}: {text.name} belongs to source {meta['source']!r}, not {source!r}")
            points = count_series(counts, values, meta["interval"], meta["domain"], meta["licence"])
            seen = values[np.isfinite(values)]
            if seen.size == 0 or seen.min() == seen.max():
                what = "has no observed value" if seen.size == 0 else "is constant"
                log.warning("%s: series %s/%s %s", file.name, source, meta["item_id"], what)
            offset = npy.offset_data + header
            yield (
                number,
                offset,
                *shape,
                points,
                meta["interval"],
                text.offset_data,
                text.size,
                DOMAINS.index(meta["domain"]),
            )
