"""A run on more and more GPUs: a table of the planner's model, not of measurements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toto_train.config import Config, ConfigError
from toto_train.planning.advice import changed
from toto_train.planning.estimate import Estimate, estimate

GPUS_A_NODE = 8


@dataclass(frozen=True)
class Point:
    """One number of GPUs."""

    gpus: int
    priced: Estimate

    @property
    def points_per_second(self) -> float:
        return self.priced.counts.slots_per_step / self.priced.duration.step

    @property
    def efficiency(self) -> float:
        """Over GPUs that neither wait for messages nor share in the optimizer's step."""
        d = self.priced.duration
        return (d.products + d.again) / d.step


def spread(config: Config, gpus: int, grow: bool = False) -> Config:
    """The config on so many GPUs. grow: whether a batch too small for them grows with them.

    Raises ConfigError where they do not go together.
    """
    rows = max(config.global_rows, gpus * config.micro_rows) if grow else config.global_rows
    return changed(config, {**places(gpus), "global_rows": rows})


def places(gpus: int) -> dict[str, int]:
    """The settings that say so many GPUs, 8 on a node. Raises ConfigError where nodes would not be full."""
    if gpus < 1 or (gpus > GPUS_A_NODE and gpus % GPUS_A_NODE):
        raise ConfigError([f"gpus={gpus} must be one node's, 1 to {GPUS_A_NODE}, or a multiple of {GPUS_A_NODE}"])
    return {"parallel.devices": min(GPUS_A_NODE, gpus), "parallel.nodes": max(1, gpus // GPUS_A_NODE)}


def scaling(config: Config, gpus: Iterable[int]) -> list[Point]:
    return [Point(n, estimate(spread(config, n, grow=True))) for n in gpus]


def table(points: list[Point]) -> str:
    """Aligned text, labelled as a model."""
    first = points[0].priced
    head = ["GPUs", "rows", "micro batches", "GiB a GPU", "seconds a step", "Mpoints/s", "efficiency", "MFU"]
    rows = [head]
    for p in points:
        e = p.priced
        rows.append([
            f"{p.gpus}", f"{e.config.global_rows}", f"{e.config.accumulation}",
            f"{e.needed / 2**30:.1f}{'' if e.fits else ' !'}", f"{e.duration.step:.3g}",
            f"{p.points_per_second / 1e6:,.1f}", f"{p.efficiency:.0%}", f"{e.mfu:.0%}",
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    c = first.config
    what = f"{c.model.name} under {c.parallel.mode}, {c.parallel.precision}, on {first.target.name}"
    notes = [
        f"products run at hardware.mfu={c.hardware.mfu}; efficiency is what messages and the optimizer leave of it"
    ]
    if len({p.priced.config.global_rows for p in points}) > 1:
        notes.append("rows: too few for all GPUs in the recipe's batch grow with them, which changes what is trained")
    if any(not p.priced.fits for p in points):
        notes.append(f"!: more than the {first.target.memory / 2**30:.1f} GiB of a GPU")
    return "\n".join([f"a model, not a measurement: {what}", *lines, *notes])
