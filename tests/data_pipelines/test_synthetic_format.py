"""FORMAT of the prior stands for the laws: summaries of each family, pinned, which other CPUs meet to 1e-4."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.synthetic import prior

PINNED_FORMAT = 2
PINNED: dict[str, tuple[float, ...]] = {
    "telemetry": (8.73684, 8.5848, 6.03222),
    "forecast_pfn": (1.32461, 1.23051, 0.406372),
    "kernel": (0.88042, 0.839554, 0.519816),
    "gp": (0.692071, 0.629175, 0.31593),
    "cauker": (0.915129, 0.883955, 0.494159),
    "sinewave": (0.98269, 0.978925, 0.320829),
    "sawtooth": (0.60863, 0.60737, 0.109191),
    "step": (5.58359, 5.13466, 3.19172),
    "anomaly": (3.71589, 3.71161, 0.484107),
    "spike": (4.7177, 4.55781, 1.29223),
    "ou": (3.96928, 3.85969, 1.51028),
    "volatility": (0.324354, 0.320927, 0.0487649),
    "fractal": (0.525273, 0.52903, 0.0236694),
    "rhythm": (0.19273, 0.195306, 0.240594),
    "topology": (0.372902, 0.376143, 0.121917),
    "tsmixup": (0.587512, 0.554739, 0.19243),
    "augmented": (1.30531, 1.2633, 0.346775),
    "augmented_batch": (1.05963, 1.00868, 0.17905),
    "linear_mix": (5.4083, 5.37896, 4.16323),
    "nonlinear_mix": (6.09691, 6.06421, 4.47621),
    "regime_mix": (6.91516, 6.95332, 5.88451),
    "lead_lag": (6.07111, 6.09845, 4.02257),
    "cointegration": (6.8422, 6.74564, 4.55292),
    "causal_graph": (6.22706, 6.2738, 4.24916),
    "forecast_pfn_faithful": (1.23128, 1.1205, 0.335395),
    "gp_faithful": (0.714274, 0.69228, 0.348887),
    "cauker_faithful": (0.938708, 0.887685, 0.53985),
    "volatility_faithful": (0.358907, 0.157776, 0.0227032),
    "fractal_faithful": (0.383989, 0.150629, 0.0124541),
    "rhythm_faithful": (0.327722, 0.200506, 0.0254184),
    "topology_faithful": (0.333269, 0.117759, 0.105796),
    "augmented_faithful": (1.07878, 1.0645, 0.344295),
    "augmented_batch_faithful": (0.82139, 0.885572, 0.273127),
}


def summary(family: str) -> tuple[float, ...]:
    """Of the first chunk of seed 0 at 128 steps: means of the sizes, of early ones, and of those of changes."""
    made = [np.asarray(v, np.float64) for v in prior.chunk(family, 0, 0, 128).values]
    sizes = [np.nanmean(np.abs(v)) for v in made], [np.nanmean(np.abs(v[:, :40])) for v in made]
    changes = [np.nanmean(np.abs(np.diff(v))) for v in made]
    return tuple(float(np.mean(np.log1p(part))) for part in (*sizes, changes))


def test_every_family_is_pinned() -> None:
    assert set(PINNED) == set(prior.FAMILIES), "pin a new family's summary(), which needs no new FORMAT"
    assert PINNED_FORMAT == prior.FORMAT, "pin all families anew and PINNED_FORMAT with them"


@pytest.mark.parametrize("family", list(PINNED))
def test_a_law_changes_only_with_the_format(family: str) -> None:
    assert summary(family) == pytest.approx(PINNED[family], rel=1e-4), (
        f"the law of {family} changed: raise FORMAT in prior.py, and pin summary() of it here"
    )
