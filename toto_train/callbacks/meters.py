"""Rates, losses and where the time goes: gathered without a sync, written every few steps to metrics.csv."""

from __future__ import annotations

import csv
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from toto_train.callbacks.validation import Validation
from toto_train.module import TrainingModule

log = logging.getLogger(__name__)

COLUMNS = (
    "step", "points", "seconds", "train/loss", "train/lr_normuon", "train/lr_adamw", "train/grad_norm",
    "train/skipped_steps", "perf/points_per_s", "perf/slots_per_s", "perf/data_wait", "val/mwql", "val/mase",
)  # fmt: skip
"""points: observed values seen so far; points_per_s and slots_per_s count observed values and all places of the rows;
data_wait: share of the time spent waiting for batches; rates and waits leave out validation and saving;
val/*: relative to Seasonal Naive on the validation tasks."""


class MetricsFile:
    """metrics.csv: one row a report; rows after the step a run resumes from are cut."""

    def __init__(self, path: Path, start_step: int, writes: bool = True):
        """writes: False on all ranks but the first, which leave the file alone."""
        self.path, self.seconds_before = path, 0.0
        if not writes:
            return
        kept = [row for row in _whole_rows(path) if int(row["step"]) <= start_step]
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)
        self.seconds_before = float(kept[-1]["seconds"]) if kept else 0.0

    def write(self, row: dict[str, float | int]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv; a killed run may have left the last one half written."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n") and line.count(",") == len(COLUMNS) - 1]
    return [row for row in csv.DictReader(whole) if row["step"].isdigit() and row["seconds"]]


class Meters(pl.Callback):
    """Measures, reports every `every` steps, and draws the progress bar (lines instead where no one watches)."""

    def __init__(self, file: MetricsFile, every: int, total_steps: int, validation: Validation):
        self.file, self.every, self.total, self.validation = file, every, total_steps, validation

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.watched = sys.stderr.isatty() and module.ranks.first
        self.bar = tqdm(
            total=self.total, initial=module.position.step, unit="step", disable=not self.watched, dynamic_ncols=True
        )
        self.begin = self.last_end = self.last_line = time.perf_counter()
        self.first, self.last_aside = module.position.step, module.aside
        self.slots = module.config.points_per_step
        self._start_window(module, self.begin)

    def _start_window(self, module: TrainingModule, now: float) -> None:
        self.window_begin, self.window_aside, self.waited = now, module.aside, 0.0
        self.window_step, self.window_points = module.position.step, module.position.points

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, TrainingModule)
        # other callbacks ran after this one noted the end of the last batch: their time is no waiting
        self.waited += time.perf_counter() - self.last_end - (module.aside - self.last_aside)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        step = module.position.step
        if module.whole_step(batch_idx):
            self.bar.update(1)
        validated = self.validation.scores_at(step) is not None
        if module.whole_step(batch_idx) and (step % self.every == 0 or step == self.total or validated):
            self._report(trainer, module)
        self.last_end, self.last_aside = time.perf_counter(), module.aside

    def _report(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        now = time.perf_counter()
        position = module.position
        steps, points = position.step - self.window_step, position.points - self.window_points
        elapsed = now - self.window_begin - (module.aside - self.window_aside)
        # one transfer for everything that lives on the device
        loss, norm, skipped = torch.stack(
            [module.last["loss"], module.last["grad_norm"], module.optimizer.skipped_steps.float()]
        ).tolist()
        lr = {group["kind"]: group["lr"] for group in module.optimizer.param_groups}
        row: dict[str, float | int] = {
            "step": position.step,
            "points": position.points,
            "seconds": round(self.file.seconds_before + now - self.begin, 2),
            "train/loss": loss,
            "train/lr_normuon": lr.get("normuon", 0.0),
            "train/lr_adamw": lr["adamw"],
            "train/grad_norm": norm,
            "train/skipped_steps": int(skipped),
            "perf/points_per_s": round(points / elapsed),
            "perf/slots_per_s": round(steps * self.slots / elapsed),
            "perf/data_wait": round(self.waited / elapsed, 4),
        }
        row |= {f"val/{name}": value for name, value in (self.validation.scores_at(position.step) or {}).items()}
        if module.ranks.first:
            self.file.write(row)
            for logger in trainer.loggers:
                logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=position.step)
            self._show(row, now, position.step)
        self._start_window(module, now)

    def _show(self, row: dict[str, float | int], now: float, step: int) -> None:
        text = (
            f"loss {row['train/loss']:.4f}  lr {row['train/lr_normuon']:.3g}/{row['train/lr_adamw']:.3g}  "
            f"{row['perf/points_per_s'] / 1e3:,.0f}k points/s  data wait {row['perf/data_wait']:.0%}"
        )
        if self.validation.summary:
            text += f"  {self.validation.summary}"
        if self.watched:
            self.bar.set_postfix_str(text)
        elif now - self.last_line > 15 or step == self.total:
            self.last_line = now
            left = (now - self.begin) / max(step - self.first, 1) * (self.total - step)
            log.info("step %d/%d  %s  %.0f s left", step, self.total, text, left)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
