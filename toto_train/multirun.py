"""A sweep from the command line, wherever its runs are: `train.py -m`, and scripts/launch_sweep.py with a folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toto_train.arguments import parse
from toto_train.cli import by_hydra, guarded, log_to_stderr
from toto_train.processes import end_as_init
from toto_train.sweep import EXECUTORS, Trial, expand, launch_all
from toto_train.sweep_table import read_state, read_states, table, write_table

FLAGS = {"-m", "--multirun"}
OWN: dict[str, Any] = {"processes": 1, "executor": "local"}
LAUNCHER = "hydra/launcher="
SLURM = f"{LAUNCHER}submitit_slurm"


def main(argv: Sequence[str], configs: Path) -> int:
    """Run `train.py -m`; returns the exit status: 0 where all runs are done."""
    end_as_init()
    log_to_stderr(logging.INFO)
    left = []
    status = guarded(lambda: left.extend(sweep([arg for arg in argv if arg not in FLAGS], configs)))
    return status or int(bool(left))


def sweep(argv: Sequence[str], configs: Path, doc: str | None = __doc__) -> list[Trial]:
    """Train every combination of values with commas, print the table of these runs and write out/sweep.csv, which has
    all runs of the folder. Returns the trials that are not done.

    argv: of train.py, and processes= and executor=: local | ray (`launch_all`) | slurm (a job a run by Hydra's submitit
    launcher, whose options are hydra.launcher.*; hydra/launcher= names another). Raises ConfigError, ValueError.
    """
    own = [arg for arg in argv if arg.partition("=")[0] in OWN]
    hydra = [arg for arg in argv if arg.startswith("hydra")]
    args = parse(doc, own, required={}, optional=OWN)
    executor = args["executor"]
    if executor not in (*EXECUTORS, "slurm"):
        raise ValueError(f"executor={executor!r} must be one of {', '.join(EXECUTORS)}, slurm")
    if executor == "slurm":
        if not find_spec("hydra_plugins.hydra_submitit_launcher"):
            raise ValueError("executor=slurm needs Hydra's launcher: pip install 'toto-train[slurm]'")
        hydra = [SLURM, *hydra]
    settings = [arg for arg in argv if arg not in own and arg not in hydra]
    trials = expand(settings, configs)
    if any(arg.startswith(LAUNCHER) for arg in hydra):
        with suppress(SystemExit):  # Hydra's, which the states below say better
            by_hydra(["--multirun", *hydra, *settings], configs)
    elif hydra:
        raise ValueError(f"{hydra[0]} is for a launcher of Hydra's; give executor=slurm with it, or leave it out")
    else:
        with tqdm(total=len(trials), unit="run", disable=not sys.stderr.isatty()) as bar:

            def tell(trial: Trial, state: str) -> None:
                bar.update()
                bar.write(f"{trial.name}: {state}", file=sys.stderr)

            launch_all(trials, args["processes"], tell, executor)
    states = [read_state(trial.folder) for trial in trials]
    print(table(states))
    out = trials[0].folder.parent
    print(write_table(read_states(out), out / "sweep.csv"))
    return [trial for trial, state in zip(trials, states, strict=True) if state.state != "done"]
