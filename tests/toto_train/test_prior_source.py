"""Rows that are made while training: the prior's series, each once, in any process, by shares of observed points."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.series import DOMAINS
from data_pipelines.shards import ShardSet
from data_pipelines.synthetic import prior
from data_pipelines.synthetic.chunk import CHUNK, Chunk
from toto_train.checkpoint_settings import data_changes
from toto_train.config import Config, DataConfig, MixtureEntry, ModelConfig, ScheduleConfig
from toto_train.data import strata
from toto_train.data.loader import RowLoader
from toto_train.data.order import Order
from toto_train.data.prior_source import PARTS, PriorSet, deal, parts_of
from toto_train.data.rows import Rows
from toto_train.run import describe_data

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import inspect_rows  # noqa: E402
import synthesize  # noqa: E402

LENGTH = 64
FAMILIES = {"telemetry": 2.0, "step": 1.0}


def data(families: dict[str, float] | None = None, **fields) -> DataConfig:
    mixture = {"made": MixtureEntry(families=FAMILIES if families is None else families)}
    return DataConfig(mixture, **{"variates": 8, "length": LENGTH, "lanes": 4} | fields)


def config(families: dict[str, float] | None = None, seed: int = 3, **fields) -> Config:
    return Config(seed=seed, data=data(families, **fields), model=ModelConfig(patch_size=16))


@pytest.fixture
def wide(monkeypatch) -> str:
    """A family of groups of 1 to 20 variates, whose values name them."""

    def widths(rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(1, 21, count)

    def generate(rng: np.random.Generator, length: int, count: int) -> Chunk:
        of = widths(rng, count)
        values = [np.repeat(1000.0 * k + np.arange(w)[:, None], length, axis=1) for k, w in enumerate(of)]
        return Chunk([v.astype(np.float32) for v in values], np.full(count, 60.0), np.zeros(count, "datetime64[s]"))

    monkeypatch.setitem(prior.FAMILIES, "wide", prior.Family(generate, 1.0, widths, count=16))
    return "wide"


# Which series


def test_rows_are_the_series_that_synthesize_stores_with_the_seed_of_the_run(tmp_path):
    args = [f"out={tmp_path / 'set'}", "count=128", f"length={LENGTH}", "seed=3"]
    assert synthesize.main(["family=telemetry", *args]) == 0
    stored = ShardSet(tmp_path / "set")
    by_name = {(s := stored.series("synthetic_telemetry", i)).item_id: s for i in range(128)}
    rows, compared = Rows(config({"telemetry": 1.0}, lanes=1)), 0
    for n in range(60):
        spec, batch = rows.order.row(n), rows.batch([n])
        series, source = rows.order.open(spec.source)
        top = 0
        for k, (position, first, steps) in enumerate(spec.windows):
            assert (first, steps) == (0, LENGTH)
            twin = by_name.get(series.meta(source, position)["item_id"])
            here = slice(top, top + int((batch["series_ids"][0] == k).sum()))
            top = here.stop
            if twin is None:
                continue
            compared += 1
            np.testing.assert_array_equal(batch["target_mask"][0, here], np.isfinite(twin.values))
            np.testing.assert_array_equal(batch["target"][0, here], np.nan_to_num(twin.values))
            domain, interval = np.array([DOMAINS.index("synthetic")]), np.array([twin.interval])
            assert (batch["stratum"][0, here] == strata.stratum(0, domain, interval)).all()
    assert compared > 110, "all but the few that found no room in the rows of their chunk"


@settings(max_examples=30, deadline=None)
@given(variates=st.integers(1, 70), lanes=st.sampled_from([1, 3, 8]), family=st.sampled_from(["step", "telemetry"]))
def test_no_series_comes_twice_and_few_are_left_out(variates, lanes, family):
    source = PriorSet(data(variates=variates, lanes=lanes), 0).family("made/x", family)
    rows, chunks = source.rows_of_chunk, 6
    seen: Counter[int] = Counter()
    width = {number: prior.widths(family, 0, number).tolist() for number in range(lanes * chunks)}
    repeated = total = 0
    for lane in range(lanes):
        for j in range(rows * chunks):
            hand = [position for position, _, _ in source.windows(j, lane)]
            numbers = {position // PARTS // CHUNK for position in hand}
            assert numbers == {j // rows * lanes + lane}, "a row takes one chunk, of its own lane"
            of = [divmod(position, PARTS) for position in hand]
            assert sum(parts_of(width[i // CHUNK][i % CHUNK], variates)[k] for i, k in of) <= variates
            repeated += bool(seen.keys() & set(hand))
            seen.update(hand)
            total += 1
    everything = sum(len(parts_of(w, variates)) for of in width.values() for w in of)
    if variates > 2:
        assert repeated == 0
    assert repeated <= 0.15 * total  # a chunk of few variates, in rows of one or two
    capacity = min(1.0, rows * variates / np.mean([sum(of) for of in width.values()]))
    assert len(seen) / everything > 0.85 * capacity


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 64), variates=st.integers(1, 64))
def test_parts_are_even_and_whole(width, variates):
    parts = parts_of(width, variates)
    assert sum(parts) == width
    assert max(parts) <= variates
    assert max(parts) - min(parts) <= 1
    assert len(parts) == -(-width // variates)


def test_groups_wider_than_a_row_come_in_parts(wide):
    """The values name the group and the variate: what a row holds is what its windows say."""
    rows = Rows(config({wide: 1.0}))
    parts: dict[int, list[float]] = {}
    for n in range(0, 4 * 2 * rows.order._sources[0].rows_of_chunk, 4):  # two chunks of lane 0
        spec, batch = rows.order.row(n), rows.batch([n])
        for k, (position, _, _) in enumerate(spec.windows):
            group, part = divmod(position, PARTS)
            values = batch["target"][0, batch["series_ids"][0] == k, 0]
            assert (values // 1000 == group % 16).all()
            parts.setdefault(group, []).extend((values % 1000).tolist())
            assert (part > 0) <= (values.min() % 1000 > 0)
    whole = [sorted(found) == list(range(int(max(found)) + 1)) for found in parts.values()]
    assert max(map(len, parts.values())) > 16
    assert np.mean(whole) > 0.9


def test_seeds_and_families_differ_and_reading_again_does_not():
    rows = Rows(config())
    batch = rows.batch(range(12))
    for n in (3, 11, 0, 3):  # their windows are gone from the stock
        np.testing.assert_array_equal(rows.batch([n])["target"][0], batch["target"][n])
    assert (Rows(config(seed=4)).batch(range(12))["target"] != batch["target"]).any()
    copy = pickle.loads(pickle.dumps(rows))
    assert not copy.order.open("made/step")[0]._stock
    np.testing.assert_array_equal(copy.batch(range(12))["target"], batch["target"])


def test_a_law_that_fails_says_of_which_chunk(monkeypatch):
    def fail(rng, length, count):
        raise ZeroDivisionError("law")

    monkeypatch.setitem(prior.FAMILIES, "step", prior.Family(fail, 1.0))
    with pytest.raises(ZeroDivisionError) as caught:
        Rows(config({"step": 1.0})).batch([0])
    assert caught.value.__notes__ == ["chunk 0 of family step, seed 3, 64 steps"]


# Shares


def test_weights_are_shares_of_observed_points():
    rows = Rows(config({"telemetry": 3.0, "step": 1.0}, length=256))
    points = Counter()
    count = 4 * rows.order.block
    for first in range(0, count, 32):
        batch = rows.batch(range(first, first + 32))
        for k, seen in zip(batch["source"], batch["target_mask"], strict=True):
            points[rows.labels[k]] += int(seen.sum())
    assert points["made/telemetry"] / points["made/step"] == pytest.approx(3.0, rel=0.05)
    assert sum(points.values()) / (count * 8 * 256) == pytest.approx(rows.order.fill, rel=0.03)


@pytest.mark.parametrize("family", list(prior.FAMILIES))
def test_the_observed_share_of_a_family_is_what_it_says(family):
    """512 groups where values are missing at all, whose shares have a standard deviation of .03: error .0015."""
    told = prior.FAMILIES[family].observed
    made = [prior.chunk(family, 5, number, 1024 if told < 1 else 128) for number in range(8 if told < 1 else 1)]
    shares = [np.isfinite(values).mean() for of in made for values in of.values]
    widths = [len(values) for of in made for values in of.values]
    assert np.average(shares, weights=widths) == pytest.approx(told, abs=0.006 if told < 1 else 0)


def test_families_stand_beside_shards_in_stages(tmp_path):
    assert synthesize.main(["family=step", f"out={tmp_path / 'set'}", "count=64", f"length={LENGTH}"]) == 0
    mixture = {
        "real": MixtureEntry(str(tmp_path / "set"), weight=0.4),
        "made": MixtureEntry(weight=0.6, families={"sinewave": 2.0, "spike": 1.0, "anomaly": 0.0}),
    }
    order = Order(DataConfig(mixture, 8, LENGTH, stages={"640": {"made": 0.0}}, lanes=4), 0)
    assert order.shares == pytest.approx({"made/sinewave": 0.4, "made/spike": 0.2, "real/synthetic_step": 0.4})
    counts = Counter(order.row(n).source for n in range(640))
    assert all(abs(counts[label] - 640 * share) < 4 for label, share in order.shares.items())
    assert {order.row(n).source for n in range(640, 1280)} == {"real/synthetic_step"}


# Who makes what


@pytest.fixture
def made(monkeypatch, tmp_path):
    """made() -> how often each (family, chunk) was made since the last call, in whatever process."""
    log, chunk = tmp_path / "chunks", prior.chunk
    log.touch()

    def recording(family: str, seed: int, number: int, length: int) -> Chunk:
        with log.open("a") as file:
            file.write(f"{family} {number}\n")
        return chunk(family, seed, number, length)

    def counts() -> Counter[str]:
        out = Counter(log.read_text().splitlines())
        os.truncate(log, 0)
        return out

    monkeypatch.setattr(prior, "chunk", recording)
    return counts


def read_all(c: Config, world: int) -> None:
    rows = Rows(c)
    for rank in range(world):
        assert sum(len(b["row"]) for b in RowLoader(c, rows, 0, world, rank)) == c.schedule.max_steps * 16 // world


@pytest.mark.parametrize(("world", "workers", "micro"), [(1, 0, 2), (1, 1, 1), (1, 2, 1), (2, 2, 2), (4, 2, 1)])
def test_each_chunk_is_made_once(made, world, workers, micro):
    """By one worker of one rank, which keeps it until its last row."""
    c = replace(
        config({"telemetry": 1.0, "step": 1.0}, lanes=16, workers=workers, prefetch=8),
        schedule=ScheduleConfig(20), global_rows=16, micro_rows=micro,
    )  # fmt: skip
    read_all(c, world)
    times = made()
    assert len(times) >= 32
    assert set(times.values()) == {1}


def test_rows_of_a_chunk_follow_each_other_in_their_lane():
    """In all but the ends of leaves of 256 rows; by chance two neighbours would be of one chunk in 1 of 25 cases."""
    order = Order(data({"step": 1.0, "spike": 24.0}, variates=32), 0)
    for lane in (0, 3):
        rows = [order.row(n) for n in range(lane, 4 * 256 * 8, 4)]
        chunks = [spec.windows[0][0] // PARTS // CHUNK if spec.source == "made/step" else None for spec in rows]
        pairs = [k for k, chunk in enumerate(chunks) if chunk is not None and chunk not in chunks[:k]]
        together = [chunks[k] == chunks[k + 1] for k in pairs if k + 1 < len(chunks)]
        assert len(together) > 30
        assert np.mean(together) > 0.75


def test_workers_without_lanes_of_their_own_are_told_of(made, caplog):
    c = replace(
        config({"telemetry": 1.0}, lanes=4, workers=3, prefetch=4),
        schedule=ScheduleConfig(20), global_rows=16, micro_rows=1,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        read_all(c, 1)
    assert "data.lanes=4 leaves 3 workers on each of 1 ranks" in caplog.text
    assert "data.lanes=12 avoids it" in caplog.text
    assert max(made().values()) > 1


def test_one_worker_shares_its_lanes_with_nobody(made, caplog):
    c = replace(
        config({"telemetry": 1.0}, lanes=1, workers=1, prefetch=4),
        schedule=ScheduleConfig(20), global_rows=16, micro_rows=16,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        read_all(c, 1)
    assert not caplog.text
    assert set(made().values()) == {1}


def test_little_is_kept(wide):
    """A row takes its windows along, and the next chunk of the lane takes the place of the last."""
    rows = Rows(config({wide: 1.0, "step": 1.0}, lanes=2))
    stock = rows.order.open("made/step")[0]._stock
    for n in range(200):
        spec = rows.order.row(n)
        rows.batch([n])
        _, family = rows.order.open(spec.source)
        number, held = stock[family, n % 2]
        assert not {position for position, _, _ in spec.windows} & held.keys()
        of = rows.order._sources[[s.label for s in rows.order._sources].index(spec.source)].rows_of_chunk
        assert held.keys() <= {p for hand in deal(family, 3, number, 8, of) for p in hand}
        assert all(values.base is None for values, _ in held.values()), "no view that keeps the chunk"
    assert len(stock) == 4


# What a run says


def test_what_decides_the_rows_is_in_the_facts(monkeypatch):
    base = Order(data(), 0)
    assert Order(data(workers=7), 0).fingerprint == base.fingerprint
    more = Order(data({**FAMILIES, "spike": 1.0}), 0)
    assert "data.sources.made/spike is new" in data_changes(base.facts, more.facts)
    assert "data.sources.made/step is gone" in data_changes(base.facts, Order(data({"telemetry": 1.0}), 0).facts)
    for other in (Order(data(), 1), Order(data({"telemetry": 3.0, "step": 1.0}), 0), Order(data(lanes=8), 0)):
        assert other.fingerprint != base.fingerprint
    before = base.facts
    monkeypatch.setattr(prior, "FORMAT", prior.FORMAT + 1)
    changed = data_changes(before, base.facts)
    assert any(line.startswith("data.sources.made/step.dataset is 'prior") for line in changed)


def test_unknown_families_are_refused_by_name():
    with pytest.raises(ValueError, match=r"data\.mixture\.made\.families: unknown family 'stpe'; did you mean 'step'"):
        Order(data({"stpe": 1.0}), 0)
    with pytest.raises(ValueError, match=r"data\.mixture\.made\.families: all weights are 0"):
        Order(data({"step": 0.0}), 0)


def test_a_run_needs_no_data_and_shows_what_it_saw(tmp_path, capsys):
    from toto_train.cli import config_from_overrides
    from toto_train.run import run

    job = [
        f"out={tmp_path}", "name=made", "data=synthetic", "model.d_model=32", "model.d_ff=64", "data.variates=4",
        "data.length=128", "validation.context=128", "heldout.context=128", "global_rows=4", "micro_rows=2",
        "schedule.max_steps=3", "schedule.warmup_steps=1", "schedule.decay_steps=1", "validate_every=0",
        "report=false", "parallel.device=cpu", "data.workers=0",
    ]  # fmt: skip
    c = config_from_overrides(job, ROOT / "configs")
    plan = describe_data(c)
    assert "made on the fly" in plan
    assert "telemetry/telemetry" in plan
    run(c)
    capsys.readouterr()
    assert inspect_rows.main([f"run={tmp_path / 'made'}", "step=2", "rows=0"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" variates, steps 0 .. 127, ") >= 4
    assert "0-0000" in shown
    assert (tmp_path / "made" / "step-2.png").stat().st_size > 10_000
