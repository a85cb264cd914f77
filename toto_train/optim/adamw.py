"""The AdamW part: torch's fused kernel on whatever part of a parameter is here."""

from __future__ import annotations

from collections.abc import Callable
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


def adamw_step(
    group: dict[str, Any],
    state: dict[Tensor, dict[str, Tensor]],
    finite: Tensor,
    changed_by: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """Update a group's parameters that have a gradient; where `finite` [] is 0 the kernel leaves all as it was.

    changed_by: told each parameter and the norm [] of what was added to what is here of it. That takes a copy of the
    parameter, so they are updated one at a time then.
    """
    alike: dict[Any, list[Tensor]] = {}
    for k, (p, multiplier) in enumerate(zip(group["params"], group["multipliers"], strict=True)):
        if p.grad is not None:
            alike.setdefault((multiplier, k if changed_by else 0), []).append(p)
    for (multiplier, _), params in alike.items():
        states = [state[p] for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        moments = [[s[key] for s in states] for key in ("exp_avg", "exp_avg_sq")]
        here = [[local(t) for t in tensors] for tensors in (params, gradients, *moments)]
        lines = [[_full_lines(t) for t in tensors] for tensors in here]
        weights, grads, means, squares = lines
        before = weights[0].clone() if changed_by else None
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
        if changed_by and before is not None:
            changed_by(params[0], torch.linalg.vector_norm(weights[0] - before))
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
