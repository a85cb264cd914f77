"""From the tree Hydra composes to a Config, or to everything that is wrong with it.

Unknown keys, wrong types and impossible combinations are collected and raised once, each with its key, its value and
a way out, before anything heavy starts.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from omegaconf import BooleanNode, FloatNode, IntegerNode, StringNode
from omegaconf.errors import OmegaConfBaseException

from toto_train.config import Config, ConfigError
from toto_train.config_check_data import data_problems
from toto_train.config_check_data import nearest as nearest
from toto_train.config_check_run import MODES, parallel_problems

_NODES: dict[Any, Any] = {int: IntegerNode, float: FloatNode, bool: BooleanNode, str: StringNode}


def from_tree(tree: dict[str, Any]) -> Config:
    """Plain nested dict -> Config. Raises ConfigError listing every problem."""
    problems: list[str] = []
    config = _fill(Config, tree, "", problems)
    if problems:  # combinations of settings that were not even understood say nothing
        raise ConfigError(problems)
    config.name = config.name or config.model.name
    if problems := check(config):
        raise ConfigError(problems)
    return config


def _fill(cls: type, tree: Any, prefix: str, problems: list[str]) -> Any:
    """Build dataclass `cls` from a dict, noting every key or value that does not fit."""
    if not isinstance(tree, dict):
        problems.append(f"{prefix.rstrip('.') or 'config'}={tree!r} must be a group of settings")
        return cls()
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        where = f"{prefix}{key}"
        if key not in hints:
            problems.append(f"unknown key '{where}'; {nearest(str(key), hints)}")
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _fill(hints[key], value, f"{where}.", problems)
        elif typing.get_origin(hints[key]) is dict:
            values[key] = _fill_dict(typing.get_args(hints[key])[1], value, where, problems)
        else:
            try:
                if value is None:
                    raise ValueError
                values[key] = _leaf(hints[key], value)
            except (OmegaConfBaseException, ValueError):
                problems.append(f"{where}={value!r} is not a valid {_type_name(hints[key])}")
    return cls(**values)


def _fill_dict(kind: Any, value: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """A group whose keys are the user's: of dataclasses, of such groups, or of plain values."""
    if not isinstance(value, dict):
        problems.append(f"{where}={value!r} must be a group of settings")
        return {}
    if dataclasses.is_dataclass(kind):
        return {str(k): _fill(kind, v, f"{where}.{k}.", problems) for k, v in value.items()}  # type: ignore[arg-type]
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        return {str(k): _fill_dict(inner, v, f"{where}.{k}", problems) for k, v in value.items()}
    out = {}
    for k, v in value.items():
        try:
            out[str(k)] = _leaf(kind, v)
        except (OmegaConfBaseException, ValueError):
            problems.append(f"{where}.{k}={v!r} is not a valid {_type_name(kind)}")
    return out


def _leaf(kind: Any, value: Any) -> Any:
    """Convert one value by OmegaConf's rules ('1e-3' -> 0.001, 1 -> 1.0); raises where it does not fit."""
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError(value)
        return [_leaf(typing.get_args(kind)[0], v) for v in value]
    if isinstance(value, (dict, list)) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(value)
    converted = _NODES[kind](value, is_optional=False)._value()
    if kind is float and not math.isfinite(converted):
        raise ValueError(value)
    return converted


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and typing.get_origin(kind) is None else str(kind)


CHOICES: dict[str, tuple[str, ...]] = {
    "schedule.decay_shape": ("linear", "sqrt", "cosine"),
    "optimizer.normuon.lr_rule": ("spectral", "unit_scaled", "original", "match_rms_adamw"),
    "optimizer.normuon.orthogonalize_dtype": ("auto", "bf16", "fp32"),
    "optimizer.normuon.split": ("none", "fused", "heads"),
    "optimizer.normuon.replicated_state": ("replicated", "owner"),
    "optimizer.stack": ("normuon", "adamw", "deepspeed_muon"),
    "parallel.mode": MODES,
    "parallel.precision": ("fp32", "bf16", "bf16_master"),
    "parallel.device": ("auto", "cpu", "cuda"),
    "logger.wandb": ("off", "offline", "online"),
    "data.on_fault": ("stop", "quarantine"),
    "data.verify": ("size", "full"),
    "validation.groups": ("keep", "split"),
    "heldout.groups": ("keep", "split"),
}
TERMS = ("short", "medium", "long")
POSITIVE = (
    "global_rows", "micro_rows", "model.d_model", "model.num_layers", "model.num_heads", "model.d_ff",
    "model.norm_eps", "model.patch_size", "model.residual_mult", "model.residual_attn_ratio", "objective.max_span",
    "objective.label_clamp", "data.variates", "data.length", "data.lanes",
    "data.shuffle_rows", "data.prefetch", "validation.context",
    "validation.max_windows", "heldout.context", "heldout.max_windows", "optimizer.normuon.lr",
    "optimizer.normuon.eps",
    "optimizer.normuon.bucket_mib", "optimizer.adamw.lr", "optimizer.adamw.eps", "schedule.max_steps",
    "logger.every_steps", "checkpoint.every_steps", "checkpoint.keep_last", "parallel.nodes", "parallel.timeout",
    "parallel.first_timeout", "parallel.rendezvous_timeout", "guards.window", "guards.max_skipped",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "validate_every", "model.layer_group_size", "model.num_variate_layers_per_group", "data.workers",
    "validation.limit", "heldout.limit", "optimizer.clip_norm",
    "optimizer.normuon.momentum_warmup_steps",
    "optimizer.adamw.weight_decay", "schedule.warmup_steps", "schedule.decay_steps", "checkpoint.keep_every",
    "parallel.devices", "parallel.shards", "guards.spike", "profile.start", "profile.steps",
    "hardware.dollars_per_hour",
)  # fmt: skip
FRACTIONS = (
    "optimizer.normuon.momentum", "optimizer.normuon.momentum_start", "optimizer.normuon.beta2",
    "optimizer.normuon.weight_decay", "optimizer.adamw.beta1", "optimizer.adamw.beta2", "ema_decay",
)  # fmt: skip
MOST = {"data.prefetch": (64, "batches of a worker"), "data.workers": (128, "processes of a rank")}


def get(config: Config, key: str) -> Any:
    """Value at a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check(c: Config) -> list[str]:
    """Everything wrong with a typed config, as 'key=value problem; remedy' lines."""
    out: list[str] = []
    for key, allowed in CHOICES.items():
        if get(c, key) not in allowed:
            out.append(f"{key}={get(c, key)!r} must be one of {', '.join(allowed)}")
    out += [f"{key}={get(c, key)} must be positive" for key in POSITIVE if get(c, key) <= 0]
    out += [f"{key}={get(c, key)} must not be negative" for key in NOT_NEGATIVE if get(c, key) < 0]
    out += [f"{key}={get(c, key)} must be in [0, 1)" for key in FRACTIONS if not 0 <= get(c, key) < 1]
    out += [
        f"{key}={get(c, key)} must be at most {most} {of}" for key, (most, of) in MOST.items() if get(c, key) > most
    ]
    if out:  # the combinations below assume values that make sense alone
        return out

    m, d, s = c.model, c.data, c.schedule
    if m.d_model % m.num_heads or m.head_dim % 4:
        out.append(
            f"model.num_heads={m.num_heads} must split model.d_model={m.d_model} into heads whose width is a "
            "multiple of 4 (rotary pairs in half of it)"
        )
    group = m.layer_group_size or m.num_layers
    if m.num_layers % group:
        out.append(f"model.layer_group_size={group} must divide model.num_layers={m.num_layers}")
    if not 0 <= m.num_variate_layers_per_group < group:
        out.append(
            f"model.num_variate_layers_per_group={m.num_variate_layers_per_group} must leave a time layer in a "
            f"group of {group}"
        )
    out += parallel_problems(c)
    if not 0 <= c.objective.max_rate < 1:
        out.append(f"objective.max_rate={c.objective.max_rate} must be in [0, 1)")
    if d.length % m.patch_size or d.length < 2 * m.patch_size:
        out.append(f"data.length={d.length} must be a multiple of model.patch_size={m.patch_size}, two patches or more")
    out += data_problems(c)
    if s.warmup_steps + s.decay_steps > s.max_steps:
        out.append(
            f"schedule.max_steps={s.max_steps} is shorter than warmup_steps={s.warmup_steps} + "
            f"decay_steps={s.decay_steps}; shorten those or train longer"
        )
    out += _optimizer_problems(c)
    for key, used in {"validation": c.validate_every, "heldout": c.report}.items():
        if not used or not get(c, f"{key}.path"):
            continue
        terms = get(c, f"{key}.terms")
        if not terms or set(terms) - set(TERMS) or len(set(terms)) < len(terms):
            out.append(f"{key}.terms={terms} must name one or more of {', '.join(TERMS)}, each once")
        context = get(c, f"{key}.context")
        if context % m.patch_size or context > d.length:
            out.append(
                f"{key}.context={context} must be a multiple of model.patch_size={m.patch_size} and at most "
                f"data.length={d.length}"
            )
    if c.validate_every and not c.validation.path and not c.plan:
        out.append("validation.path is empty; give a folder of shards or set validate_every=0")
    if any(ch in c.name for ch in "/\\") or c.name in (".", ".."):
        out.append(f"name={c.name!r} must be a plain folder name")
    return out


def _optimizer_problems(c: Config) -> list[str]:
    """Settings that contradict others, and those that nothing would read."""
    out, n, a = [], c.optimizer.normuon, c.optimizer.adamw
    where = "optimizer.normuon"
    if n.momentum_warmup_steps and n.momentum_start > n.momentum:
        out.append(
            f"{where}.momentum_start={n.momentum_start} must not be above {where}.momentum={n.momentum}: momentum rises"
        )
    if n.momentum_warmup_steps > c.schedule.max_steps:
        out.append(
            f"{where}.momentum_warmup_steps={n.momentum_warmup_steps} must not exceed "
            f"schedule.max_steps={c.schedule.max_steps}"
        )
    if c.optimizer.stack == "adamw":
        unread = {"split": (n.split, "none"), "normalize": (n.normalize, True)}
        out += [
            f"{where}.{key}={value} does nothing under optimizer.stack=adamw; leave it at {default}"
            for key, (value, default) in unread.items()
            if value != default
        ]
    if a.lr * a.weight_decay >= 1:
        out.append(
            f"optimizer.adamw.weight_decay={a.weight_decay} times optimizer.adamw.lr={a.lr} is what a step shrinks "
            "weights by; it must be below 1"
        )
    return out
