"""Which knob to turn where a run does not fit, and what room there is where it does."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from toto_train.config import Config, ConfigError
from toto_train.config_check import check
from toto_train.planning.estimate import Estimate, estimate

Change = Mapping[str, Any]
"""Setting -> value."""

RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def remedies(priced: Estimate) -> list[tuple[str, Estimate]]:
    """(settings, what they make of it): for every knob the least turn that makes a run fit by itself; where none does,
    of two, or three, or all; on more ranks where nothing else helps. Empty where that does not help either."""
    knobs = [knob for knob in _knobs(priced) if knob]
    for several in range(1, len(knobs) + 1):
        tried = (_fitting(priced, _merged(choice)) for choice in itertools.combinations(knobs, several))
        if found := [first for made in tried if (first := next(made, None))]:
            return found
    return list(itertools.islice(_fitting(priced, _more_ranks(priced, knobs)), 1))


def room(priced: Estimate) -> tuple[str, Estimate] | None:
    """The largest micro batch that fits, where it is larger than that of the run."""
    rows = priced.config.micro_rows
    most = priced.config.accumulation
    larger = ({"micro_rows": rows * n} for n in range(most, 1, -1) if most % n == 0)
    return next(_fitting(priced, larger), None)


def changed(config: Config, change: Change) -> Config:
    """A copy with other settings. Raises ConfigError where they do not go together."""
    config = copy.deepcopy(config)
    for key, value in change.items():
        *path, last = key.split(".")
        place: Any = config
        for part in path:
            place = getattr(place, part)
        setattr(place, last, value)
    if problems := check(config):
        raise ConfigError(problems)
    return config


def _knobs(priced: Estimate) -> Iterator[list[Change]]:
    """The turns of each knob, the least first."""
    p, rows, gpu = priced.config.parallel, priced.config.micro_rows, priced.target.gpu
    yield [{"parallel.activation_checkpointing": s} for s in (0.25, 0.5, 0.75, 1.0) if s > p.activation_checkpointing]
    yield [{"micro_rows": r} for r in range(rows - 1, 0, -1) if rows % r == 0]
    yield [{"parallel.precision": "bf16"}] if p.precision == "fp32" and (gpu is None or gpu.bf16) else []
    yield [{"parallel.mode": "fsdp2"}] if p.mode in ("ddp", "hsdp") and priced.layout.world > 1 else []


def _merged(knobs: Sequence[list[Change]]) -> Iterator[Change]:
    """Every choice of one turn of each knob, the least first."""
    for turns in itertools.product(*knobs):
        yield {key: value for turn in turns for key, value in turn.items()}


def _more_ranks(priced: Estimate, knobs: list[list[Change]]) -> Iterator[Change]:
    least = next(_merged([knob[-1:] for knob in knobs]))
    sharded = {"parallel.mode": "fsdp2"} if priced.config.parallel.mode == "single" else {}
    for ranks in () if priced.target.on_cpu else RANKS:
        if ranks > priced.layout.world:
            yield {**least, **sharded, "parallel.devices": min(8, ranks), "parallel.nodes": max(1, ranks // 8)}


def _fitting(priced: Estimate, changes: Iterable[Change]) -> Iterator[tuple[str, Estimate]]:
    for change in changes:
        try:
            made = estimate(changed(priced.config, change))
        except ConfigError:
            continue
        if made.fits:
            yield _as_typed({k: v for k, v in change.items() if v != _value(priced.config, k)}), made


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _as_typed(change: Change) -> str:
    """As on the command line, where a mode is a choice of its own."""
    words = {"parallel" if key == "parallel.mode" else key: value for key, value in change.items()}
    return " ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in words.items()
    )
