"""Python's garbage collector runs when all ranks can afford it, and looks only at what is new."""

from __future__ import annotations

import gc
from typing import Any

import lightning.pytorch as pl

from toto_train.module import TrainingModule

EVERY = 100
"""Steps between collections."""


class Garbage(pl.Callback):
    """After the first step all that exists by then (modules, compiled code, the model) is kept out of collections, and
    they run at the same steps on every rank.

    Left alone, the collector walks through all of it whenever enough objects were made, at another moment on each rank,
    and the others wait. Cycles are still collected, if later: reference counts free tensors at once, cycles or not hold
    few of them.
    """

    def __init__(self) -> None:
        self._frozen = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if not module.whole_step(batch_idx):
            return
        if not self._frozen:
            with module.set_aside():
                gc.collect()
            gc.freeze()
            gc.disable()
            self._frozen = True
        elif module.position.step % EVERY == 0:
            gc.collect()

    def _thaw(self) -> None:
        if self._frozen:
            gc.unfreeze()
            gc.enable()
            self._frozen = False

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._thaw()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._thaw()
