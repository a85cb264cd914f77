"""What ranks tell each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from toto_train.cli import config_from_overrides
from toto_train.config import Config, ConfigError, RunStopped
from toto_train.environment import LaunchError
from toto_train.ranks import join

pytestmark = pytest.mark.distributed

ERRORS = [
    ConfigError(["name='mine': another run is writing runs/mine", "seed=1 is odd"]),
    LaunchError(["rank 3 is missing", "torch differs"], agreed=True),
    RunStopped("stopped at step 3", 143),
]


def of_ranks(mode: str, world: int, *more: str) -> Config:
    overrides = [f"parallel={mode}", f"parallel.devices={world}", "parallel.device=cpu", "parallel.precision=fp32"]
    shared = ["micro_rows=2", "plan=true", *more]
    return config_from_overrides([*overrides, *shared], Path(__file__).parents[2] / "configs")


def heard(rank, world):
    """What a rank raises where rank 0 raised the errors."""
    out = []
    with join(of_ranks("ddp", world), "cpu") as ranks:
        for error in ERRORS:

            def fail(error=error):
                raise error

            try:
                ranks.agreed(fail)
            except Exception as raised:
                out.append((type(raised), str(raised), vars(raised)))
    return out


def test_every_rank_raises_what_rank_0_raised_in_the_same_words(processes):
    expected = [(type(error), str(error), vars(error)) for error in ERRORS]
    assert processes(2, heard) == [expected, expected]
