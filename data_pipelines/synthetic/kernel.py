"""Gaussian processes under random sums and products of 33 kernels.

Law: Chronos KernelSynth, its bank of periods scaled to the length as in TempoPFN; no jitter is added.

No [T, T] covariance is built. A left fold of + and x expands into monomials, which are independent processes:
- white noise times anything is independent noise with the diagonal of the rest;
- the periodic factors of a monomial are sums of spectral lines (Bessel weights), and so is their product;
- the smooth factors (RBF, rational quadratic, dot product, constant) multiply into one covariance of low rank, which a
  pivoted Cholesky factor of few columns gives; every line carries its own pair of smooth paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, reduce

import numpy as np

from data_pipelines.synthetic.gaussian import CONSTANT, Lines, fold, lines_paths, periodic_lines, product

Smooth = Callable[[np.ndarray, np.ndarray], np.ndarray]
Monomial = tuple[int, ...]

PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)  # steps
NOISES = (0.1, 1.0)
LEAST_VARIANCE = 1e-7  # share of the greatest variance under which a smooth factor counts as complete


def _dot_product(sigma: float) -> Smooth:
    return lambda x, y: sigma**2 + x * y


def _rbf(scale: float) -> Smooth:
    return lambda x, y: np.exp(-0.5 * ((x - y) / scale) ** 2)


def _rational_quadratic(alpha: float) -> Smooth:
    return lambda x, y: (1 + (x - y) ** 2 / (2 * alpha)) ** -alpha


SMOOTH: tuple[Smooth, ...] = (
    *(_dot_product(s) for s in (0.0, 1.0, 10.0)),
    *(_rbf(s) for s in (0.1, 1.0, 10.0)),
    *(_rational_quadratic(a) for a in (0.1, 1.0, 10.0)),
    lambda x, y: np.ones(np.broadcast_shapes(x.shape, y.shape)),
)
# The bank is numbered through: periods, then smooth functions, then white noises.
BANK_SIZE = len(PERIODS) + len(SMOOTH) + len(NOISES)
_FIRST_SMOOTH, _FIRST_NOISE = len(PERIODS), len(PERIODS) + len(SMOOTH)


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length], zero mean."""
    return np.stack([sample(rng, draw_monomials(rng, 5), length) for _ in range(count)])


def draw_monomials(rng: np.random.Generator, most: int) -> list[Monomial]:
    """Sum of products of bank entries: U{1..most} entries folded from the left by + or x, evens."""
    return fold(rng, rng.integers(0, BANK_SIZE, rng.integers(1, most + 1)).tolist())


def sample(rng: np.random.Generator, monomials: Sequence[Monomial], length: int) -> np.ndarray:
    """One path of a sum of products of bank entries, float32 [length]."""
    spectra, variance = decompose(monomials, length)
    path = np.zeros(length, dtype=np.float32)
    for smooth, lines in spectra:
        columns = smooth_columns(smooth, length)
        path += np.einsum("rt,rt->t", columns, lines_paths(rng, lines, len(columns), length))
    if variance.any():
        path += np.sqrt(variance).astype(np.float32) * rng.standard_normal(length, dtype=np.float32)
    return path


def decompose(monomials: Sequence[Monomial], length: int) -> tuple[list[tuple[Monomial, Lines]], np.ndarray]:
    """The covariance as sum over (smooth factors, lines) of their products, plus a diagonal, float64 [length].

    Smooth factors are members of SMOOTH, the constant left out.
    """
    x = np.linspace(0, 1, length)
    spectra: dict[Monomial, list[Lines]] = {}
    variance = np.zeros(length)
    for monomial in monomials:
        members = sorted(e - _FIRST_SMOOTH for e in monomial if _FIRST_SMOOTH <= e < _FIRST_NOISE - 1)
        noises = [NOISES[e - _FIRST_NOISE] for e in monomial if e >= _FIRST_NOISE]
        if noises:  # periodic kernels are 1 on the diagonal
            variance += np.prod(noises) * _covariance(members, x, x)
            continue
        factors = [_bank_lines(e) for e in monomial if e < _FIRST_SMOOTH]
        spectra.setdefault(tuple(members), []).append(reduce(product, factors or [CONSTANT]))
    return [
        (members, Lines(*(np.concatenate(part) for part in zip(*lines, strict=True))))
        for members, lines in spectra.items()
    ], variance


@cache
def _bank_lines(entry: int) -> Lines:
    return periodic_lines(PERIODS[entry])


@lru_cache(maxsize=128)
def smooth_columns(members: Monomial, length: int) -> np.ndarray:
    """C with C' C = the product of these members of SMOOTH on the grid, float32 [few, length].

    Cholesky with diagonal pivots needs one column of the covariance per rank, and unlike an eigenbasis its result does
    not depend on how many threads LAPACK uses.
    """
    x = np.linspace(0, 1, length)
    residual = _covariance(members, x, x)
    enough = LEAST_VARIANCE * residual.max()
    columns = np.zeros((0, length))
    while residual.max() > enough:
        at = int(residual.argmax())
        rest = _covariance(members, x, x[at]) - np.einsum("r,rt->t", columns[:, at], columns)
        columns = np.vstack([columns, rest / np.sqrt(residual[at])])
        residual = np.maximum(residual - columns[-1] ** 2, 0)
        residual[at] = 0
    return columns.astype(np.float32)


def _covariance(members: Sequence[int], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return reduce(np.multiply, [SMOOTH[k](x, y) for k in members], np.ones(np.broadcast_shapes(x.shape, y.shape)))
