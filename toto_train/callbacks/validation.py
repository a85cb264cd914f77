"""Zero-shot scores on a small fixed task set while training."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl

from toto_train.callbacks.meters import Meters
from toto_train.evaluation.metrics import Sums
from toto_train.evaluation.score import evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.forecast import Forecaster
from toto_train.module import TrainingModule

log = logging.getLogger(__name__)


class Validation(pl.Callback):
    """Every `every` steps and at the end: MWQL and MASE relative to Seasonal Naive, geometric mean over sources."""

    def __init__(self, tasks: TaskSet, meters: Meters, every: int, total_steps: int):
        self.tasks, self.meters, self.every, self.total = tasks, meters, every, total_steps
        self.baseline: Sums | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if (batch_idx + 1) % module.config.accumulation:
            return
        if module.steps_done % self.every and module.steps_done != self.total:
            return
        training = module.model.training
        scores = evaluate(Forecaster(module.model, module.device), self.tasks, baseline=self.baseline, draws=0)
        module.model.train(training)
        self.baseline = scores.baseline
        self.meters.validation = {name: interval.value for name, interval in scores.overall.items()}
        text = ", ".join(f"{name} {value:.3f}" for name, value in self.meters.validation.items())
        log.info("step %d: validation relative to Seasonal Naive: %s", module.steps_done, text)
