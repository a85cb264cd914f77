"""Arrow columns of any usual type as numbers and time stamps. Row numbers in errors count from 1 without the header."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_UNITS = (("s", 1e11), ("ms", 1e14), ("us", 1e17), ("ns", np.inf))  # numbers since 1970, told apart by the largest


# numbers that are dates rather than seconds: smallest and largest, and what divides them into year, month and day
_CALENDAR = ((19000101, 21001231, (10_000, 100)), (190001, 210012, (100,)), (1900, 2100, ()))
_DAY_OR_MONTH_FIRST = r"^\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b"


class Fractions(Exception):
    """Stamps that began as whole numbers have decimals further down."""


def is_list(kind: pa.DataType) -> bool:
    kind = storage(kind)
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def storage(kind: pa.DataType) -> pa.DataType:
    """What an extension type (such as a 2-D array of Hugging Face datasets) is stored as."""
    return storage(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def plain(column: Any) -> Any:
    """A column in one piece, without dictionary or extension type."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def numbers(column: pa.Array, where: str, first: int = 0) -> np.ndarray:
    """A column as float32 [N], NaN where there is nothing. `first` is the file's row the column begins at."""
    kind = column.type
    if pa.types.is_temporal(kind):
        raise ValueError(f"{where} holds time stamps, but another column is the time; drop one of them")
    if is_text(kind):
        return _float32(_parsed(column, where, first))
    if pa.types.is_decimal(kind):
        column = pc.cast(column, pa.float64())
    elif pa.types.is_null(kind):
        return np.full(len(column), np.nan, dtype=np.float32)
    elif pa.types.is_boolean(kind):
        column = pc.cast(column, pa.int8())
    elif not is_number(kind):
        raise ValueError(f"{where} holds {kind}, which is no number; drop the column")
    return _float32(column.to_numpy(zero_copy_only=False))


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 becomes inf, which quality counts as impossible
        return values.astype(np.float32)


def _parsed(column: pa.Array, where: str, first: int) -> np.ndarray:
    try:
        return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # blanks around numbers, truth values, or no numbers
        text = column.to_pandas()
    truth = text.str.strip().str.lower().map({"true": "1", "false": "0"})
    found = pd.to_numeric(truth.fillna(text), errors="coerce")
    if (bad := found.isna() & text.notna() & ~text.str.strip().str.lower().isin(["", "nan"])).any():
        raise ValueError(
            f"{where}: row {first + _first(bad)} holds {text[bad].iloc[0]!r}, which is no number; "
            "drop the column, or make it the item column of a long table (source.item=)"
        )
    return found.to_numpy(dtype=np.float64)


def _first(mask: pd.Series) -> int:
    """Position of the first True, from 1."""
    return int(np.argmax(mask.to_numpy())) + 1


class Clock:
    """The time column of a table, batch by batch: what one number means shows only when all have been seen.

    encode() makes 8-byte numbers of each batch; decode() makes datetime64 of them once every batch is encoded.
    """

    def __init__(self, where: str, fractions: bool = False):
        self.where = where
        self.dtype = np.dtype(np.float64 if fractions else np.int64)
        self._dates: bool | None = None  # else numbers since 1970
        self._largest = 0.0
        self._calendar = list(_CALENDAR)  # forms that all numbers so far have

    def encode(self, column: pa.Array, first: int = 0) -> np.ndarray:
        """Stamps of one batch. ValueError names the row of one that is none; Fractions where `fractions` is needed."""
        numeric = self._numbers(column)
        if self._dates is None:
            self._dates = numeric is None
        if self._dates or numeric is None:
            parsed = self._parse(column, first).view(np.int64)
            # a float has the same eight bytes
            return parsed if self.dtype == np.int64 else parsed.view(self.dtype)
        if numeric.null_count or (pa.types.is_floating(numeric.type) and pc.any(pc.is_nan(numeric)).as_py()):
            self._none(pc.is_null(numeric, nan_is_null=True).to_pandas(), column.to_pandas(), first)
        found = numeric.to_numpy(zero_copy_only=False)
        self._largest = max(self._largest, float(np.abs(found.astype(np.float64)).max(initial=0.0)))
        if self.dtype == np.int64 and found.dtype.kind == "f":
            if (found % 1).any():
                raise Fractions
            found = found.astype(np.int64)
        self._calendar = [form for form in self._calendar if not len(found) or _is_calendar(found, *form)]
        return found.astype(self.dtype)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """datetime64 [N], UTC."""
        encoded = np.ascontiguousarray(encoded)
        if self._dates:
            return encoded.view("datetime64[ns]")
        if self._calendar and self.dtype == np.int64:
            return _from_calendar(encoded, self._calendar[0][2])
        unit = next(u for u, limit in _UNITS if self._largest < limit)
        if self.dtype == np.int64:
            return encoded.astype(f"datetime64[{unit}]")
        factor = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
        if self._largest * factor >= 2**63:
            raise ValueError(f"{self.where}: {self._largest:g} {unit} since 1970 lies beyond the calendar")
        whole = np.floor(encoded)
        return (whole.astype(np.int64) * factor + np.rint((encoded - whole) * factor).astype(np.int64)).view(
            "datetime64[ns]"
        )

    def _numbers(self, column: pa.Array) -> Any:
        """The column as numbers, or None where it holds dates."""
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return column
        if self._dates or not is_text(kind):
            return None
        for number in (pa.int64(), pa.float64()):
            try:
                return pc.cast(pc.utf8_trim_whitespace(column), number)
            except pa.ArrowInvalid:
                continue
        return None

    def _parse(self, column: pa.Array, first: int) -> np.ndarray:
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            given = column.to_pandas(date_as_object=False)
            parsed = pd.to_datetime(given, utc=True, errors="coerce")
        elif is_text(column.type) and not self._dates:
            self._none(pd.to_numeric(column.to_pandas(), errors="coerce").isna(), column.to_pandas(), first)
        elif is_text(column.type):
            given = column.to_pandas()
            parsed = pd.to_datetime(given, utc=True, errors="coerce", format="ISO8601")
            if (left := parsed.isna()).any():
                if (unsure := left & given.str.contains(_DAY_OR_MONTH_FIRST, regex=True, na=False)).any():
                    self._none(unsure, given, first, "may begin with the day or the month; write it as 2026-01-31")
                parsed = pd.to_datetime(given, utc=True, errors="coerce", format="mixed")
        else:
            raise ValueError(f"{self.where} holds {column.type}, no time stamps; name the time column (source.time=)")
        if (bad := parsed.isna()).any():
            self._none(bad, given, first)
        return parsed.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")

    def _none(self, bad: pd.Series, given: pd.Series, first: int, what: str = "is no time stamp") -> NoReturn:
        raise ValueError(f"{self.where}: row {first + _first(bad)} holds {given[bad].iloc[0]!r}, which {what}")


def _parts(numbers: np.ndarray, dividers: tuple[int, ...]) -> list[np.ndarray]:
    """20260131 -> year, month, day, as many as there are."""
    parts = []
    for divider in dividers:
        parts.append(numbers // divider)
        numbers = numbers % divider
    return [*parts, numbers]


def _is_calendar(numbers: np.ndarray, smallest: int, largest: int, dividers: tuple[int, ...]) -> bool:
    if numbers.min() < smallest or numbers.max() > largest:
        return False
    _, *rest = _parts(numbers, dividers)
    return all((part >= 1).all() and (part <= limit).all() for part, limit in zip(rest, (12, 31), strict=False))


def _from_calendar(numbers: np.ndarray, dividers: tuple[int, ...]) -> np.ndarray:
    year, month, day = [*_parts(numbers, dividers), *(np.ones(len(numbers), np.int64) for _ in range(2))][:3]
    months = (12 * (year - 1970) + month - 1).astype("datetime64[M]")
    return (months.astype("datetime64[D]") + (day - 1)).astype("datetime64[s]")
