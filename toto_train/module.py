"""One training step: batch -> loss -> gradients of the global mean -> optimizer and schedule."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from toto_train.checkpoint import Position
from toto_train.config import Config
from toto_train.model.toto import Toto
from toto_train.model.umup import set_replicas
from toto_train.objective import loss_sum
from toto_train.optim.layout import global_norm, local
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import set_lr, set_momentum, warm_momentum, wsd


def keep_freed_memory() -> None:
    """Let a process on CPU reuse freed tensors: glibc otherwise gives large ones back, and every step pays to have them
    mapped and cleared again (a tenth of a step was seen). Does nothing where the C library is another."""
    mmap_max, trim_threshold = -4, -1  # of malloc.h
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


class TrainingModule(pl.LightningModule):
    """Automatic optimisation; `position` advances when an optimizer step completes."""

    def __init__(self, config: Config, model: Toto, optimizer: NorMuonAdamW, position: Position):
        super().__init__()
        self.config, self.optimizer, self.position = config, optimizer, position
        self.model = model
        self._predict = torch.compile(model.forward) if config.parallel.compile else model.forward
        set_replicas(model, config.accumulation)
        model.recompute = math.ceil(config.parallel.activation_checkpointing * config.model.num_layers)
        self._loss, self._weight = torch.zeros(()), torch.zeros(())
        self.last: dict[str, Tensor] = {}
        """Loss and gradient norm of the last completed step, left on the device until somebody reads them."""
        self.aside = 0.0
        """Seconds that callbacks spent on other things than training (validation, saving); meters leave them out."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        target, mask, hidden = batch["target"], batch["target_mask"], batch["cpm_mask"]
        c = self.config
        device = target.device.type
        with torch.autocast(device, torch.bfloat16, enabled=c.parallel.precision == "bf16"):
            prediction = self._predict(target, mask, hidden, batch["series_ids"], batch["flags"], labelled=True)
        loss, weight = loss_sum(prediction, target, mask, hidden, c.model.patch_size, c.objective.label_clamp)
        self._loss = self._loss.to(loss.device) + loss.detach()
        self._weight = self._weight.to(loss.device) + weight
        self.position.points += batch["points"]
        # sums are accumulated and divided once, by the weight of the whole step; Lightning's own 1/accumulation goes
        return loss * c.accumulation

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn summed gradients into those of the mean, clip, and set this step's learning rate; no host sync."""
        c = self.config
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        weight = self._weight.clamp(min=1)
        norm = global_norm(gradients) / weight
        # where even the norm overflows, clipping would make zeros of the gradients: the optimizer is to skip the step
        factor = torch.where(norm.isfinite(), 1 / weight, torch.nan)
        if clip := c.optimizer.clip_norm:
            factor = factor * (clip / norm.clamp(min=clip))
        torch._foreach_mul_([local(g) for g in gradients], factor)
        set_lr(optimizer, wsd(self.position.step, c.schedule))
        set_momentum(optimizer, warm_momentum(self.position.step, c.optimizer.normuon))
        self.last = {"loss": self._loss / weight, "grad_norm": norm}
        self._loss, self._weight = torch.zeros_like(self._loss), torch.zeros_like(self._weight)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.position.step += 1  # here, so that every callback at the end of the batch sees the new position

    def whole_step(self, batch_idx: int) -> bool:
        """Whether an optimizer step ended with this micro-batch."""
        return (batch_idx + 1) % self.config.accumulation == 0

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Count the time spent inside as not training."""
        begin = time.perf_counter()
        yield
        self.aside += time.perf_counter() - begin
