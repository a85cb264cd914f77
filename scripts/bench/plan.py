"""The planner's bytes against those of real steps on a CPU: what a rank holds at the fullest moments, and sends.

Held: tensors that torch allocates from the making of the model to the end of a step, by its profiler, and the batch,
which numpy allocates; the interpreter and libraries are not in it. Sent: collectives of a gloo trace. Both are of later
steps than the first of a run through Lightning that accumulates over micro batches; batches need both masks. On a CPU
the plan has a part for the copies that gloo makes of messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from table import Row, main
from training import config, held, job, measure, sent

from toto_train.planning.estimate import estimate

MIB = 2**20
HELD = {
    "fp32": [],
    "fp32, layers recomputed": ["parallel.activation_checkpointing=1"],
    "fp32, half recomputed": ["parallel.activation_checkpointing=0.5"],
    "fp32, qk_norm": ["model.qk_norm=true"],
    "bf16": ["parallel.precision=bf16"],
    "bf16, layers recomputed": ["parallel.precision=bf16", "parallel.activation_checkpointing=1"],
    "fsdp2 alone": ["parallel=fsdp2"],
    "fsdp2 alone, bf16_master": ["parallel=fsdp2", "parallel.precision=bf16_master"],
}
HELD_BY_TWO = {
    "ddp": ["parallel=ddp"],
    "fsdp2": ["parallel=fsdp2"],
    "fsdp2, bf16_master": ["parallel=fsdp2", "parallel.precision=bf16_master"],
    "hsdp 2 x 1": ["parallel=hsdp", "parallel.shards=1"],
}
SENT = {
    "ddp": (2, ["parallel=ddp"]),
    "fsdp2": (2, ["parallel=fsdp2"]),
    "fsdp2, bf16_master": (2, ["parallel=fsdp2", "parallel.precision=bf16_master"]),
    "hsdp 2 x 1": (2, ["parallel=hsdp", "parallel.shards=1"]),
    "hsdp 2 x 2": (4, ["parallel=hsdp", "parallel.shards=2"]),
}


def compare_held(overrides: list[str], world: int = 1) -> dict[str, tuple[int, int]]:
    """(measured, planned) bytes of a rank at the fullest moment of forward passes, backward passes and update."""
    priced = estimate(config([*overrides, f"parallel.devices={world}"]))
    found = held(measure(overrides, world, 3, memory=True).events)
    return {name: (found[name] + moment.batch, moment.total) for name, moment in priced.memory.moments.items()}


def compare_sent(overrides: list[str], world: int) -> tuple[float, float]:
    """(counted, planned) bytes that a rank sends in a step."""
    priced = estimate(config([*overrides, f"parallel.devices={world}"]))
    return sent(measure(overrides, world, 2).events)[0], sum(m.sent for m in priced.messages)


def rows(quick: bool) -> list[Row]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    out = []
    with job(1024, 8, 2) as base:
        for model in ("nano",) if quick else ("nano", "tiny", "small"):
            of = [*base, f"model={model}", "data.variates=8"]
            for what, overrides in HELD.items():
                out += _within(f"{model}, {what}", compare_held([*of, *overrides]))
            for what, overrides in HELD_BY_TWO.items():
                out += _within(f"{model}, {what} by two", compare_held([*of, *overrides], 2))
            for what, (world, overrides) in SENT.items():
                out += _within(f"{model}, {what}", {"sent": compare_sent([*of, *overrides], world)})
    return out


def _within(name: str, pairs: Mapping[str, tuple[float, float]]) -> list[Row]:
    return [
        Row(f"{name}: {what}, planned less measured", abs(planned - measured) / MIB, measured / MIB, "measured", "MiB",
            "<= 0.1")
        for what, (measured, planned) in pairs.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, rows)
