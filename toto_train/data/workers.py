"""Batches made by worker processes, handed over in order through shared memory.

torch's DataLoader would do as well, but its queues and their threads cost a small batch as much as making it.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from data_pipelines.executors import end_with_parent
from toto_train.data.rows import Batch
from toto_train.data.slots import Slots

Make = Callable[[int, Batch | None], Batch]
"""(number of a batch, arrays to make it in or None) -> the batch."""
SPARE = 4
"""Batches that may be in use while the workers fill all that they prefetch."""
JOB_BYTES = 4 * 2**20
"""A job is about so many bytes of batches: on every answer the run wakes up, which small batches would drown in."""


def batches(
    make: Make,
    numbers: Sequence[int],
    like: Batch,
    workers: int,
    prefetch: int,
    start_method: str | None = None,
    lap: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of the given numbers in order, made by `workers` processes that keep `prefetch` ready each.

    like: a batch, for its shapes. lap: batches after which the lanes of the rows come round; where it can be, a worker
    gets lanes of its own, so that what it keeps of a lane serves that lane's next row.

    Forked workers (the default where there is fork) write into memory that is read here where it is, and used again
    when nobody has a view of a batch any more; while somebody keeps too many, and from processes started otherwise,
    batches come through a pipe. What make raises in a worker is raised here; a worker that is gone is a RuntimeError.
    """
    method = start_method or ("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    most = max(1, min(prefetch // 2, JOB_BYTES // sum(array.nbytes for array in like.values())))
    size = next((n for n in range(most, 0, -1) if lap % (n * workers) == 0), most)
    jobs = (numbers[first : first + size] for first in range(0, len(numbers), size))
    slots = Slots(like, workers * prefetch + size - 1 + SPARE if method == "fork" else 0)
    team = [_Worker(make, slots, method) for _ in range(workers)]
    try:
        for worker in team * (prefetch // size):
            worker.ask(next(jobs, None), slots)
        for worker in itertools.cycle(team):
            if not worker.asked:
                break
            made = worker.answer()
            worker.ask(next(jobs, None), slots)
            while made:  # and none is held here while it is used there
                batch = made.pop(0)
                yield slots.lend(batch) if isinstance(batch, int) else batch
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """The run's end of a worker."""

    def __init__(self, make: Make, slots: Slots, method: str | None):
        context: Any = multiprocessing.get_context(method)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(make, slots if method == "fork" else None, theirs), daemon=True
        )
        self._process.start()
        self.asked = 0
        """Jobs without an answer."""
        theirs.close()  # so that the pipe ends with the worker
        self._ended = False
        # where the run breaks off, before multiprocessing ends daemons by a signal they ignore and waits for them
        atexit.register(self.end)

    def ask(self, job: Sequence[int] | None, slots: Slots) -> None:
        """Have batches of these numbers made."""
        if job:
            with self._alive():
                self._pipe.send([(number, slots.take()) for number in job])
            self.asked += 1

    def answer(self) -> list[int | Batch]:
        """The batches that were asked for first, each in a slot or as it is."""
        with self._alive():
            answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        self.asked -= 1
        return answer

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """A pipe that ends becomes an error that says how the worker did."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.join(10)
            code = self._process.exitcode
            if code is None:
                raise
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            hint = "; is there enough memory for data.workers and data.prefetch?" if code == -signal.SIGKILL else ""
            raise RuntimeError(f"loader worker {self._process.pid} {how}{hint}") from error

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._process.kill()
            self._process.join()
            self._pipe.close()
            atexit.unregister(self.end)


def _work(make: Make, slots: Slots | None, pipe: Connection) -> None:
    """Answer until killed: by the run where it ends, by itself where the run was killed."""
    # a signal to the whole process group must not end workers under a run that is about to save
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send([_make(make, slots, number, slot) for number, slot in job])
        except Exception as error:
            pipe.send(_portable(error))


def _make(make: Make, slots: Slots | None, number: int, slot: int | None) -> int | Batch:
    if slots is None or slot is None:
        return make(number, None)
    make(number, slots.arrays(slot))
    return slot


def _portable(error: Exception) -> Exception:
    """The error with where it was raised; another where it cannot travel."""
    error.add_note("in a loader worker:\n" + "".join(traceback.format_tb(error.__traceback__)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
