"""Files at a path or URL become units that can be read alone, and together hold every series once."""

import gzip
import lzma
import pickle
from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.series import Series
from data_pipelines.sources import Unit, batches, files, series_parquet
from data_pipelines.sources.files import FileSource
from data_pipelines.verify import verify

ROWS = [(item, step) for step in range(5) for item in (1, 2)]
LONG = "item_id,time,load,free\n" + "".join(f"{i},{60 * t},{i + t},{t if t != 2 else ''}\n" for i, t in ROWS)
RECORD = {"item_id": "x", "start": "2020-01-01", "freq": "H", "target": [1.0, None, 3.0]}


def read(source):
    return [s for unit in source.units() for s in source.read(unit, Counter())]


def equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        labels = ("source", "item_id", "interval", "start", "domain", "licence", "variate_names")
        assert [getattr(a, n) for n in labels] == [getattr(b, n) for n in labels]


def some_series(count, length=64):
    rng = np.random.default_rng(0)
    for n in range(count):
        values = rng.normal(size=(1 + n % 3, length)).astype(np.float32)
        values[0, n % length] = np.nan
        yield Series(values, 60.0, f"s{n % 2}", f"i{n}", start="2024-01-01T00:00:00", licence="MIT")


def write_everything(folder):
    """One file of each kind and layout below a folder."""
    (folder / "csv" / "deep").mkdir(parents=True)
    (folder / "csv" / "long.csv").write_text(LONG)
    (folder / "csv" / "deep" / "wide.csv.gz").write_bytes(gzip.compress(b"ts,a\n0,1\n10,2\n20,4\n", mtime=0))
    (folder / "csv" / "deep" / "wide.csv.xz").write_bytes(lzma.compress(b"ts,a\n0,1\n10,2\n20,5\n"))
    series_parquet.write(folder / "parquet" / "series.parquet", some_series(4))
    (folder / "parquet" / "more").mkdir()
    pq.write_table(pa.Table.from_pylist([RECORD]), folder / "parquet" / "more" / "records.parquet")
    table = pa.table({"time": pa.array([0, 10**9, 3 * 10**9], pa.timestamp("ns")), "v": [1, 2, 3]})
    pq.write_table(table, folder / "parquet" / "more" / "table.parquet")
    (folder / "jsonl").mkdir()
    (folder / "jsonl" / "metadata.json").write_text('{"freq": "5min"}')
    (folder / "jsonl" / "data.json").write_text('{"start": "2020", "target": [1, "NaN"]}\n')
    for name, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        (folder / "arrow" / name).mkdir(parents=True)
        with new(str(folder / "arrow" / name / "data.arrow"), pa.Table.from_pylist([RECORD]).schema) as out:
            out.write_table(pa.Table.from_pylist([RECORD, RECORD | {"item_id": "y"}]))


@pytest.mark.parametrize(("kind", "count"), [("csv", 4), ("parquet", 6), ("jsonl", 1), ("arrow", 4)])
def test_a_url_gives_what_a_folder_gives(tmp_path, kind, count):
    write_everything(tmp_path / "all")
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "all"), "/bucket/all", recursive=True)
    try:
        local = FileSource(str(tmp_path / "all" / kind), kind, domain="general")
        remote = FileSource(f"memory://bucket/all/{kind}", kind, domain="general")
        found = read(local)
        assert len(found) == count
        equal(read(remote), found)
        assert [u.key for u in remote.units()] == [u.key for u in local.units()]
        unit = remote.units()[-1]
        one = FileSource(f"memory://bucket/all/{kind}/{unit.key}", kind, domain="general")
        (alone,) = one.units()
        equal(list(one.read(alone, Counter())), list(remote.read(unit, Counter())))
    finally:
        fs.rm("/bucket", recursive=True)


def test_sources_are_folders_or_the_name_asked_for(tmp_path):
    write_everything(tmp_path)
    found = read(FileSource(str(tmp_path / "csv"), "csv", licence="MIT"))
    assert [(s.source, s.item_id) for s in found] == [
        ("deep", "wide"),
        ("deep", "wide"),
        ("csv", "long/1"),
        ("csv", "long/2"),
    ]
    assert {s.licence for s in found} == {"MIT"}
    np.testing.assert_array_equal(found[2].values, np.float32([[1, 2, 3, 4, 5], [0, 1, np.nan, 3, 4]]))
    named = read(FileSource(str(tmp_path / "csv"), "csv", name="mine"))
    assert [(s.source, s.item_id) for s in named][1:3] == [("mine", "deep/wide"), ("mine", "long/1")]
    series = read(FileSource(str(tmp_path / "parquet" / "series.parquet"), "parquet", name="mine", licence="GPL"))
    equal(series, list(some_series(4)))  # names of their own


def test_hidden_files_descriptions_and_what_an_evaluation_left_are_skipped(tmp_path):
    kept = ["a/x.csv", "b.csv", "b/b.csv"]
    left = [".hidden.csv", ".cache/x.csv", "r.eval/x.csv", "run/x.csv", "run/tables/x.csv"]
    for name in [*kept, *left, "run/evaluation.json", "notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ts,a\n0,1\n10,2\n")
    assert [u.key for u in FileSource(str(tmp_path), "csv").units()] == ["a/x.csv", "b/b.csv", "b.csv"]
    # asked for by name, they are read
    assert [u.key for u in FileSource(str(tmp_path / "run"), "csv").units()] == ["tables/x.csv", "x.csv"]


def test_versions_change_with_the_content(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("ts,a\n0,1\n10,2\n")
    source = FileSource(str(tmp_path), "csv")
    before = source.units()
    assert source.units() == before
    file.write_text("ts,a\n0,1\n10,3\n")
    (after,) = source.units()
    assert (after.key, after.size) == (before[0].key, before[0].size)
    assert after.version != before[0].version


def write_records(file, kind, count):
    rows = [{**RECORD, "target": [float(n), float(-n)]} for n in range(count)]
    for row in rows:
        del row["item_id"]  # named by the row of the file, in whatever unit it lies
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=5)
        return
    with pa.ipc.new_file(str(file), table.schema) as out:
        out.write_table(table, max_chunksize=5)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_units_of_a_large_file_read_one_by_one_equal_the_whole(tmp_path, monkeypatch, kind):
    file = tmp_path / "web" / f"big.{kind}"
    file.parent.mkdir()
    write_records(file, kind, 52)
    whole = read(FileSource(str(tmp_path), kind))
    assert [s.item_id for s in whole] == [f"big/{n}" for n in range(52)]
    np.testing.assert_array_equal(whole[51].values, np.float32([[51, -51]]))
    monkeypatch.setattr(files, "UNIT_BYTES", file.stat().st_size // 5)
    source = pickle.loads(pickle.dumps(FileSource(str(tmp_path), kind)))
    units = source.units()
    assert len(units) >= 3
    assert len({u.key for u in units}) == len(units)
    assert units[0].key.startswith(f"web/big.{kind}#0-")
    equal([s for u in units for s in source.read(u, Counter())], whole)
    equal([s for u in reversed(units) for s in reversed(list(source.read(u, Counter())))], whole[::-1])
    single = FileSource(str(file), kind)
    assert len(single.units()) == len(units)
    equal(read(single), whole)


def test_a_series_file_is_divided_and_a_table_is_not(tmp_path, monkeypatch):
    series_parquet.write(tmp_path / "series.parquet", some_series(20))  # a row group each
    table = pa.table({"id": [1, 2] * 50, "time": sorted([*range(50)] * 2), "v": range(100)})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=10)
    monkeypatch.setattr(files, "UNIT_BYTES", 1000)
    source = FileSource(str(tmp_path), "parquet")
    units = source.units()
    assert [u.key for u in units if "table" in u.key] == ["table.parquet"]
    assert len(units) > 5
    found = [s for u in units for s in source.read(u, Counter())]
    equal(found[:20], list(some_series(20)))
    assert [(s.item_id, s.length) for s in found[20:]] == [("table/1", 50), ("table/2", 50)]


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("parquet", "bad.parquet", b"PAR1 nothing of the kind PAR1"),
        ("parquet", "empty.parquet", b""),
        ("arrow", "bad.arrow", b"ARROW1 cut short"),
        ("arrow", "stream.arrow", b"\xff\xff\xff\xff\x10\x00\x00\x00 cut"),
        ("csv", "bad.csv", b"ts,a\n0,1\n1,2,3\n"),
        ("csv", "bad.csv.gz", gzip.compress(b"ts,a\n0,1\n10,2\n" * 1000, mtime=0)[:-9]),
        ("csv", "bad.csv.gz", b"no gzip"),
        ("csv", "bad.csv.xz", b"no xz"),
        ("csv", "latin.csv", "ts,caf\xe9\n0,1\n".encode("latin-1")),
        ("jsonl", "bad.jsonl.gz", b"no gzip"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as") as error:
        read(FileSource(str(tmp_path), kind, freq="H"))
    assert name in str(error.value)


def test_a_file_cut_short_after_its_first_batches_is_named(tmp_path):
    rows = pa.Table.from_pylist([RECORD] * 100)
    with pa.ipc.new_stream(str(tmp_path / "cut.arrow"), rows.schema) as out:
        out.write_table(rows, max_chunksize=10)
    whole = (tmp_path / "cut.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.arrow: cannot be read as Arrow"):
        read(FileSource(str(tmp_path), "arrow"))


def test_what_cannot_be_a_source_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"source=excel is no kind of file; choose from parquet, csv, arrow, jsonl"):
        FileSource(str(tmp_path), "excel")
    with pytest.raises(ValueError, match=r"source\.freq=often: unknown frequency code"):
        FileSource(str(tmp_path), "jsonl", freq="often")
    with pytest.raises(ValueError, match=r"source\.path=.*missing does not exist"):
        FileSource(str(tmp_path / "missing"), "csv").units()
    with pytest.raises(ValueError, match=r"holds no csv files \(\*\.csv, \*\.csv\.gz, .*\)"):
        FileSource(str(tmp_path), "csv").units()
    with pytest.raises(ValueError, match=r"source\.path=memory://nowhere/x.* does not exist"):
        FileSource("memory://nowhere/x", "csv").units()


def test_a_protocol_without_its_package_names_the_package(monkeypatch):
    def missing(url, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"s3://bucket/x.*pip install s3fs"):
        FileSource("s3://bucket/x", "parquet").units()
    assert "pip install s3fs" in verify("s3://bucket/x")[0]


def test_parquet_batches_hold_about_as_much_whatever_the_rows(tmp_path, monkeypatch):
    series_parquet.write(tmp_path / "s.parquet", some_series(40, length=1000))
    monkeypatch.setattr(batches, "BATCH_BYTES", 20_000)
    reader = batches.parquet(str(tmp_path / "s.parquet"))
    assert max(batch.nbytes for batch in reader.open()) < 60_000
    equal(list(series_parquet.from_reader(reader)), list(some_series(40, length=1000)))


def test_a_unit_names_its_file(tmp_path):
    source = FileSource(str(tmp_path), "parquet")
    assert source.where(Unit("a/b.parquet#3-7", 0, "")) == str(tmp_path / "a/b.parquet")
    remote = FileSource("s3://bucket/a/", "parquet")
    assert remote.where(Unit("b.parquet", 0, "")) == "s3://bucket/a/b.parquet"
