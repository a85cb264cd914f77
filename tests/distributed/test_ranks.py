"""What ranks tell each other and how long they wait for it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from toto_train.checkpoint import best_so_far
from toto_train.checkpoint_files import write_meta
from toto_train.checkpoint_saver import Saver
from toto_train.cli import config_from_overrides
from toto_train.config import Config, ConfigError, RunStopped
from toto_train.environment import LaunchError
from toto_train.optim.layout import local
from toto_train.parallel import build
from toto_train.ranks import join
from toto_train.replicas import check_replicas

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.distributed

ERRORS = [
    ConfigError(["name='mine': another run is writing runs/mine", "seed=1 is odd"]),
    LaunchError(["rank 3 is missing", "torch differs"], agreed=True),
    RunStopped("stopped at step 3", 143),
]


def of_ranks(mode: str, world: int, *more: str) -> Config:
    overrides = [f"parallel={mode}", f"parallel.devices={world}", "parallel.device=cpu", "parallel.precision=fp32"]
    shared = ["micro_rows=2", "plan=true", *more]
    return config_from_overrides([*overrides, *shared], ROOT / "configs")


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


def patience(rank, world, folder):
    """Seconds after which the messages of each group are given up, of a run whose ranks may take three hours."""
    config = of_ranks("hsdp", world, "parallel.shards=1", "parallel.timeout=10800", "parallel.first_timeout=100")
    with join(config, "cpu") as ranks:
        groups = {name: ranks.mesh.get_group(name) for name in ranks.mesh.mesh_dim_names}
        saver = Saver(folder, config)
        groups |= {"all": dist.group.WORLD, "saves": saver.group}
        found = {name: g._get_backend(torch.device("cpu")).options._timeout for name, g in groups.items()}
        saver.close()
    return found


def test_no_group_gives_up_before_the_watchdog_speaks(processes, tmp_path):
    for found in processes(2, patience, tmp_path):
        assert set(found) == {"replicate", "shard", "all", "saves"}
        assert set(found.values()) == {timedelta(seconds=2 * 10800)}, found


def seen(rank, world, folder):
    """Best score so far, of ranks to whom the disk shows different checkpoints: rank 1 sees none."""
    with join(of_ranks("ddp", world), "cpu"):
        return best_so_far(folder if rank == 0 else folder / "not-yet", "windows")


def test_ranks_begin_with_the_same_best_score_whatever_their_disks_show(processes, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    record = {"mwql": 0.9, "mase": 1.0, "best": 0.9, "bound": 0.95, "tasks": "windows"}
    write_meta(checkpoint, {"step": 10, "validation": record})
    assert processes(2, seen, tmp_path) == [(0.9, 0.95)] * 2


def test_a_rank_that_cannot_part_from_the_others_ends_all_the_same():
    code = """
import time
import torch.distributed as dist
from toto_train import ranks
from toto_train.config import Config, ParallelConfig
ranks.PARTING = 0.5
dist.destroy_process_group = lambda: time.sleep(1000)
with ranks.join(Config(parallel=ParallelConfig("fsdp2")), "cpu"):
    raise ValueError("the reason")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Timeout (0:00:00.500000)!" in done.stderr
    assert "in join" in done.stderr


def copies(rank, world, mode, odd):
    """What ranks say of copies of the weights, of which rank `odd`'s gets another last bit."""
    config = of_ranks(mode, world, *(["parallel.shards=2"] if mode == "hsdp" else []), "model=nano", "global_rows=8")
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        check_replicas(model, ranks, mode, 5)  # says nothing
        if rank == odd:
            with torch.no_grad():
                local(model.layers[1].mlp.up.weight).view(torch.int32).flatten()[-1] ^= 1
        try:
            check_replicas(model, ranks, mode, 6)
        except RunStopped as stopped:
            return str(stopped)
    return ""


@pytest.mark.parametrize(("mode", "world", "found"), [("ddp", 2, True), ("hsdp", 4, True), ("fsdp2", 2, False)])
def test_a_copy_that_differs_in_a_bit_stops_all_ranks(processes, mode, world, found):
    said = processes(world, copies, mode, world - 1)
    assert len(set(said)) == 1  # together, or some would wait for the others
    assert ("at step 6" in said[0] and "layers.1.mlp.up.weight" in said[0]) == found
