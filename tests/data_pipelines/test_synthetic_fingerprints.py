"""Medians of the published generators' series, recorded from their own code: orientation beside the tests of laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import prior
from data_pipelines.synthetic.chunk import CHUNK, keyed_generator

RECORDED = Path(__file__).parents[3] / "shared" / "spec" / "synthetic_fingerprints.json"
SIGNIFICANCE = 1e-3
CHUNKS = 4
PUBLISHED = {
    "forecast_pfn": "tempo/forecast_pfn",
    "cauker": "tempo/cauker(numpy shim)",
    "sawtooth": "tempo/sawtooth",
    "sinewave": "tempo/sinewave",
    "step": "tempo/step",
    "anomaly": "tempo/anomaly",
    "spike": "tempo/spike",
    "ou": "tempo/ou_process",
    "rhythm_faithful": "tempo/audio_stochastic_rhythm",
    "fractal_faithful": "tempo/audio_multi_scale_fractal",
}
"""Families of which 100 to 1,500 series are recorded (cauker 30, ou 65; kernel 4 and gp 6 are too few). The faithful
volatility and topology have other levels and spreads than the published ones, as docs/synthetic.md says."""


def fingerprint(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of each row [n, T]: of its values, and of the shape of those that vary."""
    rows = rows.astype(np.float64)
    length, sd = rows.shape[1], rows.std(axis=1)
    varied = sd > 1e-9 * np.abs(rows).max(axis=1)
    z = (rows[varied] - rows[varied].mean(axis=1, keepdims=True)) / sd[varied, None]
    power = np.abs(np.fft.rfft(z)[:, 1:]) ** 2
    share = power / power.sum(axis=1, keepdims=True)
    t = stats.zscore(np.arange(length))
    return {
        "std": sd,
        "kurt": np.mean(z**4, axis=1) - 3,
        "acf1": np.sum(z[:, 1:] * z[:, :-1], axis=1) / length,
        "acf24": np.sum(z[:, 24:] * z[:, :-24], axis=1) / length,
        "spec_entropy": -np.sum(share * np.log(share + 1e-12), axis=1) / np.log(power.shape[1]),
        "trend_r2": np.mean(z * t, axis=1) ** 2,
        "diffstd": np.diff(z, axis=1).std(axis=1),
    }


@pytest.mark.skipif(not RECORDED.is_file(), reason="the fingerprints lie in ../shared/spec, which is absent")
def test_medians_are_those_of_the_published_series() -> None:
    """Half of our series lie below the published median: normal approximation over both samples, by Holm's rule.

    Power: with 1,000 series recorded a share of .32 instead of .5 is found 4 times in 5, with 65 one of .15; `rhythm`
    instead of its faithful twin is told by nearly all statistics.
    """
    recorded, p_values = json.loads(RECORDED.read_text()), {}

    def compare(family: str, published: dict) -> dict[str, float]:
        length, theirs = published["length"], published["series"]
        chunks = [
            prior.FAMILIES[family].generate_chunk(keyed_generator(9, family, c), length, CHUNK) for c in range(CHUNKS)
        ]
        made = fingerprint(np.concatenate([v for c in chunks for v in c.values]))
        medians = {name: published["quantiles_10_50_90"][name][1] for name in made}
        out = {}
        for name, values in made.items():
            # as recorded, to four decimals; what is equal then counts half
            below = np.mean((values.round(4) < medians[name]) + 0.5 * (values.round(4) == medians[name]))
            out[f"{family} {name}"] = 2 * stats.norm.sf(abs(below - 0.5) / np.sqrt(0.25 / len(values) + 0.25 / theirs))
        return out

    for family, name in PUBLISHED.items():
        p_values |= compare(family, recorded[name])
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    assert not [(name, p) for i, (name, p) in enumerate(ordered) if p < SIGNIFICANCE / (len(ordered) - i)]
    other = compare("rhythm", recorded["tempo/audio_stochastic_rhythm"])
    assert sum(p < SIGNIFICANCE / len(p_values) for p in other.values()) >= 5
