"""The synthetic prior's benchmark: that points are counted whole, and what is missing is said."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

import synthetic as bench

from data_pipelines.synthetic import prior
from data_pipelines.synthetic.chunk import CHUNK


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A second passes at every look at the clock."""
    seconds = itertools.count()
    monkeypatch.setattr(bench.time, "process_time", lambda: float(next(seconds)))


def test_a_rate_is_the_points_of_whole_chunks():
    # begin, one look after the second chunk, end: two seconds
    assert bench.family_rate("sawtooth", 64, 0.0) == pytest.approx(2 * CHUNK * 64 / 2 / 1e6)
    variates = sum(prior.widths("telemetry", 0, 0)) + sum(prior.widths("telemetry", 0, 1))
    assert bench.family_rate("telemetry", 64, 0.0) == pytest.approx(variates * 64 / 2 / 1e6)


def test_the_mix_is_in_proportion(monkeypatch):
    calls = []

    def counted(name):
        family = prior.FAMILIES[name]
        return prior.Family(lambda *args: calls.append(name) or family.generate_chunk(*args), family.weight)

    monkeypatch.setattr(prior, "FAMILIES", {name: counted(name) for name in ("sawtooth", "step")})
    rate = bench.mix_rate({"sawtooth": 2.0, "step": 1.0}, 64, chunks=6)
    assert rate == pytest.approx(6 * CHUNK * 64 / 1e6)
    assert [calls[2:].count(name) for name in ("sawtooth", "step")] == [4, 2]  # one of each does not count


def test_the_mix_has_the_nominal_weights():
    assert sum(bench.MIX.values()) == pytest.approx(17.2)
    for family in set(bench.MIX) & set(prior.FAMILIES):
        assert prior.FAMILIES[family].weight == bench.MIX[family]
    assert set(bench.TEMPOPFN) <= set(bench.MIX)


def test_without_scikit_learn_the_peer_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.gaussian_process", None)
    assert bench.kernel_synth(1) is None
