"""Build a dataset of shards: python scripts/build_shards.py source=KIND source.path=DIR out=DIR

source=parquet   Parquet files at or below source.path (or one file): series a row (this project's layout, GIFT-Eval's,
                 Chronos'), or tables (long or wide)
source=csv       CSV tables, long (item, time, value columns) or wide (time, one column per variate)
source=arrow     Hugging Face datasets on disk, in the layouts of GIFT-Eval pretrain and BOOM
source=jsonl     GluonTS JSON lines
source=prometheus   a Prometheus server: source.url= source.match= source.start= source.end= source.step=
                 [source.group=job,instance] [source.rates=auto|off] [source.token=NAME_OF_ENVIRONMENT_VARIABLE]
source=quickstart   the real series shipped in quickstart/ and synthetic ones: out/train, out/validation, out/heldout
                 (synthetic.count=3072 synthetic.length=2048 seed=0)

Files: source.name= (default: each file's folder), source.domain=observability|general, source.licence=, source.freq=
(where records carry none), source.time= and source.item= (columns, where their names are not usual ones). source.path
and out may be URLs: s3://, gs://, hf://, ...
Quality: quality.min_length=64 (steps), max_missing=0.9, max_flat=0.995, max_magnitude=1e30, placeholders=true,
counters=reject|keep|rate, near_duplicate=0.7 (0: off), refuse=LIST.csv or DIR of benchmark series, max_leakage=0.1.
Shards: max_variates=32 splits wider groups (a training row, data.variates, must hold the widest), shard_mb=256.
Work: executor=local|ray, workers=0 (all cores), work=DIR (the unfinished build; on Ray, a folder every node sees),
replace=true. The same command goes on where an interrupted one stopped and ends with the same bytes.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.assemble import REPORT
from data_pipelines.build import Options, build
from data_pipelines.quality import Rules
from data_pipelines.series import DOMAINS
from data_pipelines.sources.files import SUFFIXES, FileSource
from data_pipelines.sources.prometheus import PrometheusSource
from data_pipelines.store import join
from toto_train.arguments import fail_on, parse

QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
KINDS = (*SUFFIXES, "prometheus", "quickstart")
FILES = {"path": "", "name": "", "domain": "observability", "licence": "unknown", "time": "", "item": "", "freq": ""}
PROMETHEUS = {
    "url": "", "match": "", "start": "", "end": "", "step": 0.0, "group": "job,instance", "rates": "auto", "token": "",
    "slice_points": 10_000, "timeout": 60.0,
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    **{f"source.{k}": v for k, v in (FILES | PROMETHEUS).items()},
    **{f"quality.{k}": v for k, v in vars(Rules()).items()},
    "synthetic.count": 3072,
    "synthetic.length": 2048,
    "seed": 0,
    "max_variates": Options().max_variates,
    "shard_mb": float(Options().shard_bytes / 2**20),
    "executor": "local",
    "workers": 0,
    "work": "",
    "replace": False,
}


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = parse(__doc__, argv, required={"source": str, "out": str}, optional=DEFAULTS)
    for folder, manifest in run(args).items():
        print(describe(folder, manifest))
    return 0


def run(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Folder -> manifest of every dataset built."""
    kind, out = args["source"], args["out"]
    if kind not in KINDS:
        raise ValueError(f"source={kind} is not one of {', '.join(KINDS)}")
    if args["source.domain"] not in DOMAINS:
        raise ValueError(f"source.domain={args['source.domain']} is not one of {', '.join(DOMAINS)}")
    rules = Rules(**{k: args[f"quality.{k}"] for k in vars(Rules())})
    options = Options(
        args["max_variates"], round(args["shard_mb"] * 2**20), args["executor"], args["workers"], args["work"],
        args["replace"],
    )  # fmt: skip
    if kind == "quickstart":
        from data_pipelines.quickstart import build_quickstart  # half of every worker's start otherwise

        synthetic = args["synthetic.count"], args["synthetic.length"]
        made = build_quickstart(args["source.path"] or QUICKSTART, out, *synthetic, args["seed"], rules, options)
        return {f"{out}/{split}": manifest for split, manifest in made.items()}
    source, config = _source(kind, args)
    with Bars() as bars:
        return {out: build(source, out, config, rules, options, bars.tell)}


def _source(kind: str, args: dict[str, Any]) -> tuple[FileSource | PrometheusSource, dict[str, Any]]:
    """(the source, its settings for the manifest)"""
    own = {**PROMETHEUS, **{k: FILES[k] for k in ("name", "domain", "licence")}} if kind == "prometheus" else FILES
    stray = [k for k, v in (FILES | PROMETHEUS).items() if k not in own and args[f"source.{k}"] != v]
    if stray:
        raise ValueError(f"source={kind} has no source.{stray[0]}=; it has {', '.join(f'source.{k}=' for k in own)}")
    values = {k: args[f"source.{k}"] for k in own}
    config = {"source": kind, **{f"source.{k}": v for k, v in values.items()}}
    if kind == "prometheus":
        if missing := [k for k in ("url", "match", "start", "end", "step") if not values[k]]:
            raise ValueError("source=prometheus needs " + ", ".join(f"source.{k}=" for k in missing))
        return PrometheusSource(**values), config
    if not values["path"]:
        raise ValueError(f"source={kind} needs source.path=, a folder or a file")
    return FileSource(kind=kind, **values), config


class Bars:
    """Progress of reading, in bytes, and of writing, in shards; silent where stderr is no terminal."""

    def __enter__(self) -> Bars:
        self.bars: dict[str, tqdm] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def tell(self, what: str, done: int, total: int) -> None:
        if what not in self.bars:
            unit = {"unit": "B", "unit_scale": True} if what == "read" else {"unit": " shards"}
            self.bars[what] = tqdm(total=total, desc=what, disable=not sys.stderr.isatty(), **unit)
        self.bars[what].update(done)


def describe(folder: str, manifest: dict[str, Any]) -> str:
    quality, shards = manifest["quality"], manifest["shards"]
    share = 100 * manifest["missing"] / max(manifest["points"] + manifest["missing"], 1)
    lines = [
        f"{folder}: {len(manifest['sources'])} sources, {manifest['series']:,} series, "
        f"{manifest['variates']:,} variates, {manifest['points']:,} points ({share:.1f} % missing), "
        f"{len(shards)} shards, {sum(s['bytes'] for s in shards) / 2**20:.1f} MiB"
    ]
    for label, key in (
        ("rejected series", "series_rejected"),
        ("dropped variates", "variates_dropped"),
        ("table rows", "table_rows"),
    ):
        if found := ", ".join(f"{name} {n:,}" for name, n in quality[key].items() if n):
            lines.append(f"  {label}: {found}")
    for label, key in (
        ("impossible values made missing", "points_impossible"),
        ("placeholders made missing", "points_placeholder"),
        ("counters made rates", "variates_rated"),
        ("wide groups split", "groups_split"),
    ):
        if quality[key]:
            lines.append(f"  {label}: {quality[key]:,}")
    return "\n".join([*lines, f"  what was kept and what was not: {join(folder, REPORT)}"])


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="build_shards"):
        sys.exit(main(sys.argv[1:]))
