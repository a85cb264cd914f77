"""One run of a study over sizes: a small model by the published recipe, but for the swept setting, on given rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
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
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.objective import loss_sum
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import LR_RULES, build_optimizer
from toto_train.parallel import build
from toto_train.ranks import ALONE
from toto_train.swept_setting import STACK_LR, give, is_read

RULES = (*LR_RULES, "muon", "adamw")
"""What trains the stack's matrices: NorMuon by a rule for its learning rate, plain Muon (spectral), or AdamW."""
PROBES = 20
"""How often a run scores the windows it never trains on."""
LAST = 0.1
"""Share of the steps over which the final training loss is averaged."""

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
    """What tells a run from the others."""

    rule: str
    width: int
    depth: int
    lr: float
    """Peak learning rate of the stack."""
    seed: int
    setting: str = STACK_LR
    """What is swept; where that is not the rate, all runs of a rule have the same one."""
    value: float | None = None
    """Of the setting; None where that is the rate."""

    @property
    def swept(self) -> float:
        """Value of the swept setting."""
        return self.lr if self.value is None else self.value

    def __str__(self) -> str:
        what = "" if self.value is None else f"-{self.setting}{self.value}"
        return f"{self.rule}-{self.width}x{self.depth}-lr{self.lr:g}{what}-s{self.seed}"


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
    """The published recipe on a small model; only what trains the stack and the swept setting differ. Raises
    ConfigError."""
    if trial.rule not in RULES:
        raise ConfigError([f"rules={trial.rule!r} must be of {', '.join(RULES)}"])
    if trial.width % shared.head_width:
        raise ConfigError([f"widths={trial.width} must be a multiple of head_width={shared.head_width}"])
    if not is_read(trial.setting, trial.rule):
        raise ConfigError([f"setting={trial.setting} does nothing under rules={trial.rule}; leave that rule out"])
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
    if trial.value is not None:
        give(config, trial.setting, trial.value)
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
