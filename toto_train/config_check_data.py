"""Impossible combinations of the settings below `data`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from data_pipelines.series import DOMAINS
from toto_train.config import AugmentConfig, Config, MixtureEntry


def nearest(key: str, valid: Iterable[str]) -> str:
    """'; did you mean ...?' or, when nothing is near, the list of what is valid."""
    valid = sorted(valid)
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid here: {', '.join(valid)}"


def data_problems(c: Config) -> list[str]:
    """What is wrong with the mixture, its stages and the augmentation; the data themselves are not looked at."""
    out, d = [], c.data
    for name, entry in d.mixture.items():
        out += [f"data.mixture.{name}.{p}" for p in _entry_problems(entry)]
        if not entry.path and not entry.families and not c.plan:
            out.append(
                f"data.mixture.{name}.path is empty; give data.mixture.{name}.path=FOLDER of shards "
                f"(scripts/build_shards.py writes them), or data.mixture.{name}.families of the synthetic prior"
            )
    out += _family_problems(c)
    if d.mixture and not sum(e.weight for e in d.mixture.values()) > 0:
        out.append("data.mixture: all weights are 0; give at least one entry a positive weight")
    out += _stage_problems(c) + augment_problems(d.augment)
    if not d.mixture and not c.plan:
        out.append("data.mixture is empty; choose data=quickstart, or data=shards data.mixture.corpus.path=FOLDER")
    return out


def _entry_problems(entry: MixtureEntry) -> list[str]:
    out = []
    if entry.balance not in ("equal", "sqrt", "points"):
        out.append(f"balance={entry.balance!r} must be one of equal, sqrt, points")
    if entry.weight < 0:
        out.append(f"weight={entry.weight} must not be negative")
    if entry.domain and entry.domain not in DOMAINS:
        out.append(f"domain={entry.domain!r} must be empty or one of {', '.join(DOMAINS)}")
    if entry.min_interval < 0 or entry.max_interval < 0:
        out.append(f"min_interval={entry.min_interval}, max_interval={entry.max_interval} must not be negative")
    if entry.max_interval and entry.max_interval <= entry.min_interval:
        out.append(f"max_interval={entry.max_interval} must be above min_interval={entry.min_interval}, or 0: no bound")
    if entry.downsample < 1:
        out.append(f"downsample={entry.downsample} must be 1 or more steps")
    return out


def _family_problems(c: Config) -> list[str]:
    """What is wrong with the entries whose series the run makes itself."""
    made = {name: entry for name, entry in c.data.mixture.items() if entry.families}
    if not made:
        return []
    from data_pipelines.synthetic import prior  # takes a second to import, which runs on shards need not pay

    out: list[str] = []
    owners: dict[str, str] = {}
    for name, entry in made.items():
        where = f"data.mixture.{name}"
        for family, weight in entry.families.items():
            if family not in prior.FAMILIES:
                out.append(f"{where}.families: no family {family!r}; {nearest(family, prior.FAMILIES)}")
            if weight < 0:
                out.append(f"{where}.families.{family}={weight} must not be negative")
            if weight > 0 and (owner := owners.setdefault(family, name)) != name:
                out.append(f"{where}.families.{family} is in {owner} too, and both would make the same series")
        if not any(weight > 0 for weight in entry.families.values()):
            out.append(f"{where}.families: all weights are 0; give at least one a positive weight")
        if entry.path:
            out.append(f"{where} has a path beside its families; ~{where}.families reads the path")
        plain = MixtureEntry()
        out += [
            f"{where}.{key}={getattr(entry, key)!r} chooses among stored series and does nothing for families"
            for key in ("include", "exclude", "balance", "domain", "min_interval", "max_interval", "downsample")
            if getattr(entry, key) != getattr(plain, key)
        ]
    if c.data.length < prior.SHORTEST:
        out.append(f"data.length={c.data.length} must be {prior.SHORTEST} or more for series of the prior")
    return out


def _stage_problems(c: Config) -> list[str]:
    """What is wrong with data.stages alone; whether a stage is long enough shows when the data are opened."""
    out, d = [], c.data
    for start, weights in d.stages.items():
        where = f"data.stages.{start}"
        if not start.isdecimal() or int(start) == 0 or int(start) % d.lanes:
            out.append(f"{where}: a stage begins at a row number, a positive multiple of data.lanes={d.lanes}")
        out += [
            f"{where}: no entry {k!r} in data.mixture; {nearest(k, d.mixture)}" for k in weights if k not in d.mixture
        ]
        out += [f"{where}.{k}={w} must not be negative" for k, w in weights.items() if w < 0]
    return out


def augment_problems(config: AugmentConfig, prefix: str = "data.augment") -> list[str]:
    out: list[str] = []
    for name in config.PROBABILITIES:
        if not 0 <= (value := getattr(config, name)) <= 1:
            out.append(f"{prefix}.{name}={value} must be in [0, 1]")
    for name in ("censor_share", "missing_share"):
        if not 0 < (value := getattr(config, name)) < 1:
            out.append(f"{prefix}.{name}={value} must be in (0, 1); to turn it off set {prefix}.{name[:-6]}=0")
    if not 0 < config.amplitude_sigma <= 2:
        out.append(f"{prefix}.amplitude_sigma={config.amplitude_sigma} must be in (0, 2]")
    return out
