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

from data_pipelines.grid import FREQ_SECONDS, freq_to_seconds
from data_pipelines.series import Series
from data_pipelines.sources import batches

__all__ = ["FREQ_SECONDS", "SCHEMA", "freq_to_seconds", "from_reader", "read", "write"]

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


def read(path: str | Path, groups: range | None = None) -> Iterator[Series]:
    """Yield the series of one file (or URL), or of some of its row groups. ValueError names the file and the item."""
    yield from from_reader(batches.parquet(str(path), groups))


def from_reader(reader: batches.Reader) -> Iterator[Series]:
    """Series of Arrow batches in this layout."""
    where, schema = reader.where, reader.schema
    columns = set(schema.names)
    required = {"item_id", "source", "n_variates", "length", "target"}
    if missing := required - columns:
        raise ValueError(f"{where}: missing columns {sorted(missing)}; a series file has {SCHEMA.names}")
    if not columns & {"interval", "freq"}:
        raise ValueError(f"{where}: needs a column interval (seconds) or freq (code such as 5T)")
    target = schema.field("target").type
    if not (pa.types.is_list(target) or pa.types.is_large_list(target)) or not pa.types.is_floating(target.value_type):
        raise ValueError(f"{where}: column target must be a list of floats, got {target}")
    for batch in reader.open():
        rows = batch.drop_columns(["target"]).to_pylist()
        for row, values in zip(rows, batch["target"], strict=True):
            yield _series(row, values, where)


def _series(row: dict[str, Any], target: pa.ListScalar, where: str) -> Series:
    """One row without its target, and the target's values."""
    item, variates, length = str(row["item_id"]), row["n_variates"], row["length"]
    if not target.is_valid or None in (variates, length):
        raise ValueError(f"{where}: item {item}: target, n_variates or length is null")
    values = target.values.to_numpy(zero_copy_only=False)
    if values.size != variates * length:
        raise ValueError(f"{where}: item {item}: target has {values.size} values for {variates} x {length}")
    try:
        return Series(
            values=values.astype(np.float32).reshape(variates, length),
            interval=row["interval"] if row.get("interval") is not None else freq_to_seconds(row.get("freq") or ""),
            source=row["source"],
            item_id=item,
            domain=row.get("domain") or "general",
            start=row.get("start"),
            variate_names=tuple(row.get("variate_names") or ()),
            licence=row.get("licence") or "unknown",
        )
    except ValueError as error:
        raise ValueError(f"{where}: item {item}: {error}") from error
