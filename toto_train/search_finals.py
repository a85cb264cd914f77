"""Who wins a round: the best trials against the settings the round began with, on seeds that did not choose them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from toto_train.files import write_text

BASE = "base"
"""Name of the settings that a round starts from."""
LEVEL = 0.05
"""How often a round may have a winner where no choice is better than the base."""

Values = dict[str, Any]
"""Setting -> value."""


@dataclass(frozen=True)
class Final:
    """Scores of one choice of settings by seed; all finals of a round have the same seeds."""

    name: str
    values: Values
    scores: list[float]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Noise:
    """error: standard error of the difference between two finals' means. bar: what a gain over the base must exceed."""

    error: float
    bar: float


def noise(finals: Sequence[Final]) -> Noise | None:
    """What chance does to the difference of two means; None where that cannot be told: one seed, or one choice.

    Two-way layout of choice and seed: what a seed does to all choices alike cancels, and the rest of the scatter is
    taken as that of every choice, since a few seeds of one tell little. `bar` is Student's quantile at LEVEL, one-sided
    and divided among the choices (Bonferroni). Choices with a failed run have no part in it.
    """
    scores = np.array([f.scores for f in finals if np.isfinite(f.scores).all()])
    if scores.ndim != 2 or min(scores.shape) < 2:
        return None
    choices, seeds = scores.shape
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    freedom = (choices - 1) * (seeds - 1)
    error = math.sqrt(2 * float((rest**2).sum()) / freedom / seeds)
    return Noise(error, error * float(stats.t.ppf(1 - LEVEL / (choices - 1), freedom)))


def winner(finals: Sequence[Final]) -> Final | None:
    """The lowest mean where it is below the base's by more than noise, else the base; None without the base.

    One seed tells no noise: there the lowest wins.
    """
    base = next((f for f in finals if f.name == BASE), None)
    if base is None:
        return None
    best, known = min(finals, key=lambda f: f.mean), noise(finals)
    return best if base.mean - best.mean > (known.bar if known else 0.0) else base


def freeze(final: Final, base: list[str], path: Path, about: str) -> Path:
    """Write a config that `train.py experiment=` takes: the overrides of a round, and the winner's settings.

    Where a round names no experiment= it began from that of train.yaml, the quickstart.
    """
    start, defaults = "quickstart", list[Any]()
    tree: dict[str, Any] = {}
    groups = {p.name for p in path.parent.parent.iterdir() if p.is_dir()}
    for key, value in [tuple(arg.split("=", 1)) for arg in base] + list(final.values.items()):
        if key == "experiment":
            start = value
        elif key in groups:
            defaults.append({f"override /{key}": value})
        else:
            place: dict[str, Any] = tree
            *above, last = key.split(".")
            for part in above:
                place = place.setdefault(part, {})
            place[last] = yaml.safe_load(value) if isinstance(value, str) else value
    text = yaml.safe_dump({"defaults": [start, *defaults]} | tree, sort_keys=False)
    return write_text(path, f"# @package _global_\n# {about}\n{text}")
