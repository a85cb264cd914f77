"""What the rows came from and what reading them cost, by source: sources.csv of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from toto_train.callbacks.table import Table
from toto_train.data.order import Order
from toto_train.module import TrainingModule

COLUMNS = (
    "step", "source", "rows", "share", "read_seconds", "read_ms_per_row", "quarantined_windows", "wanted",
    "quarantined_rows",
)  # fmt: skip
"""Since the report before: rows of the source and their share, time loader processes spent reading them (a slow source
shows here, whichever process waited), windows that could not be read, the share that the mixture asks for, and rows
that lack a window; one line a source that gave rows or should have."""


class Reads(pl.Callback):
    """Writes sources.csv every `every` steps; lines after the step a run resumes from are cut."""

    def __init__(self, path: Path, order: Order, start_step: int, every: int, writes: bool = True):
        """writes: False on all ranks but the first, which leave the file alone."""
        self.table, self.order, self.every = Table(path, COLUMNS, start_step, writes), order, every
        self.labels = list(order.shares)
        self._clear(start_step)

    def _clear(self, step: int) -> None:
        self.seen: list[dict[str, np.ndarray]] = []
        """`reads` of the batches since the report before, which was after step `since`."""
        self.since = step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self.seen.append(batch["reads"])
        step = module.position.step
        if module.whole_step(batch_idx) and (step % self.every == 0 or step == module.config.schedule.max_steps):
            source, took, lost = (np.concatenate([of[k] for of in self.seen]) for k in ("source", "seconds", "lost"))
            values = np.ones_like(took), took, lost, lost > 0
            sums = [np.bincount(source, of, len(self.labels)) for of in values]
            rows = module.config.global_rows
            self._write(step, module.ranks.sum(sums), self.order.wanted(self.since * rows, step * rows))
            self._clear(step)

    def _write(self, step: int, sums: np.ndarray, wanted: np.ndarray) -> None:
        rows, seconds, lost, short = sums
        self.table.write(
            {
                "step": step,
                "source": self.labels[k],
                "rows": int(rows[k]),
                "share": f"{rows[k] / rows.sum():.4f}",
                "read_seconds": f"{seconds[k]:.4f}",
                "read_ms_per_row": f"{1000 * seconds[k] / max(rows[k], 1):.3f}",
                "quarantined_windows": int(lost[k]),
                "wanted": f"{wanted[k]:.4f}",
                "quarantined_rows": int(short[k]),
            }
            for k in np.flatnonzero((rows > 0) | (wanted > 0)).tolist()
        )
