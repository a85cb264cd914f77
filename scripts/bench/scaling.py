"""Ranks on one CPU: points a second of two processes over one, and what a rank sends in a step, by parallel mode.

Every process has one thread. The least that must be sent is that of the best ring for the mode as it is defined: a sum
of fp32 gradients once a step (ddp), or two gathers of the weights and a sum of the gradients every micro batch (fsdp2,
hsdp inside a group), and each matrix's update to its owner and back in bf16. What 8 to 512 GPUs would do is computed
by the planner, not measured.
"""

from __future__ import annotations

import os

from table import Row, main
from training import config, job, measure, sent

from toto_train.planning.estimate import estimate
from toto_train.planning.scaling import scaling

MODES: dict[str, tuple[int, list[str]]] = {
    "ddp": (2, ["parallel=ddp"]),
    "fsdp2": (2, ["parallel=fsdp2"]),
    "fsdp2, bf16_master": (2, ["parallel=fsdp2", "parallel.precision=bf16_master"]),
    "hsdp 2 x 2": (4, ["parallel=hsdp", "parallel.shards=2"]),
}
SIMULATED = ["experiment=toto2_xl", "parallel=hsdp", "parallel.devices=8", "parallel.precision=bf16"]
GPUS = (8, 16, 32, 64, 128, 256, 512)
MIB = 2**20


def rows(quick: bool) -> list[Row]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    steps, model = (8, "nano") if quick else (12, "tiny")
    length, out = 1024, []
    with job(length, 16, 4) as base:
        base = [*base, f"model={model}"]
        alone = {low: measure([*base, f"parallel.precision={low}"], 1, steps).seconds for low in ("fp32", "bf16")}
        slots = 16 * 32 * length / 1e6
        for mode, (world, overrides) in MODES.items():
            measured = measure([*base, *overrides], world, steps)
            sends, calls = sent(measured.events)
            c = config([*base, *overrides, f"parallel.devices={world}"])
            if world == 2:
                one = "fp32" if c.parallel.precision == "fp32" else "bf16"
                target = ">= 1.5" if c.parallel.mode == "ddp" else ">= 1"
                out.append(Row(f"{mode}, {model}: two processes", slots / measured.seconds, slots / alone[one],
                               f"one process, {one}", "Mpoints/s", target))  # fmt: skip
            least = sum(m.least for m in estimate(c).messages)
            out.append(Row(f"{mode}, {model}: sent in a step, {calls} collectives", sends / MIB, least / MIB,
                           "the least for the mode", "MiB a rank", "<= 1.05"))  # fmt: skip
    return out + simulated()


def simulated() -> list[Row]:
    """xl in groups of 8 on H100, by the planner's model."""
    points = scaling(config([*SIMULATED, "hardware.gpu=h100", "plan=true"]), GPUS)
    first = points[0].points_per_second / GPUS[0]
    return [
        Row(f"a model, not measured: xl, hsdp, {p.gpus} x H100", p.points_per_second / 1e6, first * p.gpus / 1e6,
            "8 GPUs in proportion", "Mpoints/s", ">= 0.5")
        for p in points
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, rows)
