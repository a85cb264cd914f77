"""The watch over the ranks of one machine: real processes, small ones."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from toto_train import launch
from toto_train.config import Config, ConfigError, ParallelConfig
from toto_train.node import find_place
from toto_train.run_folder import write_launch
from toto_train.run_lock import hold
from toto_train.watchdog import stacks


def watch(source: str, ranks: int = 3) -> tuple[int, str]:
    return launch.watch(
        [sys.executable, "-c", f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{source}"],
        ranks,
        launch.Place(port=1),
    )


def test_ranks_know_their_places(tmp_path):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
    assert watch(f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[n] for n in {names}))") == (0, "")
    assert [(tmp_path / str(r)).read_text() for r in range(3)] == [f"{r} {r} 3 3 0 127.0.0.1 1" for r in range(3)]


def test_a_rank_that_fails_is_named_and_ends_those_that_wait_for_it(monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.2)
    status, what = watch("sys.exit(7) if rank == 1 else time.sleep(1000)")
    assert status == 7
    assert what.startswith("rank 1 failed with exit status 7")


def test_a_rank_that_is_killed_is_named_with_its_signal(monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.2)
    status, what = watch("os.kill(os.getpid(), signal.SIGKILL) if rank == 2 else time.sleep(1000)")
    assert status == 128 + signal.SIGKILL
    assert what.startswith("rank 2 was killed by SIGKILL")


def test_ranks_that_ignore_signals_end_too(monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsys.exit(1) if rank == 0 else time.sleep(1000)"
    assert watch(deaf)[0] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_and_their_time_to_save_is_theirs(tmp_path, monkeypatch, number):
    monkeypatch.setattr(launch, "GRACE", 0.0)
    slow = f"""
def stop(number, frame):
    time.sleep(0.5 if rank == 0 else 0)
    open('{tmp_path}/saved%d' % rank, 'w').close()
    sys.exit(128 + number)
signal.signal(signal.{number.name}, stop)
open('{tmp_path}/up%d' % rank, 'w').close()
time.sleep(1000)
"""

    def ask() -> None:
        while len(list(tmp_path.glob("up*"))) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()
    status, what = watch(slow)
    assert status == 128 + number
    assert "the same command goes on" in what
    assert len(list(tmp_path.glob("saved*"))) == 3


def test_ranks_end_with_a_launcher_that_is_killed(tmp_path):
    rank = f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(1000)"
    code = (
        f"import sys; from toto_train.launch import Place, watch; watch([sys.executable, '-c', {rank!r}], 2, Place(1))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    while not all((tmp_path / r).exists() and (tmp_path / r).read_text() for r in "01"):
        time.sleep(0.02)
    launcher.kill()
    launcher.wait()
    pids = [int((tmp_path / r).read_text()) for r in "01"]
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_several_nodes_are_started_from_outside():
    config = Config(parallel=ParallelConfig(mode="ddp", devices=2, nodes=2))
    with pytest.raises(ConfigError, match=r"parallel.nodes=2: every node starts its own ranks"):
        launch.launch(config)


def test_a_node_among_others_starts_its_ranks_with_their_numbers_in_the_job(tmp_path):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
    source = f"import os; print(*(os.environ[n] for n in {names}), file=open(r'{tmp_path}/' + os.environ['RANK'], 'w'))"
    place = launch.Place(29500, "node0", 1, 3)
    assert launch.watch([sys.executable, "-c", source], 2, place) == (0, "")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "2": "2 0 6 2 1 node0 29500\n", "3": "3 1 6 2 1 node0 29500\n",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ["NODE_RANK='' must be the number of this node, 0 to 1", "MASTER_ADDR is not set", "MASTER_PORT='' must"]),
        ({"NODE_RANK": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}, ["NODE_RANK='2' must"]),
        ({"NODE_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "http"}, ["MASTER_PORT='http' must"]),
    ],
)
def test_a_node_that_does_not_know_its_place_says_all_it_lacks(monkeypatch, environment, expected):
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, environment.get(name, ""))
    with pytest.raises(ConfigError) as error:
        find_place(Config(parallel=ParallelConfig(mode="ddp", devices=2, nodes=2)))
    assert len(error.value.problems) == len(expected)
    assert all(map(str.startswith, error.value.problems, expected))


def test_stacks_that_another_node_is_removing_are_none(tmp_path):
    (tmp_path / "stack-rank0.txt").write_text("Thread 1")
    (tmp_path / "stack-rank1.txt").touch()  # of a rank that runs
    (tmp_path / "stack-rank2.txt").symlink_to("gone")  # listed, and not there when it is looked at
    assert [p.name for p in stacks(tmp_path)] == ["stack-rank0.txt"]


def test_a_run_folder_that_cannot_be_made_is_said_before_any_rank_starts(tmp_path):
    (tmp_path / "runs").touch()
    config = Config(name="mine", out=str(tmp_path / "runs"), parallel=ParallelConfig("ddp", 2, device="cpu"))
    with pytest.raises(OSError, match=rf"cannot write the run folder {tmp_path / 'runs' / 'mine'}: Not a directory; "):
        launch.launch(config)


def test_a_second_run_of_a_name_leaves_the_settings_of_the_live_one(tmp_path):
    """Which its ranks read when they are started again."""
    config = Config(name="mine", out=str(tmp_path), parallel=ParallelConfig("ddp", 2, device="cpu"))
    text = write_launch(config).read_text()
    with hold(tmp_path / "mine"):
        assert write_launch(config).read_text() == text  # the same, as when a job is queued again
        config.seed = 1
        with pytest.raises(ConfigError, match="another run is writing"):
            launch.launch(config)
    assert (tmp_path / "mine" / "launch.yaml").read_text() == text
    assert write_launch(config).read_text() != text


@pytest.mark.parametrize("handled", [True, False])
def test_the_first_process_of_a_container_can_be_asked_to_end(handled):
    """A process 1 without a handler never gets the signal."""
    code = f"""
import os, time
from toto_train.processes import end_as_init
if {handled}:
    end_as_init()
print(os.getpid(), flush=True)
time.sleep(60)
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code]
    outside = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert outside.stdout is not None
    if not (pid := outside.stdout.readline().strip()):
        outside.communicate()
        pytest.skip("a namespace of processes is not permitted here")
    assert pid == "1"
    [first] = psutil.Process(outside.pid).children()
    first.send_signal(signal.SIGTERM)
    try:
        assert outside.wait(timeout=60 if handled else 1) == 143
        assert handled
    except subprocess.TimeoutExpired:
        assert not handled
    finally:
        outside.kill()
        outside.communicate()
