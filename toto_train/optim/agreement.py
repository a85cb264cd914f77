"""What ranks agree on before a step: every gradient is finite, and the same parameters have one everywhere.

Ranks that took different parameters into a step would exchange different messages, and step on garbage. A few bytes
per parameter are reduced on the device; the host waits for them only where a parameter has no gradient on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from toto_train.optim.layout import local


class Agreement:
    """Made once for all parameters of an optimizer, in the same order on every rank.

    named: (name, parameter) pairs. replicas: the process group that holds copies of the plain ones, if any. Ranks agree
    with all that share a parameter with them: those of every mesh dimension of the DTensors, and those of `replicas`.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]], replicas: dist.ProcessGroup | None):
        self.named = named
        self.groups: list[dist.ProcessGroup] = []
        for _, p in named:
            groups = [replicas] if replicas is not None else []
            if isinstance(p, DTensor):
                groups = [p.device_mesh.get_group(i) for i in range(p.device_mesh.ndim)]
            self.groups += [g for g in groups if g not in self.groups]
        self._presence: dict[frozenset[str], Tensor] = {}

    def reach(self, active: frozenset[str]) -> Tensor:
        """[] fp32: 1 if on every rank all gradients (and their norms) are finite and the parameters named in `active`
        are those that have one, else 0, on every rank alike.

        Where parameters have no gradient here but have one on other ranks raises RuntimeError with their names.
        """
        gradients = [local(p.grad) for _, p in self.named if p.grad is not None]
        finite = torch.ones((), device=self.named[0][1].device)
        if gradients:
            finite = torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).isfinite().all().to(torch.float32)
        if not self.groups:
            return finite
        if active not in self._presence:
            has = torch.tensor([float(name in active) for name, _ in self.named], device=finite.device)
            self._presence[active] = torch.cat([has, -has])
        least = torch.cat([finite[None], self._presence[active]])
        for group in self.groups:  # one mesh dimension after the other reaches all ranks of the mesh
            dist.all_reduce(least, dist.ReduceOp.MIN, group=group)
        on_all, on_any = least[1:].view(2, -1)[0], -least[1:].view(2, -1)[1]
        if len(active) < len(self.named):
            self._compare(active, on_all.tolist(), on_any.tolist())
        return least[0] * (on_all == on_any).all()

    def _compare(self, active: frozenset[str], on_all: list[float], on_any: list[float]) -> None:
        names = [name for (name, _), a, b in zip(self.named, on_all, on_any, strict=True) if a != b]
        missing, present = ([n for n in names if (n in active) is here] for here in (False, True))
        parts = [f"none on this rank, but one elsewhere: {', '.join(missing)}"] if missing else []
        parts += [f"one on this rank, but not everywhere: {', '.join(present)}"] if present else []
        if parts:
            raise RuntimeError(
                f"ranks disagree about which parameters have a gradient ({'; '.join(parts)}); every rank must use the "
                "same parameters in a step"
            )
