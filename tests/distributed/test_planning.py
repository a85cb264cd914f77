"""What the planner says of a run, against what real steps of it allocate and send."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

from plan import compare_held, compare_sent  # of scripts/bench
from training import job

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def base():
    """Two micro batches a rank where there are two ranks, four where there is one; both masks are needed."""
    with job(1024, 8, 2) as overrides:
        yield [*overrides, "model=nano", "data.variates=8"]


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (1, []),
        (1, ["micro_rows=8"]),
        (1, ["parallel.precision=bf16", "parallel.activation_checkpointing=0.5", "ema_decay=0.99"]),
        (1, ["optimizer=adamw", "parallel.activation_checkpointing=1"]),
        (1, ["parallel=fsdp2", "parallel.precision=bf16_master"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else str(value),
)
def test_a_rank_holds_what_was_planned(base, world, overrides):
    """Within 10 %, and 0.1 MiB for what a step's bookkeeping takes; of one process (docs/planning.md on two)."""
    for moment, (measured, planned) in compare_held([*base, *overrides], world).items():
        assert measured == pytest.approx(planned, rel=0.1, abs=2**20 / 10), moment


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, ["parallel=ddp"]),
        (2, ["parallel=fsdp2", "parallel.precision=bf16_master"]),
        (4, ["parallel=hsdp", "parallel.shards=2"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_rank_sends_what_was_planned(base, world, overrides):
    counted, planned = compare_sent([*base, *overrides], world)
    assert counted == pytest.approx(planned, rel=0.02)
