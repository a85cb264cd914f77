"""The stream of batches is the same for any number of ranks, workers and restarts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import Config, DataConfig, MixtureEntry, ModelConfig, ScheduleConfig
from toto_train.data.loader import RowDataModule, RowLoader
from toto_train.data.rows import Rows
from toto_train.data.workers import SPARE
from toto_train.model.decoder import group_ids
from toto_train.model.toto import mask_flags

STEPS, GLOBAL = 5, 8
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "set"
    data = [
        Series(rng.standard_normal((1 + i % 3, 90)).astype(np.float32), 1.0, f"s{i % 2}", str(i)) for i in range(20)
    ]
    write_shards(path, data, {})
    return path


FAMILIES = {"telemetry": 2.0, "step": 1.0}
MADE = pytest.mark.parametrize("families", [{}, FAMILIES], ids=["stored", "made"])
"""Rows from shards alone, and beside others whose series are made while training."""


def config(folder: Path, micro: int = 2, workers: int = 0, families: dict[str, float] | None = None) -> Config:
    mixture = {"main": MixtureEntry(str(folder))}
    if families:
        mixture["prior"] = MixtureEntry(weight=2.0, families=families)
    data = DataConfig(mixture, variates=4, length=64, workers=workers, prefetch=2)
    return Config(
        data=data,
        model=ModelConfig(patch_size=16),
        schedule=ScheduleConfig(max_steps=STEPS),
        global_rows=GLOBAL,
        micro_rows=micro,
    )


TENSORS = ("target", "target_mask", "cpm_mask", "series_ids", "row")


def stream(c: Config, start_step: int = 0, world: int = 1, rank: int = 0, **how) -> list[dict[str, torch.Tensor]]:
    loader = RowLoader(c, Rows(c), start_step, world, rank, **how)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def by_row(batches: list[dict[str, torch.Tensor]]) -> dict[int, dict[str, torch.Tensor]]:
    rows = {int(n): {k: b[k][i] for k in TENSORS} for b in batches for i, n in enumerate(b["row"])}
    assert len(rows) == sum(len(b["row"]) for b in batches)
    return rows


def assert_same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert all(torch.equal(x[k], y[k]) for k in TENSORS)
        assert (x["flags"], x["points"]) == (y["flags"], y["points"])


def test_a_stream_is_all_rows_in_order(folder):
    batches = stream(config(folder))
    assert [n for b in batches for n in b["row"].tolist()] == list(range(STEPS * GLOBAL))
    kinds = {k: (batches[0][k].dtype, tuple(batches[0][k].shape)) for k in TENSORS}
    assert kinds == {
        "target": (torch.float32, (2, 4, 64)),
        "target_mask": (torch.bool, (2, 4, 64)),
        "cpm_mask": (torch.bool, (2, 4, 64)),
        "series_ids": (torch.int64, (2, 4)),
        "row": (torch.int64, (2,)),
    }


def test_what_the_host_must_know_comes_plain(folder):
    for batch in stream(config(folder)):
        ids = group_ids(batch["series_ids"], batch["target_mask"], batch["cpm_mask"], 16)
        assert batch["flags"] == mask_flags(ids)
        assert batch["points"] == int(batch["target_mask"].sum())
        assert all(type(v) is bool for v in batch["flags"])


@MADE
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_same_rows_for_any_world_and_workers(folder, world, workers, families):
    whole = by_row(stream(config(folder, families=families)))
    c = config(folder, workers=workers, families=families)
    ranks = [stream(c, world=world, rank=r) for r in range(world)]
    for r, batches in enumerate(ranks):
        assert all((b["row"] % world == r).all() for b in batches)
        share = GLOBAL // world
        steps = [int(n) // GLOBAL for b in batches for n in b["row"]]
        assert steps == [s for s in range(STEPS) for _ in range(share)], "a step's rows stay in the step"
    rows = by_row([b for batches in ranks for b in batches])
    assert rows.keys() == whole.keys()
    assert all(torch.equal(rows[n][k], whole[n][k]) for n in whole for k in whole[n])


def test_micro_batches_cut_the_same_rows(folder):
    one, four = stream(config(folder, micro=1)), stream(config(folder, micro=4))
    assert all(torch.equal(by_row(one)[n][k], by_row(four)[n][k]) for n in by_row(one) for k in TENSORS)


@MADE
@pytest.mark.parametrize("workers", [0, 2])
def test_starting_late_is_skipping(folder, workers, families):
    c = config(folder, workers=workers, families=families)
    assert_same(stream(c, start_step=3), stream(config(folder, families=families))[3 * c.accumulation :])
    assert stream(c, start_step=STEPS) == []


def test_a_pickled_loader_gives_the_same(folder):
    """What a spawned or forkserver worker receives."""
    loader = RowLoader(config(folder), Rows(config(folder)))
    assert_same(list(pickle.loads(pickle.dumps(loader))), list(loader))


def test_what_somebody_keeps_is_never_written_over(folder):
    """Views of a few early batches live on while the workers make many more in the same memory."""
    c = config(folder, workers=2)
    c.schedule = ScheduleConfig(max_steps=20)
    plain = stream(dataclasses.replace(c, data=dataclasses.replace(c.data, workers=0)))
    kept, places, reads = [], set(), []
    for i, batch in enumerate(RowLoader(c, Rows(c))):
        assert_same([batch], [plain[i]])
        places.add(batch["target"].data_ptr())
        reads.append(batch["reads"])  # as those who count them do; these are no views
        if i in (1, 11):
            kept.append((i, batch["target"][1, 2:].numpy()[:, 3:]))
        del batch
    for i, view in kept:
        assert np.array_equal(view, plain[i]["target"][1, 2:, 3:].numpy())
    assert len(plain) == 80
    assert len(places) <= 2 * 2 + SPARE, "slots are used again"


@pytest.mark.parametrize("wait", [0.0, 0.5], ids=["while it works", "when all is made"])
def test_a_worker_that_is_gone_is_an_error(folder, wait):
    c = config(folder, workers=2)
    c.schedule = ScheduleConfig(max_steps=10_000)
    before = set(psutil.Process().children())
    batches = iter(RowLoader(c, Rows(c)))
    next(batches)
    workers = [p for p in psutil.Process().children() if p not in before]
    assert len(workers) == 2
    time.sleep(wait)
    workers[1].kill()
    time.sleep(wait)
    with pytest.raises(
        RuntimeError, match=rf"loader worker {workers[1].pid} was killed by SIGKILL; is there enough mem"
    ):
        for _ in batches:
            pass
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_workers_end_with_the_loop_that_used_them(folder):
    c = config(folder, workers=2)
    before = set(psutil.Process().children())
    for _ in RowLoader(c, Rows(c)):
        workers = [p for p in psutil.Process().children() if p not in before]
        break
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@MADE
@pytest.mark.slow
def test_workers_that_are_spawned_give_the_same(folder, families):
    c = config(folder, workers=1, families=families)
    assert_same(stream(c, start_method="spawn"), stream(config(folder, families=families)))


def test_a_second_pass_starts_again_and_leaves_the_global_generator_alone(folder):
    module = RowDataModule(config(folder, workers=2), start_step=2)
    state = torch.random.get_rng_state()
    loader = module.train_dataloader()
    assert_same(list(loader), list(loader))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert next(iter(loader))["row"][0] == 2 * GLOBAL


def test_ranks_must_divide_the_batch(folder):
    c = config(folder, micro=2)
    with pytest.raises(ValueError, match=r"global_rows=8 must be a multiple of 3 ranks x micro_rows=2"):
        RowLoader(c, Rows(c), world=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_read_errors_name_row_and_shard(tmp_path, workers):
    write_shards(tmp_path / "set", [Series(np.ones((1, 90), np.float32), 1.0, "s", "x")], {})
    c = config(tmp_path / "set", workers=workers)
    loader = RowDataModule(c).train_dataloader()
    shard = tmp_path / "set" / "s.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"row 0: cannot read series 0 of main/s .*s\.tar"):
        list(loader)


READER = """
import hashlib, json, sys, time
from toto_train.config_check import from_tree
from toto_train.data.loader import RowLoader
from toto_train.data.rows import Rows

tree, start, world, rank, out = json.loads(sys.argv[1])
config = from_tree(tree)
if __name__ == "__main__":
    loader = RowLoader(config, Rows(config), start, world, rank)
    with open(out, "a") as file:
        for batch in loader:
            for i, n in enumerate(batch["row"].tolist()):
                names = ("target", "target_mask", "cpm_mask", "series_ids")
                digest = hashlib.sha256(b"".join(batch[k][i].numpy().tobytes() for k in names)).hexdigest()
                file.write(f"{n} {digest}\\n")
            file.flush()
            time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_rows_after_sigkill_are_those_of_an_undisturbed_run_on_2_then_1_then_4_processes(folder, tmp_path):
    """Real processes, killed without warning; each attempt goes on at the last step that all of its ranks finished."""
    steps, per_step = 60, GLOBAL

    def start(first: int, world: int, workers: int, tag: str) -> list[tuple[subprocess.Popen, Path]]:
        made = config(folder, workers=workers, families=FAMILIES)
        made.schedule, made.validate_every = ScheduleConfig(steps, 0, 0), 0
        made.validation.context = made.heldout.context = 64
        out = []
        for rank in range(world):
            file = tmp_path / f"{tag}-{rank}"
            arguments = json.dumps([dataclasses.asdict(made), first, world, rank, str(file)])
            out.append((subprocess.Popen([sys.executable, "-c", READER, arguments], cwd=ROOT), file))
        return out

    def rows(files: list[Path]) -> dict[int, str]:
        lines = [line.split() for f in files if f.exists() for line in f.read_text().splitlines(keepends=False)]
        return {int(line[0]): line[1] for line in lines if len(line) == 2 and len(line[1]) == 64}

    ((alone, file),) = start(0, 1, 0, "whole")
    assert alone.wait(120) == 0
    whole, seen, step = rows([file]), {}, 0
    assert len(whole) == steps * per_step

    def done() -> int:
        """The first step of which a row is missing."""
        return next((s for s in range(steps) if not seen.keys() >= set(range(s * per_step, (s + 1) * per_step))), steps)

    for world, workers, until in ((2, 2, 12), (1, 0, 30), (4, 0, steps)):
        ranks = start(step, world, workers, f"{world}")
        deadline = time.time() + 120
        while done() < until and time.time() < deadline:
            time.sleep(0.05)
            seen |= rows([f for _, f in ranks])
        for process, _ in ranks:
            process.kill()
            process.wait()
        seen |= rows([f for _, f in ranks])
        step = done()
        assert step >= until
        seen = {n: digest for n, digest in seen.items() if n < step * per_step}
    assert seen == whole


ENDING = """
import json, multiprocessing, sys, time
from toto_train.config_check import from_tree
from toto_train.data.loader import RowLoader
from toto_train.data.rows import Rows

tree, how = json.loads(sys.argv[1])
config = from_tree(tree)
if __name__ == "__main__":
    batches = iter(RowLoader(config, Rows(config)))
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    if how == "raise":
        raise RuntimeError("the run broke")
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_workers_end_with_a_run_that_breaks_or_is_killed(folder, how):
    made = config(folder, workers=2)
    made.data.variates, made.data.length = 32, 4096  # more than a pipe holds: a worker stands writing
    made.schedule, made.validate_every = ScheduleConfig(10_000, 0, 0), 0
    made.validation.context = made.heldout.context = 64
    arguments = json.dumps([dataclasses.asdict(made), how])
    with subprocess.Popen(
        [sys.executable, "-c", ENDING, arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        workers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        try:
            assert len(workers) == 2
            if how == "kill":
                run.kill()
            assert run.wait(30) != 0
            assert psutil.wait_procs(workers, timeout=30)[1] == []
        finally:
            run.kill()
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
