"""Scores that others published, relative to Seasonal Naive; printed beside ours and labelled as published."""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "gift_eval": {
        "Toto-2.0-4m": (0.757, 0.524),
        "Toto-2.0-22m": (0.719, 0.496),
        "Toto-2.0-313m": (0.703, 0.481),
        "Toto-2.0-1B": (0.699, 0.478),
        "Toto-2.0-2.5B": (0.696, 0.476),
        "Chronos-2": (0.698, 0.485),
        "TiRex": (0.716, 0.488),
        "TempoPFN": (0.788, 0.533),
    },
    "boom": {
        "Toto-2.0-4m": (0.624, 0.377),
        "Toto-2.0-22m": (0.601, 0.363),
        "Toto-2.0-313m": (0.585, 0.351),
        "Toto-2.0-1B": (0.582, 0.349),
        "Toto-2.0-2.5B": (0.581, 0.349),
        "Toto-1.0": (0.617, 0.375),
    },
}
"""Benchmark -> model -> (MASE, CRPS) over all of its configurations: read from the leaderboards, not measured here."""
