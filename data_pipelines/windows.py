"""Anchored windows: what makes two series recognisable as copies, whatever their offset, scale or cut.

Windows of W steps begin at local extrema, which increasing maps and shifts leave where they are, and at multiples of W
where no extremum is near. Two series that hold the same stretch hold the same windows there, so sets of window hashes
tell near duplicates within a corpus (resemblance of sketches) and benchmark data in a corpus (shares of windows).
"""

from __future__ import annotations

import numpy as np

W = 32
"""Steps of a window."""
REACH = 16
"""An extremum is one among this many steps on either side."""
MIN_CHANGES = 8
"""A window whose values change less often says too little: flat stretches and switches are alike everywhere."""
MIN_TURNS = 2
"""A z-scored window that turns less often says too little: ramps and the tops of slow waves are alike everywhere."""
GRID = 0.05
"""Rounding of z-scored windows, in standard deviations of the window."""
MIN_HASHES = 8
"""Sketches with fewer real hashes are compared with nothing."""
PAD = np.uint64(2**64 - 1)
_MEMBERS = 8  # of the series that share a hash, only the first so many are candidates
_CHUNK = 1 << 12  # windows hashed at once: 1 MiB as float64, within a cache

_WEIGHTS = np.random.Generator(np.random.Philox(key=32)).integers(0, 2**63, W, np.uint64) * np.uint64(2) + np.uint64(1)


def raw_hashes(values: np.ndarray) -> np.ndarray:
    """uint64, sorted and unique: hashes of the bits of the anchored windows of float32 [V, T]."""
    return hashes(values)[0]


def scaled_hashes(values: np.ndarray) -> np.ndarray:
    """uint64, sorted and unique: the same of z-scored, rounded windows, which positive affine copies share.

    A copy loses the windows in which the rounding of its float32 values crosses a line of the grid.
    """
    return hashes(values)[1]


def hashes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(raw_hashes, scaled_hashes) of float32 [V, T], for the price of one search for anchors."""
    values = np.ascontiguousarray(values, np.float32)
    at = anchors(values)
    if not len(at):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    flat, reach = values.reshape(-1), np.arange(W)[:, None]
    raw, scaled = [], []
    for first in range(0, len(at), _CHUNK):
        block = flat[at[first : first + _CHUNK] + reach]  # a window a column: sums over rows are the fast ones
        ok = (_count(block[1:] != block[:-1]) >= MIN_CHANGES) & np.isfinite(block).all(axis=0)
        block = block[:, ok] + np.float32(0)  # -0.0 and 0.0 are one value
        raw.append(_fold(block.view(np.uint32).astype(np.uint64)))
        scaled.append(_scaled(block))
    return _unique(raw), _unique(scaled)


def _unique(parts: list[np.ndarray]) -> np.ndarray:
    x = np.sort(np.concatenate(parts))  # several times as fast as np.unique, which hashes first
    return x[np.append(True, x[1:] != x[:-1])] if len(x) else x


def _scaled(block: np.ndarray) -> np.ndarray:
    """Hashes of those windows float32 [W, n] that have enough of a shape once z-scored and rounded."""
    z = block.astype(np.float64)
    z -= z.mean(axis=0)
    z /= np.sqrt((z * z).mean(axis=0)) * GRID
    levels = np.rint(z, out=z).astype(np.int8)  # no value is further from the mean of W than sqrt(W) deviations
    steps = np.diff(levels, axis=0)
    turns = _count((steps[1:] > 0) & (steps[:-1] < 0)) + _count((steps[1:] < 0) & (steps[:-1] > 0))
    # beside one spike all else is rounded flat, and every such window is alike
    shaped = (_count(steps != 0) >= MIN_CHANGES) & (turns >= MIN_TURNS)
    return _fold(levels[:, shaped].astype(np.int64).view(np.uint64))


def _count(true: np.ndarray) -> np.ndarray:
    """bool [W or fewer, n] -> uint8 [n]."""
    return np.add.reduce(true.view(np.uint8), axis=0, dtype=np.uint8)


def _fold(words: np.ndarray) -> np.ndarray:
    """uint64 [W, n] -> [n]: multilinear hash modulo 2**64, then mixed."""
    # the bits of small whole numbers end in zeros, and so would their products
    words *= np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(32)
    words *= _WEIGHTS[:, None]
    return mix(np.add.reduce(words, axis=0))


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64 in which every bit depends on every other."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def anchors(values: np.ndarray) -> np.ndarray:
    """int64, ascending: flat positions v * T + i in [V, T] at which a whole window begins."""
    variates, steps = values.shape
    last = steps - W
    if last < 0:
        return np.empty(0, np.int64)
    marked: np.ndarray = np.zeros((variates, -(-steps // W) * W), bool)  # whole blocks of W steps
    if last >= REACH:
        inner = slice(REACH, last + 1)
        missing = np.isnan(values)
        gaps = missing.any()
        for sign in (1, -1):
            x = values if sign > 0 else -values
            x = np.where(missing, np.float32(-np.inf), x) if gaps else x
            peak = _running_max(x)  # peak[i] = max of x[i .. i + REACH - 1]
            centre = x[:, inner]
            marked[:, inner] |= (centre > peak[:, : last + 1 - REACH]) & (centre >= peak[:, REACH + 1 : last + 2])
    busy: np.ndarray = np.logical_or.reduce(marked.reshape(variates, -1, W), axis=2)
    near = busy.copy()
    near[:, 1:] |= busy[:, :-1]
    grid = marked[:, : last + 1 : W]
    grid |= ~near[:, : grid.shape[1]]
    return np.flatnonzero(marked[:, :steps])


def _running_max(x: np.ndarray) -> np.ndarray:
    """[V, T] -> [V, T - REACH + 1]: maxima of REACH neighbours by doubling."""
    width = 1
    while width < REACH:
        x = np.maximum(x[:, :-width], x[:, width:])
        width *= 2
    return x


def sketch(hashes: np.ndarray, size: int = 32) -> np.ndarray:
    """uint64 [size], ascending: the smallest mixed hashes of a set, padded with PAD."""
    mixed = mix(hashes ^ np.uint64(0x9E3779B97F4A7C15))
    smallest = np.sort(np.partition(mixed, size)[:size] if len(mixed) > size else mixed)
    return np.concatenate([smallest, np.full(size - len(smallest), PAD)])


def near_duplicates(sketches: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [N]: for each row of uint64 [N, K] the smallest earlier row it nearly repeats, else -1.

    Two rows do where their estimated resemblance (Jaccard: windows in both / windows in either) reaches threshold and
    both hold MIN_HASHES hashes. A row that repeats another stands for nothing itself: of a chain in which only
    neighbours are alike, every second one stays. Rows sharing a hash with very many are compared by it with the first
    few only.
    """
    later, earlier = _pairs(sketches, threshold)
    rows = len(sketches)
    found = np.full(rows, -1)
    undecided = np.zeros(rows, bool)
    undecided[later] = True
    while len(later):  # the first undecided row has decided ones before it only, so every round decides some
        stays = ~undecided & (found < 0)
        hit = stays[earlier]
        best = np.full(rows, rows)
        np.minimum.at(best, later[hit], earlier[hit])
        # a smaller earlier row may still be undecided, and then this one waits
        np.minimum.at(best, later[undecided[earlier]], -1)
        decided = undecided & (best >= 0)
        found[decided & (best < rows)] = best[decided & (best < rows)]
        undecided &= ~decided
        going = undecided[later] & (found[earlier] < 0)
        later, earlier = later[going], earlier[going]
    return found


def _pairs(sketches: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(later, earlier): rows alike, each pair once."""
    rows, size = sketches.shape
    fit = np.flatnonzero((sketches != PAD).sum(axis=1) >= MIN_HASHES)
    flat = sketches[fit].ravel()
    order = np.argsort(flat, kind="stable")  # rows ascend among equal hashes
    flat, owner = flat[order], fit[order // size]
    first = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]]) if len(flat) else np.empty(0, np.int64)
    start = np.repeat(first, np.diff(np.r_[first, len(flat)]))
    rank = np.arange(len(flat)) - start
    known = np.empty(0, np.int64)
    for member in range(_MEMBERS):
        mine = np.flatnonzero((rank > member) & (flat != PAD))
        keys = np.unique(owner[mine] * rows + owner[start[mine] + member])
        keys = keys[~np.isin(keys, known)]
        parts = [k[_resemblance(sketches[k // rows], sketches[k % rows]) >= threshold] for k in _chunks(keys)]
        known = np.concatenate([known, *parts])
    known.sort()
    return known // rows, known % rows


def _chunks(keys: np.ndarray) -> list[np.ndarray]:
    return [keys[i : i + _CHUNK] for i in range(0, len(keys), _CHUNK)]


def _resemblance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Estimated Jaccard resemblance of pairs of sketches uint64 [P, K]: shared among the K smallest of the union."""
    size = a.shape[1]
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    real = both != PAD
    fresh = np.ones(both.shape, bool)
    fresh[:, 1:] = both[:, 1:] != both[:, :-1]
    fresh &= real
    counted = np.cumsum(fresh, axis=1) <= size
    distinct = (fresh & counted).sum(axis=1)
    shared = (~fresh & real & counted).sum(axis=1)
    return shared / np.maximum(distinct, 1)
