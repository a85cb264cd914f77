"""The quickstart's datasets: the real series that ship with the project, split by source, and synthetic ones."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import OmegaConf

from data_pipelines.build import Options, build
from data_pipelines.quality import Rules
from data_pipelines.series import Series
from data_pipelines.sources import Unit
from data_pipelines.sources.files import FileSource
from data_pipelines.synthetic import prior
from data_pipelines.workplace import check_free

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "heldout")
SPLITS_FILE = "splits.yaml"
VARIATES = 8  # of the quickstart's rows
_SYNTHETIC = "synthetic"
# Written out, so that a family that joins the prior's default mix does not change the quickstart's data.
SYNTHETIC_WEIGHTS = {
    "telemetry": 4.0,
    "forecast_pfn": 1.0,
    "kernel": 1.0,
    "sinewave": 1.0,
    "sawtooth": 1.0,
    "step": 1.0,
    "anomaly": 1.0,
    "spike": 1.0,
}


@dataclass(frozen=True)
class QuickstartSource:
    """One split of the real series in `folder`; with `count` synthetic series of `length` steps beside them."""

    folder: str
    held: tuple[tuple[str, str], ...]
    """(source, split) of every source that is not for training."""
    split: str
    count: int = 0
    length: int = 0
    seed: int = 0

    def units(self) -> list[Unit]:
        real = FileSource(self.folder, "parquet").units()
        synthetic = Unit(_SYNTHETIC, 4 * self.count * self.length, f"{self.seed}")
        return [*real, synthetic] if self.count else real

    def read(self, unit: Unit, counts: Counter[str]) -> Iterator[Series]:
        if unit.key == _SYNTHETIC:
            yield from prior.series(SYNTHETIC_WEIGHTS, self.count, self.length, self.seed)
            return
        held = dict(self.held)
        for s in FileSource(self.folder, "parquet").read(unit, counts):
            if held.get(s.source, "train") == self.split:
                yield s


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
    options: Options | None = None,
) -> dict[str, dict[str, Any]]:
    """Build out/train, out/validation and out/heldout from the committed real series; split -> manifest.

    Training also gets `synthetic_count` synthetic series of `synthetic_length` steps. Splits are disjoint by source.
    """
    options = dataclasses.replace(options or Options(), max_variates=VARIATES)
    out, splits = Path(out), read_splits(folder)
    for split in SPLITS:  # before the first is built, not after two of them are
        check_free(out / split, options.replace)
    held = tuple((source, split) for split, sources in splits.items() for source in sources)
    files = FileSource(str(folder), "parquet")
    present = {
        name
        for unit in files.files()
        for name in pq.read_table(files.where(unit), columns=["source"])["source"].to_pylist()
    }
    if missing := {source for source, _ in held} - present:
        raise ValueError(f"{Path(folder) / SPLITS_FILE}: {sorted(missing)} are in no file of {folder}")
    manifests = {}
    for split in SPLITS:
        source = QuickstartSource(str(folder), held, split)
        config: dict[str, Any] = {"source": "quickstart", "split": split, "splits": splits}
        if split == "train" and synthetic_count:
            config |= {"synthetic_count": synthetic_count, "synthetic_length": synthetic_length, "seed": seed}
            source = dataclasses.replace(source, count=synthetic_count, length=synthetic_length, seed=seed)
        manifests[split] = build(source, out / split, config, rules, options)
        log.info("%s: %d series", out / split, manifests[split]["series"])
    return manifests
