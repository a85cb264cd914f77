"""How does the loss fall with size and data? python scripts/scaling_law.py out=DIR [key=value ...] [train.py settings]

Trains a ladder of sizes, each for several horizons (a run of train.py each, with its own decay), reads their loss on
series that none trains on, and fits L(N, D) = E + A/N^a + B/D^b over parameters N and points D. Prints tables, writes
out/report.html and out/runs.csv. Runs that are complete are not run again, those that were stopped go on. Exit status 1
where a run failed or size has no effect.

sizes=32x4,64x4,96x4,128x4,192x4   WIDTHxDEPTH; the largest is predicted by the others, and the prediction checked
steps=150,300,600,1200             horizons; warm-up over a twelfth of the steps, decay over the last third
seeds=0                            of initial weights and of rows
windows=64                         rows of the held-out series that are scored
head_width=32                      of attention
next=384x4                         a size to predict; empty: the largest at twice its width
draws=200                          resamples behind the 95 % bands
processes=1 executor=local         as of scripts/launch_sweep.py

Everything else is a setting of train.py for all runs: data=, global_rows=, heldout.path=, optimizer.normuon.lr=. Before
them stand optimizer.normuon.lr_rule=unit_scaled optimizer.normuon.lr=0.035, whose optimum does not move with width.
"""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toto_train.arguments import fail_on, parse
from toto_train.config import Config, ModelConfig
from toto_train.files import write_text
from toto_train.ladder import Size, make_trials, observe, parse_sizes, repeats
from toto_train.plan import plan
from toto_train.scaling_report import analyse, text, write_report
from toto_train.sweep import Trial, launch_all

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OPTIONS: dict[str, Any] = {
    "sizes": "32x4,64x4,96x4,128x4,192x4", "steps": "150,300,600,1200", "seeds": "0", "windows": 64, "head_width": 32,
    "next": "", "draws": 200, "processes": 1, "executor": "local",
}  # fmt: skip


def main(argv: list[str]) -> int:
    own = [arg for arg in argv if arg.partition("=")[0] in (*OPTIONS, "out") or arg.startswith("-")]
    args = parse(__doc__, own, required={"out": str}, optional=OPTIONS)
    out, settings = Path(args["out"]), [arg for arg in argv if arg not in own]
    sizes = parse_sizes(args["sizes"], args["head_width"])
    if args["draws"] < 1:
        raise ValueError(f"draws={args['draws']} must be positive")
    trials = make_trials(out, sizes, numbers(args, "steps"), numbers(args, "seeds"), settings, CONFIGS)
    states: dict[str, str] = {}
    with tqdm(total=len(trials), unit="run", disable=not sys.stderr.isatty()) as bar:

        def tell(trial: Trial, state: str) -> None:
            states[trial.name] = state
            bar.update()
            bar.write(f"{trial.name}: {state}", file=sys.stderr)

        launch_all(trials, args["processes"], tell, args["executor"])
    observations = observe([t for t in trials if states[t.name] == "done"], args["windows"])
    write_csv([asdict(o) for o in observations], out / "runs.csv")
    found = analyse(observations, next_size(args, sizes, trials[0]), repeats(config_of(trials[0])), args["draws"])
    print(text(found))
    print(f"\n{write_report(found, out / 'report.html', settings)}")
    missing = [t.name for t in trials if states[t.name] != "done"]
    if missing:
        print(f"scaling_law: not done: {', '.join(missing)}; see {out}/<run>/launch.log", file=sys.stderr)
    return 1 if missing or not found.effect.found else 0


def numbers(args: dict[str, Any], key: str) -> list[int]:
    """'1,2,4' -> [1, 2, 4]; each once, in order."""
    texts = args[key].split(",")
    if not all(t.isdecimal() for t in texts) or (key == "steps" and "0" in texts):
        raise ValueError(f"{key}={args[key]!r} must be whole numbers with commas between")
    return sorted(set(map(int, texts)))


def config_of(trial: Trial) -> Config:
    """Of the costliest run: the first."""
    assert trial.config is not None
    return trial.config


def next_size(args: dict[str, Any], sizes: list[Size], trial: Trial) -> int:
    """Parameters of the size to predict."""
    largest = max(sizes, key=lambda s: (s.width * s.width * s.depth, s.width))
    (size,) = parse_sizes(args["next"] or f"{2 * largest.width}x{largest.depth}", args["head_width"])
    values = dict(text.removeprefix("model.").split("=", 1) for text in size.overrides)
    config = config_of(trial)
    model: ModelConfig = replace(config.model, **{k: v if k == "name" else int(v) for k, v in values.items()})
    return plan(replace(config, model=model)).parameters


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["size"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="scaling_law"):
        sys.exit(main(sys.argv[1:]))
