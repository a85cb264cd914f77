"""All ranks come together in a plain key-value store, before any process group: those that do not come are named, and
what they are made of is compared, so that nothing hangs later for what is known now.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import defaultdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from toto_train.environment import LaunchError

log = logging.getLogger(__name__)

RESOLVE = 60.0
"""Most seconds for the name in MASTER_ADDR to become known: clusters make names of hosts as these come."""
MARGIN = 30.0
"""Seconds that ranks wait longer than rank 0, for what it found."""
READ = 10.0
"""Most seconds that rank 0, which holds the store, stays for the others to read why the run ends."""
SHOWN = 8
"""Settings that are named where they differ."""


def meet(mine: dict[str, str], timeout: float = 300.0) -> dist.Store:
    """Wait until every rank of WORLD_SIZE has come and compare their facts; the store they met in, for
    `init_process_group(store=...)`, which needs no second one on MASTER_PORT.

    mine: the `facts` of this rank. timeout: seconds until ranks that have not come are given up.
    Raises LaunchError on every rank that came: which ranks are missing or came twice, or differ, and how.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store = _open_store(rank, world, timeout)
        # a prefix of its own, by the attempt of torchrun, whose store outlives ranks that it starts again
        room = dist.PrefixStore(f"rendezvous{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)
        if rank == 0:
            problems = _judge(room, {**mine, "rank": 0}, world, timeout)
        else:
            problems = _verdict(room, {**mine, "rank": rank}, world, timeout)
    except dist.DistError as error:
        raise LaunchError([
            f"rank {rank} on {socket.gethostname()} lost rank 0 at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} while ranks met ({str(error).splitlines()[0]}); rank 0's message says why"
        ]) from error  # fmt: skip
    if problems:
        raise LaunchError(problems, agreed=True)
    return store


def _open_store(rank: int, world: int, timeout: float) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, which rank 0 serves, or torchrun where it says so."""
    address, port, host = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), socket.gethostname()
    serve = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serve:
        _resolve(address, min(timeout, RESOLVE))
    try:
        return dist.TCPStore(
            "localhost" if serve else address, port, world, serve, timedelta(seconds=timeout), wait_for_workers=False
        )
    except dist.DistError as error:
        why = str(error).splitlines()[0]
        if serve:
            raise LaunchError([
                f"rank 0 cannot listen on MASTER_PORT={port} of {host}: another run, or a second process with RANK=0, "
                f"has it; choose another port ({why})"
            ]) from error  # fmt: skip
        raise LaunchError([
            f"rank {rank} on {host} cannot reach rank 0 at {address}:{port} within {timeout:g} s "
            f"({_reason(address, port) or why}); does rank 0 run there, and may these hosts connect to each other's "
            "ports?"
        ]) from error  # fmt: skip


def _resolve(address: str, patience: float) -> None:
    """Wait until this host knows a name."""
    start = time.monotonic()
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except socket.gaierror as error:
            if time.monotonic() - start > patience:
                raise LaunchError([
                    f"MASTER_ADDR={address!r} is no host that {socket.gethostname()} knows ({error.strerror}); it must "
                    "be the name or address of the host of rank 0"
                ]) from error  # fmt: skip
        time.sleep(0.2)


def _reason(address: str, port: int) -> str:
    """Why nothing can be connected there; asked only when it failed, as a store may look up whoever comes and goes."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return str(error)
    return ""


def _judge(room: dist.Store, mine: dict[str, Any], world: int, timeout: float) -> list[str]:
    """On rank 0: gather all ranks, tell them what is wrong."""
    if room.add("judges", 1) > 1:
        raise LaunchError([f"RANK=0 was given twice, also to process {mine['process']} on {mine['host']}"])
    keys = [f"facts/{place}" for place in range(1, world)]
    try:
        room.wait(keys, timedelta(seconds=timeout))
    except dist.DistStoreError:
        keys = [key for key in keys[: room.add("came", 0)] if room.check([key])]
    # all at once: each exchange with the store costs two delayed acknowledgements, 80 ms
    came = [mine, *map(json.loads, room.multi_get(keys) if keys else [])]
    problems = _attendance(came, world, timeout) or differences(came)
    room.set("verdict", json.dumps(problems))
    if problems:
        others, deadline = [f"read/{place}" for place in range(1, len(came))], time.monotonic() + READ
        while others and not room.check(others) and time.monotonic() < deadline:
            time.sleep(0.02)
    return problems


def _verdict(room: dist.Store, mine: dict[str, Any], world: int, timeout: float) -> list[str]:
    """On the others: what rank 0 found."""
    place = room.add("came", 1)
    if place >= world:
        who = f"RANK={mine['rank']}, process {mine['process']} on {mine['host']}"
        raise LaunchError([f"{who}: {world - 1} others came before, and rank 0; every RANK is for one process"])
    room.set(f"facts/{place}", json.dumps(mine))
    try:
        room.wait(["verdict"], timedelta(seconds=timeout + MARGIN))
    except dist.DistStoreError:
        return [f"rank 0 did not come within {timeout:g} s; its own message says why"]
    problems = json.loads(room.get("verdict"))
    room.set(f"read/{place}", "")
    return problems


def _attendance(came: list[dict[str, Any]], world: int, timeout: float) -> list[str]:
    """Ranks that came twice or not at all."""
    by_rank = defaultdict(list)
    for one in came:
        by_rank[one["rank"]].append(f"process {one['process']} on {one['host']}")
    twice = {rank: where for rank, where in sorted(by_rank.items()) if len(where) > 1}
    missing = sorted(set(range(world)) - set(by_rank))
    if twice:
        nobody = f"; no process has RANK {_numbers(missing)}" if missing else ""
        return [f"RANK={rank} was given to {' and '.join(where)}{nobody}" for rank, where in twice.items()]
    if not missing:
        return []
    hosts = ", ".join(f"{host}: {_numbers(ranks)}" for host, ranks in _group(came, "host").items())
    problem = f"{name_ranks(missing)} did not come within {timeout:g} s; those that came, by host: {hosts}"
    if not _is_here(os.environ["MASTER_ADDR"]):
        problem += f"; MASTER_ADDR={os.environ['MASTER_ADDR']} is not {socket.gethostname()}, where rank 0 runs"
    return [problem]


def differences(came: list[dict[str, Any]]) -> list[str]:
    """What ranks must have alike and do not, with which ranks have what; GPUs that two ranks share. Other models of GPU
    are a warning only: the run is right, at the pace and within the memory of the least."""
    problems, settings = [], []
    for name in dict.fromkeys(key for one in came for key in one):
        values = _group(came, name)
        if name in ("rank", "host", "process", "GPU id") or len(values) < 2:
            continue
        text = ", ".join(f"{value} on {_where(came, ranks)}" for value, ranks in values.items())
        if name == "GPU":
            log.warning("GPUs differ, all go at the pace of the slowest: %s", text)
        elif name.startswith("config."):
            settings.append(f"{name.removeprefix('config.')} differs: {text}; give every node the same launch.yaml")
        elif name == "code":
            problems.append(f"the code differs: {text}; give every node the same version of toto_train/")
        else:
            problems.append(f"{name} differs: {text}; install the same on every node")
    for gpu, ranks in _group([one for one in came if "GPU id" in one], "GPU id").items():
        if len(ranks) > 1:
            problems.append(f"{_where(came, ranks)} have the same GPU, {gpu}; each needs its own: is LOCAL_RANK right?")
    more = [f"and {len(settings) - SHOWN} more settings differ"] if len(settings) > SHOWN else []
    return problems + settings[:SHOWN] + more


def _group(came: list[dict[str, Any]], name: str) -> dict[str, list[int]]:
    """Value of a fact -> the ranks that have it."""
    out = defaultdict(list)
    for one in sorted(came, key=lambda one: one["rank"]):
        out[one.get(name, "none")].append(one["rank"])
    return out


def _where(came: list[dict[str, Any]], ranks: list[int]) -> str:
    hosts = dict.fromkeys(one["host"] for one in sorted(came, key=lambda one: one["rank"]) if one["rank"] in ranks)
    return f"{name_ranks(ranks)} ({', '.join(hosts)})"


def name_ranks(ranks: list[int]) -> str:
    """[0, 1, 2, 5] -> 'ranks 0-2, 5'"""
    return f"rank{'s' * (len(ranks) > 1)} {_numbers(ranks)}"


def _numbers(ranks: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'"""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _is_here(address: str) -> bool:
    """Whether this host has an address."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as s:
            s.bind(place)
    except OSError:
        return False
    return True
