"""The AdamW part: torch's fused kernel on whatever part of a parameter is here."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from toto_train.optim.layout import local

CACHE_LINE = 64
"""Bytes."""


def new_state(p: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=p.device)
    return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def adamw_step(group: dict[str, Any], state: dict[Tensor, dict[str, Tensor]], finite: Tensor) -> None:
    """Update a group's parameters that have a gradient; where `finite` [] is 0 the kernel leaves all as it was."""
    alike: dict[float, list[Tensor]] = {}
    for p, multiplier in zip(group["params"], group["multipliers"], strict=True):
        if p.grad is not None:
            alike.setdefault(multiplier, []).append(p)
    for multiplier, params in alike.items():
        states = [state[p] for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        moments = [[s[key] for s in states] for key in ("exp_avg", "exp_avg_sq")]
        here = [[local(t) for t in tensors] for tensors in (params, gradients, *moments)]
        lines = [[_full_lines(t) for t in tensors] for tensors in here]
        weights, grads, means, squares = lines
        adamw(
            weights,
            grads,
            means,
            squares,
            [],
            [s["step"] for s in states],
            fused=True,
            found_inf=1 - finite,
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=group["lr"] * multiplier,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for tensors, changed in zip(here, lines, strict=True):
            for t, line in zip(tensors, changed, strict=True):
                if t is not line:
                    t.copy_(line[: t.numel()].view_as(t))


def _full_lines(t: Tensor) -> Tensor:
    """t, or on a CPU a flat copy of it with zeros up to a full cache line.

    There the fused kernel rounds what is left after the last full vector in another way, and where that is would
    depend on the number of ranks.
    """
    rest = -t.numel() % (CACHE_LINE // t.element_size())
    return F.pad(t.flatten(), (0, rest)) if rest and t.device.type == "cpu" else t
