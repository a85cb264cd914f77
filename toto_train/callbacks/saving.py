"""Checkpoints every so many steps and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from toto_train import checkpoint
from toto_train.module import TrainingModule


class Saving(pl.Callback):
    def __init__(self, run: Path, fingerprint: str):
        self.run, self.fingerprint = run, fingerprint

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        step, c = module.position.step, module.config
        if module.whole_step(batch_idx) and (step % c.checkpoint.every_steps == 0 or step == c.schedule.max_steps):
            with module.set_aside():
                checkpoint.save(self.run, c, module.model, module.optimizer, module.position, self.fingerprint)
