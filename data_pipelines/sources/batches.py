"""Files on a disk or behind a URL as Arrow record batches, so that no reader holds a whole file.

A `Reader` knows the columns before a row is read, and can be run through more than once.
"""

from __future__ import annotations

import csv
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipelines import store

BATCH_BYTES = 16 * 2**20
"""About what a batch of a Parquet file holds in memory."""
BATCH_ROWS = 65536
CSV_BLOCK = 8 * 2**20
"""Bytes of text read at a time; no line may be longer."""
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
_PACKED = 10  # a guess: compressed text is this much smaller
_MISSING = (*pyarrow.csv.ConvertOptions().null_values, "None", "<NA>")


@dataclass(frozen=True)
class Reader:
    """The batches of a file, or of a range of its row groups.

    schema: columns of every batch. first: row of the file at which the first batch begins (from 0); a callable where
    counting costs a read. rows: how many, or None where only reading tells. size: a guess of the bytes in memory.
    """

    where: str
    schema: pa.Schema
    open: Callable[[], Iterator[pa.RecordBatch]]
    first: Callable[[], int] = lambda: 0
    rows: int | None = None
    size: int = 0


@contextmanager
def reading(where: str, what: str) -> Iterator[None]:
    """Errors of the disk, the network and the format become ValueErrors that name the file."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, csv.Error) as error:
        hint = "; save it as UTF-8" if "utf8" in str(error).lower().replace("-", "") else ""
        raise ValueError(f"{where}: cannot be read as {what} ({error or type(error).__name__}){hint}") from error


def open_file(where: str) -> IO[bytes]:
    """A local path or a URL, open for reading."""
    if not store.is_url(where):
        return open(where, "rb")
    fs, path = store.filesystem(where)
    with store.reaching(where):
        return fs.open(path, "rb")


def size_of(where: str) -> int:
    with open_file(where) as file:
        return file.seek(0, io.SEEK_END)


def parquet(where: str, groups: range | None = None) -> Reader:
    """A Parquet file, or some of its row groups."""
    with reading(where, "Parquet"), open_file(where) as raw, pq.ParquetFile(raw) as file:
        meta, schema = file.metadata, file.schema_arrow
    groups = range(meta.num_row_groups) if groups is None else groups
    rows = sum(meta.row_group(g).num_rows for g in groups)
    size = sum(meta.row_group(g).total_byte_size for g in groups)
    step = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, size)))
    names = _renamed(["index" if n.startswith("__index_level_") else n for n in schema.names])

    def batches() -> Iterator[pa.RecordBatch]:
        # buffered: without it every column chunk of a row group is in memory at once
        with (
            reading(where, "Parquet"),
            open_file(where) as raw,
            pq.ParquetFile(raw, buffer_size=2**20, pre_buffer=False) as file,
        ):
            for batch in file.iter_batches(batch_size=step, row_groups=list(groups), use_threads=False):
                yield batch.rename_columns(names)

    first = sum(meta.row_group(g).num_rows for g in range(groups.start))
    return Reader(where, _named(schema, names), batches, lambda: first, rows, rows * (12 + 4 * len(names)))


def parquet_ranges(where: str, size: int) -> tuple[pa.Schema, list[tuple[range, int]]]:
    """(columns, ranges of row groups of about `size` bytes each with their bytes) from the footer of a Parquet file."""
    with reading(where, "Parquet"), open_file(where) as raw, pq.ParquetFile(raw) as file:
        meta, schema = file.metadata, file.schema_arrow
    ranges, start, held = [], 0, 0
    for group in range(meta.num_row_groups):
        row_group = meta.row_group(group)
        held += sum(row_group.column(c).total_compressed_size for c in range(row_group.num_columns))
        if held >= size or group == meta.num_row_groups - 1:
            ranges.append((range(start, group + 1), held))
            start, held = group + 1, 0
    return schema, ranges


def arrow_file(where: str) -> tuple[pa.Schema, int]:
    """(columns, how many record batches it can be divided by) of an Arrow IPC file; 0 for the stream format."""
    with reading(where, "Arrow"), _arrow(where) as (ipc, seekable):
        return ipc.schema, ipc.num_record_batches if seekable else 0


def arrow(where: str, part: range | None = None) -> Reader:
    """An Arrow IPC file (file or stream format), or some record batches of one in the file format."""
    with reading(where, "Arrow"), _arrow(where) as (ipc, _):
        schema = ipc.schema

    def batches() -> Iterator[pa.RecordBatch]:
        with reading(where, "Arrow"), _arrow(where) as (ipc, seekable):
            if not seekable:
                yield from ipc
                return
            for index in range(ipc.num_record_batches) if part is None else part:
                yield ipc.get_batch(index)

    def first() -> int:
        with reading(where, "Arrow"), _arrow(where) as (ipc, _):
            return sum(ipc.get_batch(i).num_rows for i in range(part.start if part else 0))

    return Reader(where, schema, batches, first, None, size_of(where))


@contextmanager
def _arrow(where: str) -> Iterator[tuple[Any, bool]]:
    # mapped where it can be: a batch may be the whole file, and its pages can be given back
    source = pa.PythonFile(open_file(where), "r") if store.is_url(where) else pa.memory_map(where)
    with source:
        seekable = source.read(6) == b"ARROW1"
        source.seek(0)
        yield (pa.ipc.open_file(source) if seekable else pa.ipc.open_stream(source)), seekable


@contextmanager
def text(where: str) -> Iterator[Any]:
    """A plain or compressed file (by its suffix) as bytes of text."""
    kind = next((k for suffix, k in COMPRESSED.items() if where.endswith(suffix)), None)
    with open_file(where) as raw:
        if kind is None:
            yield raw
        elif kind == "xz":
            with lzma.open(raw) as unpacked:
                yield unpacked
        else:
            with pa.CompressedInputStream(pa.PythonFile(raw, "r"), kind) as unpacked:
                yield io.BufferedReader(_Readable(unpacked), 2**20)


def csv_table(where: str) -> Reader:
    """A CSV file with a header, every column as text: a type guessed from its first rows may not hold to the last."""
    names, before, delimiter = _header(where)
    options: dict[str, Any] = {
        "read_options": pyarrow.csv.ReadOptions(
            block_size=CSV_BLOCK, column_names=names, skip_rows_after_names=before + 1
        ),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=_MISSING
        ),
    }

    def batches() -> Iterator[pa.RecordBatch]:
        with (
            reading(where, "a table"),
            text(where) as stream,
            pyarrow.csv.open_csv(stream, **options) as table,
        ):
            yield from table

    size = size_of(where) * (_PACKED if where.endswith(tuple(COMPRESSED)) else 1)
    return Reader(where, pa.schema([(name, pa.string()) for name in names]), batches, size=size)


def _header(where: str) -> tuple[list[str], int, str]:
    """(columns, blank lines before them, what separates them): a semicolon or tab where a header has no comma."""
    before = 0
    with reading(where, "a table"), text(where) as stream:
        for line in stream:
            if first := line.decode("utf-8-sig").strip("\r\n"):
                break
            before += 1
        else:
            raise ValueError(f"{where}: cannot be read as a table (it is empty)")
        delimiter = next((d for d in ",;\t" if d in first), ",")
        lines = itertools.chain([line], stream)
        names = next(csv.reader((line.decode("utf-8-sig") for line in lines), delimiter=delimiter))
    return _renamed(names), before, delimiter


class _Readable(io.RawIOBase):
    """A stream of Arrow as `io` asks for it, so that its lines can be read; closing it leaves the stream open."""

    def __init__(self, stream: Any):
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(min(len(buffer), 65536))
        buffer[: len(data)] = data
        return len(data)


def _renamed(names: list[str]) -> list[str]:
    """Names made unique as pandas does it: of two columns x the second is x.1."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        out.append(f"{name}.{count}" if count else name)
    return out


def _named(schema: pa.Schema, names: list[str]) -> pa.Schema:
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])
