"""Zero-shot scores on a small fixed task set while training; they choose the best checkpoint."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import lightning.pytorch as pl

from toto_train.config import Config
from toto_train.evaluation.metrics import Sums
from toto_train.evaluation.score import evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.forecast import Forecaster
from toto_train.module import TrainingModule
from toto_train.parallel import whole

log = logging.getLogger(__name__)

DRAWS = 200
"""Bootstrap draws: enough for a standard error."""


class Validation(pl.Callback):
    """Every `validate_every` steps and at the end: MWQL and MASE over Seasonal Naive's, geometric mean of sources.

    Each rank scores its share of the windows and ends with the scores of all. Callbacks that use them come later.

    A checkpoint is chosen unless its MWQL lies more than one standard error above the lowest so far (Breiman et al.
    1984): a small task set cannot tell closer ones apart, and of those the later has trained longer. Measured: the
    lowest score alone took the quickstart's step 750 of 1,200, whose held-out MWQL was 13 % above the last step's.
    """

    def __init__(self, tasks: TaskSet | None, best: float = math.inf, bound: float | None = None):
        """tasks: None never validates. best, bound: lowest MWQL of the run so far, and that plus a standard error."""
        self.tasks, self.best = tasks, best
        self.bound = best if bound is None else bound
        self.scores: dict[str, float] = {}
        """Newest scores, those of `step`."""
        self.step = -1
        self.chosen = False
        """Whether the newest is within the bound."""
        self.baseline: Sums | None = None
        self.fingerprint = tasks.fingerprint if tasks is not None else ""

    def due(self, step: int, config: Config) -> bool:
        """Whether there are scores after so many steps."""
        if self.tasks is None:
            return False
        return step % config.validate_every == 0 or step == config.schedule.max_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        step = module.position.step
        if self.tasks is None or not module.whole_step(batch_idx) or not self.due(step, module.config):
            return
        begin = time.perf_counter()
        with module.set_aside():
            training = module.model.training
            scores = evaluate(
                Forecaster(whole(module.model, module.ema or None), module.ranks.device),
                self.tasks,
                baseline=self.baseline,
                draws=DRAWS,
                rank=module.ranks.rank,
                world=module.ranks.world,
                gather=module.ranks.sum if module.ranks.world > 1 else None,
            )
            module.model.train(training)
        self.baseline = scores.baseline
        self.step, self.scores = step, {name: interval.value for name, interval in scores.overall.items()}
        found = scores.overall["mwql"]
        if found.value <= self.best:
            # half the 95 % interval is 1.96 standard errors; a ratio's are those of its logarithm
            width = math.log(found.high / found.low) if math.isfinite(found.high) and found.low > 0 else 0.0
            self.best, self.bound = found.value, found.value * math.exp(width / 2 / 1.96)
        self.chosen = math.isfinite(found.value) and found.value <= self.bound
        if trainer.is_global_zero:
            text = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
            seconds = time.perf_counter() - begin
            log.info("step %d: validation relative to Seasonal Naive: %s (%.1f s)", step, text, seconds)

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint of this step keeps, so that the choice follows from the files."""
        return {**self.scores, "best": self.best, "bound": self.bound, "tasks": self.fingerprint}

    def scores_at(self, step: int) -> dict[str, float] | None:
        """Scores of exactly this step; None where it was not validated."""
        return self.scores if step == self.step else None

    @property
    def summary(self) -> str:
        """Newest and best for the progress bar, 'val 0.903 (best 0.895)'; empty before the first validation."""
        newest = f" {self.scores['mwql']:#.3g}" if self.scores else ""
        best = f" (best {self.best:#.3g})" if math.isfinite(self.best) else ""
        return f"val{newest}{best}" if newest or best else ""
