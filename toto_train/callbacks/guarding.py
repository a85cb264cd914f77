"""Ends a run whose steps are all skipped, and says which rows they saw."""

from __future__ import annotations

from collections import Counter
from typing import Any

import lightning.pytorch as pl

from toto_train.callbacks.meters import Meters
from toto_train.config import GAVE_UP, Config, RunStopped
from toto_train.data.order import Order
from toto_train.module import TrainingModule

COUNTED = 4096
"""Most rows whose sources are counted in the message."""


class Guarding(pl.Callback):
    """Raises RunStopped after guards.max_skipped skipped steps in a row; comes after Meters and before Saving.

    What was skipped is counted on the device and the host looks at it when Meters reports, so a run may go on for up to
    logger.every_steps more. Nothing is saved then: the last checkpoint is no worse, and it lies before those steps.
    """

    def __init__(self, meters: Meters, order: Order, folder: str):
        self.meters, self.order, self.folder = meters, order, folder

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if self.meters.reported == module.position.step and (last := self.meters.given_up) >= 0:
            now = f"stopped at step {module.position.step}: {describe(module.config, self.order, last)}"
            raise RunStopped(
                f"{now}; look at them: python scripts/inspect_rows.py run={self.folder} step={last}. Nothing was saved "
                "since; the same command goes on from the last checkpoint and meets the same rows, so lower the "
                "learning rate, leave a source out (allow_data_change=true), or raise guards.max_skipped or "
                "guards.spike",
                GAVE_UP,
            )


def describe(config: Config, order: Order, last: int) -> str:
    """The steps up to `last` that were skipped in a row, counted from 0, and their rows."""
    first = max(0, last + 1 - config.guards.max_skipped)
    rows = range(first * config.global_rows, (last + 1) * config.global_rows)
    sources = Counter(order.row(n).source for n in rows[-COUNTED:])
    which = "" if len(rows) <= COUNTED else f"of the last {COUNTED} "
    return (
        f"steps {first} to {last} were skipped, as their losses or gradients were not finite or were spikes. "
        f"They saw rows {rows[0]} to {rows[-1]}; {which}these are: "
        + ", ".join(f"{source} {k}" for source, k in sources.most_common())
    )
