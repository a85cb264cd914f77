"""Ranks that come together, or do not: real processes, each with its own environment."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event

import pytest
import torch
import torch.distributed as dist

from toto_train.config import Config
from toto_train.environment import LaunchError, facts
from toto_train.ranks import Ranks, check_shared, free_port
from toto_train.rendezvous import meet

pytestmark = pytest.mark.distributed


def _process(place: dict[str, str], other: dict[str, str], timeout: float, out: Queue, over: Event) -> None:
    torch.set_num_threads(1)
    os.environ |= place
    rank, world = int(place["RANK"]), int(place["WORLD_SIZE"])
    try:
        store = meet(facts(Config(), "cpu") | other, timeout)
    except LaunchError as error:
        out.put((rank, str(error), error.agreed))
        return
    dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=world)
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    dist.barrier()
    dist.destroy_process_group()
    out.put((rank, total.item(), True))
    over.wait()  # rank 0 serves the store as long as a run would


def outcomes(ranks, world, timeout=20.0, other=None, **environment):
    """(rank, what became of it, whether all know) of processes with these ranks, sorted.

    other: rank -> facts that are not those of this machine.
    """
    context = multiprocessing.get_context("fork")
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
    out, over = context.Queue(), context.Event()
    started = [
        context.Process(
            target=_process, args=({**common, "RANK": str(r)}, (other or {}).get(r, {}), timeout, out, over)
        )
        for r in ranks
    ]
    for process in started:
        process.start()
    found = [out.get(timeout=60) for _ in started]
    over.set()
    for process in started:
        process.join()
    return sorted(found, key=lambda one: one[:1])


def test_ranks_that_fit_make_a_group_in_the_store_they_met_in():
    assert outcomes(range(3), 3) == [(rank, 3.0, True) for rank in range(3)]


def test_every_rank_knows_which_rank_differs():
    found = outcomes(range(3), 3, other={1: {"torch": "2.12.0", "config.seed": "7"}})
    host = socket.gethostname()
    expected = (
        f"torch differs: {torch.__version__} on ranks 0, 2 ({host}), 2.12.0 on rank 1 ({host}); install the same on "
        f"every node\n"
        f"seed differs: 0 on ranks 0, 2 ({host}), 7 on rank 1 ({host}); give every node the same launch.yaml"
    )
    assert found == [(rank, expected, True) for rank in range(3)]


def test_missing_ranks_are_named():
    found = outcomes((0, 2), 5, timeout=1.0)
    expected = f"ranks 1, 3-4 did not come within 1 s; those that came, by host: {socket.gethostname()}: 0, 2"
    assert found == [(0, expected, True), (2, expected, True)]


def test_without_rank_0_the_others_say_so():
    [(_, message, agreed)] = outcomes((1,), 2, timeout=1.0)
    assert message.startswith(f"rank 1 on {socket.gethostname()} cannot reach rank 0 at 127.0.0.1:")
    assert "refused" in message
    assert not agreed


def test_a_rank_given_twice_is_found_before_the_time_is_over():
    found = outcomes((0, 1, 1), 3, timeout=600.0)
    assert [rank for rank, _, _ in found] == [0, 1, 1]
    assert len({message for _, message, _ in found}) == 1
    assert found[0][1].startswith("RANK=1 was given to process ")
    assert found[0][1].endswith("no process has RANK 2")


def test_a_process_too_many_goes_and_the_others_train():
    found = [what for _, what, _ in outcomes((0, 1, 1), 2)]
    [message] = [what for what in found if isinstance(what, str)]
    assert message.startswith("RANK=1, process ")
    assert message.endswith("1 others came before, and rank 0; every RANK is for one process")
    assert sorted(what for what in found if what != message) == [1.0, 1.0]


def test_rank_0_given_twice_is_a_taken_port():
    found = outcomes((0, 0), 2, timeout=1.0)
    assert sorted(message.split(" ", 3)[:3] for _, message, _ in found) == [
        ["rank", "0", "cannot"],
        ["rank", "1", "did"],
    ]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [(_, message, _)] = outcomes((0,), 2, MASTER_PORT=str(port))
    assert message.startswith(f"rank 0 cannot listen on MASTER_PORT={port} of {socket.gethostname()}: another run, or")


def test_a_host_that_nobody_knows_is_named_on_both_sides():
    (_, of_0, _), (_, of_1, _) = outcomes((0, 1), 2, timeout=1.0, MASTER_ADDR="nowhere.invalid")
    assert f"MASTER_ADDR=nowhere.invalid is not {socket.gethostname()}, where rank 0 runs" in of_0
    assert of_1.startswith(f"MASTER_ADDR='nowhere.invalid' is no host that {socket.gethostname()} knows")


def _shared(rank, world, folders):
    try:
        check_shared(folders[rank], Ranks(torch.device("cpu"), rank, rank, world), patience=0.2)
    except LaunchError as error:
        return str(error)


def test_a_run_folder_on_a_disk_of_one_node_is_found_before_anything_is_saved_there(ranks, tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        folder.mkdir()
    assert ranks(3, _shared, [shared] * 3) == [None] * 3
    expected = f"ranks 1-2 do not see what rank 0 writes to {shared}; put out= where all nodes share a disk"
    assert ranks(3, _shared, [shared, own, own])[0] == expected
    assert not any(shared.iterdir())
