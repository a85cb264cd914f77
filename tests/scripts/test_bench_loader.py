"""The loader's benchmark at tiny sizes: its rows, and that every side is credited with the points it made."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

import loader
from loader_peers import PEERS, WIDTH

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.data.rows import Rows

LENGTH, HIDDEN = 256, 7
TINY = loader.Sizes(
    length=LENGTH, series=96, rounds=2, seconds=0.01, shards=20, per_shard=3, drawn=10, starts=1, latency=0.001
)


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> loader.Corpus:
    """Series of one window each, all with as many missing values."""
    random, series = np.random.default_rng(0), []
    for i in range(2 * WIDTH):
        values = random.normal(1, 1, (1, LENGTH)).astype(np.float32)
        values[0, random.choice(LENGTH, HIDDEN, replace=False)] = np.nan
        series.append(Series(values, 60.0, "exact", str(i)))
    folder = tmp_path_factory.mktemp("bench") / "exact"
    write_shards(folder, series, {})
    return loader.Corpus("exact", folder, series)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.make.__name__)
def test_a_peer_is_credited_with_what_it_made(peer, exact):
    anywhere = peer.make.__name__ in ("stacked", "copies")  # windows begin anywhere in the concatenation
    if not anywhere:
        pytest.importorskip(peer.make.__name__)
    side = peer.make(exact.folder, exact.variates, LENGTH)
    for _ in range(3):
        points = side.points(next(side.batches))
        if anywhere:
            assert points == pytest.approx(WIDTH * (LENGTH - HIDDEN), rel=0.02)
        else:
            assert points == WIDTH * (LENGTH - HIDDEN)


def test_we_are_credited_with_what_was_made(exact):
    side = loader.ours(loader.settings(exact.folder, LENGTH))
    for _ in range(3):
        batch = next(side.batches)
        assert batch["target"].shape == (1, WIDTH, LENGTH)
        assert side.points(batch) == int(batch["target_mask"].sum()) == WIDTH * (LENGTH - HIDDEN)


def test_the_large_corpus_reads_like_the_small_one(tmp_path):
    small = loader.Corpus.write(tmp_path, "small", [1] * 3, LENGTH)
    path = loader.multiplied(small.folder, tmp_path / "large", WIDTH)
    assert len(list(path.glob("*.tar"))) == WIDTH
    rows = Rows(loader.settings(path, LENGTH))
    batch = rows.batch(range(3))
    held = batch["target_mask"].sum(axis=-1)
    fewest = LENGTH - LENGTH // 50  # as many are missing in a whole series
    assert ((fewest <= held) & (held <= LENGTH)).all()


@pytest.mark.slow
def test_every_part_gives_its_rows():
    rows = loader.everything(TINY)
    parts = [r.name.split(",")[0] for r in rows]
    assert parts == [
        *["rows [32"] * 2 * len(PEERS), *["2 workers"] * 2, "private memory of a worker", "private memory of a worker",
        "first batch", "imports before it", "streaming over http", "first batch over http",
    ]  # fmt: skip
    for row in rows:
        if row.peer is None:
            assert "missing" in row.peer_name or row.peer_name == "no limit"
        else:
            assert row.peer > 0
            assert row.ratio == row.ours / row.peer
        # at these sizes a worker may hold no more than an idle one
        assert row.ours > 0 or row.unit == "MB"
