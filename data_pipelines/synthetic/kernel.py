"""Gaussian processes under random sums and products of 33 kernels.

Law: Chronos KernelSynth, its bank of periods scaled to the length as in TempoPFN.

No [T, T] covariance is built. A left fold of + and x expands into monomials, which are independent processes:
- white noise times anything is independent noise with the diagonal of the rest;
- the periodic factors of a monomial are sums of spectral lines (Bessel weights), and so is their product;
- the smooth factors (RBF, rational quadratic, dot product, constant) multiply into one covariance of low rank, which a
  pivoted Cholesky factor of few columns gives; every line carries its own pair of smooth paths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import ive

Smooth = Callable[[np.ndarray, np.ndarray], np.ndarray]

PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)  # steps
NOISES = (0.1, 1.0)
HARMONICS = 6
LEAST_LINE = 1e-6  # share of the variance under which a spectral line is dropped
LEAST_VARIANCE = 1e-6  # share of the greatest variance under which a smooth factor counts as complete
# Multiplications up to which OpenBLAS keeps to one thread. Its threads would round differently from one set-up to the
# next, and waking them costs a hundred times more than these small products.
ONE_THREAD = 2**17


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
    values = np.zeros((count, length), dtype=np.float32)
    for row in values:
        for monomial in draw_monomials(rng):
            row += sample(rng, monomial, length)
    return values


def draw_monomials(rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Sum of products of bank entries: U{1..5} entries folded from the left by + or x, evens."""
    entries = rng.integers(0, BANK_SIZE, rng.integers(1, 6)).tolist()
    monomials: list[tuple[int, ...]] = [(entries[0],)]
    for entry in entries[1:]:
        if rng.random() < 0.5:
            monomials = [(*m, entry) for m in monomials]
        else:
            monomials.append((entry,))
    return monomials


def sample(rng: np.random.Generator, monomial: tuple[int, ...], length: int) -> np.ndarray:
    """One path of a product of bank entries, float32 [length]."""
    smooth = tuple(sorted(e - _FIRST_SMOOTH for e in monomial if _FIRST_SMOOTH <= e < _FIRST_NOISE))
    noises = [NOISES[e - _FIRST_NOISE] for e in monomial if e >= _FIRST_NOISE]
    if noises:
        x = np.linspace(0, 1, length)
        variance = np.prod(noises) * np.ones(length)
        for k in smooth:
            variance = variance * SMOOTH[k](x, x)
        return (np.sqrt(variance) * rng.standard_normal(length)).astype(np.float32)
    frequencies, weights = spectral_lines([PERIODS[e] for e in monomial if e < _FIRST_SMOOTH])
    columns = smooth_columns(smooth, length)
    n, rank = len(weights), columns.shape[1]
    draws = rng.standard_normal((rank, 2, n), dtype=np.float32) * np.sqrt(weights).astype(np.float32)
    # exp(i w t) with t = side * coarse + fine is a product of two small tables, so the sum over lines is one matrix
    # product instead of T x n sines.
    side = int(np.ceil(np.sqrt(length)))
    turn = 2j * np.pi * length / (length - 1)  # the grid step is 1 / (T - 1), a period is a share of T
    fine = np.exp(turn * np.outer(frequencies, np.arange(side))).astype(np.complex64)
    coarse = np.exp(turn * side * np.outer(np.arange(side), frequencies)).astype(np.complex64)
    phased = coarse * (draws[:, 0] - 1j * draws[:, 1])[:, None]
    # Only the real part is wanted: one real product of twice the depth.
    left = np.concatenate([phased.real, -phased.imag], axis=2)
    right = np.concatenate([fine.real, fine.imag])
    paths = np.zeros((rank, side, side), dtype=np.float32)
    depth = max(1, ONE_THREAD // side**2)
    for part in (slice(i, i + depth) for i in range(0, 2 * n, depth)):
        paths += np.matmul(left[:, :, part], right[part])
    paths = paths.reshape(rank, side * side)[:, :length]
    return np.einsum("tr,rt->t", columns, paths)


def spectral_lines(periods: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies >= 0 (cycles per step) and weights (sum 1) of a product of periodic kernels.

    exp(-2 sin^2(pi d/p)) = sum over k of exp(-1) I_k(1) cos(2 pi k d/p), k from minus to plus infinity.
    """
    frequencies: np.ndarray = np.zeros(1)
    weights: np.ndarray = np.ones(1)
    k = np.arange(-HARMONICS, HARMONICS + 1)
    for period in periods:
        shifted = np.abs(frequencies[:, None] + k / period).ravel()
        shares = (weights[:, None] * ive(np.abs(k), 1.0)).ravel()
        frequencies, at = np.unique(np.round(shifted, 12), return_inverse=True)
        weights = np.bincount(at, shares)
        kept = weights > LEAST_LINE
        frequencies, weights = frequencies[kept], weights[kept]
    return frequencies, weights / weights.sum()


@lru_cache(maxsize=64)
def smooth_columns(factors: tuple[int, ...], length: int) -> np.ndarray:
    """C with C C' = the product of these members of SMOOTH on the grid, float32 [length, few].

    Cholesky with diagonal pivots needs one column of the covariance per rank, and unlike an eigenbasis its result does
    not depend on how many threads LAPACK uses.
    """
    x = np.linspace(0, 1, length)

    def column(pivot: float) -> np.ndarray:
        return np.prod([SMOOTH[k](x, np.array(pivot)) for k in factors], axis=0) if factors else np.ones(length)

    residual = np.prod([SMOOTH[k](x, x) for k in factors], axis=0) if factors else np.ones(length)
    enough = LEAST_VARIANCE * residual.max()
    columns = np.zeros((0, length))
    while residual.max() > enough:
        at = int(residual.argmax())
        rest = column(x[at]) - np.einsum("r,rt->t", columns[:, at], columns)
        columns = np.vstack([columns, rest / np.sqrt(residual[at])])
        residual = np.maximum(residual - columns[-1] ** 2, 0)
        residual[at] = 0
    return np.ascontiguousarray(columns.T, dtype=np.float32)
