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
    """Every `validate_every` steps and at the end: MWQL and MASE over Seasonal Naive's, geometric mean of sources."""

    def __init__(self, tasks: TaskSet, meters: Meters):
        self.tasks, self.meters = tasks, meters
        self.baseline: Sums | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        step, c = module.position.step, module.config
        if not module.whole_step(batch_idx) or (step % c.validate_every and step != c.schedule.max_steps):
            return
        with module.set_aside():
            training = module.model.training
            scores = evaluate(Forecaster(module.model, module.device), self.tasks, baseline=self.baseline, draws=0)
            module.model.train(training)
        self.baseline = scores.baseline
        self.meters.validation = {name: interval.value for name, interval in scores.overall.items()}
        text = ", ".join(f"{name} {value:.3f}" for name, value in self.meters.validation.items())
        log.info("step %d: validation relative to Seasonal Naive: %s", step, text)
