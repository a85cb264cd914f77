"""BOOM (Cohen et al. 2025, arXiv:2505.14766): 2,807 multivariate sets of observability metrics, cut as GIFT-Eval's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toto_train.evaluation.leaderboards import aggregate, folders, gift_eval
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Tables, plain_row
from toto_train.evaluation.leaderboards.measures import COLUMNS, CRPS, MASE, pooled
from toto_train.evaluation.tasks import TERMS

PROPERTIES = "boom_properties.json"
_LOW_VARIANCE = """
1040-5T 462-5T 2801-D 947-T 2332-H 491-T 1901-D 1721-30T 2806-D 438-5T 372-10S 1719-30T 1902-D 111-T 2026-D 2089-H
299-5T 1596-T 4-5T 1723-H 953-10S 2394-D 1838-D 489-T 2802-D 1925-D 441-10S 1520-10S 2782-H 607-10S 177-5T 1643-30T
442-T 1909-D 2762-D 1135-5T 139-5T 805-10S 784-T 949-T 977-5T 1641-30T 303-5T 162-5T 608-T 551-T 2567-30T 1731-D
2206-H 206-5T 1718-H 1722-D 1195-10S 2514-H 1264-5T 1720-H 1564-10S 532-10S 300-5T 207-5T 1039-T 1733-D 2805-D 979-T
1619-H 1818-H 492-T 1894-H 2804-D 2012-30T 181-T 1642-30T 2027-H 890-10S 1768-30T 458-10S 1767-H 137-10S 2197-D 493-T
"""
LOW_VARIANCE = frozenset(f"ds-{dataset}" for dataset in _LOW_VARIANCE.split())
"""Sets that the leaderboard scores apart."""
_DOMAINS = {"A": "Application Usage", "D": "Database", "I": "Infrastructure", "N": "Networking"}
_BOOMLET = """
3-10S=AI33 22-10S=I50 35-10S=I90 189-10S=I55 285-T=D75 374-10S=I50 413-10S=D33 496-10S=NA36 619-T=A52 772-T=I67
833-10S=A24 957-10S=A26 963-T=A28 1062-5T=D21 1170-10S=DN31 1209-5T=I53 1225-T=I49 1230-5T=I23 1280-10S=A35 1282-T=A35
1289-10S=A42 1309-10S=A38 1324-10S=A41 1400-10S=A75 1487-5T=A54 1520-10S=D80 1564-10S=D64 1631-30T=I40 1676-30T=D100
1855-H=I52 1975-H=A75 2187-H=I100
"""
"""Domains and variates of the 32 sets; all have three terms."""


def boomlet_table() -> list[Configuration]:
    """The 96 configurations of BOOMLET."""
    found = []
    for entry in _BOOMLET.split():
        dataset, facts = entry.split("=")
        domains = [_DOMAINS[letter] for letter in facts if letter in _DOMAINS]
        step = "Medium" if dataset.endswith("-H") else "Short"
        found += _terms(f"ds-{dataset}", step, "long", domains, int(facts.lstrip("ADIN")))
    return found


def _terms(
    dataset: str, step: str, longest: str, domains: list[str], variates: int, kinds: str | list[str] = ""
) -> list[Configuration]:
    """kinds: type of the metrics, gauge, rate, count or distribution."""
    terms = ["short"] if longest == "short" else list(TERMS)
    groups = {"domain": domains, "metric type": [kinds] if isinstance(kinds, str) else kinds}
    groups = {title: names for title, names in groups.items() if all(names)}
    return [
        Configuration(f"{dataset}/{step}/{term}", dataset, term, str(domains), variates, groups=groups)
        for term in terms
    ]


def boomlet_configurations(path: Path, file: Path | None = None) -> list[Configuration]:
    found = [c for c in boomlet_table() if folders.is_saved(path / c.folder)]
    if not found:
        raise ValueError(
            f"tasks.path={path} holds no dataset of BOOMLET (such as ds-3-10S/{folders.STATE}); "
            "huggingface-cli download Datadog/BOOM --repo-type dataset --local-dir DIR fetches them"
        )
    return found


def configurations(path: Path, file: Path | None = None) -> list[Configuration]:
    """Those that boom_properties.json names: domain, frequency, num_variates and longest term of every dataset."""
    file = file or path / PROPERTIES
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: it says which datasets have which terms; it lies in the folder boom of "
            "github.com/DataDog/toto (tasks.list=FILE where it is elsewhere; tasks=boomlet does without)"
        )
    try:
        named = json.loads(file.read_text())
        table = [
            c
            for name, facts in named.items()
            for c in _terms(
                name,
                facts["frequency"],
                facts["term"],
                list(facts["domain"]),
                int(facts["num_variates"]),
                facts.get("type", []),
            )
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error!r}); fetch it again") from error
    found = [c for c in table if folders.is_saved(path / c.folder)]
    if not found:
        raise ValueError(f"tasks.path={path} holds none of the {len(named):,} datasets that {PROPERTIES} names")
    return found


def summary(tables: Tables) -> dict[str, Any]:
    """Two parts: MASE and CRPS over Seasonal Naive's; MAE and CRPS as they are where Seasonal Naive has no error."""
    naive = tables[MASE].columns[-1]
    parts = aggregate.boom(tables[MASE], tables[CRPS], tables["MAE[0.5]"], naive, LOW_VARIANCE)
    return {
        part: {
            "configurations": found.attrs["configurations"],
            "forecasters": {str(f): {k: float(v) for k, v in row.items()} for f, row in found.iterrows()},
        }
        for part, found in parts.items()
    }


def ratios(tables: Tables) -> Tables:
    return aggregate.boom_ratios(tables, LOW_VARIANCE)


def row(name: str, line: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """GIFT-Eval's and a sixteenth column."""
    return plain_row(name, line, metrics) | {"dataset_size": line["windows"]}


_SAME = (
    gift_eval.windows,
    gift_eval.fingerprint,
    pooled,
    COLUMNS,
    row,
    summary,
    gift_eval.METRICS,
    ratios,
    aggregate.shifted_mean,
    "seasonalnaive",
)
BOOM = Benchmark("BOOM", 2048, 7413, "Datadog/BOOM", configurations, *_SAME)
BOOMLET = Benchmark("BOOMLET", 2048, 96, "Datadog/BOOM", boomlet_configurations, *_SAME)
