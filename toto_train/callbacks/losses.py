"""Which data are hard: the mean loss by source, domain and interval, losses.csv of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from toto_train.callbacks.table import Table
from toto_train.data import strata
from toto_train.module import TrainingModule

COLUMNS = ("step", "kind", "name", "loss", "weight")
"""kind: source, domain or interval. loss: mean pinball loss per label since the report before, of all ranks; weight: so
many labels. Only names that had labels."""


class Losses(pl.Callback):
    """Writes losses.csv every `every` steps and at the end. Sums stay on the device until then."""

    def __init__(self, path: Path, labels: list[str], start_step: int, every: int, writes: bool = True):
        self.table, self.labels, self.every = Table(path, COLUMNS, start_step, writes), labels, every

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        count = strata.count(len(self.labels))
        module.strata = torch.zeros(count, 2, dtype=torch.float64, device=module.ranks.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        step = module.position.step
        if not module.whole_step(batch_idx) or (step % self.every and step != module.config.schedule.max_steps):
            return
        assert module.strata is not None
        sums = module.ranks.sum(module.strata.cpu())
        module.strata.zero_()
        means = [
            (kind, name, loss / weight, weight)
            for kind, name, (loss, weight) in strata.marginals(sums, self.labels)
            if weight
        ]
        self.table.write(
            {"step": step, "kind": kind, "name": name, "loss": f"{mean:.6g}", "weight": int(weight)}
            for kind, name, mean, weight in means
        )
        for logger in trainer.loggers:
            logger.log_metrics({f"loss/{kind}/{name}": mean for kind, name, mean, _ in means}, step=step)
