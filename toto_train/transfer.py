"""Sweeps of the stack's learning rate over widths or depths, on the same rows: does the optimum stay where it is?

A folder holds one sweep: results.jsonl (a finished run a line), curves/ (its losses) and sweep.json (what all runs of
the folder share, so that only what compares is compared).
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from toto_train.checkpoint import Position
from toto_train.config import (
    Config,
    ConfigError,
    DataConfig,
    MixtureEntry,
    ModelConfig,
    NorMuonConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from toto_train.config_check import check
from toto_train.data.loader import RowLoader
from toto_train.data.rows import Rows
from toto_train.files import write_text
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.objective import loss_sum
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import LR_RULES, build_optimizer
from toto_train.parallel import build
from toto_train.ranks import ALONE

RULES = (*LR_RULES, "muon", "adamw")
"""What trains the stack's matrices: NorMuon by a rule for its learning rate, plain Muon (spectral), or AdamW."""
PROBES = 20
"""How often a run scores the windows it never trains on."""
LAST = 0.1
"""Share of the steps over which the final training loss is averaged."""

CURVE = ("step", "points", "train", "heldout")
Batches = list[dict[str, Any]]
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Shared:
    """What all runs of a folder have in common."""

    path: str
    exclude: str
    heldout: str
    windows: int
    head_width: int
    steps: int
    rows: int
    variates: int
    length: int


@dataclass(frozen=True)
class Trial:
    """What is swept."""

    rule: str
    width: int
    depth: int
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.rule}-{self.width}x{self.depth}-lr{self.lr:g}-s{self.seed}"


@dataclass(frozen=True)
class Result:
    """Losses are means of the pinball loss per observed label; infinite where a run diverged."""

    trial: Trial
    heldout: float
    """On the held-out windows, after the last step."""
    train: float
    """Mean over the last tenth of the steps."""
    points: int
    cpu_seconds: float
    curve: Curve
    """step, points (observed values seen) and train loss of every step; heldout loss where it was taken, else NaN."""


def training_config(trial: Trial, shared: Shared) -> Config:
    """The published recipe on a small model; only what trains the stack differs. Raises ConfigError."""
    if trial.rule not in RULES:
        raise ConfigError([f"rules={trial.rule!r} must be of {', '.join(RULES)}"])
    if trial.width % shared.head_width:
        raise ConfigError([f"widths={trial.width} must be a multiple of head_width={shared.head_width}"])
    width, steps = trial.width, shared.steps
    model = ModelConfig(str(trial), width, trial.depth, width // shared.head_width, _hidden_width(width))
    normuon = NorMuonConfig(lr=trial.lr, normalize=trial.rule != "muon")
    if trial.rule in LR_RULES:
        normuon.lr_rule = trial.rule
    mixture = {"real": MixtureEntry(shared.path, exclude=[shared.exclude], balance="points")}
    config = Config(
        name=str(trial),
        seed=trial.seed,
        global_rows=shared.rows,
        micro_rows=shared.rows,
        validate_every=0,
        model=model,
        data=DataConfig(mixture, shared.variates, shared.length, lanes=1, workers=0),
        optimizer=OptimizerConfig("adamw" if trial.rule == "adamw" else "normuon", normuon),
        schedule=ScheduleConfig(steps, steps // 10, 3 * steps // 10),
    )
    config.validation.context = config.heldout.context = shared.length
    if problems := check(config):
        raise ConfigError(problems)
    return config


def _hidden_width(width: int) -> int:
    """The gated MLP's: 8/3 of the model's, rounded up to a multiple of 8."""
    return -(-(8 * width // 3) // 8) * 8


def heldout_config(shared: Shared) -> Config:
    """Rows of series never trained on; the same for every run, whatever its seed."""
    config = training_config(Trial("spectral", shared.head_width, 2, 1.0, 0), shared)
    config.data = replace(config.data, mixture={"heldout": MixtureEntry(shared.heldout, balance="points")})
    config.global_rows = config.micro_rows = math.gcd(shared.rows, shared.windows)
    config.schedule.max_steps = shared.windows // config.global_rows
    return config


def train(trial: Trial, shared: Shared) -> Result:
    """One run, from initial weights to its last step, in this process and on as many threads as torch has."""
    keep_freed_memory()
    begin = time.process_time()
    config, held = training_config(trial, shared), heldout_config(shared)
    probe = list(RowLoader(held, Rows(held)))
    model = build(config, ALONE)
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, config.model.num_layers)
    if trial.rule == "adamw":
        _set_stack_lr(optimizer, trial.lr)
    module = TrainingModule(config, model, optimizer, Position())
    curve: Curve = []
    for i, batch in enumerate(RowLoader(config, Rows(config))):
        module.training_step(batch, i).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        module.end_step()
        loss = module.last["loss"].item()
        due = (i + 1) * PROBES // shared.steps > i * PROBES // shared.steps
        scored = heldout_loss(model, held, probe) if due else math.nan
        curve.append({"step": i + 1, "points": module.position.points, "train": loss, "heldout": scored})
        if not math.isfinite(loss):
            break
    last = [row["train"] for row in curve[-math.ceil(LAST * shared.steps) :]]
    mean = sum(last) / len(last)
    final = curve[-1]["heldout"]
    whole = math.isfinite(mean) and math.isfinite(final)
    seconds = time.process_time() - begin
    losses = (final, mean) if whole else (math.inf, math.inf)
    return Result(trial, *losses, module.position.points, seconds, curve)


def _set_stack_lr(optimizer: NorMuonAdamW, lr: float) -> None:
    """Give AdamW's matrices of the stack a rate of their own, so that `lr` means the same part of the model for every
    rule; the rest keeps the recipe's."""
    (group,) = optimizer.param_groups
    group["multipliers"] = [
        multiplier * lr / group["initial_lr"] if name.startswith("layers.") and p.ndim == 2 else multiplier
        for name, p, multiplier in zip(group["param_names"], group["params"], group["multipliers"], strict=True)
    ]


@torch.no_grad()
def heldout_loss(model: Toto, config: Config, batches: Batches) -> float:
    """Mean pinball loss per label of the given batches."""
    total, weight = torch.zeros(()), torch.zeros(())
    for b in batches:
        prediction = model(b["target"], b["target_mask"], b["cpm_mask"], b["series_ids"], b["flags"], labelled=True)
        masks = b["target"], b["target_mask"], b["cpm_mask"]
        loss, labels = loss_sum(prediction, *masks, config.model.patch_size, config.objective.label_clamp)
        total, weight = total + loss, weight + labels
    return (total / weight).item()


def sweep(
    out: Path, trials: Iterable[Trial], shared: Shared, processes: int, tell: Callable[[Result], None]
) -> tuple[list[Result], dict[Trial, str]]:
    """Train the trials that `out` does not hold, `processes` at a time; tell() is called as each ends.

    Returns the results of all trials in their order, without those that failed, and why these did. A run is kept the
    moment it ends: a sweep that was stopped goes on with what is missing. Raises ValueError where a setting is wrong,
    or where `out` holds a sweep with another `shared` or other data.
    """
    trials = list(trials)
    for trial in trials:
        training_config(trial, shared)
    fingerprints = _fingerprints(shared)
    with _held(out, {**asdict(shared), "fingerprints": fingerprints}):
        return _train_missing(out, trials, shared, processes, tell)


def _train_missing(
    out: Path, trials: list[Trial], shared: Shared, processes: int, tell: Callable[[Result], None]
) -> tuple[list[Result], dict[Trial, str]]:
    done, failed = read_results(out), {}
    todo = [trial for trial in trials if trial not in done]
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    with ProcessPoolExecutor(min(processes, len(todo)) or 1, context, torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(train, trial, shared): trial for trial in todo}
        try:
            for future in as_completed(running):
                trial = running[future]
                if error := future.exception():
                    failed[trial] = f"{type(error).__name__}: {error}"
                    continue
                done[trial] = future.result()
                _keep(out, done)
                tell(done[trial])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done[trial] for trial in trials if trial in done], failed


def _fingerprints(shared: Shared) -> dict[str, str]:
    """What is in the two folders of series."""
    train, held = training_config(Trial("spectral", shared.head_width, 2, 1.0, 0), shared), heldout_config(shared)
    found = {}
    for key, config in (("path", train), ("heldout", held)):
        try:
            found[key] = Rows(config).order.fingerprint
        except (ValueError, OSError) as error:
            raise ValueError(f"{key}={getattr(shared, key)}: {error}") from error
    return found


@contextmanager
def _held(out: Path, facts: dict[str, Any]) -> Iterator[None]:
    """The folder of a sweep with these facts, made or found, and held against a second process."""
    file = out / "sweep.json"
    if not file.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty and holds no sweep; choose another out=")
    former = json.loads(file.read_text()) if file.exists() else facts
    if differ := [
        f"{k}={former.get(k)}, not {facts.get(k)}" for k in {**facts, **former} if former.get(k) != facts.get(k)
    ]:
        raise ValueError(f"out={out} holds a sweep with {'; '.join(differ)}; choose another out=")
    (out / "curves").mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(facts, indent=1) + "\n")
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out={out}: another process is sweeping there") from None
        yield


def _keep(out: Path, done: dict[Trial, Result]) -> None:
    """The newest result: its curve first, so that a line in results.jsonl means a whole run."""
    newest = list(done.values())[-1]
    lines = [",".join(CURVE), *(",".join(f"{row[c]:.8g}" for c in CURVE) for row in newest.curve)]
    write_text(out / "curves" / f"{newest.trial}.csv", "\n".join(lines) + "\n")
    kept = ("heldout", "train", "points", "cpu_seconds")
    rows = [{**asdict(r.trial), **{k: getattr(r, k) for k in kept}} for r in done.values()]
    write_text(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_results(out: Path) -> dict[Trial, Result]:
    """All finished runs of a sweep's folder."""
    found: dict[Trial, Result] = {}
    file = out / "results.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        row = json.loads(line)
        trial = Trial(**{f.name: row.pop(f.name) for f in fields(Trial)})
        with (out / "curves" / f"{trial}.csv").open() as curve:
            rows = [{k: float(v) for k, v in r.items()} for r in csv.DictReader(curve)]
        found[trial] = Result(trial, **row, curve=rows)
    return found
