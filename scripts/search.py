"""One round of a search: python scripts/search.py round=NAME|FILE out=DIR [trials=30] [finalists=3] [seeds=3]
[sampler=tpe|random] [branch=RUN] [keep=false] [seed=0] [any setting of train.py ...]

round: architecture, mixture, optimizer or decay of configs/search, or a file of your own. Trials are runs of train.py
with the settings given here (experiment=, model=, validation.path= and validate_every= among them) and the drawn ones,
in DIR/runs; DIR/report.html shows what came out, and configs/experiment/<name of DIR>.yaml is the winner, for the next
round and for train.py as experiment=<name of DIR>. Start the same command as often as you like, on any node that sees
DIR: the trials are shared out, and those of a worker that died are taken up from their last checkpoint.
branch: every trial goes on from the newest checkpoint of a run (the decay round); then seeds=1.
"""

from __future__ import annotations

import copy
import signal
import sys
from pathlib import Path
from typing import Any

import optuna

from toto_train.arguments import parse
from toto_train.cli import config_from_overrides
from toto_train.config import Config, ConfigError
from toto_train.config_check import check
from toto_train.search import SAMPLERS, Round, Search
from toto_train.search_finals import freeze
from toto_train.search_report import write_report
from toto_train.search_runs import Runs
from toto_train.swept_setting import give

ROOT = Path(__file__).resolve().parents[1]
OPTIONS: dict[str, Any] = {"trials": 30, "finalists": 3, "seeds": 3, "sampler": "tpe", "branch": "", "keep": False,
                           "seed": 0}  # fmt: skip
FIXED = ("name", "out", "fresh", "plan", "report")


def main(argv: list[str]) -> int:
    own = [a for a in argv if a.partition("=")[0] in {*OPTIONS, "round", "out"} or a.startswith("-")]
    base = [a for a in argv if a not in own]
    args = parse(__doc__, own, required={"round": str, "out": str}, optional=OPTIONS)
    try:
        search = read(args, base)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # its run saves, and so goes on
        search.work(lambda text: (print(text, flush=True), write_report(search, search.folder / "report.html"))[0])
        print(f"report: {write_report(search, search.folder / 'report.html')}")
        won = search.won()
        if won is None:
            print("the finals are not complete: another worker is at them, or start this again")
            return 0 if search.finished() else 1
        about = f"Winner of the round {search.round.name}: {won.name}, score {won.mean:.4f} over {search.seeds} seeds."
        frozen = freeze(won, base, ROOT / "configs" / "experiment" / f"{search.folder.name}.yaml", about)
        print(f"{about}\nexperiment={frozen.stem} takes it: {frozen}")
    except KeyboardInterrupt:
        print("search: stopped; the same command goes on", file=sys.stderr)
        return 130
    except (ConfigError, ValueError, OSError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def read(args: dict[str, Any], base: list[str]) -> Search:
    """The search that arguments ask for. Raises ConfigError with all that is wrong with it."""
    problems = [f"{a!r}: the search sets {key} itself" for a in base if (key := a.partition("=")[0]) in FIXED]
    problems += [f"{key}={args[key]} must be at least 1" for key in ("trials", "finalists", "seeds") if args[key] < 1]
    if args["sampler"] not in SAMPLERS:
        problems.append(f"sampler={args['sampler']!r} must be one of {', '.join(SAMPLERS)}")
    if args["branch"] and args["seeds"] != 1:
        problems.append("branch= takes seeds=1: a run that goes on keeps the seed it began with")
    if problems:
        raise ConfigError(problems)
    path = Path(args["round"])
    search_round = Round.read(path if path.suffix else ROOT / "configs" / "search" / f"{path}.yaml")
    config = config_from_overrides([*base, "name=search"], ROOT / "configs")
    if not (config.validation.path and config.validate_every):
        raise ConfigError(["trials are compared by their validation scores: give validation.path= and validate_every="])
    if unknown := set(search_round.shares) - set(config.data.mixture):
        known = ", ".join(config.data.mixture)
        raise ConfigError([f"{search_round.name}: shares: {sorted(unknown)} are not in data.mixture ({known})"])
    for key in search_round.space:
        lookup(config, key)
    if problems := impossible(search_round, config):
        raise ConfigError(problems)
    folder = Path(args["out"])
    folder.mkdir(parents=True, exist_ok=True)
    branch = Path(args["branch"]) if args["branch"] else None
    runs = Runs(folder, [sys.executable, str(ROOT / "train.py")], base, config.schedule.max_steps, branch, args["keep"])
    return Search(search_round, runs, args["trials"], args["finalists"], args["seeds"], args["sampler"], args["seed"])


def impossible(search_round: Round, config: Config) -> list[str]:
    """What is wrong with the ends of a round's ranges, and with each of its choices, all else being as it is."""
    problems: dict[str, None] = {}
    for key, of in search_round.space.items():
        for value in next(v for kind, v in of.items() if kind in ("values", "int", "uniform", "log") and v is not True):
            tried = copy.deepcopy(config)
            give(tried, key, value)
            problems |= dict.fromkeys(f"{search_round.name}: {key}={value}: {why}" for why in check(tried))
    return list(problems)


def lookup(config: Any, key: str) -> Any:
    """The value of a setting. Raises ConfigError where there is no such setting."""
    for part in key.split("."):
        if not hasattr(config, part):
            raise ConfigError([f"space: {key} is no setting of train.py (python train.py --cfg job shows all)"])
        config = getattr(config, part)
    return config


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.exit(main(sys.argv[1:]))
