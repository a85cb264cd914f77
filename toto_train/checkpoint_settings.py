"""What may change when a run resumes, and what may not: one table, and the comparison with it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toto_train.config import Config, ModelConfig

RULES: dict[str, tuple[str, str]] = {
    "model": ("no", "the saved weights are those of this architecture"),
    "objective": ("no", "it decides which patches of a row are hidden, and what a loss means"),
    "seed": ("no", "rows, masks and augmentation are drawn from it"),
    "global_rows": ("no", "step s trains on rows [s G, (s + 1) G): the position is a number of steps"),
    "optimizer.stack": ("no", "it decides which state the optimizer has"),
    "data.variates": ("no", "the shape of a row"),
    "data.length": ("no", "the shape of a row"),
    "data": ("allow_data_change=true", "what decides the rows (mixture, stages, lanes, shuffle_rows, augment, the "
             "shards themselves) has a fingerprint; with another one the rows that follow are others"),
    "data.workers": ("yes", "rows do not depend on who reads them"),
    "data.prefetch": ("yes", "rows do not depend on who reads them"),
    "data.verify": ("yes", "it changes no row"),
    "data.on_fault": ("yes", "it changes no row that can be read"),
    "micro_rows": ("yes", "the same sums in another order: losses differ by rounding"),
    "optimizer": ("yes", "peak rates, momentum, decay, clipping and the like hold from the next step on"),
    "schedule": ("yes", "a step's rate is a function of the step and of these alone; max_steps must not lie behind"),
    "ema_decay": ("yes", "an average that was not kept before begins with the weights of the step"),
    "parallel": ("yes", "tensors and position are bitwise the same in any mode, on any number of ranks; the sums that "
                 "follow are of another order"),
    "validation": ("yes", "scores on other windows do not compete for the best checkpoint"),
    "validate_every": ("yes", "from the next step on"),
    "heldout": ("yes", "it is scored after training"),
    "report": ("yes", "it is written after training"),
    "checkpoint": ("yes", "from the next save on"),
    "guards": ("yes", "from the next step on; a spike is judged anew where its window has another length"),
    "logger": ("yes", "from the next step on"),
    "profile": ("yes", "nothing that is trained depends on it"),
    "hardware": ("yes", "nothing that is trained depends on it"),
    "name": ("yes", "a run folder may be moved"),
    "out": ("yes", "a run folder may be moved"),
    "init_from": ("no effect", "the run began from what it says; that is kept"),
    "fresh": ("no effect", "true starts over instead"),
    "allow_data_change": ("no effect", "the permission that `data` asks for"),
    "plan": ("no effect", "true prints a plan instead"),
}  # fmt: skip
"""Setting, or all settings below it that no longer name has a line of its own -> (whether it may change, why)."""


def rule(key: str) -> tuple[str, str]:
    """The line of the table for a setting such as data.mixture.web.weight."""
    while key not in RULES:
        key = key.rpartition(".")[0]
    return RULES[key]


def refusals(folder: Path, meta: dict[str, Any], config: Config) -> list[str]:
    """Why a run with this config would not continue the run of a checkpoint, a line for every setting."""
    remedy = "use that value, another name=, or fresh=true to start over"
    problems = [
        f"{key}={now!r}, but {folder} was made with {before!r}; {remedy}"
        for key, before, now in _differences(meta["config"], config)
        if rule(key)[0] == "no"
    ]
    if config.schedule.max_steps < meta["step"]:
        problems.append(f"schedule.max_steps={config.schedule.max_steps} is behind step {meta['step']} of {folder}")
    return problems


def changes(meta: dict[str, Any], config: Config) -> list[str]:
    """Settings that changed and may: 'optimizer.normuon.lr=0.5 (was 0.652)'."""
    found = _differences(meta["config"], config)
    return [f"{key}={now!r} (was {before!r})" for key, before, now in found if rule(key)[0] == "yes"]


TRAINED = ("model", "objective", "seed", "global_rows", "data", "optimizer", "schedule", "ema_decay", "guards")
"""Settings that decide which weights a run ends with."""
IDLE = ("data.workers", "data.prefetch", "data.verify", "data.on_fault")


def differing(saved: dict[str, Any], config: Config) -> list[str]:
    """Settings of a finished run that a run with this config would have otherwise: 'seed=1 (was 0)'."""
    return [
        f"{key}={now!r} (was {before!r})"
        for key, before, now in _differences(saved, config)
        if key.partition(".")[0] in TRAINED and key not in IDLE
    ]


def _differences(saved: dict[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
    """(setting, value then, value now) where both are known and differ: an import has no optimizer, an older checkpoint
    not every setting. A setting of the model that came later had its default, else the weights would be others."""
    if "model" in saved:
        saved = saved | {"model": asdict(ModelConfig()) | saved["model"]}
    now = _leaves(json.loads(json.dumps(asdict(config))))  # as JSON has it
    return [(key, value, now[key]) for key, value in _leaves(saved).items() if key in now and now[key] != value]


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def data_changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "data") -> list[str]:
    """What differs between two `Order.facts`, a line each; at least one line."""
    out = []
    for key in sorted({*before, *now}):
        old, new, name = before.get(key), now.get(key), f"{prefix}.{key}"
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            out += data_changes(old, new, name)
        elif old is None or new is None:
            out.append(f"{name} is {'new' if old is None else 'gone'}")
        else:
            out.append(f"{name} changed" if len(f"{old}{new}") > 80 else f"{name} is {new!r} and was {old!r}")
    return out or ["data: the mixture, its weights or its shards changed"]
