"""A run's price as text for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import torch

from toto_train.config import Config
from toto_train.hardware import GPUS
from toto_train.model.toto import QUANTILES
from toto_train.planning.advice import remedies, room
from toto_train.planning.estimate import GIB, RESERVE, SLACK, Estimate, Target, estimate
from toto_train.planning.layout import Layout
from toto_train.planning.memory import Held, memory

TRAINERS = {"normuon": "NorMuon", "deepspeed_muon": "DeepSpeed's Muon", "adamw": "AdamW"}
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "average": "averaged weights",
    "batch": "batch",
    "activations": "activations",
    "temporaries": "temporaries",
    "communication": "communication buffers",
    "exchange": "optimizer's temporaries",
    "copies": "gloo's copies",
}
"""Fields of `Held` in words."""


def describe(config: Config) -> str:
    """Raises ConfigError as `estimate` does."""
    if config.parallel.device == "cuda" and config.hardware.gpu == "auto" and not torch.cuda.is_available():
        return _elsewhere(config)
    priced = estimate(config)
    parts = [_facts(priced), f"{_memory(priced)}\n{_verdict(priced)}", _communication(priced), _time(priced)]
    return "\n\n".join(part for part in parts if part)


def _elsewhere(config: Config) -> str:
    """Of a job that is queued from a machine without GPUs: what does not depend on which they are."""
    priced = estimate(config, Target("GPU", math.inf, math.nan, GPUS["h100"]))  # bytes are the same on all with bf16
    hint = (
        "Whether it fits, how long it takes and what it costs depend on the GPU, and this machine has none: "
        "hardware.gpu=h100, say, names that of the job."
    )
    return "\n\n".join(part for part in (_facts(priced), _memory(priced), _communication(priced), hint) if part)


def loader_bytes(config: Config) -> int:
    """Memory for the batches that the loader processes of one rank keep ready: float32 values, two masks, ids."""
    rows = config.data.workers * config.data.prefetch * config.micro_rows
    return rows * config.data.variates * (6 * config.data.length + 8)


def saved_bytes(priced: Estimate) -> int:
    """Main memory of a rank for the copy of weights and state that a thread writes beside training, from the first save
    on: ranks divide a checkpoint evenly. 0 without such a copy. Of DeepSpeed's, which gathers weights to save them,
    nothing is said."""
    c = priced.config
    if not c.checkpoint.asynchronous or c.parallel.mode == "deepspeed":
        return 0
    one = replace(c, parallel=replace(c.parallel, mode="single", devices=1, nodes=1))
    whole = memory(one, Layout.of(one), priced.update).update
    return (whole.weights + whole.optimizer + whole.average) // c.world


def _facts(priced: Estimate) -> str:
    c, p = priced.config, priced.counts
    m, d, par = c.model, c.data, c.parallel
    steps = c.schedule.max_steps
    mode = par.mode if par.mode != "deepspeed" else f"deepspeed, ZeRO stage {par.zero_stage}"
    if par.mode == "hsdp":
        mode = f"hsdp, {priced.layout.replicas} x {priced.layout.weights} shards"
    nodes = f" on {par.nodes} nodes" if par.nodes > 1 else ""
    ranks = f"{priced.layout.world} x {priced.target.name}{nodes}, {mode}, {par.precision}"
    if par.activation_checkpointing:
        ranks += f", {par.activation_checkpointing:.0%} of the layers recomputed"
    return _aligned([
        ("model", f"{m.name}: d_model {m.d_model}, {m.num_layers} layers, {m.num_heads} heads, d_ff {m.d_ff}"),
        ("parameters", f"{p.parameters:,} ({p.stack_matrices:,} in the stack's matrices, for "
                       f"{TRAINERS[c.optimizer.stack]})"),
        ("devices", ranks),
        ("batch", f"{c.global_rows} rows x {d.variates} variates x {d.length} steps; {c.micro_rows} at a time on "
                  f"every rank, {c.accumulation} times"),
        ("points per step", f"{p.slots_per_step:,} (slots; observed points are fewer by the fill of the rows)"),
        ("patches per step", f"{p.patches_per_step:,} of {m.patch_size} steps, {len(QUANTILES)} quantiles each"),
        ("FLOPs per step", f"{p.flops_per_step:.3e} (6 N patches {p.matmul_flops:.3e} + attention "
                           f"{p.attention_flops:.3e})"),
        ("loader", f"{d.workers} processes a rank, {loader_bytes(c) / 2**20:,.0f} MiB of batches kept ready"),
        *([("saves", f"{saved_bytes(priced) / 2**20:,.0f} MiB of main memory a rank, for a copy written beside "
                     "training")] if saved_bytes(priced) else []),
        ("run", f"{steps:,} steps: {steps * p.slots_per_step:.3e} points, {steps * p.flops_per_step:.3e} FLOPs"),
    ])  # fmt: skip


def _memory(priced: Estimate) -> str:
    moments = priced.memory.moments
    size, unit = (GIB, "GiB") if priced.memory.peak >= GIB else (2**20, "MiB")
    shown = [f.name for f in fields(Held) if any(getattr(held, f.name) for held in moments.values())]
    rows = [[f"memory of a rank, {unit}", *moments]]
    rows += [[f"  {PARTS[key]}", *(f"{getattr(held, key) / size:,.2f}" for held in moments.values())] for key in shown]
    rows.append(["  together", *(f"{held.total / size:,.2f}" for held in moments.values())])
    return _table(rows)


def _verdict(priced: Estimate) -> str:
    """Whether it fits, in sentences, with the knob to turn."""
    there, name = priced.target.memory / GIB, priced.target.name
    aside = f"with {SLACK - 1:.0%} and {RESERVE / GIB:.0f} GiB set aside for the allocator and the libraries"
    need = f"{priced.needed / GIB:.1f} of {there:.1f} GiB, {aside}"
    if priced.fits:
        more = room(priced)
        hint = f" There is room for {more[0]} ({more[1].needed / GIB:.1f} GiB)." if more else ""
        return f"It fits: {need}.{hint}"
    found = remedies(priced)
    turns = "; ".join(f"{text} ({made.needed / GIB:.1f} GiB)" for text, made in found)
    if not found:
        return f"It does not fit {name}: {need}. No setting makes it fit; take a device with more memory."
    return f"It does not fit {name}: {need}. {'This would' if len(found) == 1 else 'Each of these would'}: {turns}."


def _communication(priced: Estimate) -> str:
    if not priced.messages:
        return ""
    total = [sum(x) for x in zip(*((m.sent, m.least) for m in priced.messages), strict=True)]
    size, unit = (GIB, "GiB") if total[0] >= GIB else (2**20, "MiB")
    rows = [[f"sent by a rank, each step, {unit}", "", "least", "ratio"]]
    for m in priced.messages:
        rows.append(_sent(f"  {m.kind}, {m.what} ({m.phase})", m.sent / size, m.least / size))
    return _table([*rows, _sent("  together", total[0] / size, total[1] / size)])


def _sent(name: str, sent: float, least: float) -> list[str]:
    numbers = ["<0.01" if 0 < x < 0.01 else f"{x:,.2f}" for x in (sent, least)]
    return [name, *numbers, f"{sent / least:.2f}" if least else ""]


def _time(priced: Estimate) -> str:
    c, t, target = priced.config, priced.duration, priced.target
    steps, world = c.schedule.max_steps, priced.layout.world
    hours = steps * t.step / 3600
    parts = [f"forward and backward {_seconds(t.products)} at hardware.mfu={c.hardware.mfu} of {_rate(target.peak)}"]
    parts += [f"recomputation {_seconds(t.again)}"] if t.again else []
    unit = "CPU" if target.on_cpu else "GPU"
    parts += (
        [f"messages not hidden {_seconds(t.exposed)}" if t.exposed else "messages hidden"]
        if world > 1 and target.gpu
        else []
    )
    parts.append(f"optimizer {_seconds(t.update)}")
    lines = [
        ("time, by a model", f"{_seconds(t.step)} a step: {', '.join(parts)}"),
        ("", f"{priced.counts.slots_per_step / t.step:,.0f} points/s, MFU {priced.mfu:.0%} over all"),
        (
            "to the last step",
            f"{_number(hours)} hours ({_number(hours / 24)} days), {_number(hours * world)} {unit}-hours",
        ),
    ]
    if world > 1 and target.gpu is None:
        lines.append(("", "the links between ranks are not known; messages are left out"))
    if c.parallel.precision == "fp32" and target.gpu is not None and target.gpu.bf16:
        faster = target.gpu.flops("bf16") / target.gpu.flops("fp32")
        lines.append(("", f"parallel.precision=bf16 has products {faster:.0f} times as fast on {target.name}"))
    if target.on_cpu:
        lines.append(("", "hardware.gpu=h100, say, prices the run on GPUs; scripts/plan.py --help names those known"))
    if price := c.hardware.dollars_per_hour:
        lines.append(("cost", f"{hours * world * price:,.0f} dollars at {price:g} for a {unit}-hour"))
    elif not target.on_cpu:
        lines.append(("cost", "left out; hardware.dollars_per_hour=2.5, say, is the price of a GPU-hour"))
    return _aligned(lines)


def _seconds(x: float) -> str:
    return f"{x:.3g} s" if x >= 1 else f"{1e3 * x:.3g} ms" if x >= 1e-3 else f"{1e6 * x:.0f} us"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:,.1f}" if x >= 1 else f"{x:,.2f}"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.0f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:,.0f} GFLOP/s"


def _aligned(lines: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
