"""Rates, losses and where the time goes: gathered without a sync, written every few steps to metrics.csv."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from toto_train.callbacks.communication import Communication
from toto_train.callbacks.progress import Progress
from toto_train.callbacks.table import Table
from toto_train.callbacks.validation import Validation
from toto_train.clock import PHASES
from toto_train.config import Config
from toto_train.hardware import peak_flops
from toto_train.module import TrainingModule
from toto_train.optim.layout import global_norm
from toto_train.optim.normuon import KINDS, NorMuonAdamW
from toto_train.optim.zero import MUON
from toto_train.plan import plan

COLUMNS = (
    "step", "points", "seconds", "train/loss", "train/lr_normuon", "train/lr_adamw", "train/grad_norm",
    "train/skipped_steps", "perf/points_per_s", "perf/slots_per_s", "perf/data_wait", "val/mwql", "val/mase",
    "train/grad_norm_normuon", "train/grad_norm_adamw", "train/update_norm_normuon", "train/update_norm_adamw",
    "train/update_ratio_normuon", "train/update_ratio_adamw", "train/non_finite_steps", "train/spike_steps",
    "train/spike_score", "data/quarantined_rows", "data/quarantined_windows", "perf/patches_per_s",
    "perf/step_seconds", "perf/forward_backward", "perf/optimizer", "perf/other", "perf/communication",
    "perf/communication_exposed", "perf/mfu", "perf/memory_gib",
)  # fmt: skip
"""docs/monitoring.md says what each is; every figure is of all ranks."""


class Meters(pl.Callback):
    """Measures, reports every `logger.every_steps` steps, where the run is validated, and at the end.

    The device is read once a report. Norms of gradients and updates by group are taken in steps that are reported, and
    in no other.
    """

    def __init__(
        self, config: Config, path: Path, start_step: int, validation: Validation, communication: Communication,
        writes: bool = True,
    ):  # fmt: skip
        self.config, self.validation, self.communication = config, validation, communication
        self.table = Table(path, COLUMNS, start_step, writes)
        self.reported = -1
        """Step of the newest report."""
        self.given_up = -1
        """`Guard.given_up` as of then."""

    def reports(self, step: int) -> bool:
        """Whether there is a report after so many steps."""
        ends = step % self.config.logger.every_steps == 0 or step == self.config.schedule.max_steps
        return ends or self.validation.due(step, self.config)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        c, ranks = module.config, module.ranks
        self.progress = Progress(module.position.step, c.schedule.max_steps, ranks.first)
        self.seconds_before = float(self.table.last.get("seconds") or 0)
        self.flops = plan(c).flops_per_step
        self.peak = float(ranks.sum([peak_flops(ranks.device, c.parallel.precision, c.hardware.gpu)])[0])
        self.norms: dict[str, Tensor] = {}
        self.begin = time.perf_counter()
        self._start_window(module, self.begin)

    def _start_window(self, module: TrainingModule, now: float) -> None:
        self.window_begin, self.window_aside = now, module.aside
        self.window_step, self.window_points = module.position.step, module.position.points
        self.lost = np.zeros(2)  # rows, windows

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(module, TrainingModule)
        if not isinstance(own := module.optimizer, NorMuonAdamW):  # ZeRO's pieces are of no parameter in particular
            return
        own.measures = self.reports(module.position.step + 1)
        if own.measures:
            self.norms = {
                f"grad_norm_{group['kind']}": global_norm(p.grad for p in group["params"] if p.grad is not None)
                for group in own.param_groups
            }

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if (lost := batch["reads"]["lost"]).any():
            self.lost += np.count_nonzero(lost), lost.sum()
        if module.whole_step(batch_idx):
            self.progress.advance()
            if self.reports(module.position.step):
                self._report(trainer, module)

    def _report(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        position = module.position
        device = self._read_device(module)  # waits for the step, so time is taken behind it
        now = time.perf_counter()
        steps, points = position.step - self.window_step, position.points - self.window_points
        elapsed = now - self.window_begin - (module.aside - self.window_aside)
        lr = {group["kind"]: group["lr"] for group in module.optimizer.param_groups}
        slots = steps * self.config.points_per_step / elapsed
        row: dict[str, Any] = {
            "step": position.step,
            "points": position.points,
            "seconds": round(self.seconds_before + now - self.begin, 2),
            "train/lr_normuon": lr.get("normuon", lr.get(MUON, 0.0)),
            "train/lr_adamw": lr["adamw"],
            "perf/points_per_s": round(points / elapsed),
            "perf/slots_per_s": round(slots),
            "perf/patches_per_s": round(slots / self.config.model.patch_size),
            "perf/step_seconds": float(f"{elapsed / steps:.4g}"),
            **device,
            **self._read_ranks(module),
        }
        if math.isfinite(self.peak):
            row["perf/mfu"] = round(self.flops * steps / elapsed / self.peak, 4)
        row |= {f"val/{name}": value for name, value in (self.validation.scores_at(position.step) or {}).items()}
        self.reported = position.step
        self.table.write([row])
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=position.step)
        self.progress.show(row, self.validation.summary)
        self._start_window(module, now)

    def _read_device(self, module: TrainingModule) -> dict[str, Any]:
        """What lies on the device, in one transfer."""
        guard, last = module.guard, module.last
        if isinstance(own := module.optimizer, NorMuonAdamW):
            for kind, norm in own.update_norms().items():
                self.norms[f"update_norm_{kind}"] = norm
            for group in own.param_groups:
                self.norms[f"weight_norm_{group['kind']}"] = global_norm(group["params"])
        counts = module.optimizer.skipped_steps, guard.non_finite, guard.spikes, guard.given_up
        tensors = [last["loss"], last["grad_norm"], last["weight"], guard.worst, *counts, *self.norms.values()]
        here = last["loss"].device  # ZeRO counts its skipped steps on the host
        values = torch.stack([t.detach().to(here, torch.float64) for t in tensors]).tolist()
        guard.forget()
        loss, grad_norm, weight, worst, skipped, non_finite, spikes, given_up, *rest = values
        self.given_up = int(given_up)
        norms = dict(zip(self.norms, rest, strict=True))
        row = {
            "train/loss": loss,
            "train/grad_norm": grad_norm,
            "train/skipped_steps": int(skipped),
            "train/non_finite_steps": int(non_finite),
            "train/spike_steps": int(spikes),
        }
        if math.isfinite(worst):
            row["train/spike_score"] = float(f"{worst:.4g}")
        for kind in KINDS:
            if f"grad_norm_{kind}" in norms:
                update, weights = norms[f"update_norm_{kind}"], norms[f"weight_norm_{kind}"]
                row[f"train/grad_norm_{kind}"] = norms[f"grad_norm_{kind}"] / weight
                row[f"train/update_norm_{kind}"] = update
                row[f"train/update_ratio_{kind}"] = update / weights if weights else math.nan
        return row

    def _read_ranks(self, module: TrainingModule) -> dict[str, Any]:
        """What each rank's host knows, summed, averaged or the most of."""
        ranks = module.ranks
        phases = list(module.clock.read().values())
        memory = np.zeros(ranks.world)
        memory[ranks.rank] = peak_memory(ranks.device)
        shares = [self.communication.total, self.communication.exposed]
        sums = ranks.sum(np.concatenate([phases, shares, self.lost, memory])).tolist()
        seconds, (total, exposed, rows, windows), most = sums[:4], sums[4:8], max(sums[8:])
        out: dict[str, Any] = {
            "data/quarantined_rows": int(rows),
            "data/quarantined_windows": int(windows),
            "perf/memory_gib": float(f"{most / 2**30:.4g}"),
        }
        names = ("data_wait", *PHASES[1:])
        for name, spent in zip(names, seconds, strict=True):
            out[f"perf/{name}"] = round(spent / max(sum(seconds), 1e-9), 4)
        if ranks.world == 1:
            total = exposed = 0.0
        if math.isfinite(total):
            out["perf/communication"] = round(total / ranks.world, 4)
            out["perf/communication_exposed"] = round(exposed / ranks.world, 4)
        return out

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.progress.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "progress"):
            self.progress.close()


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: by tensors on a GPU; by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
