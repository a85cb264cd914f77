"""Which data helps: python scripts/ablation.py out=DIR [points=40000000] [seeds=0,1] [processes=1]
[any setting of train.py ...]

Trains the quickstart's model on equal numbers of observed points of real series only, of synthetic ones only, and of
mixtures, and scores all of them on the quickstart's held-out sources. A run that is complete is not run again. Prints
the table that docs/synthetic.md has, with the CPU time of each kind of data (user and system, of train.py and all
processes it starts, its scores included) beside a budget of two hours; DIR/ablation.json holds every score and time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toto_train.arguments import fail_on, parse
from toto_train.cli import config_from_overrides
from toto_train.data.order import Order
from toto_train.files import write_text

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, dict[str, float]] = {
    "real only": {"real": 1.0},
    "TempoPFN's families only": {"tempopfn": 1.0},
    "TempoPFN's + telemetry": {"tempopfn": 0.5, "telemetry": 0.5},
    "TempoPFN's + telemetry + couplers": {"tempopfn": 0.4, "telemetry": 0.4, "couplers": 0.2},
    "all three + real": {"tempopfn": 0.25, "telemetry": 0.25, "couplers": 0.1, "real": 0.4},
}
"""Shares of observed points by entry of configs/data/ablation.yaml."""
METRICS = ("mwql", "mase")
BUDGET = 2.0  # CPU-hours, of all runs together
OPTIONS: dict[str, Any] = {"points": 40_000_000, "seeds": "0,1", "processes": 1}


def main(argv: list[str]) -> int:
    own = [a for a in argv if a.partition("=")[0] in {*OPTIONS, "out"} or a.startswith("-")]
    args = parse(__doc__, own, required={"out": str}, optional=OPTIONS)
    given = [a for a in argv if a not in own]
    out, seeds = Path(args["out"]), [int(s) for s in args["seeds"].split(",")]
    jobs = {(arm, seed): job(arm, seed, args["points"], out, given) for seed in seeds for arm in ARMS}
    with ThreadPoolExecutor(args["processes"]) as pool:
        failed = [key for key, status in zip(jobs, pool.map(run, jobs.values()), strict=True) if status]
    scores = {arm: [read(out / name_of(arm, seed)) for seed in seeds if (arm, seed) not in failed] for arm in ARMS}
    seconds = {arm: [cpu_seconds(out / name_of(arm, seed)) for seed in seeds] for arm in ARMS}
    facts = {"points": args["points"], "seeds": seeds, "scores": scores, "cpu_seconds": seconds}
    write_text(out / "ablation.json", json.dumps(facts, indent=1))
    print(table(scores, seconds))
    total = sum(sum(of_arm) for of_arm in seconds.values()) / 3600
    print(f"CPU time {total:.2f} hours, budget {BUDGET:g}" + (": over it" if total > BUDGET else ""))
    for arm, seed in failed:
        print(f"ablation: {arm}, seed {seed} failed: {out / name_of(arm, seed)}.log", file=sys.stderr)
    return 1 if failed else 0


def name_of(arm: str, seed: int) -> str:
    return "".join(c if c.isalnum() else "_" for c in f"{arm} s{seed}")


def job(arm: str, seed: int, points: int, out: Path, given: list[str]) -> list[str]:
    """Overrides of a run that sees about so many observed points."""
    shares = {entry: ARMS[arm].get(entry, 0.0) for entry in ("real", "tempopfn", "telemetry", "couplers")}
    made = ["data=ablation", *(f"data.mixture.{entry}.weight={share}" for entry, share in shares.items())]
    made += [f"name={name_of(arm, seed)}", f"out={out}", f"seed={seed}", "validate_every=0", *given]
    config = config_from_overrides(made, ROOT / "configs")
    steps = math.ceil(points / (config.points_per_step * Order(config.data, seed).fill))
    return [*made, f"schedule.max_steps={steps}", f"schedule.warmup_steps={steps // 12}",
            f"schedule.decay_steps={steps // 3}"]  # fmt: skip


def run(overrides: list[str]) -> int:
    """Exit status of train.py, which does nothing where the run is complete."""
    named = dict(o.split("=", 1) for o in overrides)
    folder = Path(named["out"]) / named["name"]
    if (folder / "scores.json").is_file():
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *overrides], stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)  # of this child and its own, while others run beside it
    process.returncode = os.waitstatus_to_exitcode(status)
    spent = cpu_seconds(folder) + used.ru_utime + used.ru_stime  # a run that was cut off spent some before
    write_text(folder.with_suffix(".cpu"), f"{spent:.1f}\n")
    return process.returncode


def cpu_seconds(folder: Path) -> float:
    """CPU-seconds that a run has taken so far; those of a run from before they were kept are not in it."""
    kept = folder.with_suffix(".cpu")
    return float(kept.read_text()) if kept.is_file() else 0.0


def read(folder: Path) -> dict[str, float]:
    overall = json.loads((folder / "scores.json").read_text())["overall"]["relative"]
    return {metric: overall[metric]["value"] for metric in METRICS}


def table(scores: dict[str, list[dict[str, float]]], seconds: dict[str, list[float]]) -> str:
    """Markdown: geometric means over seeds, the scores of the seeds, and CPU minutes of all seeds together."""
    head = ("trained on", "relative MWQL", "by seed", "relative MASE", "by seed", "CPU minutes")
    lines = [f"| {' | '.join(head)} |", "|---|--:|---|--:|---|--:|"]
    for arm, by_seed in scores.items():
        cells = []
        for metric in METRICS:
            values = [s[metric] for s in by_seed]
            mean = math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
            cells += [f"{mean:.3f}", ", ".join(f"{v:.3f}" for v in values)]
        lines.append(f"| {arm} | {' | '.join(cells)} | {sum(seconds[arm]) / 60:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="ablation"):
        sys.exit(main(sys.argv[1:]))
