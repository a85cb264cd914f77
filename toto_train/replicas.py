"""Copies of the weights that ranks hold stay the same, bit by bit; a device that computes otherwise is found."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from toto_train.config import GAVE_UP, RunStopped
from toto_train.optim.layout import local
from toto_train.ranks import Ranks


def check_replicas(model: nn.Module, ranks: Ranks, mode: str, step: int) -> None:
    """Raises RunStopped, on all ranks, where two hold different copies of a weight. One small message.

    In ddp every rank has a copy; in hsdp ranks with the same part of the weights have; the other modes have none.
    Nothing brings copies that differ together again, since each rank adds the same updates to its own.
    """
    if mode not in ("ddp", "hsdp") or ranks.world == 1:
        return
    parts = ranks.mesh.size(1) if ranks.mesh is not None else 1
    names, weights = zip(*model.named_parameters(), strict=True)
    sums = torch.stack([local(w.detach()).contiguous().view(torch.int32).sum(dtype=torch.int64) for w in weights]).cpu()
    # every part has a row; the largest and (as the largest negative) the smallest sum of its copies must be one
    bounds = torch.full((2, parts, len(names)), torch.iinfo(torch.int64).min)
    bounds[:, ranks.rank % parts] = torch.stack([sums, -sums])
    dist.all_reduce(bounds, dist.ReduceOp.MAX)
    if wrong := (bounds[0] != -bounds[1]).any(dim=0).nonzero().flatten().tolist():
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RunStopped(
            f"at step {step} ranks hold different copies of {names[wrong[0]]}{more}: a device computes otherwise than "
            "the rest (another model, a fault) or other libraries do; nothing is saved of this step. Look for it, then "
            "start again from the last checkpoint, which was made when copies were the same",
            GAVE_UP,
        )
