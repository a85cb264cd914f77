"""Series in a Parquet file, one row each: the exchange layout of the project (and of the recorder).

Columns: item_id, source, domain, interval (seconds) or freq (pandas style code), start (ISO string or null),
variate_names (list of string), n_variates, length, target (list of float32, row-major variates x time), licence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.series import Series

# Seconds per step of the frequency codes that appear in public archives; calendar units by their mean length.
FREQ_SECONDS = {
    "L": 1e-3,
    "S": 1.0,
    "T": 60.0,
    "H": 3600.0,
    "D": 86400.0,
    "B": 86400.0,
    "W": 7 * 86400.0,
    "M": 30.4375 * 86400.0,
    "Q": 91.3125 * 86400.0,
    "A": 365.25 * 86400.0,
    "Y": 365.25 * 86400.0,
}

SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("interval", pa.float64()),
        ("start", pa.string()),
        ("variate_names", pa.list_(pa.string())),
        ("n_variates", pa.int32()),
        ("length", pa.int32()),
        ("target", pa.list_(pa.float32())),
        ("licence", pa.string()),
    ]
)


def freq_to_seconds(freq: str) -> float:
    """'5T' -> 300.0. Raises ValueError on a code it does not know ('U', unknown, counts as one second)."""
    digits = len(freq) - len(freq.lstrip("0123456789"))
    unit = freq[digits:].split("-")[0].upper().rstrip("SE") or "S"
    if freq == "U":
        return 1.0
    if unit not in FREQ_SECONDS:
        raise ValueError(f"unknown frequency code {freq!r}; known units: {', '.join(FREQ_SECONDS)}")
    return int(freq[:digits] or 1) * FREQ_SECONDS[unit]


def write(path: str | Path, series: Iterable[Series]) -> int:
    """Write series to one Parquet file (temporary name, then rename). Returns how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with pq.ParquetWriter(
        temporary,
        SCHEMA,
        compression="zstd",
        use_byte_stream_split=["target"],
        use_dictionary=["source", "domain", "licence"],
    ) as out:
        for s in series:
            row = {
                "item_id": s.item_id,
                "source": s.source,
                "domain": s.domain,
                "interval": s.interval,
                "start": s.start,
                "variate_names": list(s.variate_names),
                "n_variates": s.variates,
                "length": s.length,
                "target": s.values.ravel(),
                "licence": s.licence,
            }
            out.write_table(pa.Table.from_pylist([row], schema=SCHEMA))
            count += 1
    os.replace(temporary, path)
    return count


def read(path: str | Path) -> Iterator[Series]:
    """Yield the series of one file, a row group at a time."""
    with pq.ParquetFile(path) as file:
        columns = set(file.schema_arrow.names)
        required = {"item_id", "source", "n_variates", "length", "target"}
        if missing := required - columns:
            raise ValueError(f"{path}: missing columns {sorted(missing)}; a series file has {SCHEMA.names}")
        if not columns & {"interval", "freq"}:
            raise ValueError(f"{path}: needs a column interval (seconds) or freq (code such as 5T)")
        if not pa.types.is_floating(file.schema_arrow.field("target").type.value_type):
            raise ValueError(
                f"{path}: column target must be a list of floats, got {file.schema_arrow.field('target').type}"
            )
        for batch in file.iter_batches(batch_size=64):
            rows = batch.drop_columns(["target"]).to_pylist()
            for row, target in zip(rows, batch["target"], strict=True):
                yield _series(row, target.values.to_numpy(zero_copy_only=False), path)


def _series(row: dict[str, Any], target: np.ndarray, path: str | Path) -> Series:
    """One row without its target, and the target's values."""
    item, variates, length = str(row["item_id"]), row["n_variates"], row["length"]
    if target.size != variates * length:
        raise ValueError(f"{path}: item {item}: target has {target.size} values for {variates} x {length}")
    return Series(
        values=target.astype(np.float32).reshape(variates, length),
        interval=row["interval"] if "interval" in row else freq_to_seconds(row["freq"]),
        source=row["source"],
        item_id=item,
        domain=row.get("domain") or "general",
        start=row.get("start"),
        variate_names=tuple(row.get("variate_names") or ()),
        licence=row.get("licence") or "unknown",
    )
