"""Guards in whole runs: bad data are skipped, too many of them end the run."""

from __future__ import annotations

import csv
import gc
import math
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.checkpoint_files import folders
from toto_train.cli import config_from_overrides
from toto_train.config import GAVE_UP, RunStopped
from toto_train.data.order import Order

CONFIGS = Path(__file__).parents[2] / "configs"


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open()))


@pytest.fixture
def broken(tmp_path) -> Path:
    """A source whose values lie at the end of fp32, so that what the scaler makes of them overflows."""
    values = np.where(np.arange(600) % 3 == 0, 3e38, -3e38).astype(np.float32)[None]
    write_shards(tmp_path / "absurd", [Series(values, 60.0, "broken", str(i)) for i in range(4)], {})
    return tmp_path / "absurd"


@pytest.mark.e2e
def test_batches_that_overflow_are_skipped_and_the_run_goes_on(train_here, broken, small_job):
    more = [f"data.mixture.bad={{path: {broken}, weight: 0.05}}", "schedule.max_steps=40", "guards.max_skipped=30"]
    folder = train_here(*more)
    order = Order(config_from_overrides([*small_job, *more], CONFIGS).data, 0)
    bad = [any(order.row(n).source == "bad/broken" for n in range(4 * s, 4 * s + 4)) for s in range(40)]
    assert 0 < sum(bad) < 40
    for row in read(folder / "metrics.csv"):
        skipped = sum(bad[: int(row["step"])])
        assert [row[f"train/{name}_steps"] for name in ("skipped", "non_finite", "spike")] == [str(skipped)] * 2 + ["0"]
        if not bad[int(row["step"]) - 1]:
            assert math.isfinite(float(row["train/loss"]))
    losses = read(folder / "losses.csv")
    assert {row["name"] for row in losses if row["loss"] == "nan"} == {"bad/broken"}
    assert len(folders(folder)) == 1


@pytest.mark.e2e
def test_a_run_of_skips_stops_names_its_rows_and_saves_nothing_after_them(train_here, broken, tmp_path):
    """Steps 0 to 4 complete the five; the host sees that at the report of step 6, and would have saved there."""
    more = [f"data.mixture.corpus.path={broken}", "guards.max_skipped=5", "checkpoint.every_steps=3"]
    with pytest.raises(RunStopped) as stopped:
        train_here(*more, "schedule.max_steps=30", "logger.every_steps=3")
    assert stopped.value.status == GAVE_UP
    message = str(stopped.value)
    assert "stopped at step 6: steps 0 to 4 were skipped" in message
    assert "rows 0 to 19; these are: corpus/broken 20" in message
    assert f"inspect_rows.py run={tmp_path / 'runs' / 'small'} step=4" in message
    assert [p.name for p in folders(tmp_path / "runs" / "small")] == ["step-00000003"]
    assert gc.isenabled()


@pytest.mark.e2e
def test_a_resumed_run_is_guarded_as_an_undisturbed_one(train_here, broken, tmp_path):
    """Scores and counts of skips go on, although half the window lies before the checkpoint."""
    job = [
        f"data.mixture.bad={{path: {broken}, weight: 0.05}}", "guards.window=8", "guards.spike=0.7",
        "guards.max_skipped=30", "schedule.decay_steps=0", "optimizer.adamw.lr=0.3",
    ]  # fmt: skip

    def rows(folder: Path) -> list[dict[str, str]]:
        return [
            {k: v for k, v in row.items() if k != "seconds" and not k.startswith("perf/")}
            for row in read(folder / "metrics.csv")
        ]

    expected = rows(train_here(*job, "schedule.max_steps=20"))
    train_here(*job, "name=resumed", "schedule.max_steps=10")
    train_here(*job, "name=resumed", "schedule.max_steps=20")
    assert rows(tmp_path / "runs" / "resumed") == expected
    assert int(expected[-1]["train/spike_steps"]) > 0 < int(expected[-1]["train/non_finite_steps"])
    assert [row["train/spike_score"] != "" for row in expected].count(True) > 4
