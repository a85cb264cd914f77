"""NorMuon for matrices and AdamW for everything else, in one optimizer.

NorMuon (arXiv 2510.05491): the momentum of a matrix is orthogonalised, its rows are brought to equal strength by a
second moment per row, and the whole is put back to the Frobenius norm it had. Weight decay is cautious
(arXiv 2510.12402) and independent of the learning rate. With M, v the state, W [m, n] the weight, G its gradient:

    M <- mu M + G;  U = G + mu M (Nesterov) or M;  O = orthogonalize(U)
    r_i = mean_j O_ij^2;  v <- beta2 v + (1 - beta2) r
    N_i = O_i / (sqrt(v_i) + eps);  D = N ||O|| / ||N||
    W <- W - wd (lr_t / lr_peak) [D * W >= 0] W - lr_t multiplier D

A step has three stages so that sharding changes none of them: the momentum and the last line are elementwise and run
on whatever part of a matrix is here; `normalized_update` alone needs the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from toto_train.optim.orthogonalize import orthogonalize, resolve_dtype

KINDS = ("normuon", "adamw")
BATCH_ELEMENTS = 2**24
"""Most elements of one batch of equally shaped matrices on an accelerator; larger matrices fill it alone."""


def normalized_update(
    update: Tensor, v: Tensor, beta2: float, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole matrices U [..., m, n] and v [..., m] -> O [..., m, n] in `dtype`, row scale c [..., m], new v [..., m].

    The normalised update is D = diag(c) O. As ||O||^2 = n sum r_i and ||N||^2 = n sum r_i / (sqrt(v_i) + eps)^2, both
    norms come from r, and no second matrix is made.
    """
    o = orthogonalize(update, dtype)
    r = torch.linalg.vector_norm(o, dim=-1, dtype=torch.float32).square() / o.shape[-1]
    v = torch.lerp(r, v, beta2)
    inverse = 1 / (v.sqrt() + eps)
    energy = (r * inverse.square()).sum(-1, keepdim=True)
    # A matrix that never had a gradient has r = 0: the floor makes its scale 0 instead of 0/0.
    scale = inverse * (r.sum(-1, keepdim=True) / energy.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    return o, scale, v


def _momentum_update(
    momenta: list[Tensor], gradients: list[Tensor], momentum: float, nesterov: bool, finite: Tensor
) -> list[Tensor]:
    """Advance the momenta in place, or leave them where `finite` [] is 0; returns the updates U in memory of their own.

    Momenta and updates stay finite either way.
    """
    # 0 times inf is nan, so what is not finite becomes 0 first; two passes, both vectorised, where `where` is not.
    clean = [torch.nan_to_num(g.to(torch.float32), 0.0, 0.0, 0.0).mul_(finite) for g in gradients]
    torch._foreach_mul_(momenta, finite * momentum + (1 - finite))
    torch._foreach_add_(momenta, clean)
    if nesterov:
        torch._foreach_add_(clean, momenta, alpha=momentum)
    else:
        torch._foreach_copy_(clean, momenta)
    return clean


def _apply(p: Tensor, o: Tensor, row_lr: Tensor, decay: float, cautious: bool, finite: Tensor, scratch: Tensor) -> None:
    """W <- W - finite (decay [D * W >= 0] W + lr D), with W, O [m, n] and lr c as row_lr [m].

    Decay and update are summed before they meet the weight: a decay of 2e-8 alone is below half an ulp of fp32.
    O and `scratch` (fp32, [m, n]) may be overwritten: fresh memory costs a CPU more than the arithmetic.
    """
    delta = o.to(torch.float32).mul_(row_lr[:, None])
    if decay and cautious:
        agree = torch.mul(delta, p, out=scratch).ge_(0)
        delta.addcmul_(agree, p, value=decay)
    elif decay:
        delta.add_(p, alpha=decay)
    p.addcmul_(delta, finite, value=-1)


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _buckets(group: dict[str, Any]) -> list[tuple[float, list[Tensor]]]:
    """(multiplier, parameters) that one call updates: equal multipliers and, for matrices, equal shapes."""
    members: dict[Any, list[Tensor]] = {}
    for p, multiplier in zip(group["params"], group["multipliers"], strict=True):
        if p.grad is not None:
            members.setdefault((multiplier, p.shape if group["kind"] == "normuon" else None), []).append(p)
    buckets: list[tuple[float, list[Tensor]]] = []
    for (multiplier, shape), params in members.items():
        if shape is None:
            size = len(params)
        elif params[0].device.type == "cpu":  # batches are slower there
            size = 1
        else:
            size = max(1, BATCH_ELEMENTS // shape.numel())
        buckets += [(multiplier, params[i : i + size]) for i in range(0, len(params), size)]
    return buckets


class NorMuonAdamW(torch.optim.Optimizer):
    """One optimizer holding both parts; `recipe.build_optimizer` makes its groups.

    A group is a dict with `params` as (name, parameter) pairs, `kind` normuon | adamw, `lr` the peak learning rate,
    `multipliers` (one float per parameter, on the learning rate; 1 where left out) and the settings of its kind:
    momentum, nesterov, beta2, eps, weight_decay, cautious, orthogonalize_dtype; or beta1, beta2, eps, weight_decay.

    As schedulers of torch do, `group["lr"]` is the present rate and `group["initial_lr"]` the peak. Both stay floats.
    State is made here, not at the first step, and saved under the names of the parameters.

    Where any gradient is not finite the whole step changes nothing and `skipped_steps` [] grows by one; both are
    decided on the device, without waiting for it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]):
        super().__init__(groups, defaults={})
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.param_groups[0]["params"][0].device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check a group and make the state of its parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        params, names = group["params"], group.get("param_names", [])
        multipliers = group.setdefault("multipliers", [1.0] * len(params))
        if group["kind"] not in KINDS:
            raise ValueError(f"kind={group['kind']!r} must be one of {', '.join(KINDS)}")
        if len(names) != len(params) or len(multipliers) != len(params):
            raise ValueError(f"{group['kind']} group: each parameter needs a name and a multiplier")
        all_names = [name for g in self.param_groups for name in g["param_names"]]
        if repeated := {name for name in names if all_names.count(name) > 1}:
            raise ValueError(f"several parameters are named {', '.join(sorted(repeated))}")
        if not group.setdefault("initial_lr", group["lr"]) > 0:
            raise ValueError(f"{group['kind']} group: lr={group['initial_lr']} is the peak and must be positive")
        for name, p in zip(names, params, strict=True):
            if group["kind"] == "normuon":
                if p.ndim != 2:
                    raise ValueError(f"{name} {list(p.shape)}: NorMuon takes matrices; give it to AdamW")
                v = torch.zeros(p.shape[0], dtype=torch.float32, device=p.device)
                self.state[p] = {"momentum": torch.zeros_like(p, dtype=torch.float32), "v": v}
            else:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = _gradients([p for group in self.param_groups for p in group["params"]])
        if not gradients:
            return loss
        finite = self._all_finite(gradients)
        self.skipped_steps += 1 - finite.to(torch.int64)
        for group in self.param_groups:
            for multiplier, params in _buckets(group):
                if group["kind"] == "normuon":
                    self._normuon_step(group, multiplier, params, finite)
                else:
                    self._adamw_step(group, multiplier, params, finite)
        return loss

    def _all_finite(self, gradients: list[Tensor]) -> Tensor:
        """[] fp32: 1 if every gradient (and its norm) is finite, else 0."""
        norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float32))
        return norms.isfinite().all().to(torch.float32)

    def _normuon_step(self, group: dict[str, Any], multiplier: float, params: list[Tensor], finite: Tensor) -> None:
        """Update equally shaped matrices: momentum, whole-matrix part, weights."""
        momenta = [self.state[p]["momentum"] for p in params]
        vs = [self.state[p]["v"] for p in params]
        dtype = resolve_dtype(group["orthogonalize_dtype"], params[0].device)
        updates = _momentum_update(momenta, _gradients(params), group["momentum"], group["nesterov"], finite)
        if len(params) == 1:  # plain 2-D products, which on a CPU are the fastest
            o, c, new_v = (t[None] for t in normalized_update(updates[0], vs[0], group["beta2"], group["eps"], dtype))
        else:
            stacked = torch.stack([u.to(dtype) for u in updates])
            o, c, new_v = normalized_update(stacked, torch.stack(vs), group["beta2"], group["eps"], dtype)
        decay = group["weight_decay"] * group["lr"] / group["initial_lr"]
        lr = group["lr"] * multiplier
        for i, (p, v) in enumerate(zip(params, vs, strict=True)):
            v.lerp_(new_v[i], finite)
            _apply(p, o[i], c[i] * lr, decay, group["cautious"], finite, scratch=updates[i])

    def _adamw_step(self, group: dict[str, Any], multiplier: float, params: list[Tensor], finite: Tensor) -> None:
        """torch's fused AdamW, whose kernel leaves everything as it was when told that a gradient is not finite."""
        state = [self.state[p] for p in params]
        adamw(
            params,
            _gradients(params),
            [s["exp_avg"] for s in state],
            [s["exp_avg_sq"] for s in state],
            [],
            [s["step"] for s in state],
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

    def state_dict(self) -> dict[str, Any]:
        """State by parameter name, settings of the groups, and the count of skipped steps; tensors are not copied."""
        state = {name: dict(self.state[p]) for name, p in self._named()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": state, "param_groups": groups, "skipped_steps": self.skipped_steps}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into this optimizer by name; the saved group settings (lr among them) come with it."""
        saved, groups = state_dict["state"], state_dict["param_groups"]
        problems = [f"{name} is not in this optimizer" for name in sorted(set(saved) - set(dict(self._named())))]
        for name, p in self._named():
            if name not in saved:
                problems.append(f"{name} is missing")
                continue
            want = {k: tuple(t.shape) for k, t in self.state[p].items()}
            have = {k: tuple(t.shape) for k, t in saved[name].items()}
            if want != have:
                problems.append(f"{name} holds {have} where this optimizer holds {want}")
        grouping = [[set(g["param_names"]) for g in gs] for gs in (groups, self.param_groups)]
        if not problems and grouping[0] != grouping[1]:
            problems.append("parameters are grouped otherwise")
        if problems:
            raise ValueError("optimizer state does not fit:\n" + "\n".join(f"  {p}" for p in problems))
        for name, p in self._named():
            for key, tensor in self.state[p].items():
                tensor.copy_(saved[name][key])
        for group, saved_group in zip(self.param_groups, groups, strict=True):
            by_name = dict(zip(saved_group["param_names"], saved_group["multipliers"], strict=True))
            settings = {k: v for k, v in saved_group.items() if k not in ("param_names", "multipliers")}
            group.update(settings, multipliers=[by_name[name] for name in group["param_names"]])
        self.skipped_steps.copy_(state_dict["skipped_steps"])

    def _named(self) -> list[tuple[str, Tensor]]:
        return [pair for g in self.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
