"""One round of a search on the proxy: what is tried, and in which order.

A round draws settings (Optuna: TPE, or random as control), has each trial trained by train.py in a folder of its own,
stops those that fall behind, and ends with new seeds of the best ones and of the settings it began with: the winner is
whose mean is lower by more than noise. Any number of processes on any number of nodes may work on one folder; a trial
whose worker died is taken up again from its run's last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from toto_train.config import ConfigError
from toto_train.search_finals import BASE, Final, Values, winner
from toto_train.search_runs import Outcome, Runs

SAMPLERS = ("tpe", "random")
STARTUP = 10
"""Trials drawn at random before TPE has enough to learn from."""
UNPRUNED = 5
"""Trials that run to their end before any is compared with their median."""


@dataclass(frozen=True)
class Round:
    """What a round varies. space: setting -> {uniform | log | int: [low, high]} or {values: [...]}; shares: mixture
    entry -> the most it may have."""

    name: str
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Round:
        """Raises ConfigError naming the file and the key."""
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise ConfigError([f"round={path.stem}: there is no {path}; known rounds: {known}"])
        tree = yaml.safe_load(path.read_text()) or {}
        if not isinstance(tree, dict) or not tree or set(tree) - {"space", "shares"}:
            raise ConfigError([f"{path}: must have space: or shares:, and nothing else"])
        problems = [f"{path}: space.{key}: {why}" for key, of in tree.get("space", {}).items() if (why := _wrong(of))]
        shares = {name: float(most) for name, most in tree.get("shares", {}).items()}
        if any(not 0 < most <= 1 for most in shares.values()) or (shares and sum(shares.values()) < 1):
            problems.append(f"{path}: shares: each must be in (0, 1] and all together at least 1, got {shares}")
        if problems:
            raise ConfigError(problems)
        return cls(path.stem, tree.get("space", {}), shares)

    def draw(self, trial: Trial) -> Values:
        """Settings of a trial."""
        values = {key: _suggest(trial, key, of) for key, of in self.space.items()}
        if self.shares:
            parts = {name: -math.log(trial.suggest_float(f"share.{name}", 1e-6, 1.0)) for name in self.shares}
            values |= {f"data.mixture.{name}.weight": w for name, w in bounded(parts, self.shares).items()}
        return values


def bounded(parts: Mapping[str, float], most: Mapping[str, float]) -> dict[str, float]:
    """Shares in proportion to `parts` that sum to 1, none above its bound: what is cut off goes to the others.

    Parts that are exponential make uniform points of the simplex.
    """
    full: dict[str, float] = {}
    while True:
        rest = {name: part for name, part in parts.items() if name not in full}
        left, total = 1 - sum(full.values()), sum(rest.values())
        # with nothing to go by, what is left is divided by the bounds
        scaled = {n: left * (p / total if total > 0 else most[n] / sum(most[k] for k in rest)) for n, p in rest.items()}
        over = {name: most[name] for name, share in scaled.items() if share > most[name]}
        if not over:
            return {name: round({**full, **scaled}[name], 6) for name in parts}
        full |= over


@dataclass(frozen=True)
class Search:
    """A round in a folder. base: overrides of train.py that all trials share. trials: how many are drawn, the settings
    of `base` among them. seeds: runs of each of the `finalists` best and of the base, of seeds other than the trials':
    the best of many looks better in its trial than it is. With seeds=1 the trials themselves are compared."""

    round: Round
    runs: Runs
    trials: int = 30
    finalists: int = 3
    seeds: int = 3
    sampler: str = "tpe"
    seed: int = 0

    @property
    def folder(self) -> Path:
        return self.runs.folder

    @property
    def final_seeds(self) -> range:
        return range(1, self.seeds + 1) if self.seeds > 1 else range(1)

    def study(self, draw: int = 0) -> optuna.Study:
        """The round's trials so far. draw: tells the draws of one sampler from those of the next."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}-{draw}".encode()).digest()[:4], "little")
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if self.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)
        backend = JournalFileBackend(str(self.folder / "journal.log"))
        return optuna.create_study(
            study_name=self.round.name,
            storage=JournalStorage(backend),
            sampler=sampler,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_min_trials=UNPRUNED),
            load_if_exists=True,
        )

    def work(self, tell: Callable[[str], None]) -> None:
        """Take trials until there are enough, then runs of the finals until all are done."""
        while self._take_trial(tell):
            pass
        jobs = [(name, values, seed) for name, values in self.finalists_and_base() for seed in self.final_seeds]
        for name, values, seed in jobs:
            run, begin = name_of(values), time.monotonic()
            with self.runs.claim(f"{run}-s{seed}") as mine:  # else another worker has it
                if mine and self.runs.result(run, seed) is None:
                    tell(f"{name}, seed {seed}, begins; its output: {self.runs.log(run, seed)}")
                    outcome = self.runs.follow(run, values, seed, lambda step, score: False)
                    tell(f"{name}, seed {seed}: {outcome} ({_minutes(begin)})")

    def _take_trial(self, tell: Callable[[str], None]) -> bool:
        """Run one more trial; False where there are enough."""
        study = self.study()
        self._take_up(study)
        known = study.get_trials(deepcopy=False)
        if sum(map(_counts, known)) >= self.trials:
            return False
        study = self.study(draw=len(known))
        trial = study.ask()
        begin = time.monotonic()
        is_base = trial.number == 0 or trial.user_attrs.get("values") == {}
        values = {} if is_base else self.round.draw(trial)
        with self.runs.claim(f"{name_of(values)}-s0") as mine:
            if not mine or (values and self.runs.result(name_of(values), 0) is not None):
                outcome = Outcome("failed", why="drawn before")
            else:
                trial.set_user_attr("values", values)  # once it is claimed: see `_take_up`
                tell(f"trial {trial.number} begins; its output: {self.runs.log(name_of(values), 0)}")

                def behind(step: int, score: float) -> bool:
                    trial.report(score, step)
                    return trial.should_prune()

                outcome = self.runs.follow(name_of(values), values, 0, behind)
            trial.set_user_attr("why", outcome.why)
            state = {"done": TrialState.COMPLETE, "behind": TrialState.PRUNED}.get(outcome.state, TrialState.FAIL)
            study.tell(trial, outcome.score if state == TrialState.COMPLETE else None, state)
        tell(f"trial {trial.number}: {outcome} ({_minutes(begin)})  {_text(values) or 'the settings as they are'}")
        return True

    def _take_up(self, study: optuna.Study) -> None:
        """Queue trials again whose worker died: their claim is free."""
        for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "values" not in t.user_attrs:
                continue
            with self.runs.claim(f"{name_of(t.user_attrs['values'])}-s0") as mine:
                if mine:
                    study.enqueue_trial(t.params, user_attrs={"values": t.user_attrs["values"]})
                    study.tell(t.number, state=TrialState.FAIL)

    def finished(self) -> list[FrozenTrial]:
        """Complete trials, the best first."""
        done = self.study().get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(done, key=lambda t: t.value if t.value is not None else math.inf)

    def finalists_and_base(self) -> list[tuple[str, Values]]:
        """(name, settings) of the base and the best trials, all different."""
        named = [(f"trial {t.number}", t.user_attrs["values"]) for t in self.finished() if t.user_attrs["values"]]
        return [(BASE, {}), *named[: self.finalists]]

    def finals(self) -> list[Final]:
        """Those with all their seeds, the lowest mean first."""
        found = []
        for name, values in self.finalists_and_base():
            scores = [self.runs.result(name_of(values), seed) for seed in self.final_seeds]
            if all(score is not None for score in scores):
                found.append(Final(name, values, [float(s) for s in scores if s is not None]))
        return sorted(found, key=lambda final: final.mean)

    def won(self) -> Final | None:
        """The winner of the round; None while trials or finals are still to come or at another worker's."""
        trials, finals = self.study().get_trials(deepcopy=False), self.finals()
        if sum(_counts(t) for t in trials if t.state != TrialState.RUNNING) < self.trials:
            return None
        return winner(finals) if len(finals) == len(self.finalists_and_base()) else None


def name_of(values: Values) -> str:
    """Of a run's folder; the same settings go on with the same run."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10] if values else BASE


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: what was given up and queued again is not."""
    return trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED) or "why" in trial.user_attrs


def _suggest(trial: Trial, key: str, of: Mapping[str, Any]) -> Any:
    if "values" in of:
        return trial.suggest_categorical(key, of["values"])
    if "int" in of:
        return trial.suggest_int(key, *of["int"], log=of.get("log", False))
    low, high = of.get("log") or of["uniform"]
    return float(f"{trial.suggest_float(key, low, high, log='log' in of):.4g}")


def _wrong(of: Any) -> str:
    """What is wrong with the values of a setting, if anything."""
    kinds = {"values", "int", "uniform"} if isinstance(of, dict) and "int" in of else {"values", "uniform", "log"}
    if not isinstance(of, dict) or len(kinds & set(of)) != 1 or set(of) - {"values", "int", "uniform", "log"}:
        return f"must be one of values: [...], uniform: [low, high], log: [low, high], int: [low, high], got {of}"
    bounds = next(of[kind] for kind in kinds if kind in of)
    if "values" in of:
        return "" if isinstance(bounds, list) and bounds else "values must be a list"
    good = (
        isinstance(bounds, list) and len(bounds) == 2 and bounds[0] < bounds[1] and (bounds[0] > 0 or "log" not in of)
    )
    return "" if good else f"needs [low, high] with low < high (above 0 on a log scale), got {bounds}"


def _minutes(begin: float) -> str:
    return f"{(time.monotonic() - begin) / 60:.1f} min"


def _text(values: Values) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
