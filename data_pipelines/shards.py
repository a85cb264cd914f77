"""Datasets on disk: a folder of WebDataset tars, an index of offsets beside each, and one manifest.json.

    manifest.json                 counts, histograms, licences, checksums, the config that made it
    {source}-{k:06d}.tar          samples KEY.npy (float32 [V, T]) + KEY.json (the other fields of a Series)
    {source}-{k:06d}.index.npy    one INDEX entry a series, so that values are read through mmap without the tar library

A shard holds one source only. The bytes depend on the series and their order alone: no times, no user names.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import mmap
import os
import re
import resource
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.series import Series

log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "manifest.json"
INDEX = np.dtype(
    [
        ("shard", "<i4"),  # number of the shard within its source
        ("offset", "<i8"),  # of the first float32 in the tar
        ("variates", "<i4"),
        ("length", "<i8"),
        ("points", "<i8"),  # observed values
        ("interval", "<f8"),  # seconds
        ("meta_offset", "<i8"),  # of the json text in the tar
        ("meta_size", "<i4"),
    ]
)
_BLOCK = 512
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
_MAPPED = 8192 if _DESCRIPTORS < 0 else max(16, _DESCRIPTORS // 8)  # shards a ShardSet keeps mapped: a descriptor each


def write_shards(
    out: str | Path, series: Iterable[Series], config: dict, shard_bytes: int = 256 * 2**20, replace: bool = False
) -> dict:
    """Write a dataset folder and return its manifest. Sources may arrive interleaved.

    Everything goes to a hidden sibling folder that is renamed when whole; an interrupted write leaves nothing at `out`.
    """
    out = Path(os.path.abspath(out))
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():  # killed between the two renames below
        old.rename(out)
    if out.exists() and not replace:
        raise ValueError(f"{out} exists; choose another folder or replace it (replace=true)")
    if out.exists() and not (out / MANIFEST).is_file():
        raise ValueError(f"{out} is no dataset (no {MANIFEST}), so it is not replaced; choose another folder")
    config = json.loads(json.dumps(config))  # fails now rather than after the last series
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = _write_all(partial, series, config, shard_bytes)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write_all(folder: Path, series: Iterable[Series], config: dict, shard_bytes: int) -> dict:
    writers: dict[str, _SourceWriter] = {}
    total, seen = no_counts(), set()
    for s in series:
        if (s.source, s.item_id) in seen:
            raise ValueError(f"series {s.source}/{s.item_id} appears twice; item ids must be unique within a source")
        seen.add((s.source, s.item_id))
        if s.source not in writers:
            writers[s.source] = _SourceWriter(folder, s.source, shard_bytes)
        writers[s.source].add(s)
        count_series(total, s.values, s.interval, s.domain, s.licence)
    if not writers:
        raise ValueError("no series to write: the sources are empty or every series was rejected")
    shards = [shard for name in sorted(writers) for shard in writers[name].close()]
    sources = {name: w.counts for name, w in sorted(writers.items())}
    return {"schema": SCHEMA, **total, "sources": sources, "shards": shards, "config": config}


class _SourceWriter:
    """Appends samples to the shards of one source; files are open only while written, so sources may be many."""

    def __init__(self, folder: Path, source: str, shard_bytes: int):
        self.folder, self.source, self.shard_bytes = folder, source, shard_bytes
        self.stem = _stem(source)
        self.counts = no_counts()
        self.shards: list[dict] = []
        self._start()

    def _start(self) -> None:
        self.size, self.digest = 0, hashlib.sha256()
        self.rows: list[tuple] = []

    @property
    def _name(self) -> str:
        return f"{self.stem}-{len(self.shards):06d}"

    def add(self, s: Series) -> None:
        key = f"{self.stem}-{self.counts['series']:08d}"
        values = np.ascontiguousarray(s.values)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
        meta = json.dumps(_meta(s), sort_keys=True).encode()
        npy = _member(f"{key}.npy", header.getvalue(), values.tobytes())
        data = npy + _member(f"{key}.json", meta)
        points = count_series(self.counts, values, s.interval, s.domain, s.licence)
        offset, meta_offset = self.size + _BLOCK + header.tell(), self.size + len(npy) + _BLOCK
        self.rows.append((len(self.shards), offset, *values.shape, points, s.interval, meta_offset, len(meta)))
        self._append(data)
        if self.size >= self.shard_bytes:
            self._end()

    def _append(self, data: bytes) -> None:
        with open(self.folder / f"{self._name}.tar", "ab") as file:
            file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def _end(self) -> None:
        self._append(bytes(2 * _BLOCK))  # the end of a tar
        index = self.folder / f"{self._name}.index.npy"
        np.save(index, np.array(self.rows, INDEX))
        self.shards.append(
            {
                "name": f"{self._name}.tar",
                "source": self.source,
                "series": len(self.rows),
                "bytes": self.size,
                "sha256": self.digest.hexdigest(),
                "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
            }
        )
        self._start()

    def close(self) -> list[dict]:
        if self.rows:
            self._end()
        return self.shards


def _stem(source: str) -> str:
    """File name of a source: itself where that is safe, else its safe letters and a hash that keeps it unique."""
    safe = re.sub(r"[^a-zA-Z0-9_-]+", "_", source)[:64]
    return safe if safe == source else f"{safe}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _member(name: str, *parts: bytes) -> bytes:
    """One tar member with neutral owner and time, padded to whole blocks."""
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, parts))
    return b"".join((info.tobuf(tarfile.USTAR_FORMAT), *parts, bytes(-info.size % _BLOCK)))


def _meta(s: Series) -> dict[str, Any]:
    return {
        "source": s.source,
        "item_id": s.item_id,
        "interval": s.interval,
        "start": s.start,
        "domain": s.domain,
        "variate_names": list(s.variate_names),
        "licence": s.licence,
    }


def no_counts() -> dict[str, Any]:
    histograms: dict[str, Any] = {"domains": {}, "licences": {}, "intervals": {}, "variate_counts": {}}
    return {"series": 0, "variates": 0, "points": 0, "missing": 0, **histograms}


def count_series(counts: dict, values: np.ndarray, interval: float, domain: str, licence: str) -> int:
    """Add one series to counts; histograms count series. Returns its observed points."""
    points = int(np.isfinite(values).sum())
    counts["series"] += 1
    counts["variates"] += values.shape[0]
    counts["points"] += points
    counts["missing"] += values.size - points
    keys = {"domains": domain, "licences": licence, "intervals": f"{interval:.12g}", "variate_counts": str(len(values))}
    for histogram, key in keys.items():
        counts[histogram][key] = counts[histogram].get(key, 0) + 1
    return points


def read_manifest(path: str | Path) -> dict:
    """The manifest of a dataset folder; ValueError where there is none or it is of another schema."""
    file = Path(path) / MANIFEST
    if not Path(path).is_dir():
        raise ValueError(f"{path} is no folder; build a dataset there with scripts/build_shards.py")
    if not file.is_file():
        raise ValueError(f"{path} holds no {MANIFEST}, so it is no dataset; build one with scripts/build_shards.py")
    try:
        manifest = json.loads(file.read_text())
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); build the dataset again") from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, this version reads {SCHEMA}; build the dataset again")
    return manifest


class ShardSet:
    """Read access to a dataset folder by (source, position); opening reads the manifest and checks file sizes only."""

    def __init__(self, path: str | Path, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()):
        self.path = Path(path)
        self.manifest = read_manifest(path)
        known = sorted(self.manifest["sources"])
        for glob in include:
            if not any(fnmatchcase(s, glob) for s in known):
                raise ValueError(f"{path}: include {glob!r} matches no source; there are: {', '.join(known)}")
        taken = (s for s in known if any(fnmatchcase(s, g) for g in include))
        self.sources: tuple[str, ...] = tuple(s for s in taken if not any(fnmatchcase(s, g) for g in exclude))
        if not self.sources:
            raise ValueError(f"{path}: exclude {list(exclude)} leaves no source; there are: {', '.join(known)}")
        self._shards: dict[str, list[dict]] = {s: [] for s in self.sources}
        for shard in self.manifest["shards"]:
            if shard["source"] in self._shards:
                check_size(self.path / shard["name"], shard["bytes"])
                self._shards[shard["source"]].append(shard)
        self._index: dict[str, np.ndarray] = {}
        self._maps: dict[str, mmap.mmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_index": {}, "_maps": {}}  # every process maps for itself

    @property
    def fingerprint(self) -> str:
        """sha256 over the schema and the checksums of all shards of the folder."""
        return hashlib.sha256(
            json.dumps([SCHEMA, sorted((s["name"], s["sha256"]) for s in self.manifest["shards"])]).encode()
        ).hexdigest()

    def index(self, source: str) -> np.ndarray:
        """INDEX entries of a source's series, in the order they were written."""
        if source not in self._index:
            if source not in self._shards:
                raise ValueError(f"{self.path}: no source {source!r}; there are: {', '.join(self.sources)}")
            self._index[source] = np.concatenate([load_index(self.path, s) for s in self._shards[source]])
        return self._index[source]

    def values(self, source: str, i: int) -> np.ndarray:
        """float32 [V, T], NaN = missing; a read-only view of the mapped shard."""
        entry = self.index(source)[i]
        shape = int(entry["variates"]), int(entry["length"])
        mapped = self._map(source, int(entry["shard"]))
        return np.frombuffer(mapped, "<f4", shape[0] * shape[1], int(entry["offset"])).reshape(shape)

    def meta(self, source: str, i: int) -> dict[str, Any]:
        """The fields of the series besides its values."""
        entry = self.index(source)[i]
        start = int(entry["meta_offset"])
        return json.loads(self._map(source, int(entry["shard"]))[start : start + int(entry["meta_size"])])

    def series(self, source: str, i: int) -> Series:
        meta = self.meta(source, i)
        meta["variate_names"] = tuple(meta["variate_names"])
        return Series(values=self.values(source, i), **meta)

    def shard_name(self, source: str, i: int) -> str:
        """File that holds a series, for messages."""
        return self._shards[source][int(self.index(source)[i]["shard"])]["name"]

    def _map(self, source: str, shard: int) -> mmap.mmap:
        entry = self._shards[source][shard]
        name = entry["name"]
        if name not in self._maps:
            check_size(self.path / name, entry["bytes"])  # a map of a shortened file would end the process
            if len(self._maps) >= _MAPPED:
                del self._maps[next(iter(self._maps))]
            with open(self.path / name, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            read_npy_header(mapped[_BLOCK : _BLOCK + 4096], self.path / name)
            self._maps[name] = mapped
        return self._maps[name]


def check_size(file: Path, size: int) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is missing; copy the dataset again or rebuild it")
    if (found := file.stat().st_size) != size:
        raise ValueError(f"{file} has {found} bytes, the manifest says {size}; copy the dataset again or rebuild it")


def load_index(folder: Path, shard: dict) -> np.ndarray:
    file = folder / shard["name"].replace(".tar", ".index.npy")
    try:
        index = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read ({error}); copy the dataset again or rebuild it") from error
    if index.dtype != INDEX or len(index) != shard["series"]:
        raise ValueError(f"{file} does not fit its shard ({len(index)} entries for {shard['series']} series); rebuild")
    return index


def read_npy_header(data: bytes, where: Path | str) -> tuple[tuple[int, ...], int]:
    """(shape, header bytes) of a float32 .npy in C order, given its first bytes."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("npy version is not 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise ValueError(f"{where}: no .npy where one should be ({error}); rebuild the dataset") from error
    if dtype != np.float32 or fortran or len(shape) != 2:
        order = "Fortran" if fortran else "C"
        raise ValueError(
            f"{where}: values are {dtype} {shape} in {order} order, must be float32 [variates, steps] in C order; "
            "rebuild with write_shards"
        )
    return shape, stream.tell()
