"""Six variates on a random causal graph: roots are Gaussian processes, every other one a function of its parents.

Law: CauKer as in TempoPFN. Where that reseeds its generator, so that all roots of a graph share one vector of normals,
the roots here are independent. With `faithful` they share it, too: roots of one kernel are one path plus their means.
(Of roots of different kernels the joint law is another, since the normals weigh other functions here.)
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic import kernel

NODES = 6
MOST_PARENTS = 3
MOST_KERNELS = 7
MEANS = ("zero", "linear", "exponential", "anomalies")
ACTIVATIONS = ("linear", "relu", "sigmoid", "sin", "mod", "leaky_relu")


def generate(rng: np.random.Generator, length: int, count: int, faithful: bool = False) -> list[np.ndarray]:
    """`count` groups, float32 [6, length], variates in random order."""
    return [_group(rng, length, faithful) for _ in range(count)]


def widths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Variates of each group, int64 [count]."""
    return np.full(count, NODES)


def draw_parents(rng: np.random.Generator) -> list[np.ndarray]:
    """Of each node in causal order: U{0..3} parents (as far as there are) among the nodes before it."""
    return [rng.permutation(node)[: rng.integers(0, min(node, MOST_PARENTS) + 1)] for node in range(NODES)]


def draw_mean(rng: np.random.Generator, length: int) -> np.ndarray:
    """Sum or product of two of MEANS, evens, float64 [length]."""
    first, second = (_mean(rng, MEANS[i], length) for i in rng.integers(0, len(MEANS), 2))
    return first + second if rng.random() < 0.5 else first * second


def activation(rng: np.random.Generator, kind: str, x: np.ndarray) -> np.ndarray:
    """One of ACTIVATIONS with drawn parameters, same shape and type as x."""
    if kind == "linear":
        slope, level = rng.uniform(0.5, 2), rng.uniform(-1, 1)
        return slope * x + level
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-np.clip(x, -80, 80)))
    if kind == "sin":
        return np.sin(x)
    if kind == "mod":
        return np.mod(x, x.dtype.type(rng.uniform(1, 5)))
    return np.where(x > 0, x, rng.uniform(0.01, 0.3) * x)


def _group(rng: np.random.Generator, length: int, faithful: bool) -> np.ndarray:
    key = int(rng.integers(2**63)) if faithful else 0
    nodes = np.empty((NODES, length), dtype=np.float32)
    for node, parents in zip(nodes, draw_parents(rng), strict=True):
        if len(parents):
            weights, level = rng.standard_normal(len(parents), dtype=np.float32), rng.standard_normal()
            mixed = np.einsum("p,pt->t", weights, nodes[parents]) + np.float32(level)
            node[:] = activation(rng, ACTIVATIONS[rng.integers(0, len(ACTIVATIONS))], mixed)
        else:
            node[:] = draw_mean(rng, length)
            monomials = kernel.draw_monomials(rng, MOST_KERNELS)
            normals = np.random.Generator(np.random.Philox(key)) if faithful else rng
            node += kernel.sample(normals, monomials, length)
    return nodes[rng.permutation(NODES)]


def _mean(rng: np.random.Generator, kind: str, length: int) -> np.ndarray:
    x = np.linspace(0, 1, length)
    if kind == "linear":
        slope, level = rng.uniform(-1, 1, 2)
        return slope * x + level
    if kind == "exponential":
        factor, rate = rng.uniform(0.5, 1.5, 2)
        return factor * np.exp(rate * x)
    mean = np.zeros(length)
    if kind == "anomalies":
        n = rng.integers(1, 6)
        np.add.at(mean, rng.integers(0, length, n), rng.uniform(-5, 5, n))
    return mean
