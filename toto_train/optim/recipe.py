"""The training recipe: which optimizer each parameter gets, at which learning rate, and the schedule over steps.

Rules go by parameter name, because attributes set on a parameter do not survive sharding. Learning rates transfer
between sizes by unit-scaled maximal update parametrisation (u-muP, arXiv 2407.17465).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from toto_train.config import NorMuonConfig, OptimizerConfig, ScheduleConfig
from toto_train.optim.normuon import NorMuonAdamW

logger = logging.getLogger(__name__)

WRAPPERS = {"model", "module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Parts of a name that Lightning, torch.compile, DDP or activation checkpointing put there."""

LR_RULES: dict[str, Callable[[int, int], float]] = {
    "spectral": lambda m, n: math.sqrt(m / n),
    "unit_scaled": lambda m, n: math.sqrt(m),
    "original": lambda m, n: math.sqrt(max(1.0, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
}
"""NorMuon's learning rate factor of a weight [m, n] = [fan_out, fan_in]."""

SPLITS = ("none", "fused", "heads")

DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "sqrt": lambda left: 1 - math.sqrt(1 - left),  # arXiv 2405.18392
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
}
"""Factor on every learning rate while it decays, of the share of the decay that is left."""

STACK = r"layers\.(\d+)\."
RULES = (
    (STACK + r"(attn\.(in_proj|out_proj)|mlp\.(up|down))\.weight", "stack matrix"),
    (STACK + r"(attn\.(in_proj|out_proj)|mlp\.(up|down))\.bias", "bias"),
    (STACK + r"attn\.per_dim_scale", "per-dimension scale"),
    (r"patch_embed\.(linear1|linear2|skip)\.weight", "hidden matrix"),
    (r"head\.linear1\.weight", "hidden matrix"),
    (r"head\.(linear2|skip)\.weight", "readout matrix"),
    (r"(patch_embed|head)\.(linear1|linear2|skip)\.bias", "bias"),
)
"""Name pattern -> role. Only stack matrices go to NorMuon, and all of them do unless the config says AdamW."""


@dataclass(frozen=True)
class Route:
    """How one parameter is trained."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """normuon | adamw."""
    multiplier: float
    """Its learning rate over that of its kind."""
    reason: str
    blocks: tuple[int, ...] = ()
    """Heights of the blocks of rows that NorMuon takes as matrices of their own; () is the whole."""


def canonical(name: str) -> str:
    """Name of a parameter inside the model, whatever wraps it: 'model._orig_mod.head.skip.bias' -> 'head.skip.bias'."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def route(shapes: Mapping[str, Sequence[int]], depth: int, config: OptimizerConfig) -> list[Route]:
    """Decide for every parameter (name -> shape); `depth` is the number of layers.

    Raises where a name has no rule, where a matrix of the stack would not get what config.stack says, and where the
    layers are not 0 to depth - 1.
    """
    lr_rule = config.normuon.lr_rule
    if lr_rule not in LR_RULES:
        raise ValueError(f"lr_rule={lr_rule!r} must be one of {', '.join(LR_RULES)}")
    sizes = {canonical(name): tuple(shape) for name, shape in shapes.items()}
    layers = {int(match[1]) for name in sizes if (match := re.match(STACK, name))}
    if layers != set(range(depth)):
        raise ValueError(f"depth={depth}, but the parameters given are those of layers {sorted(layers)}")
    return [_route_one(name, sizes, depth, config) for name in sizes]


def _route_one(name: str, shapes: Mapping[str, tuple[int, ...]], depth: int, config: OptimizerConfig) -> Route:
    shape = shapes[name]
    role = next((role for pattern, role in RULES if re.fullmatch(pattern, name)), None)
    in_stack = re.match(STACK, name) is not None
    if role is None:
        raise ValueError(f"{name} {list(shape)} has no rule; add its role to RULES in toto_train/optim/recipe.py")
    if (role == "stack matrix") != (in_stack and len(shape) == 2):
        raise ValueError(f"{name} {list(shape)}: all matrices of the stack and nothing else get NorMuon")
    blocks: tuple[int, ...] = ()
    kind = config.stack if role == "stack matrix" else "adamw"
    if kind != "adamw":
        blocks = _blocks(name, shapes, config.normuon.split)
        height = blocks[0] if blocks else shape[0]
        factor, reason = LR_RULES[config.normuon.lr_rule](height, shape[1]), f"{role}, {config.normuon.lr_rule}"
        if blocks:
            reason = f"{role} in {len(blocks)} blocks, {config.normuon.lr_rule}"
    elif role in ("stack matrix", "hidden matrix"):
        factor, reason = shape[1] ** -0.5, f"{role}, fan_in^-1/2"
    else:
        factor, reason = 1.0, role
    if in_stack:
        factor, reason = factor * depth**-0.5, f"{reason}, depth^-1/2"
    return Route(name, shape, kind, factor, reason, blocks)


def _blocks(name: str, shapes: Mapping[str, tuple[int, ...]], choice: str) -> tuple[int, ...]:
    """Heights of a stack matrix's blocks: in_proj is [q | k | v], each [heads, head_dim]; up is [gate | up]."""
    if choice not in SPLITS:
        raise ValueError(f"split={choice!r} must be one of {', '.join(SPLITS)}")
    parts = {"in_proj": 3, "up": 2}.get(name.split(".")[-2], 1)
    if choice == "none" or parts == 1:
        return ()
    rows = shapes[name][0]
    if choice == "heads" and parts == 3:
        (head_dim,) = shapes[name.replace("in_proj.weight", "per_dim_scale")]
        parts = rows // head_dim
    if rows % parts:
        raise ValueError(f"{name} {list(shapes[name])} does not divide into {parts} blocks")
    return (rows // parts,) * parts


def routing_table(routes: Iterable[Route]) -> str:
    """Aligned text, equal layers in one line: parameter, count, shape, optimizer, learning rate factor, reason."""
    counts: dict[tuple[str, ...], int] = {}
    totals: dict[str, list[int]] = {}
    for r in routes:
        name = re.sub(r"\.\d+\.", ".*.", r.name)
        shape = "x".join(map(str, r.shape))
        line = (name, shape, r.kind, f"{r.multiplier:.4g}", r.reason)
        counts[line] = counts.get(line, 0) + 1
        total = totals.setdefault(r.kind, [0, 0])
        total[0] += 1
        total[1] += math.prod(r.shape)
    rows: list[tuple[str, ...]] = [("parameter", "count", "shape", "optimizer", "lr x", "why")]
    rows += [(name, str(count), *rest) for (name, *rest), count in counts.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{kind}: {tensors} tensors, {numbers:,} parameters" for kind, (tensors, numbers) in totals.items()]
    return "\n".join(lines)


def describe_routing(named_parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, depth: int) -> str:
    """The routing table of a model's trained parameters."""
    return routing_table(r for r, _ in routed(named_parameters, config, depth))


def routed(
    named_parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, depth: int
) -> list[tuple[Route, Tensor]]:
    """Routes of the parameters that require a gradient; raises where there are none, or none for NorMuon unasked."""
    params = dict(named_parameters)
    routes = route({name: p.shape for name, p in params.items()}, depth, config)
    trained = [(r, p) for r, p in zip(routes, params.values(), strict=True) if p.requires_grad]
    if not trained:
        raise ValueError(f"nothing to train: all {len(routes)} parameters are frozen (requires_grad is False)")
    if config.stack == "normuon" and not any(r.kind == "normuon" for r, _ in trained):
        raise ValueError(
            f"no parameter would get NorMuon: none of the {len(trained)} that are trained is a matrix of the stack; "
            "if that is meant (the stack is frozen, say) set optimizer.stack=adamw"
        )
    return trained


def build_optimizer(
    named_parameters: Iterable[tuple[str, Tensor]],
    config: OptimizerConfig,
    depth: int,
    replicas: ProcessGroup | None = None,
) -> NorMuonAdamW:
    """The recipe's optimizer over every parameter that requires a gradient; logs the routing table.

    Parameters are those of the model as it will be trained: after fully_shard, or inside DDP, whose process group is
    `replicas`. Raises where nothing is trained, and where nothing would get NorMuon although config.stack says so.
    """
    trained = routed(named_parameters, config, depth)
    logger.info("routing of parameters\n%s", routing_table(r for r, _ in trained))
    groups = []
    for kind, settings in (("normuon", asdict(config.normuon)), ("adamw", asdict(config.adamw))):
        chosen = [(r, p) for r, p in trained if r.kind == kind]
        if chosen:
            per_parameter: dict[str, Any] = {"params": [(r.name, p) for r, p in chosen]}
            per_parameter["multipliers"] = [r.multiplier for r, _ in chosen]
            if kind == "normuon":
                per_parameter["blocks"] = [r.blocks for r, _ in chosen]
            settings = {k: v for k, v in settings.items() if k not in NOT_OF_GROUPS}
            groups.append({"kind": kind, **settings, **per_parameter})
    n = config.normuon
    return NorMuonAdamW(groups, replicas, n.replicated_state, n.bucket_mib * 2**20)


NOT_OF_GROUPS = ("split", "lr_rule", "momentum_start", "momentum_warmup_steps", "replicated_state", "bucket_mib")
"""Settings of NorMuonConfig that are spent before the optimizer's groups are made, or belong to none of them."""


def wsd(step: int, config: ScheduleConfig) -> float:
    """Warm-up, stable, decay: the factor on every learning rate for the update made at 0-based `step`.

    Rises linearly to 1 at the last warm-up step, falls over the last decay_steps by decay_shape, and is 0 after the
    last step.
    """
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    left = (config.max_steps - step) / config.decay_steps if config.decay_steps else 1.0
    return min(1.0, rise, DECAY_SHAPES[config.decay_shape](min(1.0, max(0.0, left))))


def warm_momentum(step: int, config: NorMuonConfig) -> float:
    """NorMuon's momentum for the update made at 0-based `step`: a line from momentum_start to momentum."""
    share = min(1.0, step / config.momentum_warmup_steps) if config.momentum_warmup_steps else 1.0
    return config.momentum_start + share * (config.momentum - config.momentum_start) if share < 1 else config.momentum


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Set NorMuon's momentum in every group that has one."""
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = momentum


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak; NorMuon's weight decay follows by itself."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
