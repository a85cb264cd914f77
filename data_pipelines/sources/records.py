"""Records, a series a row, as public archives keep them in Arrow, Parquet or JSON lines.

    GluonTS   item_id, start (text or time stamp), freq (pandas code, old or new spelling), target: a list, or a list
              of lists [V][T]; past_feat_dynamic_real [F][T] becomes further variates feat0, feat1 ... Other columns
              are left out. GIFT-Eval, its pretraining corpus, LOTSA and BOOM are in this layout.
    Chronos   id, timestamp (a list of time stamps), then lists of numbers, each a variate; columns of text and of
              single values are left out. Stamps go to a regular grid by the rule of tables.

A record without an item id is named by its file and row (from 0). NaN, null and, in JSON, "NaN" are missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from data_pipelines import grid
from data_pipelines.series import Series
from data_pipelines.sources import batches
from data_pipelines.sources.columns import is_list, is_number, plain, storage
from data_pipelines.sources.tables import ITEM_NAMES, TIME_NAMES, find, stem

FEATURES = "past_feat_dynamic_real"
SHAPE = "target._np_shape"  # GluonTS' Arrow writer flattens a multivariate target and puts its shape here


@dataclass(frozen=True)
class Labels:
    """What records do not say themselves. freq: a code or seconds, for records without one; item: the id's column."""

    source: str
    domain: str = "general"
    licence: str = "unknown"
    freq: str = ""
    item: str = ""


def layout(schema: pa.Schema, time: str = "") -> str:
    """'series' (see series_parquet), 'gluonts', 'chronos' or 'table', from the columns alone."""
    kinds = {field.name: storage(field.type) for field in schema}
    if _stamp_lists(kinds, time):
        return "chronos"
    if "target" in kinds and is_list(kinds["target"]):
        return "series" if kinds.keys() & {"n_variates", "length"} else "gluonts"
    # a target of another type is an error worth its own message
    named = {name.lower() for name in kinds}
    return "gluonts" if kinds.keys() >= {"target", "start"} and not named & {time, *TIME_NAMES} else "table"


def _stamp_lists(kinds: dict[str, pa.DataType], time: str) -> str:
    """Name of the column that holds a list of time stamps a row; '' without one."""
    for name in (time,) if time else TIME_NAMES:
        if name in kinds and is_list(kinds[name]) and pa.types.is_temporal(storage(kinds[name]).value_type):
            return name
    return ""


def gluonts(reader: batches.Reader, labels: Labels) -> Iterator[Series]:
    """Series of Arrow batches in the GluonTS layout. ValueError names the file and the item."""
    names, where = reader.schema.names, reader.where
    kind = storage(reader.schema.field("target").type)
    inner = storage(kind.value_type) if is_list(kind) else kind
    if not is_list(kind) or not is_number(storage(inner.value_type) if is_list(inner) else inner):
        raise ValueError(f"{where}: column target is {kind}; it must be a list of numbers, or a list of such lists")
    if "freq" not in names and not labels.freq:
        raise ValueError(f"{where}: no column freq; name the step of its records (source.freq=5min)")
    item = find(names, labels.item, ITEM_NAMES, where, "item")
    small = [n for n in {item, "start", "freq", SHAPE} if n in names]
    for row, batch, index in _rows(reader, bool(item)):
        record = {name: batch[name][index].as_py() for name in small}
        name = _name(record.get(item), where, row)
        try:
            target = _matrix(batch["target"][index])
            if target is not None and record.get(SHAPE):
                target = target.reshape(record[SHAPE])
            features = _matrix(batch[FEATURES][index]) if FEATURES in names else None
            yield _record(target, features, record.get("start"), record.get("freq"), name, labels)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: item {name}: {error}") from error


def json_lines(where: str, labels: Labels) -> Iterator[Series]:
    """Series of a file of GluonTS JSON lines (plain or compressed): an object with `target` and `start` a line."""
    with batches.reading(where, "JSON lines"), batches.text(where) as stream:
        lines = (line for line in stream if line.strip())
        for row, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: record {row} is no JSON ({error})") from error
            if not isinstance(record, dict) or "target" not in record:
                raise ValueError(f"{where}: record {row} is no object with a target; GluonTS has one object a line")
            key = labels.item or next((n for n in ITEM_NAMES if n in record), "")
            name = _name(record.get(key), where, row)
            try:
                with np.errstate(over="ignore"):  # beyond float32 becomes inf, which quality counts as impossible
                    target = np.array(record["target"], dtype=np.float32)
                    given = record.get(FEATURES)
                    features = None if given is None else np.array(given, dtype=np.float32)
                yield _record(target, features, record.get("start"), record.get("freq"), name, labels)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{where}: item {name}: {error}") from error


def chronos(reader: batches.Reader, labels: Labels, time: str, counts: Counter[str]) -> Iterator[Series]:
    """Series of Arrow batches in the Chronos layout; counts gains what the grid changed.

    The step is each item's own; one with a single stamp takes that of the last item before it, or `labels.freq`.
    """
    where = reader.where
    kinds = {field.name: storage(field.type) for field in reader.schema}
    time = _stamp_lists(kinds, time)
    item = find(list(kinds), labels.item, ITEM_NAMES, where, "item")
    variates = tuple(
        n for n, k in kinds.items() if n not in (time, item) and is_list(k) and is_number(storage(k.value_type))
    )
    if not variates:
        raise ValueError(f"{where}: no column holds a list of numbers beside {time!r}; there are {list(kinds)}")
    usual = grid.seconds(labels.freq) if labels.freq else None
    for row, batch, index in _rows(reader, bool(item)):
        name = _name(batch[item][index].as_py() if item else None, where, row)
        stamps = _elements(batch[time][index])
        if stamps is None or not len(stamps) or np.isnat(stamps).any():
            raise ValueError(f"{where}: item {name}: {time} is empty or has missing time stamps")
        values = np.full((len(stamps), len(variates)), np.nan, dtype=np.float32)
        for v, variate in enumerate(variates):
            column = _elements(batch[variate][index])
            if column is not None and len(column) != len(stamps):
                raise ValueError(f"{where}: item {name}: {variate} has {len(column)} values for {len(stamps)} stamps")
            if column is not None:
                with np.errstate(over="ignore"):
                    values[:, v] = column
        steps = grid.steps(stamps)
        # of one or two steps none is usual: the longer is a gap
        usual = grid.usual_interval(steps if len(steps) >= 3 else np.sort(steps)[:1]) or usual
        if usual is None:
            raise ValueError(f"{where}: item {name}: a single time stamp has no step; say it (source.freq=1h)")
        fitted = grid.to_grid(stamps, values, usual, counts, f"{where}: item {name}")
        start = pd.Timestamp(stamps.min()).isoformat()
        yield Series(fitted, usual, labels.source, name, labels.domain, start, variates, labels.licence)


def _rows(reader: batches.Reader, named: bool) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(row of the file, columns of its batch, index in them); rows count from 0 where items have names of their own."""
    row = 0 if named else reader.first()
    for batch in reader.open():
        columns = {name: plain(batch.column(i)) for i, name in enumerate(batch.schema.names)}
        for index in range(batch.num_rows):
            yield row + index, columns, index
        row += batch.num_rows


def _name(item: Any, where: str, row: int) -> str:
    return f"{stem(where)}/{row}" if item is None or item == "" else str(item)


def _elements(scalar: Any) -> np.ndarray | None:
    """A flat list as numpy (NaN, NaT = null); None for null."""
    return None if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False)


def _matrix(scalar: Any) -> np.ndarray | None:
    """A list or a list of lists as [T] or [V, T]; None for null."""
    inner = scalar.values
    if inner is None or not is_list(inner.type):
        return _elements(scalar)
    rows = [_elements(inner[i]) for i in range(len(inner))]
    lengths = {0 if r is None else len(r) for r in rows}
    if len(lengths) > 1:
        raise ValueError(f"variates of different lengths {sorted(lengths)}")
    return np.array(rows)


def _record(
    target: np.ndarray | None, features: np.ndarray | None, start: Any, freq: Any, name: str, labels: Labels
) -> Series:
    """One record as a series; target [T] or [V, T], features [F, T] or None."""
    if target is None or target.ndim not in (1, 2):
        raise ValueError("target must be a list of numbers, or a list of such lists of one length")
    if target.size == 0:
        raise ValueError("target is empty")
    target = np.atleast_2d(target)
    names: tuple[str, ...] = ()
    if features is not None and features.size:
        features = np.atleast_2d(features)
        if features.shape[-1] != target.shape[-1]:
            raise ValueError(f"{FEATURES} has {features.shape[-1]} steps, target {target.shape[-1]}")
        names = (*(f"v{i}" for i in range(len(target))), *(f"feat{i}" for i in range(len(features))))
        target = np.concatenate([target, features])
    if not freq and not labels.freq:
        raise ValueError("no freq; name the step of the records (source.freq=5min)")
    try:
        interval = grid.seconds(freq or labels.freq)
    except ValueError as error:
        raise ValueError(f"{error}; or name the step (source.freq=5min) and leave the records' out") from error
    with np.errstate(over="ignore"):
        values = target.astype(np.float32)
    return Series(values, interval, labels.source, name, labels.domain, _start(start), names, labels.licence)


def _start(start: Any) -> str | None:
    """Text or a time stamp as ISO 8601 in UTC."""
    if start is None or start == "":
        return None
    try:
        stamp = pd.Timestamp(start)
    except (ValueError, TypeError) as error:
        raise ValueError(f"start {start!r} is no time stamp") from error
    return (stamp.tz_convert(None) if stamp.tzinfo else stamp).isoformat()
