"""A small corpus of real shape, and the command line, for tests that run whole jobs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series

ROOT = Path(__file__).parents[1]


def make_series(source: str, count: int, variates: int, length: int, seed: int) -> list[Series]:
    """Hourly-looking series: a daily shape, drift, noise and gaps."""
    out = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        t = np.arange(length)
        shape = np.interp(t % 24, np.arange(25), np.append(day := rng.normal(size=24), day[0]))
        x = rng.uniform(1, 50) * (shape + 0.2 * rng.normal(size=(variates, length))) + rng.normal() * 0.01 * t
        x[rng.random(x.shape) < 0.02] = np.nan
        out.append(Series(x.astype(np.float32), 3600.0, source, f"item{i}", "observability", licence="Apache-2.0"))
    return out


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Folder with the datasets train, validation and heldout."""
    folder = tmp_path_factory.mktemp("corpus")
    train = make_series("web", 12, 1, 900, 0) + make_series("db", 6, 3, 700, 1)
    write_shards(folder / "train", train, {"test": True})
    write_shards(folder / "validation", make_series("cache", 3, 1, 600, 2), {"test": True})
    write_shards(folder / "heldout", make_series("queue", 4, 2, 600, 3), {"test": True})
    return folder


@pytest.fixture
def small_job(corpus, tmp_path) -> list[str]:
    """Overrides of a run that takes seconds."""
    return [
        f"out={tmp_path / 'runs'}", "name=small", "data=shards", f"data.mixture.corpus.path={corpus / 'train'}",
        f"validation.path={corpus / 'validation'}", f"heldout.path={corpus / 'heldout'}", "validation.context=256",
        "heldout.context=256", "model.d_model=32", "model.d_ff=64", "data.variates=4", "data.length=256",
        "global_rows=4", "micro_rows=2", "schedule.max_steps=12", "schedule.warmup_steps=2", "schedule.decay_steps=4",
        "validate_every=6", "checkpoint.every_steps=4", "logger.every_steps=2", "parallel.device=cpu",
        "optimizer.adamw.lr=0.012",
    ]  # fmt: skip


@pytest.fixture
def train_py(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py as a user would."""

    def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, **kwargs,
        )  # fmt: skip

    return run
