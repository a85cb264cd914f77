"""Couplers: how a group of independent series becomes a group of related ones.

The kinds are those that the reports of Chronos-2 (2510.15821) and TiRex-2 name: cotemporaneous maps, lead and lag,
cointegration, lagged causal graphs, regime switches. Neither publishes code or full parameters, so the numbers are
ours, but for the singular spectra, the loadings and the random walks + AR(1), which are TiRex-2's. Every coupler has a
`draw_*` that says what the relations are and a function that applies them to bases z, float32 [V, T] of unit variance.
Products are sums in a fixed order, not BLAS calls, so bytes do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.draws import autoregression, leaky_sums, log_uniform, white

LOADING = 1.5
REGIMES = 4  # at most


def mixed(weights: np.ndarray, z: np.ndarray) -> np.ndarray:
    """weights [W, V] @ z [V, T], float32."""
    return np.einsum("wv,vt->wt", weights.astype(np.float32), z, optimize=False)


# --- the same step


def draw_mixing(rng: np.random.Generator, width: int) -> np.ndarray:
    """A random rotation, a singular spectrum, another rotation, rows then of unit length: [V, V].

    Spectra in equal parts: one dominant value (others U(.05, .3)), r equal values and else 0 (a factor model of rank r
    from 1 to V), a power law of exponent U(.5, 2).
    """
    kind = rng.integers(3)
    order = np.arange(1, width + 1)
    if kind == 0:
        spectrum = np.where(order == 1, 1, rng.uniform(0.05, 0.3, width))
    elif kind == 1:
        spectrum = (order <= rng.integers(1, width + 1)).astype(np.float64)
    else:
        spectrum = order ** -rng.uniform(0.5, 2)
    left, right = (np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(2))
    mixing = (left * spectrum) @ right
    return mixing / np.linalg.norm(mixing, axis=1, keepdims=True)


def linear_mix(mixing: np.ndarray, z: np.ndarray) -> np.ndarray:
    """y(t) = M z(t)."""
    return mixed(mixing, z)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(4 * x, -30, 30))),
    "sine": np.sin,
    "absolute": np.abs,
    "square": lambda x: np.minimum(x * x, 100),
    "exponential": lambda x: np.exp(np.clip(x, -10, 4)),
    "levels": lambda x: np.round(2 * x) / 2,
}


@dataclass(frozen=True)
class Nonlinear:
    """One layer: activation of (mixing @ z + shift), in some rows times the sigmoid gate of another row."""

    mixing: np.ndarray
    shift: np.ndarray
    activations: tuple[str, ...]
    gates: np.ndarray
    """Row whose sigmoid multiplies, -1 for none, int [V]."""


def draw_nonlinear(rng: np.random.Generator, width: int) -> list[Nonlinear]:
    """One or two layers."""
    return [
        Nonlinear(
            mixing=draw_mixing(rng, width),
            shift=rng.normal(0, 0.5, (width, 1)).astype(np.float32),
            activations=tuple(rng.choice(list(ACTIVATIONS), width)),
            gates=np.where(rng.random(width) < 0.2, rng.integers(0, width, width), -1),
        )
        for _ in range(rng.integers(1, 3))
    ]


def nonlinear_mix(layers: list[Nonlinear], z: np.ndarray) -> np.ndarray:
    """y(t) = f(z(t)), a function of the same step alone."""
    for layer in layers:
        inner = mixed(layer.mixing, z) + layer.shift
        z = np.stack([ACTIVATIONS[name](row) for name, row in zip(layer.activations, inner, strict=True)])
        for row in np.flatnonzero(layer.gates >= 0):
            z[row] *= ACTIVATIONS["sigmoid"](inner[layer.gates[row]])
    return z


def draw_regimes(rng: np.random.Generator, length: int) -> np.ndarray:
    """Which of 2 to 4 regimes holds at each step, int [T]: stays of log U(T/40, T/2) steps, the next one differs."""
    regimes = int(rng.integers(2, REGIMES + 1))
    path = np.empty(length, dtype=np.int64)
    begin, regime = 0, 0
    while begin < length:
        end = begin + int(np.ceil(log_uniform(rng, length / 40, length / 2, 1)[0, 0]))
        path[begin:end] = regime
        begin, regime = end, (regime + int(rng.integers(1, regimes))) % regimes
    return path


def regime_mix(mixings: list[np.ndarray], path: np.ndarray, z: np.ndarray) -> np.ndarray:
    """y(t) = M_s(t) z(t)."""
    y = np.empty_like(z)
    for regime, mixing in enumerate(mixings):
        held = path == regime
        y[:, held] = mixed(mixing, z[:, held])
    return y


# --- across steps


@dataclass(frozen=True)
class Lags:
    """y_i(t) = gain_i z_leader(t - lag_i) + own_i z_i(t); the leader itself has lag 0, gain 1 and own 0."""

    leader: int
    lags: np.ndarray
    gains: np.ndarray
    own: np.ndarray


def draw_lags(rng: np.random.Generator, width: int, longest: int) -> Lags:
    """Lags log-uniform from 1 to `longest`, gains of both signs, the own part log U(.02, 1) of the gain."""
    leader = int(rng.integers(width))
    lags = np.floor(log_uniform(rng, 1, longest + 1, width)[:, 0]).astype(np.int64)
    gains = rng.uniform(0.3, 1.5, width) * rng.choice((-1, 1), width, p=(0.25, 0.75))
    own = np.abs(gains) * log_uniform(rng, 0.02, 1, width)[:, 0]
    lags[leader], gains[leader], own[leader] = 0, 1, 0
    return Lags(leader, lags, gains, own)


def lead_lag(law: Lags, z: np.ndarray, before: int) -> np.ndarray:
    """z is [V, before + T], no lag longer than `before`; returns [V, T]."""
    length = z.shape[1] - before
    led = np.stack([z[law.leader, before - lag :][:length] for lag in law.lags])
    return law.gains[:, None].astype(np.float32) * led + law.own[:, None].astype(np.float32) * z[:, before:]


def draw_loadings(rng: np.random.Generator, width: int) -> np.ndarray:
    """U(-1.5, 1.5) on r trends, r from 1 to V - 1, so that V - r combinations of the group are stationary: [V, r]."""
    return rng.uniform(-LOADING, LOADING, (width, int(rng.integers(1, width))))


def cointegration(rng: np.random.Generator, loadings: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Common random walks, scaled by what they reach, times the loadings, plus AR(1) and a share of each base."""
    (width, trends), length = loadings.shape, z.shape[1]
    walks = np.cumsum(white(rng, trends, length), axis=1) / np.float32(np.sqrt(length))
    around = autoregression(rng, log_uniform(rng, 1, 50, width), length)
    around *= log_uniform(rng, 0.01, 0.3, width).astype(np.float32)
    return mixed(3 * loadings, walks) + around + log_uniform(rng, 0.01, 0.5, width).astype(np.float32) * z


@dataclass(frozen=True)
class Edge:
    source: int
    target: int
    lag: int
    weight: float
    activation: str
    active: tuple[bool, ...]
    """In which regimes the edge acts."""


@dataclass(frozen=True)
class Graph:
    """x_i(t) = memory_i x_i(t - 1) + sum of weight f(x_source(t - lag)) over the edges into i + drive_i z_i(t).

    |f(x)| <= |x| and the absolute weights into a node sum to 1 - memory_i, so no chain grows without bound.
    """

    order: np.ndarray
    """Nodes so that every edge points forward."""
    memory: np.ndarray
    drive: np.ndarray
    edges: tuple[Edge, ...]


def draw_graph(rng: np.random.Generator, width: int, longest: int) -> Graph:
    """One to three parents each from the nodes before it, lags log-uniform from 1 to `longest`, 6 of 10 edges linear.

    In 3 of 10 graphs an edge acts in a regime with probability .6, in the others always.
    """
    order = rng.permutation(width)
    memory = np.where(rng.random(width) < 0.6, rng.uniform(0, 0.9, width), 0)
    switched = rng.random() < 0.3
    edges = []
    for place in range(1, width):
        if place > 1 and rng.random() < 0.15:
            continue  # another root
        node = int(order[place])
        sources = rng.choice(order[:place], min(place, int(rng.integers(1, 4))), replace=False)
        weights = rng.uniform(0.3, 1.2, len(sources)) * rng.choice((-1, 1), len(sources))
        weights *= (1 - memory[node]) / np.abs(weights).sum()
        edges += [
            Edge(
                source=int(source),
                target=node,
                lag=int(log_uniform(rng, 1, longest + 1, 1)[0, 0]),
                weight=float(weight),
                activation="linear" if rng.random() < 0.6 else str(rng.choice(("relu", "tanh", "absolute"))),
                active=tuple((rng.random(REGIMES) < 0.6).tolist()) if switched else (True,) * REGIMES,
            )
            for source, weight in zip(sources, weights, strict=True)
        ]
    driven = np.isin(np.arange(width), [e.target for e in edges])
    drive = np.where(driven, log_uniform(rng, 0.03, 0.6, width)[:, 0], 1) * (1 - memory)
    return Graph(order, memory, drive, tuple(edges))


def causal_graph(graph: Graph, z: np.ndarray, path: np.ndarray, before: int) -> np.ndarray:
    """z is [V, before + T], of which the first `before` steps are warm-up; path [before + T]; returns [V, T]."""
    x = graph.drive[:, None].astype(np.float32) * z
    for node in graph.order:
        for edge in graph.edges:
            if edge.target == node:
                cause = ACTIVATIONS[edge.activation](x[edge.source, : -edge.lag])
                acts = np.array(edge.active)[path[edge.lag :]]
                x[node, edge.lag :] += np.float32(edge.weight) * cause * acts
        if graph.memory[node]:
            leaky_sums(x[node, None], graph.memory[node, None].astype(np.float32))
    return x[:, before:]
