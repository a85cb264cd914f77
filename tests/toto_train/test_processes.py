"""Work that processes share: the same results, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from toto_train.evaluation.processes import share


def squares(rank: int) -> Callable[[int], tuple[int, int, str]]:
    def square(x: int) -> tuple[int, int, str]:
        time.sleep(0.02)  # so that each gets some
        return x * x, os.getpid(), os.environ["OMP_NUM_THREADS"]

    return square


def test_every_item_is_worked_on_once_by_one_of_the_processes():
    found = list(share(squares, range(40), 2))
    assert sorted(item for item, _ in found) == list(range(40))
    assert all(value == item**2 for item, (value, *_) in found)
    assert len({pid for _, (_, pid, _) in found} - {os.getpid()}) == 2
    assert {int(threads) for _, (*_, threads) in found} == {1}
    assert multiprocessing.active_children() == []
    alone = list(share(squares, range(3), 1))
    assert [(item, value) for item, (value, *_) in alone] == [(0, 0), (1, 1), (2, 4)]
    assert {pid for _, (_, pid, _) in alone} == {os.getpid()}


def failing(how: str, rank: int) -> Callable[[int], int]:
    if how == "make":
        raise ValueError("no such model")

    def work(x: int) -> int:
        if x == 3 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 3:
            raise {"value": ValueError, "type": TypeError}[how](f"{x} is odd")
        return x

    return work


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("make", ValueError, "no such model"),
        ("value", ValueError, "3 is odd"),
        ("type", RuntimeError, "TypeError: 3 is odd"),
        ("kill", ChildProcessError, r"was killed \(exit code -9\); the same command goes on"),
    ],
)
def test_what_fails_there_is_raised_here(how, kind, message):
    with pytest.raises(kind, match=message):
        list(share(partial(failing, how), range(9), 2))
    assert multiprocessing.active_children() == []


def test_leaving_early_ends_the_processes():
    work = share(squares, range(1000), 2)
    next(work)
    work.close()
    assert multiprocessing.active_children() == []
