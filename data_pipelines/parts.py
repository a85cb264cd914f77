"""Parts: what one unit of a source yields, cleaned and ready to be copied into shards.

    data           the samples one after another, as they stand in a tar
    rows           one ROW a series
    groups         one GROUP a series before wide ones were split: what near duplicates are told by
    facts.json     unit, names of sources and licences
    quality.json   what quality rules did, with pictures: too much to keep for every part

Parts are made by any number of processes and in any order; shards are a function of what all parts hold together.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_pipelines.series import DOMAINS, Series
from data_pipelines.store import Store
from data_pipelines.windows import hashes, sketch

ROW = np.dtype(
    [
        ("high", "<u8"),  # the name's hash: places the series in a shard, and orders it there
        ("low", "<u8"),
        ("source", "<i4"),  # number in facts
        ("licence", "<i4"),
        ("domain", "i1"),
        ("group", "<i8"),
        ("offset", "<i8"),  # of the sample in data
        ("size", "<i8"),
        ("values", "<i8"),  # of the first float32 in the sample
        ("meta", "<i8"),  # of the json text in the sample
        ("meta_size", "<i4"),
        ("variates", "<i4"),
        ("length", "<i8"),
        ("points", "<i8"),
        ("interval", "<f8"),
    ]
)
SKETCH = 32
GROUP = np.dtype([("high", "<u8"), ("low", "<u8"), ("first", "<i8"), ("count", "<i4"), ("sketch", "<u8", SKETCH)])
BLOCK = tarfile.BLOCKSIZE


def name_hash(source: str, item: str) -> tuple[int, int]:
    """128 bits that stand for a series' name."""
    digest = hashlib.sha256(json.dumps([source, item]).encode()).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def stem(source: str) -> str:
    """File name of a source: itself where that is safe, else its safe letters and a hash that keeps it unique."""
    safe = re.sub(r"[^a-zA-Z0-9_-]+", "_", source)[:55]
    return safe if safe == source else f"{safe}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


class PartWriter:
    """Writes one part; nothing stands at `folder` before it is whole. Use as a context manager."""

    def __init__(self, folder: Path, unit: str = "", similar: bool = False):
        self.folder, self.similar = folder, similar
        # a name of its own: a worker of a killed build, or one that Ray took for dead, may still write the same part
        self._partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
        self._partial.mkdir(parents=True)
        self._data = open(self._partial / "data", "wb")  # noqa: SIM115  closed by __exit__
        self._rows: list[tuple] = []
        self._groups: list[tuple] = []
        self._sources: dict[str, int] = {}
        self._licences: dict[str, int] = {}
        self.facts: dict[str, Any] = {"unit": unit}
        self.quality = ""

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        if error is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        np.array(self._rows, ROW).tofile(self._partial / "rows")
        np.array(self._groups, GROUP).tofile(self._partial / "groups")
        self.facts |= {"sources": list(self._sources), "licences": list(self._licences)}
        (self._partial / "facts.json").write_text(json.dumps(self.facts))
        (self._partial / "quality.json").write_text(self.quality)
        try:
            os.replace(self._partial, self.folder)
        except OSError:
            shutil.rmtree(self._partial, ignore_errors=True)
            if not self.folder.exists():
                raise

    def add(self, group: Series, pieces: Iterable[Series] | None = None) -> None:
        """Append a series, in `pieces` where it was too wide for a training row."""
        first, high_low = len(self._rows), name_hash(group.source, group.item_id)
        for series in [group] if pieces is None else pieces:
            self._add(series)
        raw = hashes(group.values)[0] if self.similar else np.empty(0, np.uint64)
        self._groups.append((*high_low, first, len(self._rows) - first, sketch(raw, SKETCH)))

    def _add(self, s: Series) -> None:
        high, low = name_hash(s.source, s.item_id)
        key = f"{stem(s.source)}-{high:016x}{low >> 32:08x}"
        values = np.ascontiguousarray(s.values)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
        text = json.dumps(_meta(s), sort_keys=True).encode()
        offset = self._data.tell()
        npy = self._member(f"{key}.npy", header.getvalue(), values.data.cast("B"))
        self._member(f"{key}.json", text)
        self._rows.append((
            high, low, self._sources.setdefault(s.source, len(self._sources)),
            self._licences.setdefault(s.licence, len(self._licences)), DOMAINS.index(s.domain), len(self._groups),
            offset, self._data.tell() - offset, BLOCK + header.tell(), npy + BLOCK, len(text),
            *values.shape, int(np.isfinite(values).sum()), s.interval,
        ))  # fmt: skip

    def _member(self, name: str, *parts: bytes | memoryview) -> int:
        """Write one tar member with neutral owner and time, padded to whole blocks; returns its bytes."""
        info = tarfile.TarInfo(name)
        info.size = sum(map(len, parts))
        return sum(map(self._data.write, (info.tobuf(tarfile.USTAR_FORMAT), *parts, bytes(-info.size % BLOCK))))


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


class Part:
    """Read access to a finished part. Keeps no file open: a build may have more parts than a process may open files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())

    @property
    def rows(self) -> np.ndarray:
        return self._mapped("rows", ROW)

    @property
    def groups(self) -> np.ndarray:
        return self._mapped("groups", GROUP)

    @property
    def quality(self) -> str:
        return (self.folder / "quality.json").read_text()

    def _mapped(self, name: str, dtype: np.dtype) -> np.ndarray:
        file = self.folder / name  # an empty file cannot be mapped
        return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)

    def group(self, number: int) -> Series:
        """A series as it was before it was split."""
        entry, rows = self.groups[number], self.rows
        values: list[np.ndarray] = []
        meta: dict[str, Any] = {}
        for row in rows[int(entry["first"]) : int(entry["first"] + entry["count"])]:
            data = Store(self.folder).read("data", int(row["offset"]), int(row["size"]))
            shape = int(row["variates"]), int(row["length"])
            values.append(np.frombuffer(data, "<f4", shape[0] * shape[1], int(row["values"])).reshape(shape))
            found = json.loads(data[int(row["meta"]) : int(row["meta"]) + int(row["meta_size"])])
            names = meta.get("variate_names", []) + found["variate_names"]
            meta = found | {"variate_names": names}
        if len(values) > 1:
            meta["item_id"] = meta["item_id"].rpartition("/part")[0]
        meta["variate_names"] = tuple(meta["variate_names"])
        return Series(values=np.concatenate(values), **meta)
