"""What a training step saw: python scripts/inspect_rows.py run=runs/NAME step=N [rows=4] [out=FILE.png]

Prints, for the first rows of optimizer step N (counted from 0; rows=0 prints all), their number, source, observed share
and the windows packed into them: series, file, first step and steps; then how many rows of the step each source gave.
Draws the rows to out (default: RUN/step-N.png; out=none draws nothing): black what the model sees, red what is hidden
from it and has to be predicted.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from toto_train.arguments import fail_on, parse
from toto_train.config_check import from_tree
from toto_train.data.order import RowSpec
from toto_train.data.rows import Batch, Rows

DRAWN = 8  # rows in the picture, of at most as many variates each


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"run": str, "step": int}, optional={"rows": 4, "out": ""})
    file = Path(args["run"]) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{file} is missing; run= is a run's folder")
    config = from_tree(OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]
    if not 0 <= args["step"] < config.schedule.max_steps:
        raise ValueError(f"step={args['step']} must be in 0 .. {config.schedule.max_steps - 1}")
    if args["rows"] < 0:
        raise ValueError(f"rows={args['rows']} must not be negative (0: all)")
    rows = Rows(config)
    first, count = args["step"] * config.global_rows, args["rows"] or config.global_rows
    numbers = range(first, first + min(count, config.global_rows))
    print(f"step {args['step']} = rows {first} .. {first + config.global_rows - 1}; data {rows.order.fingerprint[:12]}")
    shown: list[tuple[RowSpec, Batch]] = []
    for n in numbers:
        batch, spec = rows.batch([n]), rows.order.row(n)
        if len(shown) < DRAWN:
            shown.append((spec, batch))
        describe(rows, spec, batch)
    whole = Counter(rows.order.row(n).source for n in range(first, first + config.global_rows))
    print("rows of the step: " + ", ".join(f"{source} {k}" for source, k in whole.most_common()))
    out = Path(args["out"] or Path(args["run"]) / f"step-{args['step']}.png")
    if args["out"] != "none":
        draw(shown, config.model.patch_size, out)
        print(f"picture: {out}")
    return 0


def describe(rows: Rows, spec: RowSpec, batch: Batch) -> None:
    mask, visible = batch["target_mask"], batch["cpm_mask"]
    hidden = np.count_nonzero(mask & ~visible) / max(np.count_nonzero(mask), 1)
    lost = f", {batch['lost'][0]} windows in quarantine" if batch["lost"][0] else ""
    print(f"row {spec.n}: {spec.source}, {100 * mask.mean():.1f} % observed, {100 * hidden:.1f} % of that hidden{lost}")
    shards, source = rows.order.open(spec.source)
    for k, (series, start, steps) in enumerate(spec.windows):
        meta, variates = shards.meta(source, series), np.count_nonzero(batch["series_ids"][0] == k)
        where = f"{variates} variates, steps {start} .. {start + steps - 1}, {shards.shard_name(source, series)}"
        print(f"  {meta['item_id']}: {where}")


def draw(shown: list[tuple[RowSpec, Batch]], patch: int, out: Path) -> None:
    """One panel a row, its first variates above each other, each scaled to its own range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 2.6 * len(shown)), layout="constrained")
    for axes, (spec, batch) in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        target, mask, visible = (batch[name][0, :DRAWN] for name in ("target", "target_mask", "cpm_mask"))
        for v in range(len(target)):
            if not mask[v].any():
                continue
            values = np.where(mask[v], target[v], np.nan)
            low, high = np.nanmin(values), np.nanmax(values)
            values = (values - low) / max(high - low, 1e-30) * 0.85 - v
            steps = np.arange(len(values))
            axes.plot(steps, np.where(visible[v], values, np.nan), color="black", linewidth=0.6)
            axes.plot(steps, np.where(visible[v], np.nan, values), color="tab:red", linewidth=0.6)
        axes.set(xlim=(0, target.shape[1]), yticks=[], ylim=(-len(target) + 0.8, 1))
        axes.set_xticks(range(0, target.shape[1] + 1, max(1, target.shape[1] // patch // 8) * patch))
        axes.tick_params(labelsize=7)
        more = (
            f", first {len(target)} of {batch['target'].shape[1]} variates"
            if len(target) < batch["target"].shape[1]
            else ""
        )
        axes.set_title(f"row {spec.n}: {spec.source}, {len(spec.windows)} series{more}", fontsize=9, loc="left")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp.png")
    figure.savefig(temporary, dpi=90)
    temporary.replace(out)


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="inspect_rows"):
        sys.exit(main(sys.argv[1:]))
