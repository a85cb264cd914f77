"""How well a classifier tells synthetic from real series: python scripts/realism.py real=DIR [family=telemetry]
[domain=observability] [window=1024] [windows=200] [seed=0] [baseline=true]

A two-sample test by a random forest on the summary features of data_pipelines/synthetic/summary.py. Every source of
`domain` in the Parquet files of DIR counts alike, with `windows` windows of `window` steps; the synthetic windows are
cut from series of 4096. Each source is scored by a forest that saw neither that source nor the synthetic chunks it is
scored against: AUC .5 means that the forest cannot tell them apart, 1 that it always can. family= also takes a list
(kernel,step), which is mixed evenly. baseline=true tests the real
sources in the same way: random halves of them against each other (what chance does), and each source against all
others (how foreign one real source is to the rest). Needs scikit-learn.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.series import Series
from data_pipelines.sources.files import FileSource
from data_pipelines.synthetic import prior
from data_pipelines.synthetic.chunk import CHUNK
from data_pipelines.synthetic.summary import features
from toto_train.arguments import fail_on, parse

LENGTH = 4096
OBSERVED = 0.5  # least share of a window
TREES = 200
HALVES = 16
FOLDS = 5


@dataclass(frozen=True)
class Sample:
    """Windows as features [n, F], and the item or chunk of each: none is on both sides of a fold."""

    x: np.ndarray
    groups: np.ndarray


def main(argv: list[str]) -> int:
    optional = {"family": "telemetry", "domain": "observability", "window": 1024, "windows": 200, "seed": 0}
    args = parse(__doc__, argv, required={"real": str}, optional=optional | {"baseline": True})
    rng = np.random.default_rng(args["seed"])
    windows = real_windows(args["real"], args["domain"], args["window"], args["windows"], rng)
    real = {source: sample(*drawn) for source, drawn in windows.items()}
    fake = sample(*synthetic_windows(args["family"], args["window"], args["windows"] * len(real), args["seed"], rng))
    aucs, importance = against(real, fake, args["seed"])
    print(f"{args['family']} against {len(real)} {args['domain']} sources, windows of {args['window']} steps")
    for source, auc in aucs.items():
        print(f"  {source:28s} {auc:.3f}  {len(real[source].x)} windows")
    print(f"AUC {_mean(list(aucs.values()))} (mean over sources, its standard error)")
    names = list(features(np.arange(300.0)[None]))
    telling = np.argsort(-importance)[:12]
    print("most telling: " + ", ".join(f"{names[i]} {importance[i]:.3f}" for i in telling))
    if args["baseline"]:
        print(f"AUC {_mean(halves(real, rng))} real against real: random halves of the sources")
        others = [
            against({k: v for k, v in real.items() if k != j}, real[j], 0)[0]
            for j in real
            if len(set(real[j].groups)) >= FOLDS
        ]
        print(
            f"AUC {_mean([float(np.mean(list(o.values()))) for o in others])} real against real: one against the rest"
        )
    return 0


def real_windows(
    folder: str, domain: str, window: int, count: int, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Source -> `count` windows [n, window] at random places and the item of each; sources too short are left out."""
    by_source: dict[str, list[Series]] = {}
    files = FileSource(folder, "parquet")
    for unit in files.units():
        for item in files.read(unit, Counter()):
            if item.domain == domain and item.length >= window:
                by_source.setdefault(item.source, []).append(item)
    if len(by_source) < FOLDS:
        raise ValueError(
            f"{folder} has {len(by_source)} sources of domain={domain} with {window} steps; {FOLDS} are needed"
        )
    drawn = {}
    for source, items in by_source.items():
        windows: list[np.ndarray] = []
        owners: list[int] = []
        for _ in range(4 * count):  # some are mostly gaps
            i = int(rng.integers(len(items)))
            values = items[i].values
            begin = int(rng.integers(0, values.shape[1] - window + 1))
            x = values[rng.integers(len(values)), begin : begin + window]
            if np.isfinite(x).mean() >= OBSERVED and len(windows) < count:
                windows.append(x)
                owners.append(i)
        if windows:
            drawn[source] = np.array(windows), np.array(owners)
    return drawn


def synthetic_windows(
    family: str, window: int, count: int, seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` windows, one of a random variate and place of each series, and the run of 64 each is from."""
    windows: list[np.ndarray] = []
    for item in prior.series(dict.fromkeys(family.split(","), 1.0), 2 * count, LENGTH, seed):
        values = item.values
        begin = int(rng.integers(0, LENGTH - window + 1))
        x = values[rng.integers(len(values)), begin : begin + window]
        if np.isfinite(x).mean() >= OBSERVED:
            windows.append(x)
        if len(windows) == count:
            break
    return np.array(windows), np.arange(len(windows)) // CHUNK


def sample(windows: np.ndarray, groups: np.ndarray) -> Sample:
    return Sample(np.nan_to_num(np.stack(list(features(windows).values()), axis=1)), groups)


def against(real: dict[str, Sample], fake: Sample, seed: int) -> tuple[dict[str, float], np.ndarray]:
    """Source -> AUC of a forest that saw neither it nor the groups of `fake` it is scored on; and mean importances."""
    from sklearn.metrics import roc_auc_score

    sources = list(real)
    fold_of = dict(zip(sources, np.random.default_rng(seed).permutation(len(sources)) % FOLDS, strict=True))
    number = np.unique(fake.groups, return_inverse=True)[1]
    fake_fold = np.random.default_rng(seed).permutation(number.max() + 1)[number] % FOLDS
    aucs: dict[str, float] = {}
    importance = []
    for fold in range(FOLDS):
        seen = [real[s] for s in sources if fold_of[s] != fold]
        model = _forest(seen, [Sample(fake.x[fake_fold != fold], fake.groups)], seed)
        importance.append(model.feature_importances_)
        told = model.predict_proba(fake.x[fake_fold == fold])[:, 1]
        for source in (s for s in sources if fold_of[s] == fold):
            score = model.predict_proba(real[source].x)[:, 1]
            labels = np.r_[np.zeros(len(score)), np.ones(len(told))]
            aucs[source] = float(roc_auc_score(labels, np.r_[score, told]))
    return {s: aucs[s] for s in sources}, np.mean(importance, axis=0)


def halves(real: dict[str, Sample], rng: np.random.Generator) -> list[float]:
    """AUC of one half of the sources against the other, by a forest that saw other sources of both halves."""
    from sklearn.metrics import roc_auc_score

    aucs = []
    for _ in range(HALVES):
        order = rng.permutation(list(real))
        a, b = order[::2], order[1::2]
        model = _forest([real[s] for s in a[1:]], [real[s] for s in b[1:]], int(rng.integers(1 << 30)))
        scores = [model.predict_proba(real[s].x)[:, 1] for s in (a[0], b[0])]
        labels = np.r_[np.zeros(len(scores[0])), np.ones(len(scores[1]))]
        aucs.append(float(roc_auc_score(labels, np.concatenate(scores))))
    return aucs


def _forest(zeros: list[Sample], ones: list[Sample], seed: int) -> Any:
    """Both classes weigh the same, and so does every sample within its class."""
    from sklearn.ensemble import RandomForestClassifier

    parts = [(s.x, label, 1 / (len(group) * len(s.x))) for label, group in enumerate((zeros, ones)) for s in group]
    x = np.concatenate([p[0] for p in parts])
    y = np.concatenate([np.full(len(p[0]), p[1]) for p in parts])
    weight = np.concatenate([np.full(len(p[0]), p[2]) for p in parts])
    return RandomForestClassifier(TREES, min_samples_leaf=4, random_state=seed).fit(x, y, weight / weight.mean())


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="realism"):
        sys.exit(main(sys.argv[1:]))
