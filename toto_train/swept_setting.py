"""The swept setting of a study over sizes: which settings can be swept, of which type, and on which axis values lie."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toto_train.config import Config, ObjectiveConfig, OptimizerConfig, ScheduleConfig
from toto_train.config_check import nearest

STACK_LR = "lr"
"""The peak learning rate of the stack's matrices, whatever trains them: what is swept where nothing else is named."""
PARTS = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig, "objective": ObjectiveConfig}
"""Where the settings are that can be swept: those whose values are numbers."""
OWN = {
    "optimizer.normuon.lr": "leave setting= out and give lr.RULE=, which is the stack's learning rate under every rule",
    "schedule.max_steps": "all runs of a study have the same steps=; scripts/scaling_law.py varies them",
}
UNREAD = {"adamw": ("optimizer.normuon.",), "muon": ("optimizer.normuon.beta2", "optimizer.normuon.eps")}
"""By rule: (beginnings of) settings that nothing reads under it."""


def kind_of(setting: str) -> type:
    """int or float. Raises ValueError where that cannot be swept, with the nearest that can."""
    known = {STACK_LR: float, **{key: kind for name, part in PARTS.items() for key, kind in _numbers(name, part)}}
    if setting in OWN:
        raise ValueError(f"setting={setting} cannot be swept: {OWN[setting]}")
    if setting not in known:
        raise ValueError(f"setting={setting} is no number of {', '.join(PARTS)}; {nearest(setting, set(known))}")
    return known[setting]


def _numbers(prefix: str, part: Any) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(part).items():
        if dataclasses.is_dataclass(kind):
            yield from _numbers(f"{prefix}.{name}", kind)
        elif kind in (int, float):
            yield f"{prefix}.{name}", kind


def is_read(setting: str, rule: str) -> bool:
    """Whether a setting does anything where that trains the stack."""
    return not setting.startswith(UNREAD.get(rule, ("\0",)))


def give(config: Config, setting: str, value: float) -> None:
    """Set it."""
    *above, last = setting.split(".")
    place: Any = config
    for part in above:
        place = getattr(place, part)
    setattr(place, last, value)


def is_log(setting: str, values: Sequence[float]) -> bool:
    """Whether values lie on a logarithmic axis: the stack's learning rates always, others where all are positive and
    the steps between neighbours are at least as even in their ratios as in their differences."""
    if setting == STACK_LR:
        return True
    x = np.array(sorted(values), dtype=float)
    return bool(x[0] > 0) and _uneven(np.log(x)) <= _uneven(x) + 1e-9


def _uneven(x: np.ndarray) -> float:
    """Standard deviation of the steps over their mean."""
    steps = np.diff(x)
    return float(steps.std() / steps.mean()) if len(steps) else 0.0
