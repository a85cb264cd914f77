"""What the rows came from and what reading them cost, by source: sources.csv of a run."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from toto_train.module import TrainingModule

COLUMNS = ("step", "source", "rows", "share", "read_seconds", "read_ms_per_row", "quarantined_windows")
"""Since the report before: rows of the source and their share, time loader processes spent reading them (a slow source
shows here, whichever process waited), and windows that could not be read; one line a source that gave rows."""


class Reads(pl.Callback):
    """Writes sources.csv every `every` steps; lines after the step a run resumes from are cut."""

    def __init__(self, path: Path, labels: list[str], start_step: int, every: int, writes: bool = True):
        """writes: False on all ranks but the first, which leave the file alone."""
        self.path, self.labels, self.every = path, labels, every
        self._clear()
        if not writes:
            return
        kept = []
        if path.exists():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [row for row in csv.DictReader(whole) if row["step"].isdigit() and int(row["step"]) <= start_step]
        temporary = path.with_name(f"{path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)

    def _clear(self) -> None:
        self.sums = np.zeros((3, len(self.labels)))  # rows, seconds, windows lost

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        reads = batch["reads"]
        for total, values in zip(self.sums, (1.0, reads["seconds"], reads["lost"]), strict=True):
            np.add.at(total, reads["source"], values)
        step = module.position.step
        if module.whole_step(batch_idx) and (step % self.every == 0 or step == module.config.schedule.max_steps):
            self.sums = module.ranks.sum(self.sums)
            if module.ranks.first:
                self._write(step)
            self._clear()

    def _write(self, step: int) -> None:
        rows, seconds, lost = self.sums
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for k in np.flatnonzero(rows).tolist():
                ms = 1000 * seconds[k] / rows[k]
                share = f"{rows[k] / rows.sum():.4f}"
                writer.writerow(
                    (step, self.labels[k], int(rows[k]), share, f"{seconds[k]:.4f}", f"{ms:.3f}", int(lost[k]))
                )
