"""What a training step saw: python scripts/inspect_rows.py run=runs/NAME step=N [rows=4]

Prints, for the first rows of optimizer step N (counted from 0; rows=0 prints all), their number, source, observed share
and the windows packed into them: series, file, first step and steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from toto_train.arguments import fail_on, parse
from toto_train.config_check import from_tree
from toto_train.data.rows import Rows


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"run": str, "step": int}, optional={"rows": 4})
    file = Path(args["run"]) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{file} is missing; run= is a run's folder")
    config = from_tree(OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]
    if not 0 <= args["step"] < config.schedule.max_steps:
        raise ValueError(f"step={args['step']} must be in 0 .. {config.schedule.max_steps - 1}")
    rows = Rows(config)
    first, count = args["step"] * config.global_rows, args["rows"] or config.global_rows
    numbers = range(first, first + min(count, config.global_rows))
    print(f"step {args['step']} = rows {first} .. {first + config.global_rows - 1}; data {rows.order.fingerprint[:12]}")
    for n in numbers:
        batch, spec = rows.batch([n]), rows.order.row(n)
        mask, visible = batch["target_mask"], batch["cpm_mask"]
        hidden = np.count_nonzero(mask & ~visible) / max(np.count_nonzero(mask), 1)
        print(f"row {n}: {spec.source}, {100 * mask.mean():.1f} % observed, {100 * hidden:.1f} % of that hidden")
        shards, source = rows.order.open(spec.source)
        for series, start, steps in spec.windows:
            meta, variates = shards.meta(source, series), len(shards.values(source, series))
            where = f"{variates} variates, steps {start} .. {start + steps - 1}, {shards.shard_name(source, series)}"
            print(f"  {meta['item_id']}: {where}")
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="inspect_rows"):
        sys.exit(main(sys.argv[1:]))
