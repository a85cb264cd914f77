"""Matern covariances of order 1/2, 3/2 and 5/2 on a window, as a few cosines plus a part that ends with the window.

On distances d <= 1 (the window) each covariance c equals A + sum B cos(k d) + rest(d) with A, B > 0 and a rest that
reaches zero at d = 1 together with its first 0, 2 or 4 derivatives. Cut there, the rest is still a covariance, so a
circle of twice the window holds it exactly however long the length scale; times any stationary covariance it stays one.
This is the cut-off embedding of Gneiting et al. (J. Comput. Graph. Stat. 15, 2006) with what lies beyond the window
moved into cosines; that no eigenvalue of the rest is negative is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from data_pipelines.synthetic.gaussian import Lines

ORDERS = (0.5, 1.5, 2.5)


def covariance(distance: np.ndarray, order: float, scale: float) -> np.ndarray:
    """c(distance / scale), unit variance; order is one of ORDERS."""
    a = np.sqrt(2 * order) / scale * distance
    polynomial = {0.5: 1.0, 1.5: 1 + a, 2.5: 1 + a + a**2 / 3}[order]
    return polynomial * np.exp(-a)


def window_lines(order: float, scale: float, length: int) -> Lines:
    """The constant and the cosines; scale as a share of the window, frequencies in cycles per 1 / length of it."""
    a = float(np.sqrt(2 * order) / scale)  # numpy's scalars would make the roots three times as slow
    at_end = covariance(np.ones(1), order, scale)[0]
    angles, weights = {0.5: _none, 1.5: _one, 2.5: _two}[order](a)
    constant = at_end - weights @ np.cos(angles)
    return Lines(np.append(0, angles) / (2 * np.pi * length), np.append(constant, weights))


def _none(a: float) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0), np.zeros(0)


def _one(a: float) -> tuple[np.ndarray, np.ndarray]:
    """k cot k = c''(1) / c'(1) = 1 - a, and B from c'(1) = -B k sin k."""
    k = _root(lambda k: k * math.cos(k) - (1 - a) * math.sin(k), 1e-9, math.pi)
    return np.array([k]), np.array([a**2 * np.exp(-a) / (k * np.sin(k))])


def _two(a: float) -> tuple[np.ndarray, np.ndarray]:
    """The first four derivatives at 1 fix k < m and their weights.

    With p1, p3 = -c', c''' and p2, p4 = -c'', c'''' they say k cot k = g(m^2) and m cot m = g(k^2) for
    g(z) = (p2 z - p4) / (p1 z - p3). The root k = m < pi of these two is not the one.
    """
    p1, p2, p3, p4 = 1 + a, 1 + a - a**2, a**2 * (3 - a), a**2 * (3 - 5 * a + a**2)  # times exp(-a) a^2 / 3

    def gap(angle: float, other: float) -> float:
        z = other**2
        return angle * math.cos(angle) * (p1 * z - p3) - math.sin(angle) * (p2 * z - p4)

    def first(m: float) -> float:
        return _root(lambda angle: gap(angle, m), 1e-9, math.pi)

    def residual(m: float) -> float:
        return gap(m, first(m))

    m = _root(residual, math.pi if residual(math.pi) < 0 else 2.0, 2 * math.pi)
    k = first(m)
    slopes = np.array([p1 * m**2 - p3, p3 - p1 * k**2]) / (m**2 - k**2)
    angles = np.array([k, m])
    return angles, np.exp(-a) * a**2 / 3 * slopes / (angles * np.sin(angles))


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f is zero between two places where its signs differ, by the Illinois method (regula falsi that halves the
    end which stays). scipy.optimize has better ones and takes half a second to import."""
    a, b, at_a, at_b = low, high, f(low), f(high)
    for _ in range(200):
        if at_b == 0 or abs(b - a) <= 1e-15:
            break
        c = b - at_b * (b - a) / (at_b - at_a)
        at_c = f(c)
        if (at_c < 0) != (at_b < 0):
            a, at_a = b, at_b
        else:
            at_a /= 2
        if abs(c - b) <= 1e-16 * abs(c):
            return c
        b, at_b = c, at_c
    return b
