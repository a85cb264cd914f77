"""Does the best learning rate, or another setting, stay as the model grows? python scripts/transfer.py out=DIR [...]

Trains models of several widths, or of several depths, at several values of one setting on the same rows. Prints tables
and draws out/lr_transfer.png (final loss against learning rate, a line a size, a panel a rule) and out/optimizers.png
(loss curves of every rule's best rate at one size). Every finished run is kept in out/: the same command again, or one
with more rules, sizes, values or seeds, or another setting, trains only what is missing.

rules=spectral,unit_scaled    what trains the matrices of the stack: NorMuon with that rule for its learning rate
                    (spectral, unit_scaled, original, match_rms_adamw), muon (spectral, rows not normalised) or adamw.
                    All else is the published recipe; its AdamW trains the other parameters at the recipe's rate
lr.RULE=0.1,0.2,0.4 peak learning rates of the stack to try under a rule
setting=optimizer.normuon.momentum values=0.9,0.95,0.98   what is swept instead, any number of optimizer, schedule or
                    objective; the rate of a rule then is lr.RULE=, one value, or the middle one of its range. Pictures
                    begin with the setting's name; the axis is logarithmic where all values are positive and their steps
                    at least as even in ratio as in difference. What objective sets is compared by measure=heldout
widths=64,128,256 depths=4   or one width and several depths, as in widths=64 depths=2,4,8
head_width=32       of attention
seeds=0             of initial weights and of rows
steps=200 rows=8 variates=8 length=512    of training; warm-up over a tenth of the steps, decay over the last 30 %
path=shards/quickstart/train exclude=synthetic_*   series to train on, and a glob of sources to leave out
heldout=shards/quickstart/heldout windows=32       series not trained on, and how many rows of them are scored
measure=train       which final loss chooses: train (mean of the last tenth of the steps) or heldout
at=128              width at which rules are compared, where there are several rules and widths
processes=1         runs at a time, each of one thread
"""

from __future__ import annotations

import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toto_train import transfer_report as report
from toto_train.arguments import fail_on, parse
from toto_train.swept_setting import STACK_LR, kind_of
from toto_train.transfer import RULES, Result, Shared, Trial
from toto_train.transfer_folder import read_results, sweep

RATES = {
    "spectral": "0.08,0.16,0.33,0.65,1.3",
    "unit_scaled": "0.0072,0.0144,0.0288,0.0576,0.115",
    "original": "0.08,0.16,0.33,0.65,1.3",
    "match_rms_adamw": "0.036,0.072,0.144,0.288,0.576",
    "muon": "0.08,0.16,0.33,0.65,1.3",
    "adamw": "0.06,0.12,0.24,0.48,0.96",
}
"""Octaves apart, around what is best at width 64 (docs/optimizer.md)."""
SHARED: dict[str, Any] = {
    "path": "shards/quickstart/train", "exclude": "synthetic_*", "heldout": "shards/quickstart/heldout", "windows": 32,
    "head_width": 32, "steps": 200, "rows": 8, "variates": 8, "length": 512,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "rules": "spectral,unit_scaled", **{f"lr.{rule}": rates for rule, rates in RATES.items()}, "widths": "64,128,256",
    "depths": "4", "setting": STACK_LR, "values": "", "seeds": "0", **SHARED, "measure": "train",
    "at": 128, "processes": 1,
}  # fmt: skip


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"out": str}, optional=OPTIONS)
    trials, out, measure = grid(args), Path(args["out"]), args["measure"]
    if measure not in report.MEASURES:
        raise ValueError(f"measure={measure!r} must be one of {', '.join(report.MEASURES)}")
    if measure == "train" and args["setting"].startswith("objective."):
        raise ValueError(f"setting={args['setting']} changes what the training loss measures; give measure=heldout")
    if args["processes"] < 1:
        raise ValueError(f"processes={args['processes']} must be positive")
    missing = len(set(trials) - set(read_results(out)))
    with tqdm(total=missing, unit=" runs", disable=not sys.stderr.isatty()) as bar:

        def tell(r: Result) -> None:
            bar.update()
            bar.write(f"{r.trial}: train {r.train:.4f}, held out {r.heldout:.4f}, {r.cpu_seconds:.0f} CPU seconds")

        results, failed = sweep(out, trials, Shared(**{k: args[k] for k in SHARED}), args["processes"], tell)
    if results:
        print("\n" + report.transfer_table(results, measure))
        print(report.draw_transfer(results, measure, out / f"{args['setting']}_transfer.png"))
    compared = [r for r in results if r.trial.width == args["at"]]
    if len({r.trial.rule for r in compared}) > 1 and len({r.trial.depth for r in compared}) == 1:
        print("\n" + report.comparison_table(compared, measure))
        what = "" if args["setting"] == STACK_LR else f"{args['setting']}_"
        print(report.draw_comparison(compared, measure, out / f"{what}optimizers.png"))
    print(f"{len(results)} runs, {sum(r.cpu_seconds for r in results) / 60:.1f} CPU minutes: {out / 'results.jsonl'}")
    for trial, why in failed.items():
        print(f"transfer: {trial} failed: {why}", file=sys.stderr)
    return 1 if failed else 0


def grid(args: dict[str, Any]) -> list[Trial]:
    """The trials asked for, large models first: they take longest."""
    rules = args["rules"].split(",")
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"rules={unknown[0]!r} must be of {', '.join(RULES)}")
    widths, depths, seeds = (numbers(args, key, int) for key in ("widths", "depths", "seeds"))
    if len(widths) > 1 and len(depths) > 1:
        raise ValueError(f"widths={args['widths']} depths={args['depths']}: give several of one, and one of the other")
    rates = {rule: numbers(args, f"lr.{rule}", float) for rule in rules}
    kind, setting = kind_of(args["setting"]), args["setting"]
    cells = product(sorted(widths, reverse=True), sorted(depths, reverse=True), rules, seeds)
    if setting == STACK_LR:
        if args["values"]:
            raise ValueError(f"values={args['values']} needs setting=; learning rates of the stack are lr.RULE=")
        return [Trial(rule, width, depth, lr, seed) for width, depth, rule, seed in cells for lr in rates[rule]]
    if not args["values"]:
        raise ValueError(f"setting={setting} needs values=, such as values=0.9,0.95,0.98")
    for rule in rules:
        if args[f"lr.{rule}"] == RATES[rule]:
            rates[rule] = rates[rule][len(rates[rule]) // 2 :]
        elif len(rates[rule]) > 1:
            raise ValueError(f"lr.{rule}={args[f'lr.{rule}']}: one rate, where setting={setting} is swept")
    values = numbers(args, "values", kind)
    return [Trial(rule, width, depth, rates[rule][0], seed, setting, value)
            for width, depth, rule, seed in cells for value in values]  # fmt: skip


def numbers(args: dict[str, Any], key: str, kind: type) -> list[Any]:
    """'1,2,4' -> [1, 2, 4]; each once."""
    try:
        found = [kind(text) for text in args[key].split(",")]
        if not all(map(math.isfinite, found)):
            raise ValueError
        return list(dict.fromkeys(found))
    except ValueError:
        raise ValueError(
            f"{key}={args[key]!r} must be numbers with commas between, each of type {kind.__name__}"
        ) from None


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="transfer"):
        sys.exit(main(sys.argv[1:]))
