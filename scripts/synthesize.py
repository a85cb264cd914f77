"""Make synthetic shards: python scripts/synthesize.py family=NAMES|all out=DIR [count=1024] [length=4096] [seed=0]
[replace=false] [gallery=false] [gallery.real=quickstart]

family=telemetry,step:3 makes three series of step for one of telemetry; family=all mixes every family by its default
weight. They are the series that a run with this seed and data.length makes itself. gallery=true also writes
out/gallery.html: pictures of every family that was made, and beside telemetry the observability series of gallery.real,
a folder of Parquet files (empty: none).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.synthetic import prior
from data_pipelines.synthetic.gallery import write_gallery
from toto_train.arguments import fail_on, parse

QUICKSTART = Path(__file__).parents[1] / "quickstart"


def main(argv: list[str]) -> int:
    optional = {"count": 1024, "length": 4096, "seed": 0, "replace": False, "gallery": False}
    optional["gallery.real"] = str(QUICKSTART) if QUICKSTART.is_dir() else ""
    args = parse(__doc__, argv, required={"family": str, "out": str}, optional=optional)
    weights = prior.DEFAULT_WEIGHTS if args["family"] == "all" else read_weights(args["family"])
    config = {"prior": prior.FORMAT, "weights": dict(weights)} | {key: args[key] for key in ("count", "length", "seed")}
    made: Counter[str] = Counter()

    def counted() -> Iterator[Series]:
        stream = prior.series(weights, args["count"], args["length"], args["seed"])
        for item in tqdm(stream, total=args["count"], unit="series", disable=not sys.stderr.isatty()):
            made.update({item.source: 1, "points": item.points})
            yield item

    began = time.process_time()
    write_shards(args["out"], counted(), config=config, replace=args["replace"])
    seconds = time.process_time() - began
    points = made.pop("points", 0)
    families = ", ".join(f"{n} {source.removeprefix('synthetic_')}" for source, n in sorted(made.items()))
    print(f"made {made.total()} series ({families}), {points:,} points -> {args['out']}")
    print(f"{points / seconds / 1e6:.2f} million points per CPU-second, writing included")
    if args["gallery"]:
        page = Path(args["out"]) / "gallery.html"
        print(f"gallery: {write_gallery(page, weights, args['length'], args['seed'], args['gallery.real'])}")
    return 0


def read_weights(text: str) -> dict[str, float]:
    """Weights of families from 'a,b:3': one where none is given."""
    out = {}
    for part in text.split(","):
        family, sign, weight = part.partition(":")
        try:
            out[family] = float(weight) if sign else 1.0
        except ValueError:
            raise ValueError(f"family={text}: {weight!r} is no weight; write family=a,b:3") from None
    return out


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="synthesize"):
        sys.exit(main(sys.argv[1:]))
