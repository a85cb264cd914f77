"""Train every combination of settings, or show how far they are: python scripts/launch_sweep.py out=DIR [key=value ...]

  python scripts/launch_sweep.py out=runs/rates processes=2 model=nano,tiny optimizer.normuon.lr=0.3,0.6
  python scripts/launch_sweep.py out=runs/rates

The first is `train.py -m`: arguments are those of train.py; values with commas are swept, a run of its own for every
combination. Runs that are done are not run again, those that were stopped go on, one that fails stops no other. In the
end it prints a table of these runs, and without settings one of all runs in out=, whoever started them; out/sweep.csv
has all of them. Exit status 1 where a run of this sweep is not done.
processes=1     runs at a time
executor=local  processes of this machine | ray: tasks of a Ray cluster (RAY_ADDRESS, or one of `processes` CPUs here)
                | slurm: a job a run by Hydra's submitit launcher, whose options are hydra.launcher.*
"""

from __future__ import annotations

import sys
from pathlib import Path

from toto_train.arguments import fail_on, parse
from toto_train.config import ConfigError
from toto_train.multirun import OWN, sweep
from toto_train.sweep_table import read_states, table, write_table

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: list[str]) -> int:
    own = [arg for arg in argv if arg.partition("=")[0] in (*OWN, "out") or arg.startswith("-")]
    args = parse(__doc__, own, required={"out": str}, optional=OWN)
    out = Path(args["out"])
    if any(arg not in own for arg in argv):
        return int(bool(sweep(argv, CONFIGS)))
    states = read_states(out)
    print(table(states))
    print(write_table(states, out / "sweep.csv"))
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, ConfigError, name="launch_sweep"):
        sys.exit(main(sys.argv[1:]))
