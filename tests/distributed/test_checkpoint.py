"""Checkpoints of several processes: what they hold, where they load, and what becomes of damage and of failed saves."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from toto_train import checkpoint, checkpoint_files, hub
from toto_train.checkpoint import Position, latest_good, state_of
from toto_train.checkpoint_copy import HostCopy, Shares
from toto_train.checkpoint_saver import Saver
from toto_train.config import Config, ModelConfig, RunStopped
from toto_train.initial import open_source
from toto_train.model.toto import Toto
from toto_train.optim.layout import local
from toto_train.parallel import build, make_optimizer
from toto_train.ranks import Ranks, free_port, join
from toto_train.tensors import copy_into, full

pytestmark = pytest.mark.distributed

MODEL = ModelConfig(d_model=8, num_layers=2, num_heads=2, d_ff=20)
"""On three ranks the last has fewer rows of some tensors, and nothing of the scales of a head's 4 dimensions."""
LOSSES = torch.arange(5.0)


def config_of(mode: str, world: int) -> Config:
    config = Config(model=MODEL, global_rows=8)
    p = config.parallel
    p.mode, p.devices, p.device = mode.split()[0], world, "cpu"
    if mode == "hsdp":
        p.shards = world // 2
    if mode.endswith("owner"):
        config.optimizer.normuon.replicated_state = "owner"
    if mode.endswith("at once"):
        config.checkpoint.asynchronous = False
    return config


class Job:
    """A run's tensors in a parallel mode: weights, optimizer, averaged weights, a history of losses."""

    def __init__(self, config: Config, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.model = build(config, ranks)
        self.optimizer = make_optimizer(config, self.model)
        self.position = Position()
        self.extra = {"ema": {n: p.detach().clone() for n, p in self.model.named_parameters()}, "guard": {"x": LOSSES}}

    def resume(self, run: Path) -> Job:
        self.position = checkpoint.resume(run, self.config, self.model, self.optimizer, "rows")
        self.extra["guard"] = {"x": torch.zeros(5)}
        checkpoint.load_extra(run, self.position, self.extra)
        return self

    @torch.no_grad()
    def step(self) -> None:
        """One with gradients that the step alone decides."""
        for name, p in self.model.named_parameters():
            seed = 1000 * self.position.step + sum(map(ord, name))
            whole = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            p.grad = torch.zeros_like(p)
            copy_into(p.grad, whole)
        self.optimizer.step()
        for name, p in self.model.named_parameters():
            local(self.extra["ema"][name]).lerp_(local(p), 0.5)
        self.position = Position(self.position.step + 1, self.position.points + 10)

    def bits(self) -> dict[str, Tensor]:
        """Everything that this rank has, whole."""
        found = {n: p.detach() for n, p in self.model.named_parameters()}
        found |= {f"ema.{n}": t for n, t in self.extra["ema"].items()} | {"guard": self.extra["guard"]["x"]}
        for name, state in self.optimizer.state_dict()["state"].items():
            found |= {f"{name}.{key}": t for key, t in state.items()}
        return {n: full(t).clone() for n, t in found.items()} | {"skipped": self.optimizer.skipped_steps.clone()}


def go_on(rank, world, mode, run):
    """What a run is once it has resumed and after one more step, which is saved."""
    config = config_of(mode, world)
    with join(config, "cpu") as ranks:
        job = Job(config, ranks)
        before = job.resume(run).position, job.bits()
        job.step()
        saver = Saver(run, config, "rows")
        saver.save(job.model, job.optimizer, job.position, extra=job.extra)
        after = job.position, job.bits()
        with torch.no_grad():
            for tensor in (*job.model.parameters(), *job.extra["ema"].values()):
                local(tensor).fill_(torch.nan)  # training goes on while the thread writes
            for state in job.optimizer.state.values():
                for tensor in state.values():
                    local(tensor).fill_(torch.nan)
        saver.wait()
        saver.close()
        return before, after


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert not [name for name, t in got.items() if not torch.equal(t, want[name])]


CHAIN = [
    (4, "fsdp2"), (2, "hsdp"), (1, "single"), (4, "ddp"), (4, "hsdp"), (3, "ddp owner"), (3, "fsdp2"),
    (2, "ddp owner"), (1, "fsdp2"),
]  # fmt: skip


def test_a_run_goes_on_in_any_mode_on_any_number_of_ranks_with_the_same_tensors(processes, tmp_path):
    saved: dict[str, Tensor] = {}
    position = Position()
    for world, mode in CHAIN:
        results = processes(world, go_on, mode, tmp_path)
        for (start, before), _ in results:
            assert start == position
            if position.step:
                assert_equal(before, saved)
                assert "owner" in mode or set(before) == set(saved)
        saved = {name: t for _, (_, after) in results for name, t in after.items()}
        position = results[0][1][0]
    assert position == Position(len(CHAIN), 10 * len(CHAIN))
    assert all(bool(t.any()) for name, t in saved.items() if name.endswith((".momentum", ".v", ".exp_avg_sq")))
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-00000008", "step-00000009", "latest"}


def resumed(rank, world, mode, run):
    """Position and weights of a run that resumes, its warnings, or what it raises."""
    config, lines = config_of(mode, world), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("toto_train").addHandler(handler)
    with join(config, "cpu") as ranks:
        try:
            job = Job(config, ranks).resume(run)
        except ValueError as error:
            return None, str(error), lines
        return job.position.step, job.bits(), lines


@pytest.fixture(scope="module")
def three(processes, tmp_path_factory) -> tuple[Path, list[dict[str, Tensor]]]:
    """A run with checkpoints of steps 1 to 3 from two ranks, and what each held."""
    run = tmp_path_factory.mktemp("three")
    held = []
    for mode in ("fsdp2", "ddp", "fsdp2"):
        held.append(processes(2, go_on, mode, run)[0][1][1])
        for folder in (run / "checkpoints").glob("step-*"):  # out of the way of retention
            shutil.copytree(folder, run / "kept" / folder.name, dirs_exist_ok=True)
    shutil.rmtree(run / "checkpoints")
    os.replace(run / "kept", run / "checkpoints")
    (run / "checkpoints" / "latest").write_text("step-00000003\n")
    return run, held


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "a flipped bit": ("__1_0.distcp", flip, "does not hold the bytes that were written"),
    "a truncated file": ("__0_0.distcp", lambda f: os.truncate(f, f.stat().st_size - 1), "has"),
    "a missing file of a rank": ("__1_0.distcp", Path.unlink, "cannot be read: No such file"),
    "a flipped bit in the list": (".metadata", flip, "does not hold the bytes that were written"),
    "a flipped bit in meta.json": ("meta.json", flip, "is damaged"),
    "no meta.json": ("meta.json", Path.unlink, "cannot be read: No such file"),
}


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it_on_all_ranks(processes, three, tmp_path):
    run, held = three
    for kind, (name, hurt, said) in DAMAGE.items():
        copy = Path(shutil.copytree(run, tmp_path / kind))
        newest = copy / "checkpoints" / "step-00000003"
        hurt(newest / name)
        results = processes(2, resumed, "ddp", copy)
        for step, bits, _ in results:
            assert step == 2, kind
            assert_equal(bits, held[1])
        (warning,) = results[0][2]
        assert f"{newest / name} {said}" in warning
        assert "going on from step-00000002" in warning
        assert results[1][2] == []  # one rank speaks for all
        assert {p.name for p in (copy / "checkpoints").glob("step-*")} == {
            "step-00000001", "step-00000002", "step-00000003.damaged",
        }  # fmt: skip


def test_two_damaged_checkpoints_give_way_and_none_left_is_an_error_on_all_ranks(processes, three, tmp_path):
    run, held = three
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for step in (2, 3):
        flip(checkpoint_files.folder_of(copy, step) / "__0_0.distcp")
    results = processes(2, resumed, "fsdp2", Path(shutil.copytree(copy, tmp_path / "two")))
    for step, bits, _ in results:
        assert step == 1
        assert_equal(bits, held[0])
    assert len(results[0][2]) == 2
    os.truncate(checkpoint_files.folder_of(copy, 1) / "__1_0.distcp", 0)
    for step, message, _ in processes(2, resumed, "fsdp2", copy):
        assert step is None
        assert message.count("__0_0.distcp does not hold") == 2
        assert "step-00000001/__1_0.distcp has 0 bytes instead of" in message
        assert "fresh=true or another name=" in message
    assert len(list((copy / "checkpoints").glob("step-????????"))) == 3  # nothing is renamed where nothing helps


def failing(rank, world, mode, run):
    """Save, then save again where rank 1 may write no large file; what happens at the step edges that follow."""
    config, lines = config_of(mode, world), []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("toto_train").addHandler(handler)
    logging.getLogger("toto_train").setLevel(logging.INFO)
    with join(config, "cpu") as ranks:
        job = Job(config, ranks)
        saver = Saver(run, config, "rows")
        job.step()
        saver.save(job.model, job.optimizer, job.position)
        saver.wait()
        if rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        job.step()
        edges = 0
        try:
            saver.save(job.model, job.optimizer, job.position)
            while True:
                dist.all_reduce(torch.zeros(1))  # a step of training
                edges += 1
                saver.check()
        except RunStopped as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return str(error), error.status, edges, lines
        finally:
            saver.close()


@pytest.mark.parametrize("mode", ["fsdp2", "ddp at once"])
def test_a_save_that_fails_on_one_rank_stops_all_at_the_same_step_and_leaves_the_one_before(processes, tmp_path, mode):
    results = processes(2, failing, mode, tmp_path)
    before = tmp_path / "checkpoints" / "step-00000001"
    for message, status, edges, _ in results:
        assert status == 1
        assert message.startswith("the checkpoint of step 2 could not be saved (rank 1: [Errno 27] File too large: ")
        assert "step-00000002.tmp/__1_0.distcp" in message
        assert f"the newest whole one is {before}" in message
        assert edges == results[0][2]
    assert [line for line in results[0][3] if line.startswith("saved")] == [f"saved {before}"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000001\n"
    assert latest_good(tmp_path) is not None


def copied(rank, world, mode):
    """Bytes that a rank copies by name and place, at a first save and at one with further tensors; those it holds."""
    config = config_of(mode, world)
    with join(config, "cpu") as ranks:
        job = Job(config, ranks)
        job.step()
        shares, buffers = Shares(dist.group.WORLD), {}
        found = []
        for extra in ({}, job.extra):
            state = {**state_of(job.model, job.optimizer), "extra": extra}
            own = HostCopy(state, buffers, shares).tensors
            found.append({(i.fqn, tuple(i.offset)): t.numel() * t.element_size() for i, t in own.items()})
        held = HostCopy(state, None).tensors
        return *found, {(i.fqn, tuple(i.offset)): t.numel() * t.element_size() for i, t in held.items()}


@pytest.mark.parametrize(("mode", "world", "part"), [("ddp", 3, 1 / 3), ("hsdp", 4, 1 / 2), ("ddp owner", 2, 2 / 3)])
def test_of_copies_that_ranks_hold_each_takes_its_share_to_the_host(processes, mode, world, part):
    """part: at most so much of what a rank holds; with `owner` it alone holds the momentum of half the matrices."""
    results = processes(world, copied, mode)
    for save in (0, 1):
        everything = [key for result in results for key in result[save]]
        assert len(everything) == len(set(everything))
    assert set(everything) == {key for result in results for key in result[2]}
    sizes, held = ([sum(result[k].values()) for result in results] for k in (1, 2))
    assert max(size / whole for size, whole in zip(sizes, held, strict=True)) < 1.01 * part


def save_for_ever(rank, world, run):
    config = config_of("ddp", world)
    config.model = ModelConfig(d_model=256, num_layers=2, num_heads=4, d_ff=688)
    with join(config, "cpu") as ranks:
        job = Job(config, ranks)
        saver = Saver(run, config, "rows")
        while True:
            with torch.no_grad():
                for p in job.model.parameters():
                    p.fill_(job.position.step)
            saver.save(job.model, job.optimizer, job.position)
            job.position.step += 1
            for _ in range(3):  # steps go on beside the save
                dist.all_reduce(torch.zeros(1))
                saver.check()


def weights_of(rank, world, run):
    config = config_of("ddp", world)
    config.model = ModelConfig(d_model=256, num_layers=2, num_heads=4, d_ff=688)
    with join(config, "cpu") as ranks:
        job = Job(config, ranks).resume(run)
        return job.position.step, [float(p.detach().min()) for p in job.model.parameters()] + [
            float(p.detach().max()) for p in job.model.parameters()
        ]


@pytest.mark.parametrize("victims", [(0, 1), (1,), (0,)])
def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(processes, tmp_path, victims):
    """SIGKILL of the job, or of one rank, once a third save has begun to write."""
    port = free_port()
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.environ |= {**places, "RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0"}
        save_for_ever(number, 2, tmp_path)

    context = multiprocessing.get_context("fork")
    running = [context.Process(target=rank, args=(number,)) for number in range(2)]
    for process in running:
        process.start()
    deadline = time.monotonic() + 60
    while not (begun := list(tmp_path.glob("checkpoints/step-0000000[3-9].tmp/*.distcp"))):
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in running)
    for victim in victims:
        os.kill(running[victim].pid, signal.SIGKILL)
    for process in running:
        process.join(60)
        assert process.exitcode not in (None, 0)  # the rank that was left knows
    step = int(begun[0].parent.name[5:13])
    assert not checkpoint_files.folder_of(tmp_path, step).exists(), "the save was done before the kill"
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"step-{step - 1:08d}\n"
    checkpoint_files.remove_leftovers(tmp_path)
    for found, values in processes(2, weights_of, tmp_path):
        assert found == step - 1
        assert set(values) == {float(step - 1)}


def started(rank, world, mode, path):
    config = config_of(mode, world)
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        try:
            open_source(path).load_into(model)
        except ValueError as error:
            return str(error)
        return {n: full(p.detach()) for n, p in model.named_parameters()}


def test_sharded_models_start_from_checkpoints_and_from_official_weights(processes, three, tmp_path):
    """Where a checkpoint keeps averaged weights, from those."""
    run, held = three
    want = {name.removeprefix("ema."): t for name, t in held[2].items() if name.startswith("ema.")}
    export = hub.save_pretrained(checkpoint.load_model(run, "last")[0], tmp_path / "export", "card")
    for path, world, mode in (
        (run, 4, "hsdp"), (run / "checkpoints" / "latest", 2, "ddp"), (export, 3, "fsdp2"), (export, 4, "hsdp"),
    ):  # fmt: skip
        for found in processes(world, started, mode, path):
            assert_equal(found, want)
            assert set(found) == set(want)
    model = Toto.create(MODEL, 0)
    with torch.no_grad():
        model.head.skip.weight[-1, -1] = torch.inf  # which one rank holds
    broken = hub.save_pretrained(model, tmp_path / "broken", "card")
    for message in processes(2, started, "fsdp2", broken):
        assert "head.skip.weight and 0 more tensors hold NaN or infinite values" in message


def test_a_checkpoint_of_ranks_loads_in_one_process_of_several_and_without_a_group(processes, three):
    run, held = three
    model, meta = checkpoint.load_model(run, "last")
    assert_equal({f"ema.{n}": p.detach() for n, p in model.named_parameters()}, held[2])
    assert meta["extra"] == ["ema", "guard"]
    assert set(meta["files"]) == {".metadata", "__0_0.distcp", "__1_0.distcp"}


def save_small(rank, world, run):
    config = config_of("fsdp2", world)
    config.model = ModelConfig(name="small", d_model=512, num_layers=6, num_heads=8, d_ff=1368)
    with join(config, "cpu") as ranks:
        job = Job(config, ranks)
        saver = Saver(run, config, "rows")
        saver.save(job.model, job.optimizer, Position(1, 1))
        saver.wait()
        saver.close()


EXPORT = """
import re, sys
from pathlib import Path
from toto_train import checkpoint, hub

def memory(key):
    return int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
before = memory("VmRSS")
model, _ = checkpoint.load_model(sys.argv[1], "last")
hub.save_pretrained(model, sys.argv[2], "card")
print(sum(4 * p.numel() for p in model.parameters()), memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak anew")
def test_an_export_of_a_sharded_checkpoint_holds_the_weights_once(processes, tmp_path):
    """1.11 times their bytes were seen."""
    processes(2, save_small, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(tmp_path / "run"), str(tmp_path / "export")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    weights, grown = map(int, done.stdout.split())
    assert weights == 4 * 21_915_584
    assert grown < 1.4 * weights


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_nothing_in_a_checkpoint_is_executed(three, tmp_path):
    """Not even where its checksums are in order."""
    copy = Path(shutil.copytree(three[0], tmp_path / "run"))
    folder = copy / "checkpoints" / "step-00000003"
    bomb = Bomb()
    bomb.place = tmp_path / "executed"
    (folder / ".metadata").write_bytes(pickle.dumps(bomb))
    meta = checkpoint_files.read_meta(folder)
    data = (folder / ".metadata").read_bytes()
    meta["files"][".metadata"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    checkpoint_files.write_meta(folder, meta)
    with pytest.raises(ValueError, match=r"\.metadata is no list of tensors \(UnpicklingError: .*posix\.mkdir"):
        checkpoint.load_model(copy, "last")
    assert not bomb.place.exists()
