"""Row n is a pure function of (data config, seed, n): shares, lanes, stages, epochs and windows are exact."""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.shards import INDEX
from toto_train.config import DataConfig, MixtureEntry
from toto_train.data import order as order_module
from toto_train.data.order import Order, key_of, permute
from toto_train.data.source_order import SourceOrder, shuffled

LENGTH, VARIATES = 64, 8
LANES = (1, 2, 16, 64)


def series(source: str, shapes: list[tuple[int, int]], missing: float = 0.0, **fields) -> list[Series]:
    out = []
    for i, (variates, length) in enumerate(shapes):
        values = np.arange(variates * length, dtype=np.float32).reshape(variates, length)
        values[:, : int(missing * length)] = np.nan
        out.append(Series(values, **{"interval": 60.0, "source": source, "item_id": str(i)} | fields))
    return out


def index_of(shapes: list[tuple[int, int]]) -> np.ndarray:
    index = np.zeros(len(shapes), INDEX)
    for i, (v, t) in enumerate(shapes):
        index["variates"][i], index["length"][i], index["points"][i] = v, t, v * t
    return index


def data(mixture: dict[str, MixtureEntry] | None = None, **fields) -> DataConfig:
    return DataConfig(mixture or {}, **{"variates": VARIATES, "length": LENGTH} | fields)


def of_source(shapes: list[tuple[int, int]], seed: int = 0, **fields) -> SourceOrder:
    return SourceOrder("e/s", index_of(shapes), data(**fields), seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """big: 40 series with every second value missing; small: few and short; wide: of several widths."""
    path = tmp_path_factory.mktemp("data") / "set"
    content = series("big", [(1, 200 + i) for i in range(40)], missing=0.5)
    content += series("small", [(1, 30)] * 5)
    content += series("wide", [(1 + i % 8, 64 * (1 + i % 3)) for i in range(24)])
    write_shards(path, content, {})
    return path


@pytest.fixture(scope="module")
def buckets(tmp_path_factory) -> Path:
    """Series of two domains and intervals 1, 60 and 3600 s in one source."""
    path = tmp_path_factory.mktemp("data") / "set"
    content: list[Series] = []
    for interval in (1.0, 60.0, 3600.0):
        for domain in ("observability", "general"):
            part = series("mixed", [(1, 100 + 50 * i) for i in range(10)], interval=interval, domain=domain)
            content += [replace(s, item_id=f"{domain} {interval} {s.item_id}") for s in part]
    write_shards(path, content, {})
    return path


def config(folder: Path, **entry) -> DataConfig:
    return data({"main": MixtureEntry(str(folder), **entry)})


class _Folder:
    """Indexes alone: its path lists the sources and their numbers of series, as in 'a=10,b=1000'."""

    def __init__(self, path, *_args, **_kwargs):
        self.series = {k: int(v) for k, v in (part.split("=") for part in path.split(","))}
        self.sources, self.fingerprint = tuple(self.series), path

    def index(self, source: str) -> np.ndarray:
        return index_of([(1, LENGTH)] * self.series[source])


def counted(mixture: dict[str, tuple[float, str]], seed: int = 0, **fields) -> Order:
    """An order over {entry: (weight, sources)} whose rows hold ((row number of the source, lane, 0),) for windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "ShardSet", _Folder)
        entries = {name: MixtureEntry(path, weight, balance="equal") for name, (weight, path) in mixture.items()}
        order = Order(data(entries, **fields), seed)
    for source in order._sources:
        source.windows = lambda j, lane: ((j, lane, 0),)  # type: ignore[method-assign]
    return order


# Keyed orders


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 1500), key=st.integers(0, 2**64 - 1))
def test_permute_and_shuffled_are_bijections(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))
    assert sorted(shuffled(size, key, 3).tolist()) == list(range(size))


def test_permute_mixes():
    """First places are uniform over keys, and neighbours part, for tiny sizes too."""
    for size in (2, 3, 7, 50):
        for first in (
            Counter(permute(0, size, key_of(k)) for k in range(200 * size)),
            Counter(int(shuffled(size, 1, k)[0]) for k in range(200 * size)),
        ):
            chi2 = sum((first[i] - 200) ** 2 / 200 for i in range(size))
            assert chi2 < size + 5 * (2 * size) ** 0.5
    assert len({tuple(permute(i, 3, key_of(k)) for i in range(3)) for k in range(100)}) == 6
    for order in ([permute(i, 10_000, 5) for i in range(10_000)], shuffled(10_000, 5, 6).tolist()):
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


# Epochs of a source


shapes = st.lists(st.tuples(st.integers(1, VARIATES), st.integers(1, 300)), min_size=1, max_size=25)


@settings(max_examples=40, deadline=None)
@given(
    shapes=shapes,
    times=st.sampled_from([1, 10, 100]),
    lanes=st.sampled_from(LANES),
    chunk=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 100),
    epoch=st.integers(0, 3),
)
def test_an_epoch_gives_every_window_once_without_overlap(shapes, times, lanes, chunk, seed, epoch):
    """Over all slices together where there are any."""
    shapes = [(v, t * times) for v, t in shapes]
    source = of_source(shapes, seed, lanes=lanes, shuffle_rows=chunk)
    taken: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(shapes))}
    for lane in range(lanes if source.sliced else 1):
        rows = source.epoch_rows(lane)
        for j in range(epoch * rows, (epoch + 1) * rows):
            windows = source.windows(j, lane)
            widths = {shapes[i][0] for i, _, _ in windows}
            assert len(widths) == 1, "a row packs windows of equal width"
            assert 1 <= len(windows) <= VARIATES // widths.pop()
            for i, start, steps in windows:
                taken[i].append((start, steps))
    for i, (_, length) in enumerate(shapes):
        assert len(taken[i]) == max(1, length // LENGTH)
        assert all(steps == min(length, LENGTH) for _, steps in taken[i])
        assert all(start >= 0 and start + steps <= length for start, steps in taken[i])
        assert all(a + n <= b for (a, n), (b, _) in pairwise(sorted(taken[i])))


@pytest.mark.parametrize("lanes", LANES)
def test_a_large_source_is_cut_in_slices_and_a_lane_stays_in_its_own(lanes):
    shapes = [(1 + i % 2, 64 * (1 + i % 5)) for i in range(lanes * 900)]
    source = of_source(shapes, lanes=lanes)
    assert source.sliced
    rows = [source.epoch_rows(lane) for lane in range(lanes)]
    whole = of_source(shapes, lanes=1)
    assert source.rows == sum(rows) <= 1.02 * whole.rows
    assert max(rows) <= 1.02 * min(rows)
    for v in (1, 2):
        # the series of each window of this width, in order
        owners = np.repeat(np.arange(len(shapes)), [t // LENGTH if w == v else 0 for w, t in shapes])
        for lane in {0, lanes // 2, lanes - 1}:
            own = owners[len(owners) * lane // lanes : len(owners) * (lane + 1) // lanes]
            read = (source.windows(j, lane) for j in range(2 * rows[lane]))
            found = Counter(i for row in read for i, _, _ in row if shapes[i][0] == v)
            assert found == {i: 2 * n for i, n in Counter(own.tolist()).items()}


def test_a_small_source_is_not_cut():
    for count in (1, 64, 96, 640, 64 * 8 * 10 + 1):
        source = of_source([(1, LENGTH)] * count, lanes=64)
        assert not source.sliced
        assert source.windows(3, 0) == source.windows(3, 63)


def test_epochs_and_lanes_differ_in_order_and_epochs_in_phase():
    source = of_source([(1, 1000)] * 64, lanes=1)
    first, second = ([source.windows(e * source.rows + j, 0) for j in range(source.rows)] for e in (0, 1))
    assert first != second
    phases = {start % LENGTH for row in first + second for _, start, _ in row}
    assert len(phases) > 20
    source = of_source([(1, LENGTH)] * 64 * 1024, lanes=64)
    relative = [[i - 1024 * lane for i, _, _ in source.windows(0, lane)] for lane in (0, 1)]
    assert relative[0] != relative[1]


def test_rows_that_follow_each_other_read_neighbouring_series():
    """Jumps come at the ends of chunks only, however the rows of a rare source lie between."""
    count, chunk = 64 * 8 * 200, 32
    mixture = {"a": (1.0, f"x={count}"), "b": (0.001, "y=3")}
    order = counted(mixture, shuffle_rows=chunk)
    source = SourceOrder("a/x", index_of([(1, LENGTH)] * count), data(shuffle_rows=chunk), 0)
    assert source.sliced
    lane, places = 5, []
    for n in range(lane, 64 * 1000, 64):
        spec = order.row(n)
        if spec.source == "a/x":
            ((j, at, _),) = spec.windows
            places.append(np.mean([i for i, _, _ in source.windows(j, at)]))
    jumps = [k + 1 for k, (a, b) in enumerate(pairwise(places)) if abs(a - b) > chunk * VARIATES]
    assert 10 < len(jumps) <= len(places) / chunk + 6
    ends = [e * 200 + q for e in range(6) for q in [*range(chunk, 200, chunk), 200]]
    assert set(jumps) <= set(ends)
    # 200 rows in chunks of 32: six full ones in an order that each epoch draws anew, then the rest
    chunks = [[int(places[e * 200 + q] - lane * 1600) // 256 for q in range(0, 200, chunk)] for e in range(4)]
    assert all(sorted(order) == list(range(7)) and order[-1] == 6 for order in chunks)
    assert len({tuple(order) for order in chunks}) == 4
    inside = np.array(places[: 2 * chunk]).reshape(2, chunk)
    assert (np.abs(np.diff(inside)) > 0).all()
    assert not (np.diff(inside) > 0).all(), "rows of a chunk are shuffled"


# Shares


weights = st.lists(st.floats(0.02, 1.0), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(weights=weights, lanes=st.sampled_from(LANES), seed=st.integers(0, 50))
def test_counts_stay_within_one_row_of_the_share_at_block_ends(weights, lanes, seed):
    """Over all lanes and in each of them."""
    order = counted({f"e{i}": (w, f"s={3 + i}") for i, w in enumerate(weights)}, seed, lanes=lanes)
    counts, of_lane = Counter(), Counter()
    for n in range(2 * order.block):
        label = order.row(n).source
        counts[label] += 1
        of_lane[label, n % lanes] += 1
        if (n + 1) % order.block == 0:
            for label, share in order.shares.items():
                assert abs(counts[label] - (n + 1) * share) < 1
                m = (n + 1) // lanes
                assert all(abs(of_lane[label, lane] - m * share) < 1 for lane in range(lanes))


@settings(max_examples=25, deadline=None)
@example(weights=[1.0, 0.3, 0.001], lanes=2, staged=True, extra=17)
@given(weights=weights, lanes=st.sampled_from(LANES), staged=st.booleans(), extra=st.integers(0, 40))
def test_rows_of_a_source_are_taken_in_turn(weights, lanes, staged, extra):
    """Closed-form row numbers against counting: without gap or repeat, whatever the lanes, stages and blocks."""
    mixture = {f"e{i}": (w, f"s={3 if i % 2 else lanes * 800}") for i, w in enumerate(weights)}
    ends, stages = [counted(mixture, lanes=lanes).block], {}
    if staged:
        ends = [ends[0] + extra * lanes]
        stages[str(ends[0])] = {"e0": 2.0}
    order = counted(mixture, lanes=lanes, stages=stages)
    ends.append(ends[0] + order._stages[-1].block * lanes)
    assert {s.label for s in order._sources if s.sliced} >= {f"e{i}/s" for i in range(0, len(weights), 2)}
    by_lane: dict[tuple[str, int], list[int]] = defaultdict(list)
    for n in range(ends[-1]):
        spec = order.row(n)
        ((j, lane, _),) = spec.windows
        assert lane == n % lanes
        by_lane[spec.source, lane].append(j)
        if n + 1 in ends:
            for source in order._sources:
                parts = [by_lane[source.label, i] for i in range(lanes)]
                if source.sliced:
                    assert all(part == list(range(len(part))) for part in parts)
                else:
                    assert all(a < b for part in parts for a, b in pairwise(part))
                    everything = sorted(j for part in parts for j in part)
                    assert everything == list(range(len(everything)))


def test_shares_count_observed_points(folder):
    """Equal weights give equal observed points, so a half-empty source gets about twice the rows."""
    order = Order(config(folder, include=["big", "wide"], balance="equal"), seed=0)
    points: Counter[str] = Counter()
    rows = 4 * order.block
    for n in range(rows):
        spec = order.row(n)
        shards, source = order.open(spec.source)
        for i, start, steps in spec.windows:
            points[spec.source] += int(np.isfinite(shards.values(source, i)[:, start : start + steps]).sum())
    assert points["main/big"] / points["main/wide"] == pytest.approx(1.0, rel=0.1)
    assert sum(points.values()) / (rows * VARIATES * LENGTH) == pytest.approx(order.fill, rel=0.05)


def test_balance_divides_a_weight_over_sources(folder):
    def points_share(balance: str) -> float:
        order = Order(config(folder, include=["small", "wide"], balance=balance), seed=0)
        point = {s.label: order.shares[s.label] * s.points_per_row for s in order._sources}
        return point["main/wide"] / point["main/small"]

    total = {s.label: s.points for s in Order(config(folder), 0)._sources}
    ratio = total["main/wide"] / total["main/small"]
    assert points_share("equal") == pytest.approx(1, rel=1e-4)
    assert points_share("sqrt") == pytest.approx(ratio**0.5, rel=1e-4)
    assert points_share("points") == pytest.approx(ratio, rel=1e-4)


def test_a_tiny_share_makes_the_block_longer_not_the_count_wrong():
    order = counted({"a": (1.0, "s=5"), "b": (0.0005, "t=5")})
    assert order.block * order.shares["b/t"] >= 64
    rows = [n for n in range(order.block) if order.row(n).source == "b/t"]
    assert abs(len(rows) - order.block * order.shares["b/t"]) < 1
    assert {n % 64 for n in rows} == set(range(64))
    assert abs(np.mean(rows) / order.block - 0.5) < 0.15, "they come all through the block"


# Stages


def test_counts_integrate_the_shares_of_stages():
    mixture = {"a": (1.0, "s=5"), "b": (0.0, "t=5"), "c": (1.0, "u=5")}
    order = counted(mixture, stages={"6400": {"b": 2.0}, "25600": {"a": 0.0, "c": 0.5}})
    shares = [{"a": 1 / 2, "c": 1 / 2}, {"a": 1 / 4, "b": 1 / 2, "c": 1 / 4}, {"b": 0.8, "c": 0.2}]
    bounds = (0, 6400, 25600, 25600 + 64 * 160)
    for (first, end), share in zip(pairwise(bounds), shares, strict=True):
        counts = Counter(order.row(n).source[0] for n in range(first, end))
        assert set(counts) == set(share)
        assert all(abs(counts[k] - (end - first) * s) <= 1 for k, s in share.items())
    assert order.shares == {"a/s": 0.5, "b/t": 0.0, "c/u": 0.5}
    assert [row["shares"] for row in order.table()] == [
        pytest.approx(of, abs=1e-8) for of in ([0.5, 0.25, 0], [0, 0.5, 0.8], [0.5, 0.25, 0.2])
    ]


def test_a_later_stage_moves_only_rows_of_the_block_it_cuts():
    mixture = {"a": (1.0, "s=5"), "b": (0.5, "t=5")}
    plain, staged = counted(mixture), counted(mixture, stages={str(10 * 1024 + 640): {"b": 5.0}})
    assert [plain.row(n) for n in range(9 * 1024)] == [staged.row(n) for n in range(9 * 1024)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"100": {"a": 2.0}}, r"data\.stages\.100: .*multiple of the 64 lanes; the nearest are 64 and 128"),
        ({"soon": {"a": 2.0}}, r"data\.stages\.soon: .*multiple of the 64 lanes"),
        ({"0": {"a": 2.0}}, r"data\.stages\.0: .*multiple"),
        ({"6400": {}, "06400": {}}, "two stages that begin at row 6400"),
        ({"6400": {"z": 2.0}}, r"data\.stages\.6400: no entry 'z'; there are: a, b"),
        ({"6400": {"a": 0.0, "b": 0.0}}, r"data\.stages\.6400: no entry has both"),
        ({"6400": {"a": 0.001}, "8000": {}}, r"data\.stages\.6400 lasts for 1600 rows and needs \d+, .*source a/s"),
        ({"64": {"a": 1e-12}}, r"data\.mixture lasts for 64 rows"),
        ({"6400": {"a": 1e-12}}, r"data\.stages\.6400: source a/s has a share of rows below 1e-9"),
    ],
)
def test_wrong_stages_are_named(stages, message):
    with pytest.raises(ValueError, match=message):
        counted({"a": (1.0, "s=5"), "b": (1.0, "t=5")}, stages=stages)


# Filters


def all_windows(order: Order, label: str) -> dict[int, list[tuple[int, int]]]:
    source = next(s for s in order._sources if s.label == label)
    out = defaultdict(list)
    for j in range(source.epoch_rows(0)):
        for i, start, steps in source.windows(j, 0):
            out[i].append((start, steps))
    return out


@pytest.mark.parametrize(
    ("filters", "intervals", "domains"),
    [
        ({"domain": "general"}, {1, 60, 3600}, {1}),
        ({"min_interval": 60.0}, {60, 3600}, {0, 1}),
        ({"max_interval": 60.0}, {1}, {0, 1}),
        ({"domain": "observability", "min_interval": 2.0, "max_interval": 3600.0}, {60}, {0}),
    ],
)
def test_filters_choose_series_by_domain_and_interval(buckets, filters, intervals, domains):
    order = Order(config(buckets, **filters), 0)
    shards, source = order.open("main/mixed")
    index = shards.index(source)
    seen = all_windows(order, "main/mixed")
    chosen = np.isin(index["interval"], list(intervals)) & np.isin(index["domain"], list(domains))
    assert set(seen) == set(np.flatnonzero(chosen).tolist())
    assert order._sources[0].points == index["points"][chosen].sum()


def test_filters_that_leave_nothing_say_what_there_is(buckets):
    with pytest.raises(ValueError, match=r"data\.mixture\.main: domain=synthetic leaves .*observability, general"):
        Order(config(buckets, domain="synthetic"), 0)
    with pytest.raises(ValueError, match=r"min_interval=4000 leaves no series; .* intervals 1, 60, 3600 s"):
        Order(config(buckets, min_interval=4000.0), 0)
    with pytest.raises(ValueError, match=r"downsample=1000 leaves no series; .* up to 550 steps"):
        Order(config(buckets, downsample=1000), 0)


def test_downsampled_windows_count_coarse_steps(buckets):
    order = Order(config(buckets, downsample=120), 0)
    shards, source = order.open("main/mixed")
    index = shards.index(source)
    seen = all_windows(order, "main/mixed")
    assert set(seen) == set(np.flatnonzero(index["length"] >= 120).tolist())
    assert all(seen[i] == [(0, index["length"][i] // 120)] for i in seen)
    half, long = Order(config(buckets, downsample=2), 0), all_windows(Order(config(buckets), 0), "main/mixed")
    for i, windows in all_windows(half, "main/mixed").items():
        length = int(index["length"][i]) // 2
        assert len(windows) == max(1, length // LENGTH)
        assert all(start + steps <= length for start, steps in windows)
        assert len(windows) <= len(long[i])
    assert half._sources[0].points == index["points"].sum() / 2


# The whole


def test_rows_depend_on_seed_and_not_on_what_was_read_before(folder):
    order, again = Order(config(folder), 7), Order(config(folder), 7)
    rows = [order.row(n) for n in range(300)]
    assert [again.row(n) for n in reversed(range(300))][::-1] == rows
    assert [pickle.loads(pickle.dumps(order)).row(n) for n in (5, 200)] == [rows[5], rows[200]]
    assert [Order(config(folder), 8).row(n) for n in range(300)] != rows
    for n in (10**9, 10**12, 10**15 + 7):
        assert order.row(n) == again.row(n) != order.row(n + 64)


def test_quotas_hold_at_large_row_numbers():
    """Over a block far out, where products of rows and shares pass 64 bits."""
    for lanes in (1, 64):
        order = counted({"a": (1.0, "s=5"), "b": (0.3, "t=5")}, lanes=lanes)
        first = 10**14 // order.block * order.block
        rows = [order.row(n) for n in range(first, first + order.block)]
        counts = Counter(spec.source for spec in rows)
        for label, share in order.shares.items():
            assert abs(counts[label] - order.block * share) < 2
            numbers = sorted(spec.windows[0][0] for spec in rows if spec.source == label)
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            units = round(share * 2**30)
            assert abs(numbers[0] - first * units // 2**30) <= 1


def test_fingerprint_follows_what_decides_the_rows(folder, tmp_path):
    base = Order(config(folder), 0).fingerprint
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    assert Order(config(moved), 0).fingerprint == base
    faster = config(folder)
    faster.workers = 7
    assert Order(faster, 0).fingerprint == base
    assert Order(config(folder), 1).fingerprint != base
    for change in ({"balance": "equal"}, {"exclude": ["small"]}, {"downsample": 2}, {"min_interval": 1.0}):
        assert Order(config(folder, **change), 0).fingerprint != base
    for key, value in (("lanes", 16), ("shuffle_rows", 32), ("length", 32), ("stages", {"64000": {"main": 2.0}})):
        other = config(folder)
        setattr(other, key, value)
        assert Order(other, 0).fingerprint != base, key


def test_facts_are_plain_and_the_table_has_every_source(folder):
    order = Order(config(folder, domain="general"), 0)
    facts = order.facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts["format"] == 3
    assert sum(facts["stages"][0]["units"].values()) == 2**30
    assert facts["sources"]["main/big"]["domain"] == "general"
    table = {row["label"]: row for row in order.table()}
    assert list(table) == list(order.shares)
    assert sum(row["share"] for row in table.values()) == pytest.approx(1)
    assert sum(row["share"] * row["fill"] for row in table.values()) == pytest.approx(order.fill)
    assert table["main/small"]["rows"] == 1
    assert table["main/small"]["fills"] == {1: pytest.approx(5 * 30 / (VARIATES * LENGTH))}
    wide = table["main/wide"]["fills"]
    assert wide[8] == 1.0
    assert wide[5] == pytest.approx(5 / 8), "one window of 5 variates leaves 3 rows of slots empty"


def test_wide_series_are_refused_by_name(folder):
    narrow = DataConfig({"main": MixtureEntry(str(folder))}, variates=4, length=LENGTH)
    with pytest.raises(ValueError, match=r"source main/wide has a series of 8 variates.*data\.variates=4"):
        Order(narrow, 0)


def test_problems_name_the_mixture_entry(tmp_path):
    with pytest.raises(ValueError, match=r"data\.mixture\.main: .*build_shards"):
        Order(config(tmp_path / "nowhere"), 0)
    with pytest.raises(ValueError, match=r"mixture is empty.*data\.mixture\.corpus\.path=FOLDER"):
        Order(DataConfig(), 0)


def test_sources_without_values_are_left_out(tmp_path, caplog):
    content = series("full", [(1, 100)]) + series("void", [(1, 100)], missing=1.0)
    write_shards(tmp_path / "set", content, {})
    order = Order(config(tmp_path / "set"), 0)
    assert order.shares == {"main/full": 1.0}
    assert "main/void" in caplog.text
