"""Checkpoints every so many steps and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from toto_train import checkpoint
from toto_train.module import TrainingModule


class Saving(pl.Callback):
    def __init__(self, run: Path, fingerprint: str, total_steps: int):
        self.run, self.fingerprint, self.total = run, fingerprint, total_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        settings = module.config.checkpoint
        due = module.steps_done % settings.every_steps == 0 or module.steps_done == self.total
        if due and (batch_idx + 1) % module.config.accumulation == 0:
            checkpoint.save(self.run, module, self.fingerprint, settings.keep_last)
