"""Gaussian processes on a regular grid without a [T, T] matrix: spectral lines and circulant embedding.

The grid is that of the laws that use it: x = linspace(0, 1, T), with periods given in shares 1/T of the window. So a
period of p takes p (T - 1) / T steps of the grid, and a frequency counts cycles per 1/T of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Factor = TypeVar("Factor")

CYCLE = 128  # samples of a cycle of a periodic kernel; half as many harmonics are enough for concentrations up to 10
LEAST_SHARE = 5e-8  # of the variance, that the lines dropped at one step of a product may have together
# Multiplications up to which OpenBLAS keeps to one thread. Its threads would round differently from one set-up to the
# next, and waking them costs a hundred times more than these small products.
ONE_THREAD = 2**17
LINES_AT_ONCE = 512  # what keeps the tables of a block of lines in the cache


class Lines(NamedTuple):
    """The covariance sum of weights[k] cos(2 pi frequencies[k] d): float64 [n] each, frequencies >= 0."""

    frequencies: np.ndarray
    weights: np.ndarray


CONSTANT = Lines(np.zeros(1), np.ones(1))


def fold(rng: np.random.Generator, factors: Sequence[Factor]) -> list[tuple[Factor, ...]]:
    """Sum of products: factors combined from the left by + or x, evens."""
    monomials: list[tuple[Factor, ...]] = [(factors[0],)]
    for factor in factors[1:]:
        if rng.random() < 0.5:
            monomials = [(*m, factor) for m in monomials]
        else:
            monomials.append((factor,))
    return monomials


def periodic_lines(period: float, concentration: float = 1.0) -> Lines:
    """The Fourier series of exp(-2 c sin^2(pi d/p)): sum over k of exp(-c) I_k(c) cos(2 pi k d/p), k of either sign."""
    cycle = np.exp(-2 * concentration * np.sin(np.pi * np.arange(CYCLE) / CYCLE) ** 2)
    weights = np.maximum(np.fft.rfft(cycle).real / CYCLE, 0)
    weights[1:] *= 2
    return _without_least(Lines(np.arange(len(weights)) / period, weights))


def product(first: Lines, second: Lines) -> Lines:
    """cos a cos b = (cos(a + b) + cos(a - b)) / 2; equal frequencies become one line.

    None where one has none: a Matern covariance that is over well before the window's end has next to nothing in lines.
    """
    if not len(first.weights) or not len(second.weights):
        return Lines(np.zeros(0), np.zeros(0))
    signed = np.concatenate([second.frequencies, -second.frequencies])
    frequencies = np.abs(np.add.outer(first.frequencies, signed)).ravel()
    weights = np.multiply.outer(first.weights, np.tile(second.weights / 2, 2)).ravel()
    likely = np.flatnonzero(weights > 0.1 * LEAST_SHARE / len(weights))  # most are not, and sorting them is the cost
    order = likely[np.argsort(frequencies[likely], kind="stable")]
    frequencies, weights = frequencies[order], weights[order]
    starts = np.flatnonzero(np.diff(frequencies, prepend=-1) > 1e-11)
    return _without_least(Lines(frequencies[starts], np.add.reduceat(weights, starts)))


def lines_covariance(lines: Lines, distance: np.ndarray) -> np.ndarray:
    """The covariance at distances [n] in 1/T of the window."""
    waves = np.cos(2 * np.pi * np.multiply.outer(lines.frequencies, distance))
    return np.einsum("n,nd->d", lines.weights, waves)  # BLAS would round differently with its threads


def lines_paths(rng: np.random.Generator, lines: Lines, count: int, length: int) -> np.ndarray:
    """Independent paths of the process of these lines, float32 [count, length]."""
    # exp(i w t) with t = side * coarse + fine is a product of two small tables, so the sum over lines is one matrix
    # product instead of T x n sines.
    side = int(np.ceil(np.sqrt(length)))
    depth = max(1, ONE_THREAD // side**2)
    turns = 2j * np.pi * lines.frequencies * (length / (length - 1))
    scales = np.sqrt(lines.weights).astype(np.float32)
    paths = np.zeros((count, side, side), dtype=np.float32)
    at_once = max(1, LINES_AT_ONCE // count)
    for block in (slice(i, i + at_once) for i in range(0, len(scales), at_once)):
        fine, coarse = _powers(turns[block], side), _powers(-side * turns[block], side)
        draws = rng.standard_normal((count, 1, len(scales[block]), 2), dtype=np.float32) * scales[block][:, None]
        # As pairs of reals the product is Re(conj(left) right), hence the negative turns.
        left = (coarse * draws.view(np.complex64)[..., 0]).view(np.float32)
        right = fine.view(np.float32).T
        for part in (slice(i, i + depth) for i in range(0, len(right), depth)):
            paths += np.matmul(left[..., part], right[part])
    return paths.reshape(count, side * side)[:, :length]


def circulant_path(rng: np.random.Generator, covariance: np.ndarray) -> np.ndarray:
    """One path, float32 [T], of a stationary covariance [T] at 0 ... T - 1 steps that stays at zero beyond T - 1.

    Such a covariance sits on a circle of 2 T - 2 steps or more without wrapping onto itself, so this is exact.
    """
    least = 2 * len(covariance) - 2
    unit = 1 << max(0, least.bit_length() - 4)  # 8 to 16 times a power of two have a quick transform
    padded = np.zeros(-(-least // unit) * unit)
    padded[: len(covariance)] = covariance
    padded[1 - len(covariance) :] = covariance[:0:-1]
    spectrum = np.sqrt(np.maximum(np.fft.rfft(padded).real, 0)).astype(np.float32)
    noise = np.fft.rfft(rng.standard_normal(len(padded), dtype=np.float32))
    return np.fft.irfft(spectrum * noise, n=len(padded))[: len(covariance)]


def _powers(exponents: np.ndarray, count: int) -> np.ndarray:
    """exp(k exponents) for k = 0 ... count - 1 by doubling, complex64 [count, n]."""
    powers = np.empty((count, len(exponents)), dtype=np.complex128)
    powers[0] = 1
    done = 1
    while done < count:
        more = min(done, count - done)
        np.multiply(powers[:more], np.exp(done * exponents), out=powers[done : done + more])
        done += more
    return powers.astype(np.complex64)


def _without_least(lines: Lines) -> Lines:
    # Products of one kernel's lines in another order are equal but for rounding; as float32 they are equal, so that no
    # rounding, which differs between CPUs, says which one stays.
    order = np.argsort(lines.weights.astype(np.float32), kind="stable")
    first = np.searchsorted(np.cumsum(lines.weights[order]), LEAST_SHARE)
    kept = np.sort(order[first:])
    return Lines(lines.frequencies[kept], lines.weights[kept])
