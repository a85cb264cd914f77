"""Processes that share independent pieces of work: configurations of a benchmark, batches, windows of a baseline.

This process hands out one piece at a time and is the only one that writes: whichever process is killed, what came back
before is safe. Imports no torch: baselines do without.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 20.0
"""Seconds for a process without work to end in."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(make: Callable[[int], Callable[[T], R]], items: Iterable[T], count: int) -> Iterator[tuple[T, R]]:
    """Every item and what becomes of it, in the order in which they are done; items are taken as they are needed.

    make(rank), which can be pickled, is called once in each of `count` processes and gives what is then called with
    item after item; with one process, or one item, all happens here and in order. The processes have this machine's
    cores among them. Raises what a process raised, ChildProcessError where one was killed; the others end then.
    """
    left = iter(items)
    first = [*islice(left, count)]
    if len(first) < 2:
        do = make(0)
        yield from ((item, do(item)) for item in chain(first, left))
        return
    # spawned, not forked: this process may run threads of torch
    spawn, count = multiprocessing.get_context("spawn"), len(first)
    processes, at = {}, {}
    try:
        with _threads(max(1, cores() // count)):
            for rank, item in enumerate(first):
                here, there = spawn.Pipe()
                processes[here] = spawn.Process(target=_work, args=(make, rank, there), daemon=True)
                processes[here].start()
                there.close()
                at[here] = item
                here.send(item)
        while at:
            for pipe in wait(list(at)):
                assert isinstance(pipe, Connection)
                item = at.pop(pipe)
                try:
                    result, error = pipe.recv()
                except (EOFError, ConnectionError):
                    processes[pipe].join()
                    raise ChildProcessError(
                        f"one of {count} processes was killed (exit code {processes[pipe].exitcode}); the same command "
                        "goes on where it was, with fewer processes if memory ran out"
                    ) from None
                if error is not None:
                    raise error
                for following in left:
                    at[pipe] = following
                    pipe.send(following)
                    break
                yield item, result
        for pipe, process in processes.items():
            pipe.close()  # they end by themselves, and clear up
            process.join(PATIENCE)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _work(make: Callable[[int], Callable[[Any], Any]], rank: int, pipe: Connection) -> None:
    """A process: item after item from the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends this
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # killed: nobody is left to work for

    threading.Thread(target=follow, daemon=True).start()
    try:
        do = make(rank)
        while True:
            pipe.send((do(pipe.recv()), None))
    except EOFError:
        pass
    except Exception as error:
        kind = next((k for k in (ValueError, OSError) if isinstance(error, k)), None)  # what a user can cause
        pipe.send((None, kind(str(error)) if kind else RuntimeError(traceback.format_exc())))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes started inside have so many threads, or fewer where the environment says so."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: str(min(count, int(value or count))) for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
