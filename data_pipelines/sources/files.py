"""Files of series on a disk or behind a URL: tables, the project's own layout, and records of public archives.

What a file holds is told by its columns (see tables, series_parquet and records). The layouts of records and series
are divided into units by row groups or record batches; a table, whose items may be anywhere in it, is one unit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import grid, store
from data_pipelines.series import Series
from data_pipelines.shards import MANIFEST
from data_pipelines.sources import Unit, batches, records, series_parquet, tables

SUFFIXES = {
    "parquet": (".parquet",),
    "csv": (".csv", *(f".csv{packed}" for packed in batches.COMPRESSED)),
    "arrow": (".arrow",),
    "jsonl": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
}
UNIT_BYTES = 64 * 2**20
"""About what a unit of a large file holds."""
SPLITS = ("train", "test", "validation", "val")
"""Folders that name no dataset but a part of one: GluonTS writes NAME/train/data.json.gz."""
_DESCRIPTIONS = (
    MANIFEST,
    "metadata.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)
_RANGE = re.compile(r"#(\d+)-(\d+)$")
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class FileSource:
    """All files of one kind at a path, as a `Source`.

    A file's source is `name`, or the folder the file lies in; of dataset/15T (GIFT-Eval) dataset_15T, of dataset/train
    dataset. With a `name`, items carry the folder below `path` in front. The series layout has names of its own.
    """

    path: str
    """A file, a folder (read with what is below it) or an fsspec URL (s3://, gs://, hf://, http://, memory:// ...)."""
    kind: str
    """parquet, csv, arrow (Hugging Face datasets and Arrow IPC) or jsonl (GluonTS JSON lines)."""
    name: str = ""
    domain: str = "observability"
    licence: str = "unknown"
    time: str = ""
    """Time column, where it has no usual name."""
    item: str = ""
    """Item column, where it has no usual name."""
    freq: str = ""
    """Step of records that say none: a pandas code or seconds."""

    def __post_init__(self) -> None:
        if self.kind not in SUFFIXES:
            raise ValueError(f"source={self.kind} is no kind of file; choose from {', '.join(SUFFIXES)}")
        if self.freq:
            try:
                grid.seconds(self.freq)
            except ValueError as error:
                raise ValueError(f"source.freq={self.freq}: {error}") from error

    def files(self) -> list[Unit]:
        """A unit for every file, sorted by path. ValueError where the path does not exist or holds none."""
        found = self.found()
        if not found:
            raise ValueError(f"source.path={self.path} holds no {self.kind} files (*{', *'.join(SUFFIXES[self.kind])})")
        return found

    def found(self) -> list[Unit]:
        """`files`, be there any or none."""
        single, listed = _list(self.path)
        if single:
            return listed
        ours = {posixpath.dirname(u.key) for u in listed if posixpath.basename(u.key) == "evaluation.json"} - {""}
        found = [u for u in listed if u.key.endswith(SUFFIXES[self.kind]) and not _skipped(u.key, ours)]
        return sorted(found, key=lambda u: u.key.split("/"))

    def units(self) -> list[Unit]:
        """See `Source`. Opens only the files larger than UNIT_BYTES, for their footers."""
        return [unit for file in self.files() for unit in self._divided(file)]

    def _divided(self, file: Unit) -> list[Unit]:
        if file.size <= UNIT_BYTES or self.kind not in ("parquet", "arrow"):
            return [file]
        where = self.where(file)
        if self.kind == "parquet":
            schema, parts = batches.parquet_ranges(where, UNIT_BYTES)
        else:
            schema, count = batches.arrow_file(where)
            step = max(1, count * UNIT_BYTES // file.size)
            starts = range(0, count, step)
            parts = [(range(a, min(a + step, count)), file.size // len(starts)) for a in starts]
        if len(parts) < 2 or records.layout(schema, self.time) == "table":
            return [file]
        return [Unit(f"{file.key}#{p.start}-{p.stop}", size, file.version) for p, size in parts]

    def where(self, unit: Unit) -> str:
        """Path or URL of the file a unit is from."""
        key = _RANGE.sub("", unit.key)
        single = posixpath.basename(self.path.rstrip("/")) == key and not Path(self.path, key).exists()
        return self.path if single else store.join(self.path.rstrip("/"), key)

    def read(self, unit: Unit, counts: Counter[str]) -> Iterator[Series]:
        """See `Source`. ValueErrors name the file and the row or item."""
        where = self.where(unit)
        match = _RANGE.search(unit.key)
        part = range(int(match[1]), int(match[2])) if match else None
        prefix = posixpath.dirname(unit.key) if self.name else ""
        own, series = self._series(where, part, counts)
        for s in series:
            yield s if own or not prefix else dataclasses.replace(s, item_id=f"{prefix}/{s.item_id}")

    def _series(self, where: str, part: range | None, counts: Counter[str]) -> tuple[bool, Iterator[Series]]:
        """(whether the series name themselves, they)."""
        folder = _folders(where)
        labels = records.Labels(self.name or _dataset(folder), self.domain, self.licence, self.freq, self.item)
        if self.kind == "jsonl":
            freq = labels.freq or _metadata_freq(where)
            return False, records.json_lines(where, dataclasses.replace(labels, freq=freq))
        if self.kind == "csv":
            reader, layout = batches.csv_table(where), "table"
        else:
            reader = batches.parquet(where, part) if self.kind == "parquet" else batches.arrow(where, part)
            layout = records.layout(reader.schema, self.time)
        if layout == "series":
            return True, series_parquet.from_reader(reader)
        if layout == "gluonts":
            return False, records.gluonts(reader, labels)
        if layout == "chronos":
            return False, records.chronos(reader, labels, self.time, counts)
        source, stem = self.name or (folder[-1] if folder else "tables"), tables.stem(where)
        return False, tables.from_reader(reader, source, stem, counts, self.domain, self.licence, self.time, self.item)


def _list(path: str) -> tuple[bool, list[Unit]]:
    """(whether the path is one file, every file at or below it with its path below `path` as key)."""
    if store.is_url(path):
        fs, root = store.filesystem(path)
        try:
            with store.reaching(path), batches.reading(path, "files"):
                if fs.isfile(root):
                    return True, [_remote(fs, root, posixpath.basename(root.rstrip("/")), fs.info(root))]
                entries = fs.find(root, detail=True)
        except ValueError as error:
            raise ValueError(f"source.path={error}") from error
        if not entries:
            raise ValueError(f"source.path={path} does not exist or is empty; give a folder of files, or one file")
        return False, [_remote(fs, name, posixpath.relpath(name, root), info) for name, info in entries.items()]
    local = Path(path)
    if local.is_file():
        return True, [_local(local, local.name)]
    if not local.is_dir():
        raise ValueError(f"source.path={path} does not exist; give a folder of files, or one file")
    return False, [_local(f, f.relative_to(local).as_posix()) for f in local.rglob("*") if f.is_file()]


def _local(file: Path, key: str) -> Unit:
    status = file.stat()
    return Unit(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _remote(fs: Any, name: str, key: str, info: dict[str, Any]) -> Unit:
    size = info.get("size")
    if size is None:  # plain web servers list names only
        info = fs.info(name)
        size = info.get("size") or 0
    tag = next((str(info[tag]).strip('"') for tag in _TAGS if info.get(tag)), "")
    return Unit(key, int(size), f"{size}-{tag}")


def _skipped(key: str, ours: set[str]) -> bool:
    """Hidden files, what an evaluation left (a folder with evaluation.json, a cache DIR.eval), and descriptions."""
    *folders, name = key.split("/")
    if any(part.startswith(".") for part in (*folders, name)) or any(f.endswith(".eval") for f in folders):
        return True
    # Hugging Face datasets leave caches, which are copies, beside the data; GIFT-Eval was uploaded with some of them
    cached = name.startswith("cache-") and name.endswith(".arrow")
    return cached or name in _DESCRIPTIONS or any(key.startswith(f"{folder}/") for folder in ours)


def _folders(where: str) -> list[str]:
    """Names of the folders a file lies in, from the outermost; of a URL those behind its protocol."""
    plain = where.split("://", 1)[1] if store.is_url(where) else os.path.abspath(where)
    return [part for part in posixpath.dirname(plain).split("/") if part]


def _dataset(folders: list[str]) -> str:
    """Name of the dataset whose records lie in a folder."""
    while len(folders) > 1 and folders[-1] in SPLITS:
        folders = folders[:-1]
    if not folders:
        return "records"
    if len(folders) > 1 and re.fullmatch(r"\d*(?:[A-Z]+|min|ms|s|h)(-[A-Z]+)?", folders[-1]):
        try:
            grid.freq_to_seconds(folders[-1])
        except ValueError:
            return folders[-1]
        return f"{folders[-2]}_{folders[-1]}"
    return folders[-1]


def _metadata_freq(where: str) -> str:
    """freq of the metadata.json beside a file, or one folder up; '' without one."""
    folder = posixpath.dirname(where if store.is_url(where) else os.path.abspath(where))
    for place in (folder, posixpath.dirname(folder)):
        file = posixpath.join(place, "metadata.json")
        try:
            with batches.open_file(file) as stream:
                found = json.load(stream)
        except OSError:
            continue
        except ValueError as error:
            raise ValueError(f"{file}: cannot be read as JSON ({error})") from error
        if isinstance(found, dict) and found.get("freq"):
            return str(found["freq"])
    return ""
