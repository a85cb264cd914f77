"""Couplers: each one's law is recovered from what it makes of white noise.

Seeds are fixed; thresholds are set so that a correct stream of other random numbers fails a test once in 1000.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, stats

from data_pipelines.synthetic import coupled, couplers, prior
from data_pipelines.synthetic.chunk import CHUNK

SIGNIFICANCE = 1e-3
STEPS = 4000


def noise(rng: np.random.Generator, width: int, length: int = STEPS) -> np.ndarray:
    return rng.standard_normal((width, length), dtype=np.float32)


def least_squares(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of y [T] on the columns of x [T, K], and their standard errors."""
    inverse = np.linalg.inv(x.T @ x)
    coefficients = inverse @ x.T @ y
    residual = y - x @ coefficients
    return coefficients, np.sqrt(np.diag(inverse) * (residual @ residual) / (len(y) - x.shape[1]))


# --- widths and bases


def test_widths_are_log_uniform_from_2_to_32() -> None:
    """Chi-square on 6,400 groups; a uniform law, or one bin off by a tenth of its share, fails."""
    drawn = np.concatenate([prior.widths("linear_mix", 3, k) for k in range(100)])
    edges = np.array([2, 3, 4, 6, 9, 13, 20, 33])
    observed = np.histogram(drawn, edges)[0]
    assert observed.sum() == len(drawn)
    assert stats.chisquare(observed, np.diff(np.log(edges)) / np.log(33 / 2) * len(drawn)).pvalue > SIGNIFICANCE


def test_bases_are_whole_and_standardised() -> None:
    sizes = np.array([2, 30, 7, 32, 3, 25, 31])
    z = coupled.draw_bases(np.random.default_rng(4), prior._BASES, sizes, 700)
    assert z.shape == (sizes.sum(), 700)
    assert np.isfinite(z).all()
    deviation = z.std(axis=1, dtype=np.float64)
    assert np.abs(z.mean(axis=1, dtype=np.float64)).max() < 1e-4
    assert ((np.abs(deviation - 1) < 1e-4) | (deviation == 0)).all()
    assert (deviation > 0).mean() > 0.9
    assert len({row.tobytes() for row in z[deviation > 0]}) == (deviation > 0).sum()  # none is used twice


@pytest.mark.parametrize("family", coupled.COUPLERS)
def test_groups_are_related(family: str) -> None:
    """In every coupler some pair of most groups correlates more, at some lag to 32, than among strangers."""
    rng = np.random.default_rng(1)
    groups = [prior.generate(family, 2, index, 512).values for index in range(CHUNK)]
    strangers = coupled.draw_bases(rng, prior._BASES, np.array([len(g) for g in groups]), 512)
    ends = np.cumsum([len(g) for g in groups])
    apart = [strangers[e - len(g) : e] for e, g in zip(ends, groups, strict=True)]

    def strongest(group: np.ndarray) -> float:
        change = np.diff(group[:8].astype(np.float64))
        change = (change - change.mean(axis=1, keepdims=True)) / (change.std(axis=1, keepdims=True) + 1e-9)
        pairs = [change[:, lag:] @ change[:, : 511 - lag].T / 511 for lag in range(33)]
        np.fill_diagonal(pairs[0], 0)
        return max(np.abs(p - np.diag(np.diag(p))).max() for p in pairs)

    pairs = [strongest(g) for g in groups], [strongest(a) for a in apart]
    assert stats.wilcoxon(*pairs, alternative="greater").pvalue < SIGNIFICANCE


# --- the same step


def test_linear_mix_has_the_covariance_of_its_mixing() -> None:
    """Entry by entry within 5 standard errors of M M', sd sqrt((1 + rho^2) / T) = .016 to .022; and M's rank."""
    rng = np.random.default_rng(0)
    ranks = []
    for width in (2, 5, 12, 32):
        for _ in range(6):
            mixing = couplers.draw_mixing(rng, width)
            y = couplers.linear_mix(mixing, noise(rng, width))
            expected = mixing @ mixing.T
            assert np.diag(expected) == pytest.approx(1)
            error = np.abs(y @ y.T / STEPS - expected) / np.sqrt((1 + expected**2) / STEPS)
            assert error.max() < 5
            rank = np.linalg.matrix_rank(mixing, tol=1e-9)
            assert (np.linalg.svd(y, compute_uv=False) > 1e-3).sum() == rank
            ranks.append(rank / width)
    assert min(ranks) < 0.5
    assert ranks.count(1.0) >= 12  # two of three spectra have full rank, and r = V besides


def test_nonlinear_mix_is_a_function_of_the_same_step() -> None:
    """Steps in another order give the same values in that order; and the map is not linear."""
    rng = np.random.default_rng(1)
    explained = []
    for width in (2, 6, 20):
        for _ in range(4):
            layers = couplers.draw_nonlinear(rng, width)
            z = noise(rng, width)
            order = rng.permutation(STEPS)
            y = couplers.nonlinear_mix(layers, z)
            np.testing.assert_allclose(couplers.nonlinear_mix(layers, z[:, order]), y[:, order], rtol=1e-5, atol=1e-5)
            design = np.vstack([z, np.ones(STEPS)]).T
            fit = design @ np.linalg.lstsq(design, y.T, rcond=None)[0]
            explained += (1 - (y.T - fit).var(axis=0) / np.maximum(y.var(axis=1), 1e-9)).tolist()
    assert 0.3 < np.mean(np.array(explained) < 0.95) < 1
    used = {a for _ in range(20) for layer in couplers.draw_nonlinear(rng, 32) for a in layer.activations}
    assert used == set(couplers.ACTIVATIONS)


def test_regimes_hold_in_blocks() -> None:
    """Stays are log-uniform from T/40 to T/2 (KS on some 2,000 of them); neighbours differ."""
    rng = np.random.default_rng(2)
    lengths, regimes = [], []
    for _ in range(300):
        path = couplers.draw_regimes(rng, 8000)
        cuts = np.flatnonzero(np.diff(path)) + 1
        lengths.append(cuts[0])  # only the first stay: later ones are seen the more the shorter they are
        regimes.append(len(np.unique(path)))
        assert path.min() == 0
        assert path.max() < couplers.REGIMES
    assert max(regimes) == couplers.REGIMES
    assert stats.kstest(np.log(lengths), "uniform", (np.log(200), np.log(20))).pvalue > SIGNIFICANCE


def test_regime_mix_has_the_mixing_of_each_block() -> None:
    rng = np.random.default_rng(3)
    for width in (2, 8):
        path = couplers.draw_regimes(rng, STEPS)
        mixings = [couplers.draw_mixing(rng, width) for _ in range(path.max() + 1)]
        z = noise(rng, width)
        y = couplers.regime_mix(mixings, path, z)
        for regime in np.unique(path):
            held = path == regime
            found = np.linalg.lstsq(z[:, held].T, y[:, held].T, rcond=None)[0].T
            assert found == pytest.approx(mixings[regime], abs=1e-3)


# --- across steps


def test_lead_lag_peaks_at_its_lag() -> None:
    """Of white bases the cross-correlation is at least .7 at the lag, and .016 sd elsewhere; its sign is the gain's."""
    rng = np.random.default_rng(4)
    longest, lags = 63, []
    for width in (2, 7, 32):
        for _ in range(5):
            law = couplers.draw_lags(rng, width, longest)
            y = couplers.lead_lag(law, noise(rng, width, STEPS + longest), longest)
            leader = y[law.leader]
            for row in range(width):
                if row != law.leader:
                    inner = [y[row, lag:] @ leader[: STEPS - lag] / STEPS for lag in range(longest + 1)]
                    assert np.abs(inner).argmax() == law.lags[row]
                    assert np.sign(inner[law.lags[row]]) == np.sign(law.gains[row])
                    lags.append(law.lags[row])
    assert min(lags) == 1
    # floor of a log-uniform from 1 to 64: half are under 8
    assert stats.binomtest(int((np.array(lags) < 8).sum()), len(lags), 0.5).pvalue > SIGNIFICANCE


def test_cointegrating_combinations_are_stationary() -> None:
    """Dickey-Fuller t of 2,000 steps: the combinations lie far below the 0.1 % point of a random walk (-4.0).

    Of the variates themselves, whose walks spread over some 1.5 to 4 units against .3 of AR(1), most do not.
    """
    rng = np.random.default_rng(5)
    combined, alone = [], []
    for width in (2, 3, 6, 12):
        for _ in range(4):
            loadings = couplers.draw_loadings(rng, width)
            assert 1 <= loadings.shape[1] < width
            y = couplers.cointegration(rng, loadings, noise(rng, width, 2000))
            vectors = linalg.null_space(loadings.T)
            assert vectors.shape[1] == width - loadings.shape[1]
            for values, into in ((vectors.T @ y, combined), (y, alone)):
                for c in values.astype(np.float64):
                    design = np.stack([c[:-1], np.ones(len(c) - 1)], axis=1)
                    slope, error = least_squares(np.diff(c), design)
                    into.append(slope[0] / error[0])
                    # the spread of a stationary series does not grow with the length of the stretch
                    if into is combined:
                        assert c.var() < 3 * np.mean([part.var() for part in np.split(c, 8)])
    assert max(combined) < -4.0
    growth = [np.median(alone), np.median(combined)]
    assert growth[0] > growth[1] + 5


def test_a_graph_is_acyclic_and_bounded() -> None:
    rng = np.random.default_rng(6)
    switched = 0
    for _ in range(60):
        graph = couplers.draw_graph(rng, 12, 40)
        place = np.argsort(graph.order)
        assert all(place[e.source] < place[e.target] for e in graph.edges)
        assert all(1 <= e.lag <= 40 for e in graph.edges)
        into = np.zeros(12)
        for e in graph.edges:
            into[e.target] += abs(e.weight)
        targets = into > 0
        assert into[targets] == pytest.approx(1 - graph.memory[targets])
        assert graph.drive[~targets] == pytest.approx(1 - graph.memory[~targets])
        switched += not all(all(e.active) for e in graph.edges)
    assert stats.binomtest(switched, 60, 0.3).pvalue > SIGNIFICANCE


def test_lagged_regressions_recover_the_graph() -> None:
    """Every node on its own past, the true causes and, as strangers, other nodes at lags 1 to 3.

    Of some 500 coefficients none is 5 standard errors off its truth (0 for a stranger): chance alone does that once in
    3,000 runs. A missed edge, wrong lag or wrong sign is off by its weight, .03 or more; the errors are .016 and less
    relative to the cause, so most would be off by far more than 5.
    """
    rng = np.random.default_rng(7)
    wrong, power = 0, []
    for width in (3, 6, 10):
        graph = couplers.draw_graph(rng, width, 20)
        while not all(all(e.active) for e in graph.edges):
            graph = couplers.draw_graph(rng, width, 20)
        x = couplers.causal_graph(graph, noise(rng, width, 6000), np.zeros(6000, dtype=np.int64), 200)
        x = x.astype(np.float64)
        past = 20
        for node in range(width):
            causes = [e for e in graph.edges if e.target == node]
            columns = [x[node, past - 1 : -1], np.ones(x.shape[1] - past)]
            truth = [graph.memory[node], 0.0]
            for e in causes:
                columns.append(couplers.ACTIVATIONS[e.activation](x[e.source, past - e.lag : -e.lag]))
                truth.append(e.weight)
            near = {(e.source, e.lag) for e in causes}
            for other in set(range(width)) - {node} - {e.source for e in causes}:
                for lag in (1, 2, 3):
                    assert (other, lag) not in near
                    columns.append(x[other, past - lag : -lag])
                    truth.append(0.0)
            found, error = least_squares(x[node, past:], np.stack(columns, axis=1))
            wrong += int((np.abs(found - truth) > 5 * error).sum())
            power += [abs(e.weight) / error[2 + k] for k, e in enumerate(causes)]
    assert wrong == 0
    assert np.median(power) > 10


def test_edges_of_a_switched_graph_act_in_their_regimes() -> None:
    edge = couplers.Edge(0, 1, 3, 0.9, "linear", (True, False, False, False))
    graph = couplers.Graph(np.array([0, 1]), np.zeros(2), np.array([1.0, 0.1]), (edge,))
    path = np.repeat([0, 1, 0], [1000, 1500, 1500])
    rng = np.random.default_rng(8)
    x = couplers.causal_graph(graph, noise(rng, 2), path, 100)
    path = path[100:]
    for regime, expected in ((0, 0.9), (1, 0.0)):
        now = np.flatnonzero(path == regime)
        now = now[now >= 3]
        found, error = least_squares(x[1, now].astype(np.float64), x[0, now - 3].astype(np.float64)[:, None])
        assert abs(found[0] - expected) < 5 * error[0]
        assert error[0] < 0.01
