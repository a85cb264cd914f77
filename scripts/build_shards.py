"""Build a dataset of shards: python scripts/build_shards.py source=parquet|csv|quickstart source.path=DIR out=DIR

source=parquet   Parquet files at or below source.path (or one file), in the series layout or as tables (long or wide)
source=csv       CSV tables, long (item, time, value columns) or wide (time, one column per variate)
source=quickstart   the real series shipped in quickstart/ and synthetic ones: out/train, out/validation, out/heldout

For tables: source.name= (default: each file's folder), source.domain=observability|general, source.licence=,
source.time= and source.item= (columns, where their names are not usual ones).
Quality: quality.min_length=64 (steps), quality.max_missing=0.9, quality.max_magnitude=1e30.
quickstart: synthetic.count=3072 synthetic.length=2048 seed=0.  Any: replace=true, executor=local.
Tables and series: max_variates=32 splits wider groups; a training row (data.variates) must hold the widest.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines import build
from data_pipelines.quality import Counts, Rules
from data_pipelines.series import DOMAINS
from toto_train.arguments import fail_on, parse

QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
TABLE_KEYS = ("name", "domain", "licence", "time", "item")
DEFAULTS: dict[str, Any] = {
    "source.path": "",
    **{f"source.{k}": getattr(build.TableOptions(), k) for k in TABLE_KEYS},
    **{f"quality.{k}": v for k, v in vars(Rules()).items()},
    "synthetic.count": 3072,
    "synthetic.length": 2048,
    "seed": 0,
    "max_variates": build.MAX_VARIATES,
    "executor": "local",
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
    if args["source"] not in (*build.SUFFIXES, "quickstart"):
        raise ValueError(f"source={args['source']} is not one of {', '.join(build.SUFFIXES)}, quickstart")
    if args["max_variates"] < 1:
        raise ValueError(f"max_variates={args['max_variates']} must be at least 1")
    if args["executor"] != "local":
        raise ValueError(f"executor={args['executor']} is not available; use executor=local")
    if args["source.domain"] not in DOMAINS:
        raise ValueError(f"source.domain={args['source.domain']} is not one of {', '.join(DOMAINS)}")
    rules = Rules(**{k: args[f"quality.{k}"] for k in vars(Rules())})
    out, path = args["out"], args["source.path"]
    if args["source"] == "quickstart":
        synthetic = args["synthetic.count"], args["synthetic.length"]
        made = build.build_quickstart(path or QUICKSTART, out, *synthetic, args["seed"], rules, args["replace"])
        return {f"{out}/{split}": manifest for split, manifest in made.items()}
    if not path:
        raise ValueError(f"source={args['source']} needs source.path=, a folder or a file")
    options = build.TableOptions(**{k: args[f"source.{k}"] for k in TABLE_KEYS})
    counts = Counts()
    series = tqdm(
        build.read_files(path, args["source"], options, counts), unit=" series", disable=not sys.stderr.isatty()
    )
    config = {k: v for k, v in args.items() if k.startswith("source")}
    return {out: build.build(series, out, config, rules, counts, args["replace"], args["max_variates"])}


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
        if quality[key]:
            lines.append(f"  {label}: " + ", ".join(f"{name} {n:,}" for name, n in quality[key].items()))
    for label, key in (("impossible values made missing", "points_impossible"), ("wide groups split", "groups_split")):
        if quality[key]:
            lines.append(f"  {label}: {quality[key]:,}")
    return "\n".join(lines)


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="build_shards"):
        sys.exit(main(sys.argv[1:]))
