"""NorMuon for matrices and AdamW for everything else, in one optimizer.

NorMuon (arXiv 2510.05491): the momentum of a matrix is orthogonalised, its rows are brought to equal strength by a
second moment per row, and the whole is put back to the Frobenius norm it had. Weight decay is cautious
(arXiv 2510.12402) and independent of the learning rate. With M, v the state, W [m, n] the weight, G its gradient:

    M <- mu M + G;  U = G + mu M (Nesterov) or M;  O = orthogonalize(U)
    r_i = mean_j O_ij^2;  v <- beta2 v + (1 - beta2) r
    N_i = O_i / (sqrt(v_i) + eps);  D = N ||O|| / ||N||
    W <- W - wd (lr_t / lr_peak) [D * W >= 0] W - lr_t multiplier D

Momentum and the last line are elementwise and run on whatever part of a matrix is here; the middle two need the whole
matrix and run at its owner (`exchange.py`), so that sharding changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import zeros as distributed_zeros
from torch.profiler import record_function

from toto_train.optim.adamw import adamw_step, new_state
from toto_train.optim.agreement import Agreement
from toto_train.optim.exchange import Bucket, assign_owners, make_buckets
from toto_train.optim.layout import Block, Layout, norm_of_parts, shard_group
from toto_train.optim.orthogonalize import resolve_dtype
from toto_train.tensors import copy_into

KINDS = ("normuon", "adamw")
REPLICATED_STATES = ("replicated", "owner")
FIXED = ("kind", "param_names", "multipliers", "blocks", "orthogonalize_dtype")
"""Settings of a group that are spent at construction; a saved state does not change them."""
BUCKET_BYTES = 64 * 2**20


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


def apply_update(p: Tensor, o: Tensor, row_lr: Tensor, decay: float, cautious: bool, finite: Tensor) -> Tensor:
    """W <- W - finite (decay [D * W >= 0] W + lr D), with W, O [m, n] and lr c as row_lr [m]; returns the bracket.

    Decay and update are summed before they meet the weight: a decay of 2e-8 alone is below half an ulp of fp32.
    """
    delta = o.to(torch.float32).mul_(row_lr[:, None])
    if decay and cautious:
        delta.addcmul_(torch.mul(delta, p).ge_(0), p, value=decay)
    elif decay:
        delta.add_(p, alpha=decay)
    p.addcmul_(delta, finite, value=-1)
    return delta


class NorMuonAdamW(torch.optim.Optimizer):
    """One optimizer holding both parts, for plain tensors and DTensors; `recipe.build_optimizer` makes its groups.

    A group is a dict with `params` as (name, parameter) pairs, `kind` normuon | adamw, `lr` the peak learning rate and
    `multipliers` (one float per parameter, on the learning rate; 1 where left out). NorMuon's groups have momentum,
    nesterov, beta2, eps, weight_decay, cautious, orthogonalize_dtype, optionally normalize (False is Muon) and
    `blocks`, one tuple per parameter: heights of the blocks of rows that are matrices of their own, () for the whole
    (its multiplier may then be a tuple, too). AdamW's have beta1, beta2, eps, weight_decay.

    replicas: the process group whose ranks hold copies of the plain tensors and see equal gradients, as under DDP;
    their matrices are then shared out and the results gathered. None: every rank does them all. Sharded DTensors and
    replicated ones find their groups by themselves. replicated_state: whether copies have their momentum on every
    rank, or on the `owner` alone (a share of the memory; distributed checkpoints hold all of it either way).
    bucket_bytes: most bytes of updates per rank in one exchange.

    As schedulers of torch do, `group["lr"]` is the present rate and `group["initial_lr"]` the peak. Both stay floats.
    State is made here, not at the first step, and saved under the names of the parameters: momentum like the parameter,
    v [m] cut by rows.

    Where any gradient on any rank is not finite the whole step changes nothing and `skipped_steps` [] grows by one;
    both are decided on the device, without waiting for it. All ranks that share a parameter must step together, with
    gradients on the same parameters: where they differ nothing changes either, and a rank that lacks one raises.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        replicas: dist.ProcessGroup | None = None,
        replicated_state: str = "replicated",
        bucket_bytes: int = BUCKET_BYTES,
    ):
        if replicated_state not in REPLICATED_STATES:
            raise ValueError(f"replicated_state={replicated_state!r} must be one of {', '.join(REPLICATED_STATES)}")
        self.replicas, self.replicated_state, self.bucket_bytes = replicas, replicated_state, bucket_bytes
        self.blocks: list[Block] = []
        self._buckets: dict[frozenset[str], list[Bucket]] = {}
        self._whole = False
        super().__init__(groups, defaults={})
        assign_owners(self.blocks)  # over all groups
        for group in self.param_groups:
            self._make_state(group)
        self._whole = True
        self.measures = False
        """Whether a step notes how far it moves the parameters, for `update_norms`; it costs a pass over them."""
        self._changes: dict[str, dict[dist.ProcessGroup | None, list[Tensor]]] = {}
        self._agreement = Agreement(self._named(), replicas)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self._named()[0][1].device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check a group and find its blocks. All groups are given at construction: owners are chosen over all."""
        if self._whole:
            raise ValueError("give all groups at construction: the owners of matrices are chosen over all of them")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        params, names = group["params"], group.get("param_names", [])
        multipliers = group.setdefault("multipliers", [1.0] * len(params))
        if group["kind"] not in KINDS:
            raise ValueError(f"kind={group['kind']!r} must be one of {', '.join(KINDS)}")
        if len(names) != len(params) or len(multipliers) != len(params):
            raise ValueError(f"{group['kind']} group: each parameter needs a name and a multiplier")
        all_names = [name for g in self.param_groups for name in g["param_names"]]
        if repeated := {name for name in all_names if all_names.count(name) > 1}:
            raise ValueError(f"several parameters are named {', '.join(sorted(repeated))}")
        if not group.setdefault("initial_lr", group["lr"]) > 0:
            raise ValueError(f"{group['kind']} group: lr={group['initial_lr']} is the peak and must be positive")
        if group["kind"] == "normuon":
            group.setdefault("normalize", True)
            heights = group.setdefault("blocks", [()] * len(params))
            for name, p, multiplier, own in zip(names, params, multipliers, heights, strict=True):
                self.blocks += self._cut(name, p, multiplier, own, group)

    def _cut(
        self,
        name: str,
        p: Tensor,
        multiplier: float | tuple[float, ...],
        heights: tuple[int, ...],
        group: dict[str, Any],
    ) -> Iterable[Block]:
        """The blocks of one parameter."""
        if p.ndim != 2:
            raise ValueError(f"{name} {list(p.shape)}: NorMuon takes matrices; give it to AdamW")
        layout = Layout.of(name, p, self.replicas)
        dtype = resolve_dtype(group["orthogonalize_dtype"], p.device)
        heights = tuple(heights) or (p.shape[0],)
        factors = multiplier if isinstance(multiplier, tuple) else (multiplier,) * len(heights)
        if sum(heights) != p.shape[0] or min(heights) < 1 or len(factors) != len(heights):
            raise ValueError(
                f"{name} {list(p.shape)}: blocks of {list(heights)} rows, multipliers {list(factors)} do not fit"
            )
        start = 0
        for height, factor in zip(heights, factors, strict=True):
            yield Block(name, p, layout, start, start + height, factor, group, dtype)
            start += height

    def _make_state(self, group: dict[str, Any]) -> None:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if group["kind"] == "normuon":
                if self._keeps(name):
                    self.state[p] = {"momentum": torch.zeros_like(p, dtype=torch.float32), "v": _zero_rows(p)}
            else:
                self.state[p] = new_state(p)

    def _keeps(self, name: str) -> bool:
        """Whether this rank has the state of a matrix."""
        own = [b for b in self.blocks if b.name == name]
        return own[0].layout.dim is not None or self.replicated_state == "replicated" or any(b.owned for b in own)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with record_function("optimizer"):
            active = frozenset(name for name, p in self._named() if p.grad is not None)
            finite = self._agreement.reach(active)
            self.skipped_steps += 1 - finite.to(torch.int64)
            self._changes = {}
            self._normuon_step(active, finite)
            note = partial(self._note, "adamw") if self.measures else None
            for group in self.param_groups:
                if group["kind"] == "adamw":
                    adamw_step(group, self.state, finite, note)
        return loss

    def update_norms(self) -> dict[str, Tensor]:
        """Kind of group -> Frobenius norm [] of what the last step added to its parameters, the same on every rank.
        Empty where `measures` was not set before it. All ranks call this together, where parameters are sharded."""
        return {kind: norm_of_parts(norms) for kind, norms in self._changes.items()}

    def _note(self, kind: str, p: Tensor, norm: Tensor) -> None:
        self._changes.setdefault(kind, {}).setdefault(shard_group(p), []).append(norm)

    def _normuon_step(self, active: frozenset[str], finite: Tensor) -> None:
        """All buckets, each a stage behind the one before it: what one sends travels while another is worked on."""
        if active not in self._buckets:
            self._buckets[active] = make_buckets([b for b in self.blocks if b.name in active], self.bucket_bytes)
        buckets = self._buckets[active]
        for k in range(len(buckets) + 2):
            if k < len(buckets):
                self._start(buckets[k], finite)
            if 0 <= k - 1 < len(buckets):
                buckets[k - 1].work()
            if k >= 2:
                self._finish(buckets[k - 2], finite)

    def _start(self, bucket: Bucket, finite: Tensor) -> None:
        """Advance the momenta that are here and send the updates off."""
        held: dict[Block, tuple[Tensor, Tensor]] = {}
        alike: dict[tuple[float, bool], list[Block]] = {}
        for b in bucket.blocks:
            if self.state[b.p]:
                alike.setdefault((b.settings["momentum"], b.settings["nesterov"]), []).append(b)
        for (momentum, nesterov), blocks in alike.items():
            momenta = [b.part(self.state[b.p]["momentum"]) for b in blocks]
            gradients = [b.part(g) for b, g in zip(blocks, _gradients(b.p for b in blocks), strict=True)]
            updates = _momentum_update(momenta, gradients, momentum, nesterov, finite)
            held |= {b: (b.v_part(self.state[b.p]["v"]), u) for b, u in zip(blocks, updates, strict=True)}
        bucket.start(held)

    def _finish(self, bucket: Bucket, finite: Tensor) -> None:
        """Update second moments and weights, as far as they are here."""
        for block, o, scale, new_v in bucket.finish():
            s = block.settings
            if state := self.state[block.p]:
                block.v_part(state["v"]).lerp_(new_v, finite)
            decay = s["weight_decay"] * s["lr"] / s["initial_lr"]
            row_lr = scale * (s["lr"] * block.multiplier)
            delta = apply_update(block.part(block.p), o, row_lr, decay, s["cautious"], finite)
            if self.measures:
                self._note("normuon", block.p, torch.linalg.vector_norm(delta) * finite)

    def state_dict(self) -> dict[str, Any]:
        """State by parameter name, settings of the groups, and the count of skipped steps; tensors are not copied."""
        state = {name: dict(self.state[p]) for name, p in self._named() if self.state[p]}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": state, "param_groups": groups, "skipped_steps": self.skipped_steps}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into this optimizer by name.

        The saved settings of the groups (lr among them) and the count of skipped steps come with it, where they are
        there; but what is fixed at construction (kind, multipliers, blocks, orthogonalize_dtype) stays as it was made
        here. Tensors may be whole, or DTensors placed as they are here; a parameter with an empty state starts anew.
        """
        saved, groups = state_dict["state"], state_dict.get("param_groups")
        problems = [f"{name} is not in this optimizer" for name in sorted(set(saved) - set(dict(self._named())))]
        for name, p in self._named():
            if name not in saved and self.state[p]:
                problems.append(f"{name} is missing")
            if not saved.get(name) or not self.state[p]:
                continue
            want = {k: tuple(t.shape) for k, t in self.state[p].items()}
            have = {k: tuple(t.shape) for k, t in saved[name].items()}
            if want != have:
                problems.append(f"{name} holds {have} where this optimizer holds {want}")
        if groups is None:
            groups = self.param_groups
        grouping = [[set(g["param_names"]) for g in gs] for gs in (groups, self.param_groups)]
        if not problems and grouping[0] != grouping[1]:
            problems.append("parameters are grouped otherwise")
        if problems:
            raise ValueError("optimizer state does not fit:\n" + "\n".join(f"  {p}" for p in problems))
        for name, p in self._named():
            for key, tensor in self.state[p].items():
                copy_into(tensor, saved[name][key]) if saved[name] else tensor.zero_()
        for group, saved_group in zip(self.param_groups, groups, strict=True):
            group.update({k: v for k, v in saved_group.items() if k not in ("params", *FIXED)})
        if "skipped_steps" in state_dict:
            self.skipped_steps.copy_(state_dict["skipped_steps"])

    def __getstate__(self) -> Any:
        """Refuses copy.deepcopy and pickle: process groups and owners belong to this object and its parameters."""
        raise TypeError(
            "a NorMuonAdamW cannot be copied or pickled; build another one over the other parameters and give it this "
            "one's state_dict()"
        )

    def _named(self) -> list[tuple[str, Tensor]]:
        return [pair for g in self.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]


def _gradients(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _zero_rows(p: Tensor) -> Tensor:
    """v [m]: over the ranks that shard p, in either direction, cut by rows; else as p is."""
    if not isinstance(p, DTensor):
        return torch.zeros(p.shape[0], dtype=torch.float32, device=p.device)
    placements = [Replicate() if isinstance(x, Replicate) else Shard(0) for x in p.placements]
    return distributed_zeros(p.shape[0], dtype=torch.float32, device_mesh=p.device_mesh, placements=placements)
