"""Make synthetic shards: python scripts/synthesize.py family=NAME|all out=DIR [count=1024] [length=4096] [seed=0]
[replace=false] [gallery=false]

family=all mixes every family by its default weight. gallery=true also draws six series of each into out/gallery.png.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.synthetic import prior
from toto_train.arguments import fail_on, parse


def main(argv: list[str]) -> int:
    optional = {"count": 1024, "length": 4096, "seed": 0, "replace": False, "gallery": False}
    args = parse(__doc__, argv, required={"family": str, "out": str}, optional=optional)
    weights = prior.DEFAULT_WEIGHTS if args["family"] == "all" else {args["family"]: 1.0}
    config = {"weights": dict(weights)} | {key: args[key] for key in ("count", "length", "seed")}
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
        print(f"gallery: {draw_gallery(weights, args['length'], args['seed'], Path(args['out']) / 'gallery.png')}")
    return 0


def draw_gallery(weights: Mapping[str, float], length: int, seed: int, path: Path) -> Path:
    """The first six series of every family, one row each."""
    from matplotlib.figure import Figure  # only this option needs it

    figure = Figure(figsize=(24, 2.4 * len(weights)), layout="constrained")
    axes = figure.subplots(len(weights), 6, squeeze=False)
    for row, family in zip(axes, weights, strict=True):
        for index, axis in enumerate(row):
            item = prior.generate(family, seed, index, length)
            axis.plot(item.values.T, linewidth=0.5)
            axis.set_title(f"{family} {index}: {item.variates} x {item.interval:g} s", fontsize=8)
            axis.tick_params(labelsize=6)
    figure.savefig(path, dpi=80)
    return path


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="synthesize"):
        sys.exit(main(sys.argv[1:]))
