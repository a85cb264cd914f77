"""What a run writes about itself while it trains: metrics.csv, losses.csv, sources.csv, traces."""

from __future__ import annotations

import csv
import gc
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from toto_train import clock
from toto_train.callbacks.communication import covered, shares
from toto_train.callbacks.meters import COLUMNS
from toto_train.callbacks.table import Table
from toto_train.clock import Clock
from toto_train.config import Config, DataConfig, MixtureEntry
from toto_train.data.order import Order

CONFIGS = Path(__file__).parents[2] / "configs"


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open()))


def number(row: dict[str, str], name: str) -> float:
    return float(row[name])


@pytest.mark.e2e
def test_metrics_agree_with_each_other(train_here):
    table = read(train_here() / "metrics.csv")
    assert tuple(table[0]) == COLUMNS
    for row in table:
        phases = [number(row, f"perf/{name}") for name in ("data_wait", "forward_backward", "optimizer", "other")]
        assert sum(phases) == pytest.approx(1, abs=3e-4)
        assert all(share > 0 for share in phases)
        assert number(row, "perf/patches_per_s") == pytest.approx(number(row, "perf/slots_per_s") / 32, rel=1e-3, abs=1)
        of_a_step = 4 * 4 * 256 / number(row, "perf/step_seconds")
        assert number(row, "perf/slots_per_s") == pytest.approx(of_a_step, rel=1e-3)
        norms = [number(row, f"train/grad_norm_{kind}") for kind in ("normuon", "adamw")]
        assert math.hypot(*norms) == pytest.approx(number(row, "train/grad_norm"), rel=1e-5)
        for kind in ("normuon", "adamw"):
            assert 0 < number(row, f"train/update_ratio_{kind}") < number(row, f"train/update_norm_{kind}")
        assert number(row, "perf/mfu") > 0
        assert number(row, "perf/memory_gib") > 0.1
        assert row["perf/communication"] == row["perf/communication_exposed"] == "0.0"  # one process
        assert row["train/spike_score"] == ""  # half a window was not seen
        assert [row[f"data/quarantined_{what}"] for what in ("rows", "windows")] == ["0", "0"]
    # a rate a tenth of the peak moves the weights a tenth as far: NorMuon's updates have the norm of their shapes
    peak, last = (number(row, "train/update_norm_normuon") for row in (table[3], table[-1]))
    assert last / peak == pytest.approx(0.25, rel=0.05)


@pytest.mark.e2e
def test_losses_by_source_domain_and_interval_have_the_mean_of_all(train_here):
    folder = train_here("logger.every_steps=1", "schedule.max_steps=6", "schedule.decay_steps=0")
    means = {row["step"]: number(row, "train/loss") for row in read(folder / "metrics.csv")}
    sums: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(2))
    for row in (rows := read(folder / "losses.csv")):
        weight = number(row, "weight")
        sums[row["step"], row["kind"]] += weight * number(row, "loss"), weight
    assert set(sums) == {(step, kind) for step in means for kind in ("source", "domain", "interval")}
    for (step, _), (loss, weight) in sums.items():
        assert loss / weight == pytest.approx(means[step], rel=1e-5)
    assert {row["name"] for row in rows if row["kind"] == "source"} == {"corpus/web", "corpus/db"}
    assert {row["name"] for row in rows if row["kind"] != "source"} == {"observability", "1 h to 1 day"}


@pytest.mark.e2e
def test_what_was_seen_is_what_the_mixture_asks_for(train_here):
    """To one row of a source, in every interval between reports."""
    table = read(train_here("schedule.max_steps=20") / "sources.csv")
    seen, asked = defaultdict(float), defaultdict(float)
    for row in table:
        seen[row["source"]] += number(row, "rows")
        asked[row["source"]] += number(row, "wanted") * 8
    assert sum(seen.values()) == 80
    for source, rows in seen.items():
        assert abs(rows - asked[source]) <= 1.1


def test_stages_change_what_is_asked_for(corpus):
    mixture = {name: MixtureEntry(str(corpus / "train"), include=[name]) for name in ("web", "db")}
    order = Order(DataConfig(mixture, 4, 256, stages={"2000": {"db": 0.0}}, lanes=1), 0)
    labels = list(order.shares)
    for first, end in ((0, 2000), (1000, 3000), (2000, 2500)):
        rows = [labels.index(order.row(n).source) for n in range(first, end)]
        np.testing.assert_allclose(order.wanted(first, end), np.bincount(rows, minlength=2) / len(rows), atol=0.02)
    assert order.wanted(2000, 2500).tolist() == [float(label == "web/web") for label in labels]


@pytest.mark.e2e
def test_windows_in_quarantine_are_counted(train_here, corpus, tmp_path):
    shards = Path(shutil.copytree(corpus / "train", tmp_path / "broken"))
    (shards / "db.tar").unlink()
    folder = train_here(f"data.mixture.corpus.path={shards}", "data.on_fault=quarantine")
    sources, metrics = read(folder / "sources.csv"), read(folder / "metrics.csv")
    for what in ("rows", "windows"):
        lost = {name: 0.0 for name in ("corpus/db", "corpus/web")}
        for row in sources:
            lost[row["source"]] += number(row, f"quarantined_{what}")
        assert lost["corpus/db"] > 0 == lost["corpus/web"]
        assert sum(number(row, f"data/quarantined_{what}") for row in metrics) == lost["corpus/db"]


@pytest.mark.e2e
def test_a_trace_shows_the_phases(train_here):
    folder = train_here("profile.start=3", "profile.steps=2")
    (file,) = (folder / "profile").iterdir()
    assert file.name == "trace-rank0.json"
    names = [event["name"] for event in json.loads(file.read_text())["traceEvents"] if event.get("ph") == "X"]
    counts = {name: names.count(name) for name in ("data", "forward", "backward", "optimizer", "exchange")}
    # two steps of two micro batches; one process exchanges nothing
    assert counts == {"data": 4, "forward": 4, "backward": 4, "optimizer": 2, "exchange": 0}


@pytest.mark.e2e
def test_a_trace_longer_than_the_run_is_written_at_its_end(train_here):
    folder = train_here("profile.start=11", "profile.steps=5")
    assert json.loads((folder / "profile" / "trace-rank0.json").read_text())["traceEvents"]


@pytest.mark.e2e
def test_collections_wait_while_training_and_come_back(train_here, monkeypatch):
    enabled = []
    write = Table.write
    monkeypatch.setattr(Table, "write", lambda *args: (enabled.append(gc.isenabled()), write(*args)))
    train_here("logger.every_steps=1", "schedule.max_steps=6", "schedule.decay_steps=0")
    assert enabled[0]
    assert not any(enabled[3:])  # three tables a step; the first step is over
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("ending", ["", "9,12", "9,1"])
def test_tables_keep_whole_lines_up_to_a_step_and_take_new_columns(tmp_path, ending):
    file = tmp_path / "x.csv"
    file.write_text("step,a\n2,x\n4,y\n" + ending)
    table = Table(file, ("step", "a", "b"), 8)
    table.write([{"step": 10, "b": 1}])
    assert table.last == {"step": "4", "a": "y"}
    assert file.read_text().splitlines() == ["step,a,b", "2,x,", "4,y,", "10,,1"]
    Table(file, ("step", "a", "b"), 3)
    assert file.read_text().splitlines() == ["step,a,b", "2,x,"]
    before = file.read_text()
    Table(file, ("step",), 0, writes=False).write([{"step": 5}])
    assert file.read_text() == before


def test_time_goes_to_the_phase_that_ends(monkeypatch):
    now = 100.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    watch = Clock()
    for seconds, phase in (
        (1, "data"),
        (5, "forward_backward"),
        (2, "data"),
        (100, None),
        (3, "optimizer"),
        (4, "data"),
    ):
        now += seconds
        watch.mark(phase)
    assert watch.read() == {"data": 7, "forward_backward": 5, "optimizer": 3, "other": 0}
    assert sum(watch.read().values()) == 0


def event(name: str, begin: float, end: float, device: DeviceType = DeviceType.CPU) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=begin, end=end))


def test_communication_is_exposed_where_nothing_else_is_done():
    cpu = [
        event("aten::mm", 0, 10), event("gloo:all_reduce", 5, 20), event("aten::copy_", 12, 14),
        event("backward", 0, 40), event("c10d::allreduce_", 5, 6), event("aten::add", 30, 40),
    ]  # fmt: skip
    assert shares(cpu) == pytest.approx((15 / 40, 8 / 40))
    kind = DeviceType.CUDA
    cuda = [event("ncclDevKernel_AllGather", 0, 4, kind), event("gemm", 2, 10, kind)]
    assert shares(cuda) == pytest.approx((0.4, 0.2))
    assert shares([event("gemm", 2, 10, kind)]) == (0, 0)
    assert all(math.isnan(share) for share in shares([event("backward", 0, 1)]))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=12))
def test_covered_is_the_length_of_the_union(spans):
    spans = [(begin, begin + size) for begin, size in spans]
    assert covered(spans) == len({t for begin, end in spans for t in range(begin, end)})


def test_settings_of_a_snapshot_without_a_trace_are_refused():
    from toto_train.config_check import check

    config = Config()
    config.profile.memory = True
    assert any("profile.memory=true is about the steps of a trace" in problem for problem in check(config))
