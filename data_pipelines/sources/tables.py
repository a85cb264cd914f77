"""Tables of stamped values (CSV or Parquet, long or wide) as series on a regular grid.

    wide   one time column, every other column a variate of one series
    long   an item column and a time column; the other columns are the variates of each item

The step of the grid is the usual step between stamps, pulled to the round interval nearby (15.02 s -> 15 s). Stamps
are snapped to the grid: a slot nothing falls into is NaN, and of two rows in one slot the later wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.series import Series

TIME_NAMES = ("timestamp", "datetime", "time", "date", "ts", "ds")
ITEM_NAMES = ("item_id", "item", "unique_id", "series_id", "id")

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
ROUND_INTERVALS = np.array(
    [1, 2, 5, 10, 15, 20, 30]
    + [_MINUTE * n for n in (1, 2, 3, 5, 10, 15, 20, 30)]
    + [_HOUR * n for n in (1, 2, 3, 4, 6, 8, 12)]
    + [_DAY * n for n in (1, 7, 30.4375, 91.3125, 365.25)]  # calendar units by their mean length
)
ROUND_WITHIN = 0.02  # relative; a month of 31 days is 1.8 % away from the mean month
MAX_SPARSITY = 50  # slots per row beyond which stamps are events, not samples


def is_series_file(path: str | Path) -> bool:
    """Whether a Parquet file has the series layout (a list column `target`), not a table's."""
    schema = pq.read_schema(path)
    index = schema.get_field_index("target")
    return index >= 0 and (
        pa.types.is_list(schema.field(index).type) or pa.types.is_large_list(schema.field(index).type)
    )


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
    path = Path(path)
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, low_memory=False)
    except (ValueError, OSError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path}: cannot be read as a table ({error})") from error
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    name = path.name.split(".")[0]
    yield from from_frame(frame, source, name, counts, domain, licence, time, item, where=str(path))


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
    counts = Counter() if counts is None else counts
    frame = frame.rename(columns=str)
    time = _column(frame, time, TIME_NAMES, where, "time")
    item = _column(frame, item, ITEM_NAMES, where, "item")
    if not time:
        raise ValueError(
            f"{where}: no time column among {list(frame.columns)}; call it {TIME_NAMES[0]!r} or name it (source.time=)"
        )
    variates = [c for c in frame.columns if c not in (time, item)]
    if frame.empty or not variates:
        raise ValueError(f"{where}: {'no rows' if frame.empty else f'no value column beside {time!r}'}")
    stamps = _stamps(frame[time], f"{where}: column {time!r}")
    values = np.column_stack([_numbers(frame[c], f"{where}: column {c!r}") for c in variates])
    if item:
        if frame[item].isna().any():
            raise ValueError(f"{where}: column {item!r}: row {_first(frame[item].isna())} names no item")
        groups = [(f"{name}/{key}", rows) for key, rows in frame.groupby(item, sort=True).indices.items()]
    else:
        groups = [(name, np.arange(len(frame)))]
    common = _interval(np.concatenate([_steps(stamps[rows]) for _, rows in groups]))
    if common is None:
        raise ValueError(f"{where}: column {time!r}: no item has two different time stamps")
    for item_id, rows in groups:
        steps = _steps(stamps[rows])
        interval = (_interval(steps) if len(steps) >= 3 else None) or common
        grid = to_grid(stamps[rows], values[rows], interval, counts, f"{where}: {item_id}")
        start = pd.Timestamp(stamps[rows].min()).isoformat()
        yield Series(grid, interval, source, item_id, domain, start, tuple(variates), licence)


def to_grid(stamps: np.ndarray, values: np.ndarray, interval: float, counts: Counter[str], where: str) -> np.ndarray:
    """Rows of values [N, V] at stamps [N] (ns) -> float32 [V, T] with a step of `interval` seconds."""
    order = np.argsort(stamps, kind="stable")
    seconds = (stamps[order] - stamps[order[0]]) * 1e-9
    # The grid runs through the middle of the jitter (circular mean), so that no stamp sits on a slot's edge.
    angle = np.angle(np.exp(2j * np.pi * seconds / interval).mean())
    slots = np.rint(seconds / interval - angle / (2 * np.pi)).astype(np.int64)
    slots -= slots[0]
    length = int(slots[-1]) + 1
    if length > MAX_SPARSITY * len(stamps):
        raise ValueError(
            f"{where}: {len(stamps)} rows span {length} steps of {interval:g} s; "
            "stamps this irregular are events: count or average them per interval first"
        )
    used = len(np.unique(slots))
    counts["out_of_order"] += int((stamps < np.maximum.accumulate(stamps)).sum())
    counts["duplicate"] += len(stamps) - used
    counts["gap"] += length - used
    grid = np.full((length, values.shape[1]), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):  # beyond float32 becomes inf, which quality counts as impossible
        grid[slots] = values[order]  # repeated slots: the last one written stays
    return np.ascontiguousarray(grid.T)


def _column(frame: pd.DataFrame, asked: str, usual: tuple[str, ...], where: str, role: str) -> str:
    """Name of the column with this role; '' where there is none of the usual names."""
    if asked:
        if asked not in frame.columns:
            raise ValueError(f"{where}: no {role} column {asked!r}; there are {list(frame.columns)}")
        return asked
    by_lower = {c.lower(): c for c in reversed(frame.columns)}
    return next((by_lower[n] for n in usual if n in by_lower), "")


def _stamps(column: pd.Series, where: str) -> np.ndarray:
    """Nanoseconds since 1970 (UTC). Numbers are seconds, ms, us or ns since 1970, told apart by their size."""
    if pd.api.types.is_numeric_dtype(column):
        largest = float(np.nanmax(np.abs(column.to_numpy(dtype=np.float64, na_value=np.nan)), initial=0.0))
        unit = next(u for u, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17), ("ns", np.inf)) if largest < limit)
        parsed = pd.to_datetime(column, unit=unit, utc=True, errors="coerce")
    elif pd.api.types.is_datetime64_any_dtype(column):
        parsed = pd.to_datetime(column, utc=True)
    else:
        parsed = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
        if parsed.isna().any():
            parsed = pd.to_datetime(column, utc=True, errors="coerce", format="mixed")
    if (bad := parsed.isna()).any():
        raise ValueError(f"{where}: row {_first(bad)} holds {column[bad].iloc[0]!r}, which is no time stamp")
    return parsed.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)


def _numbers(column: pd.Series, where: str) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        raise ValueError(f"{where} holds time stamps, but another column is the time; drop one of them")
    numbers = pd.to_numeric(column, errors="coerce")
    if (bad := numbers.isna() & column.notna()).any():
        raise ValueError(
            f"{where}: row {_first(bad)} holds {column[bad].iloc[0]!r}, which is no number; "
            "drop the column, or make it the item column of a long table (source.item=)"
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _first(mask: pd.Series) -> int:
    """Row of the first True, counted from 1 without the header."""
    return int(np.argmax(mask.to_numpy())) + 1


def _steps(stamps: np.ndarray) -> np.ndarray:
    """Seconds between distinct stamps."""
    return np.diff(np.unique(stamps)) / 1e9


def _interval(steps: np.ndarray) -> float | None:
    """Usual step in seconds, or the round interval close to it; None without steps."""
    if not len(steps):
        return None
    median = np.median(steps)
    # Neighbouring steps share a stamp, so their jitter cancels in the mean; gaps and duplicates stay out of it.
    step = float(steps[(steps > 0.5 * median) & (steps < 1.5 * median)].mean())
    near = float(ROUND_INTERVALS[np.argmin(np.abs(ROUND_INTERVALS - step))])
    return near if abs(near - step) <= ROUND_WITHIN * near else step
