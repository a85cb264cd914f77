"""Row n is a pure function of (data config, seed, n): shares, epochs and windows are exact."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.series import Series
from data_pipelines.shards import write_shards
from toto_train.config import DataConfig, MixtureEntry
from toto_train.data.order import Order, SourceOrder, key_of, permute

LENGTH, VARIATES = 64, 8


def series(source: str, shapes: list[tuple[int, int]], missing: float = 0.0) -> list[Series]:
    out = []
    for i, (variates, length) in enumerate(shapes):
        values = np.arange(variates * length, dtype=np.float32).reshape(variates, length)
        values[:, : int(missing * length)] = np.nan
        out.append(Series(values, 60.0, source, str(i)))
    return out


def index_of(shapes: list[tuple[int, int]]) -> np.ndarray:
    index = np.zeros(len(shapes), [("variates", "<i4"), ("length", "<i8"), ("points", "<i8")])
    for i, (v, t) in enumerate(shapes):
        index[i] = v, t, v * t
    return index


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """big: 40 series with every second value missing; small: few and short; wide: of several widths."""
    path = tmp_path_factory.mktemp("data") / "set"
    data = series("big", [(1, 200 + i) for i in range(40)], missing=0.5)
    data += series("small", [(1, 30)] * 5)
    data += series("wide", [(1 + i % 8, 64 * (1 + i % 3)) for i in range(24)])
    write_shards(path, data, {})
    return path


def config(folder: Path, **entry) -> DataConfig:
    return DataConfig({"main": MixtureEntry(str(folder), **entry)}, variates=VARIATES, length=LENGTH)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 1500), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permute_mixes():
    """First places are uniform over keys, and neighbours part, for tiny sizes too."""
    for size in (2, 3, 7, 50):
        first = Counter(permute(0, size, key_of(k)) for k in range(200 * size))
        chi2 = sum((first[i] - 200) ** 2 / 200 for i in range(size))
        assert chi2 < size + 5 * (2 * size) ** 0.5
    assert len({tuple(permute(i, 3, key_of(k)) for i in range(3)) for k in range(100)}) == 6
    order = [permute(i, 10_000, 5) for i in range(10_000)]
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


shapes = st.lists(st.tuples(st.integers(1, VARIATES), st.integers(1, 300)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(shapes=shapes, seed=st.integers(0, 100), epoch=st.integers(0, 3))
def test_an_epoch_gives_every_window_once_without_overlap(shapes, seed, epoch):
    source = SourceOrder("e/s", index_of(shapes), VARIATES, LENGTH, seed)
    taken: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(shapes))}
    for j in range(epoch * source.rows, (epoch + 1) * source.rows):
        windows = source.windows(j)
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


def test_epochs_differ_in_order_and_phase():
    source = SourceOrder("e/s", index_of([(1, 1000)] * 64), VARIATES, LENGTH, 0)
    first, second = ([source.windows(e * source.rows + j) for j in range(source.rows)] for e in (0, 1))
    assert first != second
    phases = {start % LENGTH for row in first + second for _, start, _ in row}
    assert len(phases) > 20


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4), seed=st.integers(0, 50))
def test_counts_stay_within_one_row_of_the_share_at_block_ends(folder, weights, seed):
    names = ("big", "small", "wide", "*")
    mixture = {
        f"e{i}": MixtureEntry(str(folder), weight=w, include=[names[i]], balance="equal") for i, w in enumerate(weights)
    }
    order = Order(DataConfig(mixture, variates=VARIATES, length=LENGTH), seed)
    counts: Counter[str] = Counter()
    for n in range(3 * order.block if order.block < 500 else order.block):
        counts[order.row(n).source] += 1
        if (n + 1) % order.block == 0:
            for label, share in order.shares.items():
                assert abs(counts[label] - (n + 1) * share) < 1 + 1e-6


def test_rows_of_a_source_are_taken_in_turn(folder):
    """j counts through the epoch without gaps, however sources interleave."""
    order = Order(config(folder), seed=3)
    visited = Counter()
    for n in range(10 * order.block):
        spec = order.row(n)
        if spec.source == "main/small":
            visited.update(i for i, _, _ in spec.windows)
    assert set(visited) == set(range(5))
    assert max(visited.values()) - min(visited.values()) <= 1


def test_shares_count_observed_points(folder):
    """Equal weights give equal observed points, so a half-empty source gets about twice the rows."""
    order = Order(config(folder, include=["big", "wide"], balance="equal"), seed=0)
    points: Counter[str] = Counter()
    for n in range(4 * order.block + 2000):
        spec = order.row(n)
        shards, source = order.open(spec.source)
        for i, start, steps in spec.windows:
            points[spec.source] += int(np.isfinite(shards.values(source, i)[:, start : start + steps]).sum())
    assert points["main/big"] / points["main/wide"] == pytest.approx(1.0, rel=0.1)
    slots = (4 * order.block + 2000) * VARIATES * LENGTH
    assert sum(points.values()) / slots == pytest.approx(order.fill, rel=0.05)


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


def test_a_tiny_share_makes_the_block_longer_not_the_count_wrong(folder):
    mixture = {"a": MixtureEntry(str(folder), include=["small"]), "b": MixtureEntry(str(folder), 0.002, ["wide"])}
    order = Order(DataConfig(mixture, variates=VARIATES, length=LENGTH), seed=0)
    rare = min(order.shares, key=order.shares.__getitem__)
    assert order.block * order.shares[rare] >= 2
    found = sum(order.row(n).source == rare for n in range(order.block))
    assert abs(found - order.block * order.shares[rare]) < 1


def test_rows_depend_on_seed_and_not_on_what_was_read_before(folder):
    order, again = Order(config(folder), 7), Order(config(folder), 7)
    rows = [order.row(n) for n in range(300)]
    assert [again.row(n) for n in reversed(range(300))][::-1] == rows
    assert [Order(config(folder), 8).row(n) for n in range(300)] != rows
    assert order.row(10**9) == again.row(10**9)


def test_fingerprint_follows_what_decides_the_rows(folder, tmp_path):
    base = Order(config(folder), 0).fingerprint
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    assert Order(config(moved), 0).fingerprint == base
    faster = config(folder)
    faster.workers = 7
    assert Order(faster, 0).fingerprint == base
    assert Order(config(folder), 1).fingerprint != base
    assert Order(config(folder, balance="equal"), 0).fingerprint != base
    assert Order(config(folder, exclude=["small"]), 0).fingerprint != base


def test_wide_series_are_refused_by_name(folder):
    narrow = DataConfig({"main": MixtureEntry(str(folder))}, variates=4, length=LENGTH)
    with pytest.raises(ValueError, match=r"source main/wide has a series of 8 variates.*data\.variates=4"):
        Order(narrow, 0)


def test_problems_name_the_mixture_entry(tmp_path):
    with pytest.raises(ValueError, match=r"data\.mixture\.main: .*build_shards"):
        Order(config(tmp_path / "nowhere"), 0)
    with pytest.raises(ValueError, match="mixture is empty"):
        Order(DataConfig(), 0)


def test_sources_without_values_are_left_out(tmp_path, caplog):
    data = series("full", [(1, 100)]) + series("void", [(1, 100)], missing=1.0)
    write_shards(tmp_path / "set", data, {})
    order = Order(config(tmp_path / "set"), 0)
    assert order.shares == {"main/full": 1.0}
    assert "main/void" in caplog.text
