"""Sources -> quality -> groups no wider than a training row -> shards."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import OmegaConf

from data_pipelines import shards
from data_pipelines.quality import Counts, Rules, clean, split_wide
from data_pipelines.series import Series
from data_pipelines.sources import series_parquet, tables
from data_pipelines.synthetic import prior

log = logging.getLogger(__name__)

MAX_VARIATES = 32  # a training row of the recipe holds this many
QUICKSTART_VARIATES = 8  # rows of the quickstart are narrower
SUFFIXES = {"parquet": (".parquet",), "csv": (".csv", ".csv.gz", ".csv.xz", ".csv.bz2", ".csv.zst")}
SPLITS = ("train", "validation", "heldout")
SPLITS_FILE = "splits.yaml"


@dataclass(frozen=True)
class TableOptions:
    """How to read tables that are not in the series layout; '' lets the reader decide."""

    name: str = ""
    """Source name of all tables; '' takes the folder of each file."""
    domain: str = "observability"
    licence: str = "unknown"
    time: str = ""
    item: str = ""


def build(
    series: Iterable[Series],
    out: str | Path,
    config: dict[str, Any],
    rules: Rules | None = None,
    counts: Counts | None = None,
    replace: bool = False,
    max_variates: int = MAX_VARIATES,
) -> dict[str, Any]:
    """Write series as a dataset at `out`; returns its manifest, whose "quality" says what was rejected and why.

    config is what made the series, for the record. Groups wider than max_variates are split evenly. Raises ValueError
    where nothing is left to write.
    """
    rules, counts = rules or Rules(), counts or Counts()
    record = {**config, "quality": dataclasses.asdict(rules), "max_variates": max_variates}
    kept = _cleaned(series, rules, counts, max_variates)
    first = next(kept, None)
    if first is None:
        raise ValueError(f"{out}: nothing to write: {_why_empty(counts)}")
    manifest = shards.write_shards(out, itertools.chain([first], kept), config=record, replace=replace)
    manifest["quality"] = counts.as_dict()
    file = Path(out) / shards.MANIFEST
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    os.replace(partial, file)
    return manifest


def _cleaned(series: Iterable[Series], rules: Rules, counts: Counts, max_variates: int) -> Iterator[Series]:
    for s in series:
        fit = clean(s, rules, counts)
        if fit is not None:
            yield from split_wide(fit, max_variates, counts)


def _why_empty(counts: Counts) -> str:
    if not counts.series_read:
        return "the source holds no series"
    reasons = ", ".join(f"{name} {n}" for name, n in counts.series_rejected.most_common())
    return f"all {counts.series_read} series were rejected ({reasons}); see the quality.* settings"


def find_files(path: str | Path, kind: str) -> list[Path]:
    """Files of one kind ('parquet' or 'csv') at or below a path, in a fixed order; ValueError where there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"source.path={path} does not exist; give a folder of {kind} files, or one file")
    found = sorted(
        f
        for f in path.rglob("*")
        if f.name.endswith(SUFFIXES[kind]) and not f.name.startswith(".") and not _is_ours(f.relative_to(path), path)
    )
    if not found:
        raise ValueError(f"source.path={path} holds no {kind} files (*{', *'.join(SUFFIXES[kind])})")
    return found


def _is_ours(file: Path, root: Path) -> bool:
    """Whether a file lies in what an evaluation left below `root` (evaluation.json, or a cache DIR.eval)."""
    folders = [root / parent for parent in file.parents][:-1]
    return any(f.name.endswith(".eval") or (f / "evaluation.json").is_file() for f in folders)


def read_files(path: str | Path, kind: str, options: TableOptions, counts: Counts) -> Iterator[Series]:
    """Series of all files at a path: the series layout where a Parquet file has it, else tables.

    A table's source is the folder it lies in; its items are named by its path below `path`.
    """
    path = Path(path)
    for file in find_files(path, kind):
        if kind == "parquet" and tables.is_series_file(file):
            yield from series_parquet.read(file)
            continue
        source = options.name or file.resolve().parent.name or "tables"
        prefix = file.parent.relative_to(path).as_posix() if path.is_dir() and options.name else "."
        for s in tables.read(
            file, source, counts.table_rows, options.domain, options.licence, options.time, options.item
        ):
            yield s if prefix == "." else dataclasses.replace(s, item_id=f"{prefix}/{s.item_id}")


def read_splits(folder: str | Path) -> dict[str, list[str]]:
    """Sources of the validation and held-out splits of a folder of series files; every other source is for training."""
    file = Path(folder) / SPLITS_FILE
    if not file.is_file():
        raise ValueError(f"{file} is missing: it lists the sources of {', '.join(SPLITS[1:])}")
    tree = OmegaConf.to_container(OmegaConf.load(file))
    if (
        not isinstance(tree, dict)
        or set(tree) != set(SPLITS[1:])
        or not all(isinstance(v, list) for v in tree.values())
    ):
        raise ValueError(f"{file}: must map {' and '.join(SPLITS[1:])} to lists of source names")
    if both := set(tree["validation"]) & set(tree["heldout"]):
        raise ValueError(f"{file}: {sorted(both)} are in both splits; a source belongs to one")
    return {split: list(map(str, tree[split])) for split in SPLITS[1:]}


def build_quickstart(
    folder: str | Path,
    out: str | Path,
    synthetic_count: int = 3072,
    synthetic_length: int = 2048,
    seed: int = 0,
    rules: Rules | None = None,
    replace: bool = False,
) -> dict[str, dict[str, Any]]:
    """Build out/train, out/validation and out/heldout from the committed real series; split -> manifest.

    Training also gets `synthetic_count` synthetic series of `synthetic_length` steps. Splits are disjoint by source.
    """
    out, splits, files = Path(out), read_splits(folder), find_files(folder, "parquet")
    for split in SPLITS:  # before the first is built, not after two of them are
        if (out / split).exists() and not replace:
            raise ValueError(f"{out / split} exists; choose another folder or replace it (replace=true)")
    split_of = {source: split for split, sources in splits.items() for source in sources}
    present = {name for file in files for name in pq.read_table(file, columns=["source"])["source"].to_pylist()}
    if missing := set(split_of) - present:
        raise ValueError(f"{Path(folder) / SPLITS_FILE}: {sorted(missing)} are in no file of {folder}")

    def real(split: str) -> Iterator[Series]:
        for s in itertools.chain.from_iterable(map(series_parquet.read, files)):
            if split_of.get(s.source, "train") == split:
                yield s

    manifests = {}
    for split in SPLITS:
        series: Iterable[Series] = real(split)
        config: dict[str, Any] = {"source": "quickstart", "split": split}
        if split == "train" and synthetic_count:
            config |= {"synthetic_count": synthetic_count, "synthetic_length": synthetic_length, "seed": seed}
            series = itertools.chain(
                series, prior.series(prior.DEFAULT_WEIGHTS, synthetic_count, synthetic_length, seed)
            )
        manifests[split] = build(series, out / split, config, rules, replace=replace, max_variates=QUICKSTART_VARIATES)
        log.info("%s: %d series", out / split, manifests[split]["series"])
    return manifests
