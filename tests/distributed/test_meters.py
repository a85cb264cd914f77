"""Several ranks report what one process reports, once, and skip the same steps."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.callbacks import communication
from toto_train.callbacks.communication import Communication
from toto_train.callbacks.guarding import Guarding
from toto_train.callbacks.losses import Losses
from toto_train.callbacks.meters import Meters
from toto_train.callbacks.profiling import Profiling
from toto_train.callbacks.reads import Reads
from toto_train.callbacks.validation import Validation
from toto_train.checkpoint import Position
from toto_train.cli import config_from_overrides
from toto_train.config import GAVE_UP, RunStopped
from toto_train.data.loader import RowDataModule
from toto_train.module import TrainingModule
from toto_train.parallel import build, make_optimizer, trainer
from toto_train.ranks import join

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]


def metered(rank, world, overrides, folder):
    """Train with every meter; returns the guard's state and what stopped the run."""
    warnings.simplefilter("ignore")
    config = config_from_overrides(overrides, ROOT / "configs")
    stopped = None
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        optimizer = make_optimizer(config, model)
        module, data = TrainingModule(config, model, optimizer, Position(), ranks), RowDataModule(config)
        every = config.logger.every_steps
        profiling = Profiling(config.profile, folder / "profile", 0)
        sampling = Communication(profiling.steps)
        meters = Meters(config, folder / "metrics.csv", 0, Validation(None), sampling, ranks.first)
        callbacks: list[pl.Callback] = [
            sampling, profiling, meters, Guarding(meters, data.order, str(folder)),
            Reads(folder / "sources.csv", data.order, 0, every, ranks.first),
            Losses(folder / "losses.csv", data.rows.labels, 0, every, ranks.first),
        ]  # fmt: skip
        try:
            made = trainer(config, ranks, config.schedule.max_steps, callbacks=callbacks, logger=False)
            made.fit(module, datamodule=data)
        except RunStopped as error:
            stopped = str(error), error.status
        return {name: t.clone() for name, t in module.guard.state_dict().items()}, stopped


def overrides(mixture, *more):
    return [
        "name=meters", "data=shards", *mixture, "model.d_model=32", "model.d_ff=64", "data.variates=4",
        "data.length=256", "data.workers=0", "global_rows=8", "micro_rows=2", "schedule.max_steps=12",
        "schedule.warmup_steps=2", "schedule.decay_steps=4", "validate_every=0", "validation.context=256",
        "heldout.context=256", "parallel.device=cpu", "parallel.precision=fp32", "logger.every_steps=3",
        "optimizer.normuon.orthogonalize_dtype=fp32", "optimizer.adamw.lr=0.012", *more,
    ]  # fmt: skip


def read(file: Path) -> list[dict[str, str]]:
    with file.open() as f:
        return list(csv.DictReader(f))


CASES = {"ddp": (2, ()), "fsdp2": (2, ()), "hsdp": (4, ("parallel.shards=2",))}


@pytest.mark.parametrize("mode", CASES)
def test_several_ranks_report_what_one_does(corpus, processes, tmp_path, monkeypatch, mode):
    """Rounding aside; clocks and communication are their own."""
    monkeypatch.setattr(communication, "FIRST", 2)
    world, more = CASES[mode]
    mixture = [f"data.mixture.corpus.path={corpus / 'train'}"]
    one, several = tmp_path / "one", tmp_path / "several"
    for folder, count, mine in (
        (one, 1, ()),
        (
            several,
            world,
            (f"parallel={mode}", f"parallel.devices={world}", "profile.start=8", "profile.steps=1", *more),
        ),
    ):
        folder.mkdir()
        processes(count, metered, overrides(mixture, *mine), folder)
    expected, found = (read(folder / "metrics.csv") for folder in (one, several))
    assert [row["step"] for row in found] == ["3", "6", "9", "12"]
    for a, b in zip(expected, found, strict=True):
        for name in (n for n in a if n != "seconds" and not n.startswith("perf/")):
            assert (a[name] == "") == (b[name] == ""), name
            if a[name]:
                assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-4), name
        assert sum(float(b[f"perf/{n}"]) for n in ("data_wait", "forward_backward", "optimizer", "other")) == (
            pytest.approx(1, abs=3e-4)
        )
    assert found[0]["perf/communication"] != ""  # step 2 was measured
    for row in found:
        assert 0 < float(row["perf/communication_exposed"]) <= float(row["perf/communication"]) <= 1
    for name, columns in (("sources.csv", ("step", "source", "rows", "share", "wanted")),
                          ("losses.csv", ("step", "kind", "name", "weight"))):  # fmt: skip
        a, b = ([[row[c] for c in columns] for row in read(folder / name)] for folder in (one, several))
        assert a == b
    a, b = ([float(row["loss"]) for row in read(folder / "losses.csv")] for folder in (one, several))
    assert a == pytest.approx(b, rel=1e-4)
    assert {p.name for p in (several / "profile").iterdir()} == {f"trace-rank{r}.json" for r in range(world)}
    assert '"exchange"' in (several / "profile" / "trace-rank1.json").read_text()


@pytest.fixture
def broken(tmp_path) -> Path:
    values = np.where(np.arange(600) % 3 == 0, 3e38, -3e38).astype(np.float32)[None]
    write_shards(tmp_path / "absurd", [Series(values, 60.0, "broken", str(i)) for i in range(4)], {})
    return tmp_path / "absurd"


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_a_batch_that_one_rank_sees_is_skipped_by_all(corpus, broken, processes, tmp_path, mode):
    mixture = [
        f"data.mixture.corpus.path={corpus / 'train'}", f"data.mixture.bad={{path: {broken}, weight: 0.08}}",
        "data.lanes=2", "guards.window=4",
    ]  # fmt: skip
    (alone,) = processes(1, metered, overrides(mixture, "guards.max_skipped=20"), tmp_path)
    two = processes(
        2, metered, overrides(mixture, "guards.max_skipped=20", f"parallel={mode}", "parallel.devices=2"), tmp_path
    )
    assert 2 < int(alone[0]["non_finite"]) < 12
    for state, stopped in two:
        assert stopped is None
        assert all(torch.equal(state[name], t) for name, t in two[0][0].items())
        for name in ("seen", "non_finite", "spikes", "in_a_row"):
            assert torch.equal(state[name], alone[0][name]), name
        torch.testing.assert_close(state["recent"], alone[0]["recent"], rtol=1e-5, atol=0)


def test_all_ranks_stop_after_too_many_skips(broken, processes, tmp_path):
    job = overrides(
        [f"data.mixture.corpus.path={broken}"], "guards.max_skipped=4", "parallel=ddp", "parallel.devices=2"
    )
    found = [stopped for _, stopped in processes(2, metered, job, tmp_path)]
    assert found[0] == found[1]
    message, status = found[0]
    assert status == GAVE_UP
    assert "stopped at step 6: steps 0 to 3 were skipped" in message
    assert "rows 0 to 31; these are: corpus/broken 32" in message
