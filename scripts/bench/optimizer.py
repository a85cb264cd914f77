"""Optimizer: bytes, collectives and balance over processes; a step's time, first step and memory on one.

python scripts/bench/optimizer.py [--quick] [--json FILE]

Gradients are random: what is measured does not depend on them. Processes are gloo ones on this machine; --quick starts
4, without it 2 and 8 too. Sent bytes and calls are counted at torch.distributed's operators on every rank and given for
the rank that sends most, without the one all-reduce of 4 bytes that tells all ranks whether gradients are finite.
Times are CPU seconds of one thread on 12 layers of width 384, 21.2 million parameters in 72 matrices, the best of
several steps in turn; every side orthogonalises in bf16 by five steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sides
import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.tensor as dtensor
import torch.multiprocessing as mp
from collectives import Collectives
from table import Row, main
from torch import Tensor, nn

from toto_train.config import AdamWConfig, NorMuonConfig
from toto_train.module import keep_freed_memory
from toto_train.optim.exchange import owner_loads
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.orthogonalize import COEFFICIENTS, NORM_EPS, NORM_MARGIN, normalized_update, orthogonalize

WIDTH, LAYERS = 384, 12
Shapes = dict[str, tuple[int, int]]

PUBLIC_BYTES, PUBLIC_CALLS = 1.50, 16
"""Best public figures for sharded NorMuon with a learning rate per matrix: bytes sent over the matrices' bytes in bf16,
and collectives (one group per parameter turns the two collectives of microsoft/dion into that many)."""


def separate(width: int, layers: int) -> Shapes:
    """q, k, v, out, up and down apart."""
    layer = {n: (width, width) for n in "qkvo"} | {"up": (4 * width, width), "down": (width, 4 * width)}
    return {f"{i}.{n}": shape for i in range(layers) for n, shape in layer.items()}


def fused(width: int, d_ff: int, layers: int) -> Shapes:
    """The matrices of a stack as the model has them."""
    layer = {"in": (3 * width, width), "out": (width, width), "up": (2 * d_ff, width), "down": (width, d_ff)}
    return {f"{i}.{n}": shape for i in range(layers) for n, shape in layer.items()}


UNEVEN: Shapes = {"a": (66, 64), "b": (18, 40), "c": (96, 32), "d": (3, 64)}
MIXED = "12 of mixed shapes"
SETS = {
    MIXED: fused(64, 176, 2) | UNEVEN,
    "nano's 16 matrices": fused(64, 176, 4),
    "small's 48 matrices": fused(384, 1024, 12),
}


def draw(shapes: Shapes) -> dict[str, nn.Parameter]:
    """Parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    params = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def normuon(params: dict[str, nn.Parameter], **settings: Any) -> NorMuonAdamW:
    """Every matrix in a group of its own, at a rate of its own."""
    config = NorMuonConfig(orthogonalize_dtype="bf16", lr=0.01)
    pairs = [(i, {"params": [pair], **dataclasses.asdict(config)}) for i, pair in enumerate(params.items())]
    return NorMuonAdamW([{**g, "kind": "normuon", "lr": g["lr"] * (1 + i)} for i, g in pairs], **settings)


def adamw(params: dict[str, nn.Parameter]) -> NorMuonAdamW:
    return NorMuonAdamW([{"kind": "adamw", "params": list(params.items()), **dataclasses.asdict(AdamWConfig())}])


# ---- several processes


def processes(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What function(rank, world, *args) returned on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world, Path(folder), function, args), nprocs=world, start_method="fork")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(function(rank, world, *args), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def shard(params: dict[str, nn.Parameter], world: int) -> dict[str, nn.Parameter]:
    mesh = dtensor.init_device_mesh("cpu", (world,))

    def place(t: Tensor) -> Tensor:
        return dtensor.distribute_tensor(t, mesh, [dtensor.Shard(0)], src_data_rank=None)

    out = {n: nn.Parameter(place(p.detach())) for n, p in params.items()}
    for name, p in params.items():
        assert p.grad is not None
        out[name].grad = place(p.grad)
    return out


def traffic(rank: int, world: int, shapes: Shapes, how: str) -> tuple[int, float, list[int]]:
    """Matrix collectives of a step, bytes this rank sends in them, loads of all owners."""
    params = draw(shapes)
    if how == "Muon of torch":
        optimizer: torch.optim.Optimizer = torch.optim.Muon(list(shard(params, world).values()))
    else:
        optimizer = normuon(shard(params, world))
    with Collectives() as counted:
        optimizer.step()
    checks = counted.calls["allreduce"] if isinstance(optimizer, NorMuonAdamW) else 0  # what ranks agree on, once
    check_bytes = checks * 4 * (1 + 2 * len(params))
    loads = owner_loads(optimizer.blocks, world) if isinstance(optimizer, NorMuonAdamW) else []
    return counted.calls.total() - checks, counted.sent - check_bytes * 2 * (world - 1) / world, loads


def bits(rank: int, world: int, shapes: Shapes) -> dict[str, Tensor]:
    """Weights, momenta and second moments after three steps."""
    params = draw(shapes)
    optimizer = normuon(shard(params, world) if world > 1 else params)
    for _ in range(3):
        optimizer.step()
    found = {f"{n}.{k}": t for n, s in optimizer.state_dict()["state"].items() for k, t in s.items()}
    for group in optimizer.param_groups:
        found |= {n: p.detach() for n, p in zip(group["param_names"], group["params"], strict=True)}
    return {n: t.full_tensor() if isinstance(t, dtensor.DTensor) else t for n, t in found.items()}


def exchanges(world: int, name: str) -> list[Row]:
    shapes = SETS[name]
    size = sum(2 * math.prod(shape) for shape in shapes.values())
    where = f"{world} processes, {name}"
    found = processes(world, traffic, shapes, "FSDP2")
    calls, sent = max(c for c, _, _ in found), max(s for _, s, _ in found)
    loads, costs = found[0][2], sorted((m * n * min(m, n) for m, n in shapes.values()), reverse=True)
    # no sharing gives less: the mean, the costliest matrix, the two smallest of the first world + 1
    fair = max(sum(costs) / world, costs[0], sum(costs[world - 1 : world + 1]) if len(costs) > world else 0)
    # each way all but 1/world of what a rank holds or owns leaves it; a tenth more for row figures and uneven owners
    bound = 2 * (world - 1) / world**2 * 1.1
    out = [
        Row(f"sent by a rank, {where}", sent / 1e6, size / 1e6, "matrices in bf16", "MB a step", f"<= {bound:.2f}"),
        Row(f"collectives, {where}", calls, 2, "one each way", "calls a step", "<= 1"),
        Row(f"owners' work, {where}", max(loads) / 1e6, fair / 1e6, "least possible", "m n min(m, n)/1e6", "<= 1.1"),
    ]
    if world == 4 and name == MIXED:
        out += [
            Row(
                f"sent by a rank, {where}", sent / size, PUBLIC_BYTES, "best public NorMuon", "x bf16 bytes", "<= 0.28"
            ),
            Row(f"collectives, {where}", calls, PUBLIC_CALLS, "best public NorMuon", "calls a step", "<= 0.125"),
        ]
    return out


def same_bits(world: int) -> Row:
    shapes = SETS[MIXED]
    (one,), many = processes(1, bits, shapes), processes(world, bits, shapes)
    equal = sum(all(torch.equal(rank[name], t) for rank in many) for name, t in one.items())
    return Row(f"tensors that equal those of one process, {world} processes", equal, len(one), "all", "tensors", ">= 1")


def torch_muon(world: int) -> list[Row]:
    name = "nano's 16 matrices"
    found = {how: processes(world, traffic, SETS[name], how) for how in ("FSDP2", "Muon of torch")}
    calls, sent = ({how: max(r[i] for r in ranks) for how, ranks in found.items()} for i in (0, 1))
    where, peer = f"{world} processes, {name}", "torch.optim.Muon"
    return [
        Row(f"collectives, {where}", calls["FSDP2"], calls["Muon of torch"], peer, "calls a step", "<= 0.1"),
        Row(f"sent by a rank, {where}", sent["FSDP2"] / 1e6, sent["Muon of torch"] / 1e6, peer, "MB a step", "<= 1"),
    ]


# ---- one process


def cpu_seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best of several rounds in turn, after one that is dropped."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with sides.no_gc():
        for _, (name, run) in itertools.product(range(rounds + 1), runs.items()):
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    return {name: min(found[1:]) for name, found in times.items()}


def steps(rounds: int) -> list[Row]:
    keep_freed_memory()  # as a run does; all sides gain
    shapes = separate(WIDTH, LAYERS)
    updates = [p.grad for p in draw(shapes).values() if p.grad is not None]
    runs: dict[str, Callable[[], object]] = {
        "normuon": normuon(draw(shapes)).step,
        "muon": torch.optim.Muon(list(draw(shapes).values())).step,
        "orthogonalise": lambda: [orthogonalize(u, torch.bfloat16) for u in updates],
        "adamw": adamw(draw(shapes)).step,
        "torch adamw": torch.optim.AdamW(list(draw(shapes).values()), fused=True).step,
    }
    ms = {name: 1e3 * s for name, s in cpu_seconds(runs, rounds).items()}
    alone = "its orthogonalisations alone"
    return [
        Row("NorMuon step", ms["normuon"], ms["muon"], "torch.optim.Muon", "CPU ms", "<= 1.1"),
        Row("NorMuon step", ms["normuon"], ms["orthogonalise"], alone, "CPU ms", "<= 1.25"),
        Row("NorMuon step", ms["normuon"], ms["torch adamw"], "torch.optim.AdamW, fused", "CPU ms", "<= 120"),
        Row(
            "AdamW step, gradients checked",
            ms["adamw"],
            ms["torch adamw"],
            "torch.optim.AdamW, fused",
            "CPU ms",
            "<= 1.5",
        ),
    ]


def exact_update(update: Tensor) -> Tensor:
    """Orthogonalised and normalised, a first step, in float64 on the singular values themselves."""
    u, sigma, vh = torch.linalg.svd(update.double(), full_matrices=False)
    sigma = sigma / (NORM_MARGIN * update.double().norm() + NORM_EPS)
    for a, b, c in COEFFICIENTS:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    o = u @ torch.diag(sigma) @ vh
    n = o / o.norm(dim=1, keepdim=True)
    return n * o.norm() / n.norm()


def errors() -> list[Row]:
    """Largest difference from the update in float64 over its largest entry; the worst of a tall and a wide matrix."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, float] = {}
    for shape in ((192, 64), (64, 176)):
        u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
        spectra = {"singular values within 2x": torch.linspace(1, 2, 64), "rank 8": (torch.arange(64) < 8).double()}
        for kind, spectrum in spectra.items():
            update = (u @ torch.diag(spectrum.double()) @ vh).float()
            expected = exact_update(update)
            for dtype in (torch.float32, torch.bfloat16):
                o, scale, _ = normalized_update(update, torch.zeros(shape[0]), 0.999, 1e-7, dtype)
                error = (scale[:, None] * o.double() - expected).abs().max() / expected.abs().max()
                name = f"error of an update, {kind}, {'fp32' if dtype == torch.float32 else 'bf16'}"
                found[name] = max(found.get(name, 0.0), float(error))
    limits = (1e-5, 8e-2, 1e-3, 2.0)  # in bf16 what an update lacks in rank is filled with rounding
    return [
        Row(name, error, limit, "limit", "of its largest entry", "<= 1")
        for (name, error), limit in zip(found.items(), limits, strict=True)
    ]


def cold() -> tuple[float, float]:
    """CPU seconds of the first step of a process, and of the better of two more."""
    torch.set_num_threads(1)
    step = normuon(draw(separate(WIDTH, LAYERS))).step
    times = []
    for _ in range(3):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    return times[0], min(times[1:])


def memory() -> tuple[int, int]:
    """Most bytes that a step adds to weights, gradients and state; and the bytes of the weights."""
    torch.set_num_threads(1)
    params = draw(separate(WIDTH, LAYERS))
    optimizer, warm = normuon(params), normuon(draw({"warm": (64, 64)}))
    warm.step()
    before = sides.reset_peak()
    optimizer.step()
    return sides.peak() - before, sum(p.nbytes for p in params.values())


def apart(function: Callable[[], Any], **environment: str) -> Any:
    with patch.dict(os.environ, environment), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function)


def measure(quick: bool) -> list[Row]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    worlds, names = ((4,), (MIXED, "small's 48 matrices")) if quick else ((2, 4, 8), tuple(SETS))
    # fewer than two matrices a rank cannot be shared out evenly
    pairs = [(world, name) for world in worlds for name in names if 2 * world <= len(SETS[name])]
    rows = [row for world, name in pairs for row in exchanges(world, name)]
    rows += [*torch_muon(4), same_bits(4 if quick else 8)]
    rows += errors()
    rows += steps(3 if quick else 10)
    first, steady = apart(cold)
    rows.append(Row("first step of a process", 1e3 * first, 1e3 * steady, "a later step", "CPU ms", "<= 2"))
    extra, weights = apart(memory, **sides.MALLOC)
    rows.append(Row("memory that a step adds at most", extra / 1e6, weights / 1e6, "the weights", "MB", "<= 1"))
    return rows


if __name__ == "__main__":
    main(__doc__, measure)
