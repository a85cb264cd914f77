"""CauKer: drawn parameters against their tables, independent roots, children as functions of their parents.

Seeds are fixed. The hypotheses of a test share a significance of 1e-3 by Holm's rule. Power is stated as the deviation
that is found 4 times in 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import cauker, kernel

SIGNIFICANCE = 1e-3


def assert_holm(p_values: dict[str, float]) -> None:
    """All hypotheses hold at a family-wise significance of 1e-3."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    refuted = [(name, p) for i, (name, p) in enumerate(ordered) if p < SIGNIFICANCE / (len(ordered) - i)]
    assert not refuted


def even(counts: Sequence[int]) -> float:
    return float(stats.chisquare(counts).pvalue)


def test_cauker_graphs_follow_their_law() -> None:
    """Number of parents, which ones. Power: shares of .25 off by .05."""
    rng = np.random.default_rng(6)
    graphs = [cauker.draw_parents(rng) for _ in range(3000)]
    p_values = {}
    for node in range(1, 6):
        most = min(node, 3)
        parents = Counter(len(g[node]) for g in graphs)
        assert set(parents) == set(range(most + 1))
        p_values[f"parents of {node}"] = even(list(parents.values()))
        if node > 1:
            firsts = Counter(int(g[node][0]) for g in graphs if len(g[node]))
            p_values[f"first parent of {node}"] = even([firsts[p] for p in range(node)])
    assert_holm(p_values)
    assert all(len(set(p.tolist())) == len(p) for g in graphs for p in g)


def test_cauker_functions_follow_their_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations and means: kinds and parameters. Power: a KS D of .07, shares off by .05."""
    rng, n = np.random.default_rng(7), 1500
    x = np.array([-1, 0, 1], dtype=np.float64)
    made = {kind: np.array([cauker.activation(rng, kind, x) for _ in range(n)]) for kind in cauker.ACTIVATIONS}
    assert made["relu"][0].tolist() == [0, 0, 1]
    assert made["sin"][0] == pytest.approx(np.sin(x))
    assert made["sigmoid"][0] == pytest.approx(1 / (1 + np.exp(-x)))
    assert (made["leaky_relu"][:, 1:] == [0, 1]).all()
    linear, exponential = (np.array([cauker._mean(rng, k, 33) for _ in range(n)]) for k in ("linear", "exponential"))
    anomalies = np.array([cauker._mean(rng, "anomalies", 4096) for _ in range(n)])
    used: list[str] = []
    activations: list[str] = []
    monkeypatch.setattr(cauker, "_mean", lambda rng, kind, length: used.append(kind) or np.full(length, 3.0))
    combined = [cauker.draw_mean(rng, 4)[0] for _ in range(n)]
    monkeypatch.setattr(cauker, "activation", lambda rng, kind, x: activations.append(kind) or x)
    monkeypatch.setattr(cauker.kernel, "sample", lambda rng, monomials, length: np.zeros(length, np.float32))
    cauker.generate(rng, 4, 500)
    assert_holm(
        {
            "slope": stats.kstest(made["linear"][:, 2] - made["linear"][:, 1], "uniform", (0.5, 1.5)).pvalue,
            "level": stats.kstest(made["linear"][:, 1], "uniform", (-1, 2)).pvalue,
            "modulus": stats.kstest(made["mod"][:, 0] + 1, "uniform", (1, 4)).pvalue,
            "leak": stats.kstest(-made["leaky_relu"][:, 0], "uniform", (0.01, 0.29)).pvalue,
            "activations": even([activations.count(k) for k in cauker.ACTIVATIONS]),
            "mean slope": stats.kstest(linear[:, -1] - linear[:, 0], "uniform", (-1, 2)).pvalue,
            "mean level": stats.kstest(linear[:, 0], "uniform", (-1, 2)).pvalue,
            "mean factor": stats.kstest(exponential[:, 0], "uniform", (0.5, 1)).pvalue,
            "mean rate": stats.kstest(np.log(exponential[:, -1] / exponential[:, 0]), "uniform", (0.5, 1)).pvalue,
            "anomalies": even([(np.count_nonzero(anomalies, axis=1) == k).sum() for k in range(1, 6)]),
            "size": stats.kstest(anomalies[anomalies != 0], "uniform", (-5, 10)).pvalue,
            "means": even([used.count(k) for k in cauker.MEANS]),
            "sum": stats.binomtest(combined.count(6.0), n, 0.5).pvalue,
        }
    )
    assert set(combined) == {6.0, 9.0}


def test_cauker_children_mix_their_parents_by_normal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five children of a ramp, 300 times: weight and level are N(0, 1). Power: a KS D of .06."""
    mixed: list[np.ndarray] = []
    most: list[int] = []
    monkeypatch.setattr(cauker, "draw_parents", lambda rng: [np.arange(min(node, 1)) for node in range(6)])
    monkeypatch.setattr(cauker, "draw_mean", lambda rng, length: np.zeros(length))
    monkeypatch.setattr(cauker, "activation", lambda rng, kind, x: mixed.append(x) or x)
    monkeypatch.setattr(kernel, "draw_monomials", lambda rng, n: most.append(n))
    monkeypatch.setattr(kernel, "sample", lambda rng, monomials, length: np.linspace(0, 1, length, dtype=np.float32))
    cauker.generate(np.random.default_rng(10), 4, 300)
    found = np.array(mixed)
    assert found.shape == (1500, 4)
    assert set(most) == {7}
    assert_holm(
        {
            "weight": stats.kstest(found[:, -1] - found[:, 0], "norm").pvalue,
            "level": stats.kstest(found[:, 0], "norm").pvalue,
        }
    )


def test_cauker_roots_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six roots of one smooth kernel: their values at a step correlate by 0, where shared normals give 1."""
    monkeypatch.setattr(cauker, "draw_parents", lambda rng: [np.zeros(0, np.int64)] * 6)
    monkeypatch.setattr(cauker, "draw_mean", lambda rng, length: np.zeros(length))
    monkeypatch.setattr(kernel, "draw_monomials", lambda rng, most: [(25,)])
    values = np.array(cauker.generate(np.random.default_rng(8), 64, 500))[:, :, 30]
    correlations = np.corrcoef(values.T)[np.triu_indices(6, 1)]
    assert_holm({str(i): 2 * stats.norm.sf(abs(np.arctanh(r)) * np.sqrt(497)) for i, r in enumerate(correlations)})


def test_cauker_children_are_functions_of_their_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of linear maps: all six variates lie on one line, in an order that the group does not tell."""
    parents = [np.arange(max(node - 1, 0), node) for node in range(6)]
    monkeypatch.setattr(cauker, "draw_parents", lambda rng: parents)
    monkeypatch.setattr(cauker, "ACTIVATIONS", ("linear",))
    for group in cauker.generate(np.random.default_rng(9), 64, 8):
        assert group.shape == (6, 64)
        assert np.abs(np.corrcoef(group)) == pytest.approx(1, abs=1e-3)
