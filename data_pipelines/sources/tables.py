"""Tables of stamped values (CSV, Parquet or Arrow, long or wide) as series on a regular grid.

    wide   one time column, every other column a variate of one series
    long   an item column and a time column; the other columns are the variates of each item

The step of the grid is the usual step between stamps, pulled to the round interval nearby (15.02 s -> 15 s). Stamps
are snapped to the grid: a slot nothing falls into is NaN, and of two rows in one slot the later wins. An item with
fewer than three steps takes the usual step of the table. A column without a name (a written index) is left out.

A table is read in batches. Rows of a long one that outgrow `rows.SPILL_BYTES` go to temporary files, by a hash of the
item, and are taken from there one file at a time. Items come sorted, within each such file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines import grid
from data_pipelines.series import Series
from data_pipelines.sources import batches
from data_pipelines.sources.columns import Clock, Fractions, is_list, numbers, plain
from data_pipelines.sources.rows import Rows

TIME_NAMES = ("timestamp", "datetime", "time", "date", "ts", "ds")
ITEM_NAMES = ("item_id", "item", "unique_id", "series_id", "id")


def is_series_file(path: str | Path) -> bool:
    """Whether a Parquet file has the series layout (a list column `target`), not a table's."""
    schema = pq.read_schema(path)
    index = schema.get_field_index("target")
    return index >= 0 and is_list(schema.field(index).type)


def read(
    path: str | Path,
    source: str,
    counts: Counter[str] | None = None,
    domain: str = "observability",
    licence: str = "unknown",
    time: str = "",
    item: str = "",
) -> Iterator[Series]:
    """The series of one CSV or Parquet table. `time` and `item` name the columns where their names are not usual ones.

    counts gains what the grid changed, in rows: duplicate, out_of_order; in slots: gap. Errors name file and column.
    """
    where = str(path)
    reader = batches.parquet(where) if where.endswith(".parquet") else batches.csv_table(where)
    yield from from_reader(reader, source, stem(where), counts, domain, licence, time, item)


def stem(where: str) -> str:
    """'a/web.csv.gz' -> 'web': what the items of a file are named after."""
    return where.rstrip("/").split("/")[-1].split(".")[0]


def from_frame(
    frame: pd.DataFrame,
    source: str,
    name: str,
    counts: Counter[str] | None = None,
    domain: str = "general",
    licence: str = "unknown",
    time: str = "",
    item: str = "",
    where: str = "table",
) -> Iterator[Series]:
    """`read` for a table in memory. Items are called `name`, or `name`/item in a long table; `where` begins errors."""
    columns = {str(c): _column(frame[c]) for c in frame.columns}
    table = pa.table(columns)
    reader = batches.Reader(where, table.schema, lambda: iter(table.to_batches()), size=table.nbytes)
    yield from from_reader(reader, source, name, counts, domain, licence, time, item)


def from_reader(
    reader: batches.Reader,
    source: str,
    name: str,
    counts: Counter[str] | None = None,
    domain: str = "general",
    licence: str = "unknown",
    time: str = "",
    item: str = "",
) -> Iterator[Series]:
    """`read` for the batches of any file."""
    counts = Counter() if counts is None else counts
    layout = _Layout.of(reader, time, item)
    clock = Clock(f"{reader.where}: column {layout.time!r}")
    try:
        rows = _collect(reader, layout, clock)
    except Fractions:  # whole numbers first, then seconds with decimals: read again as those
        clock = Clock(clock.where, fractions=True)
        rows = _collect(reader, layout, clock)
    with closing(rows):
        common: float | None = None  # found only where an item needs it: it costs another pass
        for key, stamps, values in rows.items():
            stamps = clock.decode(stamps)
            item_id = f"{name}/{key}" if layout.item else name
            steps = grid.steps(stamps)
            interval = grid.usual_interval(steps) if len(steps) >= 3 else None
            if interval is None:
                interval = common = common or _common(rows, clock)
            fitted = grid.to_grid(stamps, values, interval, counts, f"{reader.where}: {item_id}")
            start = pd.Timestamp(stamps.min()).isoformat()
            yield Series(fitted, interval, source, item_id, domain, start, layout.variates, licence)


@dataclass(frozen=True)
class _Layout:
    """Which column is what; item is '' in a wide table."""

    time: str
    item: str
    variates: tuple[str, ...]

    @classmethod
    def of(cls, reader: batches.Reader, time: str, item: str) -> _Layout:
        names, where = reader.schema.names, reader.where
        time = find(names, time, TIME_NAMES, where, "time")
        item = find(names, item, ITEM_NAMES, where, "item")
        if not time:
            raise ValueError(
                f"{where}: no time column among {names}; call it {TIME_NAMES[0]!r} or name it (source.time=)"
            )
        return cls(time, item, tuple(n for n in names if n and n not in (time, item)))


def find(names: list[str], asked: str, usual: tuple[str, ...], where: str, role: str) -> str:
    """Name of the column with this role; '' where there is none of the usual names."""
    if asked:
        if asked not in names:
            raise ValueError(f"{where}: no {role} column {asked!r}; there are {names}")
        return asked
    by_lower = {n.lower(): n for n in reversed(names)}
    return next((by_lower[n] for n in usual if n in by_lower), "")


def _collect(reader: batches.Reader, layout: _Layout, clock: Clock) -> Rows:
    """All rows, in memory or in temporary files. ValueError names the column and the row (from 1, without header)."""
    where = reader.where
    rows = Rows(clock.dtype, len(layout.variates), reader.size)
    first = 0
    try:
        for batch in reader.open():
            if not batch.num_rows:
                continue
            keys = _keys(batch, layout.item, where, first)
            stamps = clock.encode(plain(batch.column(layout.time)), first)
            values = np.empty((batch.num_rows, len(layout.variates)), dtype=np.float32)
            for index, variate in enumerate(layout.variates):
                values[:, index] = numbers(plain(batch.column(variate)), f"{where}: column {variate!r}", first)
            rows.add(keys, stamps, values)
            first += batch.num_rows
        if not first or not layout.variates:
            raise ValueError(
                f"{where}: {'no rows; remove the file' if not first else f'no value column beside {layout.time!r}'}"
            )
    except BaseException:
        rows.close()
        raise
    return rows


def _keys(batch: pa.RecordBatch, item: str, where: str, first: int) -> pa.DictionaryArray | None:
    """The items of a batch's rows; None in a wide table."""
    if not item:
        return None
    column = plain(batch.column(item))
    if column.null_count:
        row = first + 1 + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise ValueError(f"{where}: column {item!r}: row {row} names no item")
    if is_list(column.type) or pa.types.is_struct(column.type):
        raise ValueError(f"{where}: column {item!r} holds {column.type}, which names no item (source.item=)")
    return pc.cast(column, pa.string()).dictionary_encode()


def _common(rows: Rows, clock: Clock) -> float:
    """The step of the table: the median of its items' steps, an item weighing as many as it has."""
    found: list[float] = []
    weights: list[int] = []
    for _, stamps, _ in rows.items():
        steps = grid.steps(clock.decode(stamps))
        interval = grid.usual_interval(steps)
        if interval is not None:
            found.append(interval)
            weights.append(len(steps))
    if not found:
        raise ValueError(f"{clock.where}: no item has two different time stamps")
    order = np.argsort(found, kind="stable")
    total = np.cumsum(np.array(weights)[order])
    return found[order[np.searchsorted(total, total[-1] / 2)]]


def _column(column: pd.Series) -> pa.Array:
    """A pandas column; objects of several types become text."""
    try:
        found = pa.Array.from_pandas(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        found = pa.array([None if missing else str(v) for v, missing in zip(column, column.isna(), strict=True)])
    return found
