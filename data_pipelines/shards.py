"""Datasets on disk: a folder of WebDataset tars, an index of offsets beside each, and one manifest.json.

    manifest.json            counts, histograms, licences, checksums, the config that made it
    {source}.{bits}.tar      samples KEY.npy (float32 [V, T]) + KEY.json (the other fields of a Series)
    {source}.{bits}.npy      one INDEX entry a series, so that values are read without the tar library
    index.npy                all of those, shard after shard: one file to open for a corpus of many shards

A shard holds the series of one source whose names hash to its first bits (assemble.py), in the order of that hash. So
the bytes are a function of the set of series: no order of arrival, no times, no user names.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.series import Series
from data_pipelines.store import Missing, Store, is_url

SCHEMA = 2
MANIFEST = "manifest.json"
INDEX_FILE = "index.npy"
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
        ("domain", "i1"),  # position in series.DOMAINS
    ]
)


def index_name(shard: str) -> str:
    """The file with the INDEX entries of a shard."""
    return shard.removesuffix(".tar") + ".index.npy"


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


def add_counts(counts: dict, other: dict) -> None:
    """Add what `other` counted."""
    for key, value in other.items():
        if isinstance(value, dict):
            for k, n in value.items():
                counts[key][k] = counts[key].get(k, 0) + n
        else:
            counts[key] += value


def manifest_sha256(manifest: dict) -> str:
    """Checksum of all but the entry that holds it."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: str | Path) -> dict:
    """The manifest of a dataset folder or URL; ValueError where there is none or it is of another schema."""
    store = Store(path)
    if not is_url(path) and not Path(path).is_dir():
        raise ValueError(f"{path} is no folder; build a dataset there with scripts/build_shards.py")
    file = store.where(MANIFEST)
    try:
        manifest = json.loads(store.load(MANIFEST))
        schema = manifest["schema"]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); build the dataset again") from error
    except Missing as error:
        raise ValueError(
            f"{path} holds no {MANIFEST}, so it is no dataset; build one with scripts/build_shards.py"
        ) from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, this version reads {SCHEMA}; build the dataset again")
    return manifest


class ShardSet:
    """Read access to a dataset folder or URL by (source, position); opening reads the manifest and the index and
    checks file sizes only.

    bad: shards that are missing or have another size. Opening raises on them, unless `tolerate` keeps them there.
    """

    def __init__(
        self, path: str | Path, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), tolerate: bool = False
    ):
        self.path = path if is_url(path) else Path(path)
        self.store = Store(path)
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
        spans: dict[str, list[int]] = {}
        at = 0
        for shard in self.manifest["shards"]:
            if shard["source"] in self._shards:
                self._shards[shard["source"]].append(shard)
                spans.setdefault(shard["source"], [at, at])[1] = at + shard["series"]
            at += shard["series"]
        self.bad = check_sizes(self.store, [s for of in self._shards.values() for s in of])
        if self.bad and not tolerate:
            raise ValueError(next(iter(self.bad.values())))
        self._names = {source: [shard["name"] for shard in of] for source, of in self._shards.items()}
        self._spans, self._total = spans, at
        self._index = self._open_index()

    def _open_index(self) -> dict[str, np.ndarray]:
        index = self.store.array(INDEX_FILE)
        if index.dtype != INDEX or len(index) != self._total:
            raise ValueError(f"{self.store.where(INDEX_FILE)} does not fit the manifest; rebuild the dataset")
        index = index.view(np.ndarray)  # still mapped; entries of a memmap are slow to reach
        return {source: index[first:last] for source, (first, last) in self._spans.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({} if self.store.remote else {"_index": {}})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._index = self._index or self._open_index()  # every process maps for itself

    @property
    def fingerprint(self) -> str:
        """sha256 over the schema and the checksums of all shards of the folder."""
        return hashlib.sha256(
            json.dumps([SCHEMA, sorted((s["name"], s["sha256"]) for s in self.manifest["shards"])]).encode()
        ).hexdigest()

    def index(self, source: str) -> np.ndarray:
        """INDEX entries of a source's series, in the order of its shards."""
        if source not in self._index:
            raise ValueError(f"{self.path}: no source {source!r}; there are: {', '.join(self.sources)}")
        return self._index[source]

    def _entry(self, source: str, i: int) -> dict[str, Any]:
        return dict(zip(INDEX.names, self.index(source)[i].item(), strict=True))  # type: ignore[arg-type]

    def values(self, source: str, i: int) -> np.ndarray:
        """float32 [V, T], NaN = missing. Read-only and mapped where it lies on a disk, so that a part costs a part."""
        entry = self._entry(source, i)
        shape = entry["variates"], entry["length"]
        return self.store.floats(self._names[source][entry["shard"]], entry["offset"], shape)

    def pieces(
        self, source: str, series: Sequence[int], starts: Sequence[int], outs: Sequence[np.ndarray]
    ) -> list[tuple[str, int, np.ndarray]]:
        """What Store.read_into needs to fill each of outs [V, steps] with the steps of a series from a start on.

        The rows of outs must be contiguous. ValueError where a shard is known to be bad.
        """
        entries, names = self.index(source)[series], self._names[source]
        columns = [entries[name].tolist() for name in ("shard", "offset", "length")]
        found: list[tuple[str, int, np.ndarray]] = []
        for shard, offset, length, start, out in zip(*columns, starts, outs, strict=True):
            name = names[shard]
            if self.bad and (problem := self.bad.get(name)):
                raise ValueError(problem)
            if len(out) == 1 or (out.shape[1] == length and out.flags.c_contiguous):
                found.append((name, offset + 4 * start, out))
            else:
                first = offset + 4 * start
                found += [(name, first + 4 * length * v, row) for v, row in enumerate(out)]
        return found

    def entries(self, source: str, series: Sequence[int]) -> np.ndarray:
        """INDEX entries of some series of a source."""
        return self.index(source)[list(series)]

    def read_into(self, source: str, series: Sequence[int], starts: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Fill each of outs [V, steps] with the steps of a series from a start on; its rows must be contiguous.

        ValueError or OSError where a shard is bad or cannot be read.
        """
        self.store.read_into(self.pieces(source, series, starts, outs))

    def verify(self) -> dict[str, str]:
        """Read every byte of the shards of these sources; returns and remembers in `bad` those that have changed."""
        for shard in (s for of in self._shards.values() for s in of):
            if shard["name"] not in self.bad and (found := self.store.sha256(shard["name"])) != shard["sha256"]:
                where = self.store.where(shard["name"])
                what = "cannot be read" if found is None else "has another checksum than the manifest says"
                self.bad[shard["name"]] = f"{where} {what}; copy the dataset again or rebuild it"
        return self.bad

    def meta(self, source: str, i: int) -> dict[str, Any]:
        """The fields of the series besides its values."""
        entry = self._entry(source, i)
        return json.loads(self.store.read(self.shard_name(source, i), entry["meta_offset"], entry["meta_size"]))

    def series(self, source: str, i: int) -> Series:
        meta = self.meta(source, i)
        meta["variate_names"] = tuple(meta["variate_names"])
        return Series(values=self.values(source, i), **meta)

    def where(self, source: str, i: int) -> str:
        """Path or URL of the file that holds a series."""
        return self.store.where(self.shard_name(source, i))

    def shard_name(self, source: str, i: int) -> str:
        """File that holds a series."""
        return self._names[source][int(self.index(source)[i]["shard"])]


def check_sizes(store: Store, shards: Sequence[dict]) -> dict[str, str]:
    """Shard -> what is wrong with it, for those that are missing or do not have the size the manifest says."""
    bad = {}
    for shard, size in zip(shards, store.sizes([s["name"] for s in shards]), strict=True):
        file = store.where(shard["name"])
        if size is None:
            bad[shard["name"]] = f"{file} is missing; copy the dataset again or rebuild it"
        elif size != shard["bytes"]:
            expected = f"{file} has {size} bytes, the manifest says {shard['bytes']}"
            bad[shard["name"]] = f"{expected}; copy the dataset again or rebuild it"
    return bad


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
