"""The synthetic prior: points a CPU-second of every family and of the mix, beside the published generators.

python scripts/bench/synthetic.py [--quick] [--json FILE]

One thread, CPU time, whole chunks of 64 series of 4096 and 2048 steps. The mix is TempoPFN's by its nominal weights
(17.2 in all), chunk by chunk in the order of prior.turns; points count every variate. `TempoPFN` are figures of its own
code, measured once on one core at 2048 steps per series (cauker: per channel; the augmented streams: per series kept,
without the making of their sources, which ours include), on another machine than this. KernelSynth is run here: the
kernels and the sampling of Chronos' script, scikit-learn's default path. Memory is the most that a fresh process has
resident while it makes a chunk of every family, less its libraries' files; the first series is a fresh process's CPU
time from its start, imports included. --quick: a tenth of a second a family.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from table import Row, main

from data_pipelines.synthetic import prior
from data_pipelines.synthetic.chunk import CHUNK, keyed_generator

LENGTHS = (4096, 2048)
MIX = {
    **dict.fromkeys(
        ("forecast_pfn", "gp", "kernel", "sawtooth", "sinewave", "step", "anomaly", "spike", "cauker"), 1.0
    ),
    **{"ou": 3.0, "volatility": 0.1, "fractal": 0.1, "rhythm": 0.5, "topology": 0.5},
    **{"augmented": 2.0, "augmented_batch": 2.0},
}
MIX_TARGET, FAMILY_TARGET = 1.5, 0.4  # million points a CPU-second
# CPU ms of TempoPFN (5969ec6) per 2048 points; the audio families took 15 to 32, the plain shapes 1.3 to 1.7.
TEMPOPFN = {
    **{"kernel": 4848, "gp": 905, "cauker": 723, "ou": 27, "forecast_pfn": 16, "step": 4.2},
    **dict.fromkeys(("volatility", "fractal", "rhythm", "topology"), 15),
    **dict.fromkeys(("sawtooth", "sinewave", "anomaly", "spike"), 1.3),
    **{"augmented": 5.8, "augmented_batch": 103},
}
KERNEL_LENGTH = 1024  # of Chronos' script
RATE, MS = "Mpoints / CPU-s", "CPU ms / 2048 points"

MEMORY = """
import re
from pathlib import Path
from data_pipelines.synthetic import prior

def memory(key):
    return int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

files = memory("RssFile")  # libraries, shared with other processes; it only grows, so what is printed is an upper bound
for family in prior.DEFAULT_WEIGHTS:
    prior.generate(family, 0, 0, 4096)
print(memory("VmHWM") - files)
"""
FIRST = """
import sys, time
from data_pipelines.synthetic import prior
prior.generate(sys.argv[1], 0, 0, 4096)
print(time.process_time())
"""


def rows(quick: bool) -> Iterator[Row]:
    seconds = 0.1 if quick else 2.0
    weights = {family: w for family, w in MIX.items() if family in prior.FAMILIES}
    if missing := sorted(set(MIX) - set(weights)):
        print(f"not registered, so neither in the table nor in the mix: {', '.join(missing)}")
    for length in LENGTHS:
        ours = mix_rate(weights, length, chunks=40 if quick else 172)
        yield Row(f"the mix, {length} steps", ours, MIX_TARGET, "the least wanted", RATE, ">= 1")
    for family in prior.DEFAULT_WEIGHTS:
        rates = {length: family_rate(family, length, seconds) for length in LENGTHS}
        for length, rate in rates.items():
            yield Row(f"{family}, {length} steps", rate, FAMILY_TARGET, "the least wanted", RATE, ">= 1")
        if family in TEMPOPFN:
            took = 2048 / rates[2048] / 1e3
            yield Row(f"{family} beside TempoPFN", took, TEMPOPFN[family], "TempoPFN, elsewhere", MS, "<= 0.2")
    ours = 1e3 * KERNEL_LENGTH / family_rate("kernel", KERNEL_LENGTH, seconds) / 1e6
    peer, name = kernel_synth(3 if quick else 20), "KernelSynth, scikit-learn, here"
    yield Row("kernel beside KernelSynth", ours, peer, name, f"CPU ms / {KERNEL_LENGTH} points", "<= 0.005")
    yield Row("memory with every family", in_fresh_process(MEMORY) / 1e6, 300.0, "the most wanted", "MB", "<= 1")
    families = ["ou", "augmented"] if quick else list(prior.DEFAULT_WEIGHTS)
    first = {family: min(in_fresh_process(FIRST, family) for _ in range(2)) for family in families}
    slowest = max(first, key=lambda family: first[family])
    yield Row(f"first series ({slowest})", first[slowest], 1.0, "the most wanted", "CPU s", "<= 1")


def family_rate(family: str, length: int, seconds: float) -> float:
    """Million points a CPU-second, after a chunk that does not count, in at least two."""
    make, points, number = prior.FAMILIES[family].generate_chunk, 0, 0
    make(keyed_generator(0, family, 1000), length, CHUNK)
    begin = time.process_time()
    while number < 2 or time.process_time() - begin < seconds:
        points += sum(v.size for v in make(keyed_generator(0, family, number), length, CHUNK).values)
        number += 1
    return points / (time.process_time() - begin) / 1e6


def mix_rate(weights: dict[str, float], length: int, chunks: int) -> float:
    """Million points a CPU-second of `chunks` chunks in proportion."""
    for family in weights:
        prior.FAMILIES[family].generate_chunk(keyed_generator(0, family, 1000), length, CHUNK)
    begin, points = time.process_time(), 0
    for family, number in islice(prior.turns(weights, chunks), chunks):
        chunk = prior.FAMILIES[family].generate_chunk(keyed_generator(0, family, number), length, CHUNK)
        points += sum(v.size for v in chunk.values)
    return points / (time.process_time() - begin) / 1e6


def kernel_synth(count: int) -> float | None:
    """CPU ms a series of Chronos' recipe on scikit-learn; None without it."""
    try:
        from sklearn.gaussian_process import GaussianProcessRegressor, kernels
    except ImportError:
        return None
    steps = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)
    bank: list[Any] = [kernels.ExpSineSquared(periodicity=p / KERNEL_LENGTH) for p in steps]
    bank += [kernels.DotProduct(sigma_0=s) for s in (0.0, 1.0, 10.0)]
    bank += [kernels.RBF(length_scale=s) for s in (0.1, 1.0, 10.0)]
    bank += [kernels.RationalQuadratic(alpha=a) for a in (0.1, 1.0, 10.0)]
    bank += [kernels.WhiteKernel(noise_level=n) for n in (0.1, 1.0)] + [kernels.ConstantKernel()]
    rng, x = np.random.default_rng(0), np.linspace(0, 1, KERNEL_LENGTH)[:, None]
    operations: tuple[Callable[[Any, Any], Any], ...] = (lambda a, b: a + b, lambda a, b: a * b)
    begin = time.process_time()
    for seed in range(count):
        first, *others = (bank[k] for k in rng.integers(0, len(bank), rng.integers(1, 6)))
        kernel = first
        for other in others:
            kernel = operations[rng.integers(0, 2)](kernel, other)
        GaussianProcessRegressor(kernel=kernel).sample_y(x, random_state=seed)
    return 1e3 * (time.process_time() - begin) / count


def in_fresh_process(code: str, *arguments: str) -> float:
    """The number that the code prints; NaN where the system does not tell (memory outside Linux)."""
    if code is MEMORY and not Path("/proc/self/status").is_file():
        return math.nan
    alone = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | alone)
    return float(done.stdout)


def measure(quick: bool) -> list[Row]:
    return list(rows(quick))


if __name__ == "__main__":
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    if not threads.items() <= os.environ.items():  # they are read when numpy is imported, which it is
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | threads)
    main(__doc__, measure)
