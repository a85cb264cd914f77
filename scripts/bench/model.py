"""Model: training steps, operations, memory and forecasts beside the official modules and the machine's limits.

python scripts/bench/model.py [--quick] [--json FILE]

On two threads, or on CUDA where there is one (BENCH_DEVICE=cpu chooses). A step is forward, pinball loss and backward;
its floor is its matrix products and attention calls alone (see counting.Recorder). Ours, the official modules and the
floor take turns. bf16 means autocast; where products are no faster in bf16 than in fp32, as on a CPU that lacks them,
bf16 is timed on the small input only and left out of --quick. Without --quick the models are compiled too.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import sides
import torch
from counting import Recorder
from sides import Batch, Effort, Shape, Sides, as_in_training, count, interleaved, training_step
from table import Row, main

from toto_train.forecast import ForecastOptions, forecast
from toto_train.model.decoder import MaskFlags
from toto_train.module import keep_freed_memory

SIZES = ("tiny", "proxy", "small")
LARGE, SMALL = (1, 32, 4096), (8, 8, 512)
COUNTED = (1, 8, 1024)
"""Enough to count on: operations do not depend on the input's size."""
CONTEXT, HORIZONS, BLOCK = (8, 1, 4096), (96, 720, 4096), 768
"""Forecasts beyond 720 steps are made in blocks."""

Run = Callable[[], object]


class Case(NamedTuple):
    size: str
    shape: Shape
    bf16: bool

    def __str__(self) -> str:
        return f"{self.size} {list(self.shape)} {precision(self.bf16)}"


def precision(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def cases(quick: bool) -> Iterator[Case]:
    for size, shape, bf16 in itertools.product(SIZES[:1] if quick else SIZES, (LARGE, SMALL), (False, True)):
        if not bf16 or fast_bf16() or (shape == SMALL and not quick):
            yield Case(size, shape, bf16)


@cache
def matmul_peak(bf16: bool) -> float:
    """FLOP/s of square matrix products, the fastest of several sizes and of both layouts of a factor."""
    best, slowest = 0.0, 0.0
    for n in (512, 1024, 2048, 4096, 8192):
        if slowest > 0.1:
            break
        a, b = (torch.randn(n, n, device=sides.device(), dtype=torch.bfloat16 if bf16 else None) for _ in range(2))
        times = [sides.seconds(lambda a=a, b=b: torch.mm(a, b)) for b in (b, b.t()) * 4]  # type: ignore[misc]
        best, slowest = max(best, 2 * n**3 / min(times)), max(times[-2:])
    return best


@cache
def fast_bf16() -> bool:
    return matmul_peak(True) > matmul_peak(False)


def versus(name: str, figures: Mapping[str, float], unit: str, target: str) -> Row:
    """Ours beside the official figure, which may be missing."""
    peer = figures.get("official")
    return Row(name, figures["ours"], peer, sides.MISSING if peer is None else "official", unit, target)


def steps(case: Case, effort: Effort, compiled: bool = False) -> Iterator[Row]:
    """Time of a training step against its floor and against the official modules in the same mode."""
    both, batch = Sides.build(case.size), Batch.draw(case.shape)
    runs: dict[str, Run] = dict(both.steps(batch, case.bf16))
    if compiled:
        torch._dynamo.reset()
        forward = as_in_training(torch.compile(both.ours.forward))
        runs["compiled"] = training_step(both.ours, forward, batch, case.bf16)
        runs["compiled"]()
    runs["ours"]()  # the first step fills caches, which is no part of the floor
    with Recorder() as floor:
        runs["ours"]()
    times = interleaved(runs | {"floor": floor.replay}, effort)
    best = {name: 1e3 * t.best for name, t in times.items()}
    middle = {name: 1e3 * t.median for name, t in times.items()}
    name, alone = f"step, {case}", "its products and attention alone"
    yield Row(name, best["ours"], best["floor"], alone, "ms, best", "<= 1.15")
    yield Row(name, middle["ours"], middle["floor"], alone, "ms, median", "<= 1.15")
    yield versus(name, best, "ms, best", "<= 1")
    if compiled:
        yield Row(f"{name}, compiled", best["compiled"], best["floor"], alone, "ms, best", "<= 1.15")
    if case.shape == LARGE:
        rate, peak = floor.flops / times["ours"].best, matmul_peak(case.bf16)
        yield Row(f"products a second, {case}", rate / 1e9, peak / 1e9, "fastest square ones", "GFLOP/s", ">= 0.7")


def fastest_mode(size: str, effort: Effort) -> Row:
    """Our best of eager and compiled, fp32 and bf16, against the official modules in fp32."""
    torch._dynamo.reset()
    both, batch = Sides.build(size), Batch.draw(LARGE)
    official = both.steps(batch, False)
    modes: dict[str, Run] = {}
    for bf16 in (False, True) if fast_bf16() else (False,):
        compiled = torch.compile(both.ours.forward)
        modes[precision(bf16)] = training_step(both.ours, as_in_training(both.ours), batch, bf16)
        modes[f"compiled {precision(bf16)}"] = training_step(both.ours, as_in_training(compiled), batch, bf16)
    for run in modes.values():
        run()  # compiles
    peer = {k: run for k, run in official.items() if k == "official"}
    rates = {k: batch.target.numel() / t.best for k, t in interleaved(modes | peer, effort).items()}
    best = max(modes, key=rates.__getitem__)
    name = f"step, {size} {list(LARGE)} {best} against fp32"
    return versus(name, rates | {"ours": rates[best]}, "points/s", ">= 1")


def counts(bf16: bool, masks: bool, shape: Shape) -> Iterator[Row]:
    """What a training step of `small` asks of the machine."""
    runs = Sides.build("small").steps(Batch.draw(shape, masks), bf16)
    found = {side: count(run) for side, run in runs.items()}
    what = f"small {list(shape)} {precision(bf16)}, {'gaps and several series' if masks else 'no masks needed'}"
    yield versus(f"operations, {what}", {k: c.operations for k, c in found.items()}, "launches a step", "<= 0.5")
    yield versus(f"elementwise traffic, {what}", {k: c.bytes / 1e6 for k, c in found.items()}, "MB a step", "<= 0.5")
    yield versus(f"products, {what}", {k: c.flops / 1e9 for k, c in found.items()}, "GFLOP a step", "<= 1.01")


def graphs() -> Row:
    """Graphs that all mask cases of the training forward compile to; a graph break would add some."""
    torch._dynamo.reset()
    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    model, batch = Sides.build("tiny").ours, Batch.draw((2, 4, 256), masks=True)
    forward = torch.compile(model.forward, backend=backend)
    flags = [MaskFlags(*pair) for pair in itertools.product((False, True), repeat=2)]
    for batch.flags in flags:
        for _ in range(2):
            training_step(model, as_in_training(forward), batch, False)()
    return Row("compiled forward", len(found), len(flags), "mask cases", "graphs", "<= 1")


def checkpointing(case: Case, share: float, effort: Effort) -> Iterator[Row]:
    """Time and memory of a step that keeps only the inputs of a share of its layers, against one that keeps all."""
    batch = Batch.draw(case.shape)
    runs: dict[str, Run] = {
        side: Sides.build(case.size).recompute(part).steps(batch, case.bf16)["ours"]
        for side, part in (("ours", share), ("kept", 0.0))
    }
    times = interleaved(runs, effort)
    name, peer = f"{case}, {share:.0%} of the layers computed again", "all kept"
    yield Row(name, 1e3 * times["ours"].best, 1e3 * times["kept"].best, peer, "ms, best", "<= 1.4")
    again, kept = (apart("ours", case, part) / 2**20 for part in (share, 0.0))
    yield Row(name, again, kept, peer, "MiB of activations", "<= 1")


def memory(case: Case) -> Row:
    """Peak memory of activations, each side in a process of its own."""
    found = {side: apart(side, case) / 2**20 for side in ("ours", "official") if side == "ours" or sides.installed()}
    return versus(f"activations, {case}", found, "MiB", "<= 0.6")


def apart(side: str, case: Case, recompute: float = 0.0) -> int:
    with patch.dict(os.environ, sides.MALLOC), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(sides.activations, (side, *case, recompute))


def forecasts(size: str, horizon: int, effort: Effort) -> Iterator[Row]:
    """Eight rows of complete history, forecast at once; both sides are told that nothing is missing where they ask."""
    both, batch = Sides.build(size), Batch.draw(CONTEXT)
    inputs = batch.target, batch.target_mask, batch.series_ids
    block = BLOCK if horizon > 720 else None
    options = ForecastOptions(block=block)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: forecast(both.ours.eval(), *inputs, horizon, options=options)
    }
    if both.official is not None:
        peer: Any = both.official.eval()
        named = dict(zip(("target", "target_mask", "series_ids"), inputs, strict=True))
        more: Any = {"decode_block_size": block or 0, "has_missing_values": False}
        runs["official"] = torch.no_grad()(lambda: peer.forecast(named, horizon, **more))
        expected = runs["official"]()
        torch.testing.assert_close(runs["ours"](), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    times = interleaved(runs, effort)
    name = f"forecast, {size} {list(CONTEXT)}, {horizon} steps{f' in blocks of {block}' * bool(block)}"
    yield versus(name, {k: CONTEXT[0] / t.best for k, t in times.items()}, "series/s", ">= 1.3")
    yield versus(name, {k: count(run).operations for k, run in runs.items()}, "launches", "<= 0.5")


def measure(quick: bool) -> list[Row]:
    torch.set_num_threads(sides.THREADS)
    keep_freed_memory()  # as a run does; the official modules and the floor gain, too
    effort = Effort(3, 1.0) if quick else Effort(5, 20.0)
    rows = [row for case in cases(quick) for row in steps(case, effort, not quick and (fast_bf16() or not case.bf16))]
    for bf16, masks in itertools.product((False, True), repeat=2):
        if fast_bf16() or not (bf16 and quick):
            rows += counts(bf16, masks, LARGE if not quick and (fast_bf16() or not bf16) else COUNTED)
    rows += map(memory, (case for case in cases(quick) if not quick or case.shape == LARGE))
    for size, horizon in itertools.product(
        SIZES[:1] if quick else ("tiny", "small"), HORIZONS[::2] if quick else HORIZONS
    ):
        rows += forecasts(size, horizon, effort)
    if not quick:
        for share in (0.5, 1.0):
            rows += checkpointing(Case("small", LARGE, fast_bf16()), share, effort)
        rows.append(graphs())
        rows += (fastest_mode(size, effort) for size in SIZES)
    return rows


if __name__ == "__main__":
    main(__doc__, measure)
