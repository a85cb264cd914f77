"""The registry of synthetic families, and series drawn from them one by one or in exact proportions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_pipelines.series import Series
from data_pipelines.synthetic import (
    anomaly,
    augmented,
    cauker,
    coupled,
    forecast_pfn,
    fractal,
    frequency,
    gp,
    kernel,
    ou,
    rhythm,
    sawtooth,
    sinewave,
    spike,
    step,
    telemetry,
    topology,
    tsmixup,
    volatility,
)
from data_pipelines.synthetic.chunk import CHUNK, Chunk, keyed_generator

LICENCE = "Apache-2.0"
SHORTEST = 32  # steps; below that the laws have no room
FORMAT = 2
"""Raise it whenever a family begins to make other bytes: runs that make their series refuse to resume over it."""


def _one(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.ones(count, dtype=np.int64)


@dataclass(frozen=True)
class Family:
    """A law. `generate_chunk(rng, length, count)` makes `count` series; `weight` is its share in the default mix.

    `widths(rng, count)` says how many variates each of them has, int [count]. A law that draws them draws them first,
    before anything else, so that the same generator tells them without making the series. `observed` is the share of
    values that are not missing, on average. `count` is the number of series in a chunk: fewer of a law of wide groups,
    because who makes a row of a chunk keeps the rest for the rows to come.
    """

    generate_chunk: Callable[[np.random.Generator, int, int], Chunk]
    weight: float
    widths: Callable[[np.random.Generator, int], np.ndarray] = _one
    observed: float = 1.0
    count: int = CHUNK


def _labelled(law: Callable[[np.random.Generator, int, int], np.ndarray | list[np.ndarray]]) -> Callable[..., Chunk]:
    """A law whose values do not depend on the sampling frequency: draw one as its label. [T] or [V, T] a series."""

    def generate_chunk(rng: np.random.Generator, length: int, count: int) -> Chunk:
        intervals, starts = frequency.draw(rng, length, count)
        values = [np.atleast_2d(v) for v in law(rng, length, count)]
        return Chunk(values, intervals.astype(np.float64), starts)

    return generate_chunk


def _derived(law: Callable[..., Chunk], variant: str = "") -> Callable[..., Chunk]:
    """A law whose raw material are series of other families, of their `variant` where they have it."""

    def generate_chunk(rng: np.random.Generator, length: int, count: int) -> Chunk:
        laws = {name: FAMILIES.get(name + variant, own).generate_chunk for name, own in FAMILIES.items()}
        return law(rng, length, count, laws)

    return generate_chunk


FAMILIES: dict[str, Family] = {
    "telemetry": Family(telemetry.generate, 4.0, telemetry.widths, observed=0.993),
    "forecast_pfn": Family(forecast_pfn.generate, 1.0),
    "kernel": Family(_labelled(kernel.generate), 1.0),
    "gp": Family(_labelled(gp.generate), 1.0),
    "cauker": Family(_labelled(cauker.generate), 1.0, cauker.widths),
    "sinewave": Family(_labelled(sinewave.generate), 1.0),
    "sawtooth": Family(_labelled(sawtooth.generate), 1.0),
    "step": Family(_labelled(step.generate), 1.0),
    "anomaly": Family(_labelled(anomaly.generate), 1.0),
    "spike": Family(_labelled(spike.generate), 1.0),
    "ou": Family(_labelled(ou.generate), 3.0),
    "volatility": Family(_labelled(volatility.generate), 0.1),
    "fractal": Family(_labelled(fractal.generate), 0.1),
    "rhythm": Family(_labelled(rhythm.generate), 0.5),
    "topology": Family(_labelled(topology.generate), 0.5),
    "tsmixup": Family(_derived(tsmixup.generate), 1.0),
    "augmented": Family(_derived(augmented.per_sample), 2.0),
    "augmented_batch": Family(_derived(augmented.batch), 2.0),
}
# What couplers couple, by share. Written out, so that a new family does not change the series of every coupler.
COUPLED = {
    "telemetry": 3.0,
    "kernel": 1.0,
    "gp": 1.0,
    "ou": 1.0,
    "rhythm": 0.5,
    "topology": 0.5,
    "forecast_pfn": 1.0,
    "sinewave": 1.0,
    "sawtooth": 0.5,
    "step": 1.0,
    "anomaly": 0.25,
    "spike": 0.5,
}
_BASES = {name: (FAMILIES[name].generate_chunk, share) for name, share in COUPLED.items()}
FAMILIES |= {name: Family(coupled.generator(name, _BASES), 0.15, coupled.widths, count=16) for name in coupled.COUPLERS}
FAITHFUL = "_faithful"
"""Ending of the families that keep the accidents of the published generators; for comparisons, in no default mix."""
FAMILIES |= {
    "forecast_pfn_faithful": Family(partial(forecast_pfn.generate, faithful=True), 0.0),
    "gp_faithful": Family(_labelled(partial(gp.generate, faithful=True)), 0.0),
    "cauker_faithful": Family(_labelled(partial(cauker.generate, faithful=True)), 0.0, cauker.widths),
    "volatility_faithful": Family(_labelled(partial(volatility.generate, faithful=True)), 0.0),
    "fractal_faithful": Family(_labelled(partial(fractal.generate, faithful=True)), 0.0),
    "rhythm_faithful": Family(_labelled(partial(rhythm.generate, faithful=True)), 0.0),
    "topology_faithful": Family(_labelled(partial(topology.generate, faithful=True)), 0.0),
    "augmented_faithful": Family(_derived(partial(augmented.per_sample, faithful=True), FAITHFUL), 0.0),
    "augmented_batch_faithful": Family(_derived(partial(augmented.batch, faithful=True), FAITHFUL), 0.0),
}
DEFAULT_WEIGHTS: dict[str, float] = {name: family.weight for name, family in FAMILIES.items() if family.weight}

# The last chunk of each family: neighbours in index cost nothing, and memory stays at one chunk a family.
_last_chunk: dict[str, tuple[tuple[int, int, int], Chunk]] = {}


def generate(family: str, seed: int, index: int, length: int) -> Series:
    """Series `index` of a family: a pure function of the four arguments, at the cost of its chunk.

    Raises ValueError for an unknown family, a negative index or a length under 32.
    """
    _check_family(family)
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    number, row = divmod(index, FAMILIES[family].count)
    made = _last_chunk_of(family, seed, number, length)
    return Series(
        values=made.values[row].copy(),  # the caller may write to it
        interval=float(made.intervals[row]),
        source=f"synthetic_{family}",
        item_id=item_id(seed, index),
        domain="synthetic",
        start=str(made.starts[row]),
        variate_names=made.variate_names[row] if made.variate_names else (),
        licence=LICENCE,
    )


def item_id(seed: int, index: int) -> str:
    """Name of series `index` of a family."""
    return f"{seed}-{index:08d}"


def chunk(family: str, seed: int, number: int, length: int) -> Chunk:
    """Series n number .. n number + n - 1 of a family, n its `count`; made anew.

    Raises ValueError for an unknown family or a length under 32.
    """
    _check_family(family)
    if length < SHORTEST:
        raise ValueError(f"length must be at least {SHORTEST} steps, got {length}")
    law = FAMILIES[family]
    return law.generate_chunk(keyed_generator(seed, family, number), length, law.count)


def widths(family: str, seed: int, number: int) -> np.ndarray:
    """Variates of each series of chunk `number`, int [count]; the same at every length, in 0.03 ms.

    Raises ValueError for an unknown family.
    """
    _check_family(family)
    return FAMILIES[family].widths(keyed_generator(seed, family, number), FAMILIES[family].count)


def series(weights: Mapping[str, float], count: int, length: int, seed: int) -> Iterator[Series]:
    """`count` series mixed by weight; at every point each family is within one series of its exact share.

    Raises ValueError at the call for an unknown family or weights that are no proportions.
    """
    for family in weights:
        _check_family(family)
    if not all(np.isfinite(w) and w >= 0 for w in weights.values()) or not sum(weights.values()) > 0:
        raise ValueError(f"weights must be finite, not negative and not all zero, got {dict(weights)}")
    return (generate(family, seed, index, length) for family, index in turns(weights, count))


def turns(weights: Mapping[str, float], count: int) -> Iterator[tuple[str, int]]:
    """Family and index of each of `count` series, by Tijdeman's rule for the chairman assignment problem.

    Of the families that would fall behind without the turn, the one whose deadline is earliest gets it; after n turns
    no family is further than 1 - 1/(2 m - 2) from n times its share (R. Tijdeman, Discrete Mathematics 32, 1980).
    """
    names = [name for name, weight in weights.items() if weight > 0]
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    shares /= shares.sum()
    slack = 1 / (2 * len(names) - 2) if len(names) > 1 else 0.0
    made = np.zeros(len(names), dtype=np.int64)
    for n in range(1, count + 1):
        behind = n * shares - made
        ready = behind >= slack - 1e-9  # rounding must not bar a family that is exactly due
        turn = int(np.argmin(np.where(ready, (1 - slack - behind) / shares, np.inf)))
        yield names[turn], int(made[turn])
        made[turn] += 1


def _last_chunk_of(family: str, seed: int, number: int, length: int) -> Chunk:
    key = (seed, number, length)
    cached = _last_chunk.get(family)
    if cached is None or cached[0] != key:
        cached = _last_chunk[family] = (key, chunk(family, seed, number, length))
    return cached[1]


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, 1, cutoff=0)
        raise ValueError(f"unknown family {family!r}; did you mean {near[0]!r}? known: {', '.join(FAMILIES)}")
