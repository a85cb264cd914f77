"""Augmentations of training rows: pure functions of the row's content and of a generator keyed by the row's number.

Applied in this order: mixup of the row's windows, then to each window time flip, sign flip, amplitude, censor, missing.
Variates of one window are one multivariate series and share the draws of the first four; what a sensor loses (censor,
missing) is decided for each variate by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toto_train.config import AugmentConfig

Window = tuple[int, int, int, int]
"""(top, bottom, first, end): variates top .. bottom-1 and steps first .. end-1 of a row."""
_LARGEST = float(np.finfo(np.float32).max)


def active(config: AugmentConfig) -> bool:
    """Whether anything can change; where not, `augment` need not be called."""
    return any(getattr(config, name) > 0 for name in config.PROBABILITIES)


def augment(
    target: np.ndarray, mask: np.ndarray, windows: Sequence[Window], config: AugmentConfig, rng: np.random.Generator
) -> None:
    """Alter one row in place.

    target: float32 [V, T], finite, 0 where missing. mask: bool [V, T], True = observed. windows: the packed windows, no
    two of which share a variate; all outside them is empty and stays so. Afterwards values are finite, missing ones
    exactly +0, and windows that drew nothing have the bytes they had. rng: a generator of this row alone.
    """
    shared, own = rng.random((len(windows), 4)), rng.random((len(target), 2))
    mixed = np.flatnonzero(shared[:, 0] < config.mixup)
    if len(mixed):
        _mixup(target, mask, windows, mixed, rng)
    for (top, bottom, first, end), (_, time, sign, amplitude) in zip(windows, shared, strict=True):
        values, seen = target[top:bottom, first:end], mask[top:bottom, first:end]
        if time < config.time_flip:
            values[:], seen[:] = values[:, ::-1].copy(), seen[:, ::-1].copy()
        if sign < config.sign_flip:
            np.subtract(0, values, out=values)  # np.negative would leave -0 where values are missing
        if amplitude < config.amplitude:
            _amplitude(values, config.amplitude_sigma, rng)
        for v in np.flatnonzero(own[top:bottom, 0] < config.censor):
            _censor(values[v], seen[v], config.censor_share, rng)
        for v in np.flatnonzero(own[top:bottom, 1] < config.missing):
            _missing(values[v], seen[v], config.missing_share, rng)


def _mixup(
    target: np.ndarray, mask: np.ndarray, windows: Sequence[Window], mixed: np.ndarray, rng: np.random.Generator
) -> None:
    """Mix the windows numbered in `mixed` with others of their shape, all as they were before any was mixed.

    A variate is scaled by its own mean absolute value, so that none drowns its siblings. A point is observed where all
    members are; a mix that would lose half of the window's points is not made.
    """
    shapes: dict[tuple[int, int], list[int]] = {}
    for k, (top, bottom, first, end) in enumerate(windows):
        shapes.setdefault((bottom - top, end - first), []).append(k)
    scales = _scales(target, mask)
    usual = (scales > 1e-15) & (scales < 1e15)
    mixes: list[tuple[tuple[slice, slice], np.ndarray, np.ndarray]] = []
    for k in mixed.tolist():
        top, bottom, first, end = windows[k]
        others = [o for o in shapes[bottom - top, end - first] if o != k]
        wanted = int(rng.integers(1, 3))
        members = [k] + [others[i] for i in rng.permutation(len(others))[:wanted].tolist()]
        if len(members) == 1:
            continue
        weights = rng.dirichlet([1.5] * len(members)).tolist()
        places = [(slice(t, b), slice(f, e)) for t, b, f, e in (windows[m] for m in members)]
        seen = mask[places[0]]
        for place in places[1:]:
            seen = seen & mask[place]
        if 2 * np.count_nonzero(seen) <= np.count_nonzero(mask[places[0]]):
            continue
        kind = np.float32 if all(usual[p[0]].all() for p in places) else np.float64  # float32 holds the ratios, or not
        total = np.zeros(seen.shape, kind)
        for weight, place in zip(weights, places, strict=True):
            total += target[place] * (weight * scales[top:bottom] / scales[place[0]]).astype(kind)
        total *= seen
        total += 0.0  # -0 becomes +0
        mixes.append((places[0], total, seen))
    for place, total, seen in mixes:
        target[place] = np.clip(total, -_LARGEST, _LARGEST)
        mask[place] = seen


def _scales(target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 [V, 1]: mean absolute observed value of each variate, 1 where that is 0."""
    total = np.abs(target).sum(axis=1, dtype=np.float64)
    return np.where(total > 0, total / np.maximum(np.count_nonzero(mask, axis=1), 1), 1.0)[:, None]


def _amplitude(values: np.ndarray, sigma: float, rng: np.random.Generator) -> None:
    """Multiply values [V, T] by one curve, piecewise linear in its logarithm: knots at both ends, the rest anywhere."""
    knots, last = int(rng.integers(2, 6)), values.shape[1] - 1
    at = np.concatenate([[0.0], np.sort(rng.random(knots - 2)) * last, [last]])
    curve = np.exp(np.interp(np.arange(last + 1), at, rng.normal(0.0, sigma, knots)).astype(np.float32))
    with np.errstate(over="ignore"):
        np.multiply(values, curve, out=values)
    np.clip(values, -_LARGEST, _LARGEST, out=values)


def _censor(values: np.ndarray, seen: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Clip one variate [T] at an observed value; at most a drawn share of the observed values lies beyond it."""
    from_above, part = rng.random() < 0.5, rng.random() * share
    observed = values[seen]
    if not len(observed):
        return
    beyond = int(part * len(observed))
    at = len(observed) - 1 - beyond if from_above else beyond
    level = np.partition(observed, at)[at]
    if level == (observed.min() if from_above else observed.max()):
        return  # clipping a few bursts over a constant would leave a constant, which teaches nothing
    if from_above:
        np.minimum(values, level, out=values, where=seen)
    else:
        np.maximum(values, level, out=values, where=seen)


def _missing(values: np.ndarray, seen: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Lose at most the drawn share of one variate's [T] observed values: points, up to 4 gaps, or half of each."""
    places = np.flatnonzero(seen)
    count = int(rng.random() * share * len(places))
    kind = int(rng.integers(3))
    in_gaps = (0, count, count // 2)[kind]
    # gaps run over observed values, so all between two lost ones is missing too; what is drawn twice is lost once
    lost = [rng.integers(len(places), size=count - in_gaps)] if count > in_gaps else []
    for length in rng.multinomial(in_gaps, rng.dirichlet([1.0] * int(rng.integers(1, 5)))).tolist():
        start = int(rng.integers(len(places) - length + 1))
        lost.append(np.arange(start, start + length))
    if lost:
        gone = places[np.concatenate(lost)]
        values[gone], seen[gone] = 0.0, False
