"""Checkpoints every so many steps, where validation chooses one, at the end, and when a signal asks the run to stop."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from toto_train.callbacks.validation import Validation
from toto_train.checkpoint_saver import Saver
from toto_train.config import Config, RunStopped
from toto_train.data.order import Order
from toto_train.module import SIGNALS, TrainingModule
from toto_train.replicas import check_replicas

log = logging.getLogger(__name__)


class Saving(pl.Callback):
    """Saves at step edges only. SIGTERM or Ctrl-C: finish the step, save, stop; a second Ctrl-C stops at once.

    A save that failed beside training stops the run at the next step edge. The end of training waits for the last save.
    """

    def __init__(self, run: Path, config: Config, order: Order, validation: Validation):
        self.saver, self.validation = Saver(run, config, order.fingerprint, order.facts), validation
        self.former: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)

        def stop(number: int, frame: FrameType | None) -> None:
            if module.signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            module.signal = number

        self.former = {n: signal.signal(n, stop) for n in SIGNALS}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        step, c = module.position.step, module.config
        if not module.whole_step(batch_idx):
            return
        self.saver.check()
        record = self.validation.record if self.validation.scores_at(step) is not None else None
        chosen = record is not None and self.validation.chosen
        if module.stop or chosen or step % c.checkpoint.every_steps == 0 or step == c.schedule.max_steps:
            with module.set_aside():
                check_replicas(module.model, module.ranks, c.parallel.mode, step)
                self.saver.save(module.model, module.optimizer, module.position, record, module.extra)
        trainer.should_stop = trainer.should_stop or bool(module.stop)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        with module.set_aside():
            self.saver.wait()
        self._leave()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        assert isinstance(module, TrainingModule)
        if module.ranks.world > 1 and not isinstance(exception, RunStopped):
            # at once: what Lightning does next may wait for messages to ranks that are gone
            log.error("rank %d: %s: %s", module.ranks.rank, type(exception).__name__, exception)
        self._leave()

    def _leave(self) -> None:
        self.saver.close()
        for number, handler in self.former.items():
            signal.signal(number, handler)
