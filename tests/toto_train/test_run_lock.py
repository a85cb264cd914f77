"""One writer of a run folder: real processes on one host and, in name, on others."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toto_train import run_lock
from toto_train.config import ConfigError
from toto_train.run_lock import hold, is_held

ROOT = Path(__file__).parents[2]
HOLDER = """
import socket, sys, time
from pathlib import Path
from toto_train import run_lock
socket.gethostname = lambda: sys.argv[2]
run_lock.BEAT, run_lock.SILENT = 0.2, 2.0
with run_lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """holder(host): a process that holds tmp_path, on a host of that name, until its stdin is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(host: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), host], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 0.2)
    monkeypatch.setattr(run_lock, "SILENT", 2.0)


def test_a_live_run_on_this_host_or_another_keeps_its_folder(holder, tmp_path):
    far = holder("node1")
    assert said(far) == "held"
    with pytest.raises(ConfigError, match=rf"another run is writing .* \(process {far.pid} on node1\)"), hold(tmp_path):
        pass
    far.communicate("")
    assert not is_held(tmp_path)
    begin = time.monotonic()
    with hold(tmp_path):  # given back: nothing to wait for
        assert time.monotonic() - begin < run_lock.SILENT
        assert is_held(tmp_path)
        with pytest.raises(ConfigError, match="another run is writing"), hold(tmp_path):
            pass
        assert time.monotonic() - begin < run_lock.SILENT


def test_a_run_that_was_killed_on_this_host_is_followed_at_once_and_one_on_another_after_its_silence(holder, tmp_path):
    here = holder(run_lock.socket.gethostname())
    assert said(here) == "held"
    here.kill()
    here.wait()
    begin = time.monotonic()
    with hold(tmp_path):
        assert time.monotonic() - begin < run_lock.SILENT
    far = holder("node1")
    assert said(far) == "held"
    far.kill()
    far.wait()
    begin = time.monotonic()
    with hold(tmp_path):
        assert time.monotonic() - begin >= run_lock.SILENT


def test_a_frozen_node_keeps_its_lock_but_not_the_folder_and_ends_when_it_wakes(holder, tmp_path, caplog):
    frozen = holder("node1")
    assert said(frozen) == "held"
    frozen.send_signal(signal.SIGSTOP)
    with hold(tmp_path):
        assert f"process {frozen.pid} on node1 has been silent" in caplog.text
        frozen.send_signal(signal.SIGCONT)
        assert frozen.wait(timeout=30) == 1
        assert "was taken over by another run" in frozen.communicate()[1]
        time.sleep(3 * run_lock.BEAT)
        assert is_held(tmp_path)  # this one goes on
    assert not is_held(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_of_two_that_wait_for_a_dead_node_one_gets_the_folder(holder, tmp_path):
    dead = holder("node1")
    assert said(dead) == "held"
    dead.send_signal(signal.SIGSTOP)
    two = [holder("node2"), holder("node3")]
    deadline = time.monotonic() + 60
    while all(process.poll() is None for process in two):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (lost,) = (process for process in two if process.poll() is not None)
    (won,) = (process for process in two if process is not lost)
    assert said(won) == "held"
    assert won.poll() is None
    assert "another run" in lost.communicate()[1]
    assert lost.returncode == 1


def test_without_locks_of_files_the_signs_of_life_decide(holder, tmp_path, monkeypatch):
    """A mount on which a lock is seen by its own node alone."""
    far = holder("node1")
    assert said(far) == "held"
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)
    with pytest.raises(ConfigError, match="on node1"), hold(tmp_path):
        pass
    far.send_signal(signal.SIGSTOP)
    with hold(tmp_path):
        pass
