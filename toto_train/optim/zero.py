"""The optimizer that DeepSpeed's ZeRO steps with, and whole tensors out of the pieces that ZeRO cuts.

ZeRO lays the parameters of a group one behind the other and cuts that vector into a piece for every rank; stage 3 cuts
each parameter. Whatever it puts in the place of the parameters is one-dimensional.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from toto_train.config import OptimizerConfig
from toto_train.optim.adamw import adamw_step, new_state
from toto_train.optim.normuon import apply_update
from toto_train.optim.recipe import Route

MUON = "deepspeed_muon"
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), MUON: ("momentum_buffer",)}
"""Kind of group -> its state, besides AdamW's step."""


class ZeroOptimizer(torch.optim.Optimizer):
    """The recipe's rates on what ZeRO puts in the place of the parameters; one group for each kind and multiplier.

    It is made before DeepSpeed's engine, so that a checkpoint can be loaded: `state_dict` then makes room for its
    tensors, and `begin` hands them to the engine.
    """

    def __init__(self, trained: Sequence[tuple[Route, Tensor]], config: OptimizerConfig):
        self.parameters = {r.name: p for r, p in trained}
        self.kinds = {r.name: r.kind for r, _ in trained}
        self.skipped_steps = torch.zeros((), dtype=torch.int64)
        self._loaded: dict[str, dict[str, Tensor]] | None = None
        self._zero: Any = None
        alike: dict[tuple[str, float], list[Tensor]] = {}
        for r, p in trained:
            alike.setdefault((r.kind, _own_multiplier(r)), []).append(p)
        settings = {"adamw": asdict(config.adamw), MUON: asdict(config.normuon)}
        groups = [
            {**settings[kind], "kind": kind, "multiplier": m, "initial_lr": settings[kind]["lr"], "params": params}
            for (kind, m), params in alike.items()
        ]
        torch.optim.Optimizer.__init__(self, groups, defaults={})  # DeepSpeed's Muon, where it is a base, has no part

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """By DeepSpeed, piece after piece; it has found all gradients finite."""
        for group in self.param_groups:
            params, lr = group["params"], group["lr"]
            if not params:
                continue
            yes = torch.ones((), device=params[0].device)
            if group["kind"] == "adamw":
                adamw_step({**group, "multipliers": [group["multiplier"]] * len(params)}, self.state, yes)
                continue
            decay = group["weight_decay"] * lr / group["initial_lr"]
            for p in params:  # whose gradient is Muon's update by now
                rate = lr * group["multiplier"] * yes.view(1)
                apply_update(p.view(1, -1), p.grad.view(1, -1), rate, decay, group["cautious"], yes)

    def gradients(self) -> list[Tensor]:
        """This rank's pieces of the summed gradient, between the last backward and the step."""
        return [g for pieces in self._zero.averaged_gradients.values() for g in pieces]

    def settle(self, applied: bool) -> None:
        """Note whether DeepSpeed made the step, or skipped it for a gradient that is not finite."""
        if not applied:
            self.skipped_steps += 1
            if (kept := getattr(self._zero, "grad_partitions_flat_buffer", None)) is not None:
                kept.zero_()  # stage 3 never writes what lies behind the end of a parameter: NaN would stay there

    def state_dict(self) -> dict[str, Any]:
        """State by the name of the parameter, whole and in main memory, of every world-th parameter here; zeros to load
        into before `begin`. All ranks call this together."""
        mine = _share(self.parameters)
        if self._zero is None:
            state = self._loaded = {name: self._new_state(name, p.shape) for name, p in mine.items()}
        else:
            step = self._steps()[0].cpu()
            state = {name: {"step": step} if self.kinds[name] == "adamw" else {} for name in mine}
            for key, parameters in self._by_moment():
                for name, moment in _gather(parameters, mine, key):
                    state[name][key] = moment
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": state, "param_groups": groups, "skipped_steps": self.skipped_steps}

    @torch.no_grad()
    def begin(self, zero: Any, weights: Mapping[str, Tensor]) -> None:
        """Take DeepSpeed's optimizer, give its pieces their state, and its fp32 weights the values they should have.

        weights: `share_of_weights`; empty where the engine was made of fp32 weights. All ranks call this together.
        """
        self._zero = zero
        for piece in self._pieces():
            if not self.state[piece]:  # Muon's is there
                self.state[piece] = new_state(piece)
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._lazy_init_hp_params_optimizer_state()  # stages 1 and 2; they would only do so in the first step
        if weights:
            _scatter(self.parameters, self.parameters, weights)
        if self._loaded is None:
            return
        for key, parameters in self._by_moment():
            moments = {name: state[key] for name, state in self._loaded.items() if key in state}
            _scatter(self.parameters, parameters, moments, key)
        step = torch.stack([state["step"] for state in self._loaded.values() if "step" in state]).amax()
        for own in self._steps():
            own.copy_(step)
        self._loaded = None

    def share_of_weights(self) -> dict[str, Tensor]:
        """Copies of this rank's share of the weights, in main memory."""
        return {name: p.detach().to("cpu", copy=True) for name, p in _share(self.parameters).items()}

    def _new_state(self, name: str, shape: torch.Size) -> dict[str, Tensor]:
        if self.kinds[name] == "adamw":
            return new_state(torch.empty(shape))
        return {key: torch.zeros(shape) for key in MOMENTS[MUON]}

    def _pieces(self) -> list[Tensor]:
        """The fp32 weights that this rank steps."""
        stage3 = hasattr(self._zero, "fp32_partitioned_groups_flat")
        return self._zero.fp32_partitioned_groups_flat if stage3 else self._zero.single_partition_of_fp32_groups

    def _steps(self) -> list[Tensor]:
        """AdamW's counts of steps, all the same."""
        return [self.state[piece]["step"] for piece in self._pieces() if "step" in self.state[piece]]

    def _by_moment(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Every kind of moment, with the parameters that have it."""
        for kind, keys in MOMENTS.items():
            for key in keys:
                yield key, {name: p for name, p in self.parameters.items() if self.kinds[name] == kind}


def zero_optimizer(trained: Sequence[tuple[Route, Tensor]], config: OptimizerConfig) -> ZeroOptimizer:
    """For AdamW alone, or one that ZeRO takes for its Muon. DeepSpeed is not imported before this."""
    # on this device, and without the C++ that it would compile for ranks on a CPU
    os.environ["DS_ACCELERATOR"] = trained[0][1].device.type
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if config.stack != MUON:
        return ZeroOptimizer(trained, config)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for r, p in trained:
        p.use_muon = r.kind == MUON  # type: ignore[attr-defined]
    return type("ZeroMuon", (ZeroOptimizer, MuonWithAuxAdam), {})(trained, config)


def _own_multiplier(route: Route) -> float:
    """What remains of a multiplier, as DeepSpeed's Muon has multiplied its update by sqrt(max(1, m/n)) already."""
    own = max(1.0, route.shape[0] / route.shape[1]) ** 0.5 if route.kind == MUON else 1.0
    return route.multiplier / own


def whole(p: Tensor, key: str = "") -> Tensor:
    """A parameter's fp32 weight, or its moment `key`, whole on every rank; all ranks call this together."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(p, key) if key else safe_get_full_fp32_param(p)


def is_cut(model: nn.Module) -> bool:
    """Whether a model's parameters are not its whole fp32 weights: ZeRO cut them (stage 3) or rounded them to bf16."""
    return any(hasattr(p, "ds_id") or p.dtype != torch.float32 for p in model.parameters())


def save_whole(model: nn.Module) -> None:
    """Let the model's state_dict hold fp32 weights once its parameters are cut: whole and in main memory, each on one
    rank. All ranks then call it together."""
    model.register_state_dict_post_hook(_whole_weights)


def _whole_weights(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if is_cut(model):
        parameters = dict(model.named_parameters())
        for name in parameters:
            del state[prefix + name]
        state.update({prefix + name: w for name, w in _gather(parameters, _share(parameters))})


def _share(named: Mapping[str, Any]) -> dict[str, Any]:
    """The part of all parameters that this rank keeps whole for the others."""
    return dict(list(named.items())[dist.get_rank() :: dist.get_world_size()])


def _gather(parameters: Mapping[str, Tensor], mine: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Tensor]]:
    """Whole weights, or moments, in main memory, of those parameters that are `mine`."""
    for name, p in parameters.items():
        tensor = whole(p, key)
        if name in mine:
            yield name, tensor.cpu()


def _scatter(
    every: Mapping[str, Tensor], some: Mapping[str, Tensor], values: Mapping[str, Tensor], key: str = ""
) -> None:
    """The way back of `_gather`; every: all parameters, by which shares are dealt."""
    from deepspeed import utils

    rank, world = dist.get_rank(), dist.get_world_size()
    p: Any  # with attributes that stage 3 gave it
    for i, (name, p) in enumerate(every.items()):
        if name not in some:
            continue
        shape = p.ds_shape if hasattr(p, "ds_id") else p.shape
        value = values[name].to(p.device) if i % world == rank else torch.empty(shape, device=p.device)
        dist.broadcast(value, i % world)
        if not hasattr(p, "ds_id"):  # stages 1 and 2
            utils.safe_set_full_optimizer_state(p, value, key) if key else utils.safe_set_full_fp32_param(p, value)
            continue
        size = p.ds_tensor.numel()  # of every piece: the last is filled up
        piece = F.pad(value.flatten(), (0, size * world - value.numel()))[rank * size : (rank + 1) * size]
        utils.safe_set_local_optimizer_state(p, piece, key) if key else utils.safe_set_local_fp32_param(p, piece)
