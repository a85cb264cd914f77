"""GIFT-Eval (Aksu et al. 2024, arXiv:2410.10393): 97 configurations of saved datasets, NAME or NAME/FREQ at a path."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from toto_train.evaluation.leaderboards import aggregate, folders
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options, Tables, plain_row
from toto_train.evaluation.leaderboards.measures import COLUMNS, CRPS, MASE, pooled
from toto_train.evaluation.leaderboards.windows import Cut, Windows, side_by_side
from toto_train.evaluation.tasks import TERMS, TEST_SHARE, Task

HORIZONS = {"s": 60, "min": 48, "h": 48, "d": 30, "w": 8, "mo": 12}
M4_HORIZONS = {"y": 6, "q": 8, "mo": 18, "w": 13, "d": 14, "h": 48}

_DATASETS = """
Econ/Fin 1: m4_yearly=A m4_quarterly=Q m4_monthly=M m4_weekly=W m4_daily=D m4_hourly=H
Energy 1: electricity/15T* electricity/H* electricity/D electricity/W solar/10T* solar/H* solar/D solar/W
Energy 7: ett1/15T* ett1/H* ett1/D ett1/W ett2/15T* ett2/H* ett2/D ett2/W
Healthcare 1: hospital=M covid_deaths=D us_births/D us_births/M us_births/W
Nature 1: saugeenday/D saugeenday/M saugeenday/W temperature_rain_with_missing=D
Nature 1: kdd_cup_2018_with_missing/H* kdd_cup_2018_with_missing/D
Nature 21: jena_weather/10T* jena_weather/H* jena_weather/D
Sales 1: car_parts_with_missing=M restaurant=D hierarchical_sales/D hierarchical_sales/W
Transport 1: LOOP_SEATTLE/5T* LOOP_SEATTLE/H* LOOP_SEATTLE/D SZ_TAXI/15T* SZ_TAXI/H M_DENSE/H* M_DENSE/D
Web/CloudOps 2: bitbrains_fast_storage/5T* bitbrains_fast_storage/H bitbrains_rnd/5T* bitbrains_rnd/H
Web/CloudOps 2: bizitobs_application=10S* bizitobs_service=10S*
Web/CloudOps 7: bizitobs_l2c/5T* bizitobs_l2c/H*
"""
"""Domain and variates: folders, where needed with their frequency; * has all terms, the others the short one."""
_NAMES = {"saugeenday": "saugeen", "temperature_rain_with_missing": "temperature_rain",
          "kdd_cup_2018_with_missing": "kdd_cup_2018", "car_parts_with_missing": "car_parts"}  # fmt: skip
"""Folder -> name in the results."""


def table() -> list[Configuration]:
    """The 97 configurations."""
    found = []
    for line in _DATASETS.strip().splitlines():
        head, entries = line.split(": ")
        domain, variates = head.rsplit(" ", 1)
        for entry in entries.split():
            folder, _, freq = entry.rstrip("*").partition("=")
            dataset, _, below = folder.partition("/")
            name = f"{_NAMES.get(dataset, dataset.lower())}/{freq or below}"
            for term in TERMS if entry.endswith("*") else ["short"]:
                found.append(Configuration(f"{name}/{term}", folder, term, domain, int(variates)))
    return found


def horizon_of(folder: str, freq: str, term: str) -> int:
    """Steps to forecast; ValueError for a frequency that GIFT-Eval has no horizon for."""
    horizons = M4_HORIZONS if "m4" in folder else HORIZONS
    unit = folders.parse_freq(freq)[1]
    if unit not in horizons:
        raise ValueError(f"{folder}: there is no horizon for freq={freq!r}")
    return horizons[unit] * TERMS[term]


def window_count(folder: str, shortest: int, horizon: int) -> int:
    """clip(ceil(0.1 * shortest / horizon), 1, 20) windows of every series; M4 has one."""
    return 1 if "m4" in folder else min(max(1, math.ceil(TEST_SHARE * shortest / horizon)), 20)


def configurations(path: Path, file: Path | None = None) -> list[Configuration]:
    found = [c for c in table() if folders.is_saved(path / c.folder)]
    if not found:
        raise ValueError(
            f"tasks.path={path} holds no dataset of GIFT-Eval (such as electricity/H/{folders.STATE}); "
            "huggingface-cli download Salesforce/GiftEval --repo-type dataset --local-dir DIR fetches them"
        )
    return found


def opened(path: Path, name: str) -> folders.Folder:
    """A dataset; its terms follow each other, so it is opened once."""
    return _opened(path, name, folders.fingerprint(path / name))


@lru_cache(maxsize=1)
def _opened(path: Path, name: str, version: str) -> folders.Folder:
    return folders.Folder(path, name)


def windows(c: Configuration, options: Options, context: int) -> Windows:
    """Side by side at the end of each series."""
    store = opened(options.path, c.folder)
    horizon, lengths = horizon_of(c.folder, store.freq, c.term), store.index(c.folder)["length"]
    count = window_count(c.folder, int(lengths.min()), horizon)
    starts = side_by_side(lengths.tolist(), count * horizon, horizon, count)
    season = folders.season_of_freq(store.freq)
    cut = Cut(c.name, horizon, season, starts, options.context or context, options.split)
    return Windows(store, Task(c.folder, store.interval, c.term, c.domain), cut, options.limit)


def fingerprint(c: Configuration, options: Options) -> str:
    return folders.fingerprint(options.path / c.folder)


METRICS = {"CRPS": CRPS, "MASE": MASE}


def summary(tables: Tables) -> dict[str, Any]:
    """MASE and CRPS: geometric mean of the ratios to Seasonal Naive, and mean rank."""
    return aggregate.ratio_summary({"MASE": tables[MASE], "CRPS": tables[CRPS]})


GIFT_EVAL = Benchmark(
    "GIFT-Eval",
    4096,
    97,
    "Salesforce/GiftEval",
    configurations,
    windows,
    fingerprint,
    pooled,
    COLUMNS,
    plain_row,
    summary,
    METRICS,
)
