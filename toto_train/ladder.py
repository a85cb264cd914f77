"""A ladder of sizes, each trained for several numbers of steps by train.py, and the held-out loss of every run.

Runs of a seed see the same rows in the same order, so those of as many steps have seen equal points. Each horizon is a
run of its own with its own decay: a loss before the decay says little about what the decay would make of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from toto_train import checkpoint
from toto_train.config import AugmentConfig, Config, ConfigError, MixtureEntry
from toto_train.data.loader import RowLoader
from toto_train.data.order import Order
from toto_train.data.rows import Rows
from toto_train.plan import plan
from toto_train.ranks import pick_device
from toto_train.scaling_law import Observation
from toto_train.sweep import Trial, make_trial
from toto_train.transfer import heldout_loss

SETTINGS = ("optimizer.normuon.lr_rule=unit_scaled", "optimizer.normuon.lr=0.035", "validate_every=0", "report=false")
"""Before those that are given. Under this rule the best rate does not move with width (docs/optimizer.md), so that no
size is trained at a rate that suits another better."""
WARMUP, DECAY = 12, 3
"""One step in so many is warm-up; decay. The quickstart's shares."""
RESERVED = ("name", "out", "seed", "schedule", "model", "fresh", "plan")
"""What the ladder sets itself."""


@dataclass(frozen=True)
class Size:
    """A rung: a model of released shape, 8/3 of the width in its MLP, but of heads as wide as is given."""

    width: int
    depth: int
    head_width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.depth}"

    @property
    def overrides(self) -> list[str]:
        hidden = -(-(8 * self.width // 3) // 8) * 8
        return [f"model.name={self}", f"model.d_model={self.width}", f"model.num_layers={self.depth}",
                f"model.num_heads={self.width // self.head_width}", f"model.d_ff={hidden}"]  # fmt: skip


def parse_sizes(text: str, head_width: int) -> list[Size]:
    """'64x4,128x4': width x depth. Raises ValueError."""
    out = []
    for part in dict.fromkeys(text.split(",")):
        width, _, depth = part.partition("x")
        if not (width.isdecimal() and depth.isdecimal() and int(width) and int(depth)):
            raise ValueError(f"sizes={text!r} must be WIDTHxDEPTH with commas between, as in 64x4,128x4")
        if head_width < 1 or int(width) % head_width:
            raise ValueError(f"sizes={part}: the width must be a multiple of head_width={head_width}")
        out.append(Size(int(width), int(depth), head_width))
    return out


def make_trials(
    out: Path, sizes: Sequence[Size], steps: Iterable[int], seeds: Iterable[int], settings: Sequence[str], configs: Path
) -> list[Trial]:
    """A run for every size, horizon and seed, in out/<size>-<steps>-s<seed>; the longest first. Raises ConfigError."""
    if taken := [s for s in settings if s.lstrip("+~").partition("=")[0].partition(".")[0] in RESERVED]:
        raise ConfigError([f"{text}: the ladder sets this itself; its own arguments are in --help" for text in taken])
    trials = []
    for size, horizon, seed in product(sizes, steps, seeds):
        own = [f"out={out}", f"name={size}-{horizon}-s{seed}", f"seed={seed}", f"schedule.max_steps={horizon}"]
        own += [f"schedule.warmup_steps={horizon // WARMUP}", f"schedule.decay_steps={horizon // DECAY}"]
        trials.append(make_trial([*SETTINGS, *settings, *size.overrides, *own], configs))
    if problems := list(dict.fromkeys(line for t in trials for line in t.problem.splitlines())):
        raise ConfigError(problems)
    return sorted(trials, key=lambda t: -_cost(t))


def _cost(trial: Trial) -> float:
    assert trial.config is not None
    return plan(trial.config).flops_per_step * trial.config.schedule.max_steps


def observe(trials: Sequence[Trial], windows: int) -> list[Observation]:
    """What the finished runs of `trials` lose on rows of series that no run trains on, `windows` rows, always the same.

    The loss is the training objective, mean pinball loss per observed label. Raises ValueError where there are no
    held-out series.
    """
    configs = [t.config for t in trials if t.config is not None]
    if not configs:
        return []
    device = pick_device(configs[0].parallel.device, "parallel.device")
    held = heldout_config(configs[0], windows)
    batches = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in b.items()}
               for b in RowLoader(held, Rows(held))]  # fmt: skip
    out = []
    for trial, config in zip(trials, configs, strict=True):
        model, meta = checkpoint.load_model(trial.folder, "last")
        loss = heldout_loss(model.to(device), held, batches)
        out.append(Observation(config.model.name, plan(config).parameters, config.schedule.max_steps, meta["points"],
                               config.seed, loss))  # fmt: skip
    return out


def heldout_config(config: Config, windows: int) -> Config:
    """Rows of the run's held-out series, drawn like training rows but unaltered; of no run's seed."""
    if not config.heldout.path:
        raise ValueError("heldout.path is empty; give a folder of series that no run trains on")
    if windows < 1:
        raise ValueError(f"windows={windows} must be positive")
    held = copy.deepcopy(config)
    entry = MixtureEntry(held.heldout.path, include=held.heldout.include, exclude=held.heldout.exclude,
                         balance="points")  # fmt: skip
    held.data = replace(held.data, mixture={"heldout": entry}, stages={}, augment=AugmentConfig(), lanes=1, workers=0)
    held.seed = 0
    held.global_rows = held.micro_rows = math.gcd(windows, config.micro_rows)
    held.schedule.max_steps = windows // held.global_rows
    return held


def repeats(config: Config) -> float:
    """How often a run has seen the average of its rows in the end; series made on the fly count as new."""
    rows = config.schedule.max_steps * config.global_rows
    found: list[dict[str, Any]] = Order(config.data, config.seed).table()
    shares = [(row["share"], max(1.0, row["share"] * rows / row["rows"]) if row["fills"] else 1.0) for row in found]
    return sum(share * times for share, times in shares) / sum(share for share, _ in shares)
