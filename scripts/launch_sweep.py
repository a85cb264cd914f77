"""Train every combination of settings, or show how far they are: python scripts/launch_sweep.py out=DIR [key=value ...]

  python scripts/launch_sweep.py out=runs/rates processes=2 model=nano,tiny optimizer.normuon.lr=0.3,0.6
  python scripts/launch_sweep.py out=runs/rates

Arguments are those of train.py; values with commas are swept, a run of its own for every combination, under the names
that `train.py -m` gives. Runs that are done are not run again, those that were stopped go on, one that fails stops no
other. In the end, and where there is nothing to sweep, it prints a table of all runs in out=, whoever started them, and
writes it to out/sweep.csv. Exit status 1 where a run of this sweep is not done.
processes=1     runs at a time
executor=local  processes of this machine | ray: tasks of a Ray cluster (RAY_ADDRESS, or one of `processes` CPUs here)
"""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from toto_train.arguments import fail_on, parse
from toto_train.config import ConfigError
from toto_train.sweep import Trial, expand, launch_all
from toto_train.sweep_table import read_states, table, write_table

OWN = {"processes": 1, "executor": "local"}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: list[str]) -> int:
    own = [arg for arg in argv if arg.partition("=")[0] in (*OWN, "out") or arg.startswith("-")]
    args = parse(__doc__, own, required={"out": str}, optional=OWN)
    out, settings = Path(args["out"]), [arg for arg in argv if arg not in own]
    failed = []
    if settings:
        trials = expand([f"out={out}", *settings], CONFIGS)
        with tqdm(total=len(trials), unit="run", disable=not sys.stderr.isatty()) as bar:

            def tell(trial: Trial, state: str) -> None:
                bar.update()
                bar.write(f"{trial.name}: {state}", file=sys.stderr)
                if state != "done":
                    failed.append(trial)

            launch_all(trials, args["processes"], tell, args["executor"])
    states = read_states(out)
    print(table(states))
    print(write_table(states, out / "sweep.csv"))
    return 1 if failed else 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, ConfigError, name="launch_sweep"):
        sys.exit(main(sys.argv[1:]))
