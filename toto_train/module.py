"""One training step: batch -> loss -> gradients of the global mean -> optimizer and schedule."""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from toto_train import parallel
from toto_train.checkpoint import Position
from toto_train.clock import Clock
from toto_train.config import Config
from toto_train.guard import Guard
from toto_train.model.toto import Toto
from toto_train.objective import variate_losses
from toto_train.optim.layout import global_norm, local
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import set_lr, set_momentum, warm_momentum, wsd
from toto_train.optim.zero import ZeroOptimizer
from toto_train.ranks import ALONE, Ranks
from toto_train.watchdog import Watchdog

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What asks a run to save and stop."""


def keep_freed_memory() -> None:
    """Let a process on CPU reuse freed tensors: glibc otherwise gives large ones back, and every step pays to have them
    mapped and cleared again (a tenth of a step was seen). Does nothing where the C library is another."""
    mmap_max, trim_threshold = -4, -1  # of malloc.h
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


class TrainingModule(pl.LightningModule):
    """Automatic optimisation; `position` advances when an optimizer step completes.

    model: laid out over the ranks already (`parallel.build`), with the optimizer made for it. Each rank sees its rows;
    losses, weights, points and stop requests are summed over the ranks once a step.
    """

    def __init__(
        self,
        config: Config,
        model: Toto,
        optimizer: NorMuonAdamW | ZeroOptimizer,
        position: Position,
        ranks: Ranks = ALONE,
    ):
        super().__init__()
        self.config, self.optimizer, self.position, self.ranks = config, optimizer, position, ranks
        self.model = model
        self._loss, self._weight = torch.zeros(()), torch.zeros(())
        self._points = 0
        self.signal = 0
        """Number of the signal that asked this process to stop."""
        self.stop = 0
        """Number of the signal that some rank was asked to stop by, known to all at the same step edge."""
        self.last: dict[str, Tensor] = {}
        """Loss, weight (labels) and gradient norm of the last completed step, left on the device until somebody reads
        them."""
        self.guard = Guard(config.guards, ranks.device)
        self.clock = Clock(ranks.device)
        self.strata: Tensor | None = None
        """[strata, 2] float64: sums of losses and of their weights since somebody last took them; None sums nothing."""
        self.aside = 0.0
        """Seconds that callbacks spent on other things than training (validation, saving); meters leave them out."""
        self.watchdog = Watchdog()
        self.ema: dict[str, Tensor] = {}
        """Averaged weights by name, laid out as the weights are; empty where config.ema_decay is 0."""
        if config.ema_decay:
            self.ema = {name: p.detach().clone() for name, p in model.named_parameters()}

    @property
    def extra(self) -> dict[str, Any]:
        """Tensors besides weights and optimizer that a checkpoint is to hold, in named groups: the live ones."""
        return {"guard": self.guard.state_dict(), **({"ema": self.ema} if self.ema else {})}

    def configure_model(self) -> None:
        """Nothing: `parallel.build` has done it. Lightning's strategy for sharded models asks for the hook."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        target, mask, hidden = batch["target"], batch["target_mask"], batch["cpm_mask"]
        c = self.config
        device = target.device.type
        with record_function("forward"):
            with torch.autocast(device, torch.bfloat16, enabled=c.parallel.precision != "fp32"):
                prediction = self.model(target, mask, hidden, batch["series_ids"], batch["flags"], labelled=True)
            parts = variate_losses(prediction, target, mask, hidden, c.model.patch_size, c.objective.label_clamp)
            loss, weight = (part.sum() for part in parts)
        self._loss = self._loss.to(loss.device) + loss.detach()
        self._weight = self._weight.to(loss.device) + weight
        self._points += batch["points"]
        if self.strata is not None:
            sums = torch.stack([part.detach().flatten().double() for part in parts], dim=1)
            self.strata.index_add_(0, batch["stratum"].flatten(), sums)
        # sums are accumulated and divided once, by the weight of the whole step; Lightning's own 1/accumulation goes,
        # and so does the 1/world of averages over ranks
        return loss * (c.accumulation * self.ranks.world)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.clock.mark("data")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with record_function("backward"):
            super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        self.clock.mark("forward_backward")

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn summed gradients into those of the mean, clip, and set this step's learning rate; no host sync."""
        c = self.config
        gradients, cut = parallel.gradients(self.model, self.optimizer)
        sums = torch.stack([self._loss, self._weight])
        if self.ranks.world > 1:
            dist.all_reduce(sums)
        loss, weight = sums[0], sums[1].clamp(min=1)
        norm = global_norm(gradients, cut) / weight
        # clipping by a norm that overflows would make zeros of the gradients; NaN has the optimizer skip the step
        factor = torch.where(self.guard.skips(loss / weight, norm, self.position.step), torch.nan, 1 / weight)
        if clip := c.optimizer.clip_norm:
            factor = factor * (clip / norm.clamp(min=clip))
        torch._foreach_mul_([local(g) for g in gradients], factor)
        set_lr(optimizer, wsd(self.position.step, c.schedule))
        set_momentum(optimizer, warm_momentum(self.position.step, c.optimizer.normuon))
        self.last = {"loss": loss / weight, "weight": weight, "grad_norm": norm}
        self._loss, self._weight = torch.zeros_like(self._loss), torch.zeros_like(self._weight)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.end_step()

    @torch.no_grad()
    def end_step(self) -> None:
        """The edge of a step: every rank comes to know the same, and callbacks at the end of the batch see it."""
        if self.ema:
            here = [local(p) for p in self.model.parameters()]
            torch._foreach_lerp_([local(t) for t in self.ema.values()], here, 1 - self.config.ema_decay)
        asked = [float(self.signal == n) for n in SIGNALS]
        points, *asked = self.ranks.sum([float(self._points), *asked]).tolist()
        self.position.step += 1
        self.position.points += int(points)
        self._points = 0
        self.stop = next((n for n, count in zip(SIGNALS, asked, strict=True) if count), 0)
        self.watchdog.allow(self.config.parallel.timeout)
        self.clock.mark("optimizer")

    def on_train_start(self) -> None:
        self.watchdog.allow(self.config.parallel.first_timeout)
        self.clock.mark(None)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.mark("other")  # callbacks come before this

    def whole_step(self, batch_idx: int) -> bool:
        """Whether an optimizer step ended with this micro-batch."""
        return (batch_idx + 1) % self.config.accumulation == 0

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Count the time spent inside as not training; it may be as long as a first step."""
        begin = time.perf_counter()
        self.watchdog.allow(self.config.parallel.first_timeout)
        self.clock.mark("other")
        yield
        self.clock.mark(None)
        self.watchdog.allow(self.config.parallel.timeout)
        self.aside += time.perf_counter() - begin
