"""Where the pieces of a build run: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

EXECUTORS = ("local", "ray")


def run(executor: str, workers: int, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """(number of the job, function(job)) in the order they end; the first error ends all.

    function and jobs must be picklable. workers: processes of this machine, 0 = as many as it has cores; on a Ray
    cluster (RAY_ADDRESS, or one started here) each job takes one of its CPUs.
    """
    if executor == "ray":
        yield from _ray(workers, function, jobs)
        return
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        yield from ((i, function(job)) for i, job in enumerate(jobs))
        return
    # a forked child would inherit the locks of whatever threads Arrow and tqdm run here
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), end_with_parent)
    try:
        waiting: dict[Future, int] = {}
        for i, job in enumerate(jobs):
            waiting[pool.submit(function, job)] = i
            if len(waiting) >= 4 * workers:  # results and jobs in flight stay few
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps for want of memory: run the same command again, which goes on from "
            f"here, with fewer than workers={workers}"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_with_parent() -> None:
    """Call it in a worker process: workers of a killed parent would wait for ever, for jobs or for a reader."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finished(waiting: dict[Future, int]) -> Iterator[tuple[int, Any]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


def _ray(workers: int, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    try:
        import ray
    except ImportError as error:
        raise ValueError("executor=ray needs Ray: pip install 'toto-train[ray]'") from error
    started = not ray.is_initialized()
    if started:
        where = {"address": "auto"} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None}
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False, **where)
    try:
        remote = ray.remote(max_retries=3)(function)
        limit = max(1, 4 * int(ray.cluster_resources().get("CPU", 1)))
        waiting: dict[Any, int] = {}
        for i, job in enumerate(jobs):
            waiting[remote.remote(job)] = i
            while len(waiting) >= limit:
                yield from _collect(ray, waiting)
        while waiting:
            yield from _collect(ray, waiting)
    finally:
        if started:
            ray.shutdown()


def _collect(ray: Any, waiting: dict[Any, int]) -> Iterator[tuple[int, Any]]:
    for done in ray.wait(list(waiting))[0]:
        number = waiting.pop(done)
        try:
            yield number, ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
