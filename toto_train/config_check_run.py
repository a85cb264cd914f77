"""Impossible combinations of the settings in `config_run`."""

from __future__ import annotations

from toto_train.config import Config, ConfigError
from toto_train.hardware import find_gpu

MODES = ("single", "ddp", "fsdp2", "hsdp", "deepspeed")


def parallel_problems(c: Config) -> list[str]:
    """What is wrong with how the run is spread over devices; `rank_problems` says the rest once they are counted."""
    out, p, n = [], c.parallel, c.optimizer.normuon
    if p.mode == "single" and (p.devices, p.nodes) != (1, 1):
        out.append(
            f"parallel.devices={p.devices}, parallel.nodes={p.nodes} need parallel=ddp, fsdp2, hsdp or deepspeed; "
            "parallel=single is one process"
        )
    out += deepspeed_problems(c)
    if p.precision == "bf16_master" and p.mode in ("single", "ddp"):
        out.append(
            f"parallel.precision=bf16_master needs parallel=fsdp2, hsdp or deepspeed (one device will do); "
            f"parallel.mode={p.mode} takes fp32 or bf16"
        )
    if p.shards and p.mode != "hsdp":
        out.append(f"parallel.shards={p.shards} is for parallel=hsdp; leave it at 0 under parallel.mode={p.mode}")
    if not 0 <= p.activation_checkpointing <= 1:
        share = p.activation_checkpointing
        out.append(f"parallel.activation_checkpointing={share} is a share of the layers; it must be in [0, 1]")
    if p.mode != "ddp" and n.replicated_state != "replicated":
        out.append(
            f"optimizer.normuon.replicated_state={n.replicated_state} needs ranks that hold copies (parallel=ddp); "
            f"leave it at replicated under parallel.mode={p.mode}"
        )
    if c.profile.memory and not c.profile.steps:
        out.append("profile.memory=true is about the steps of a trace; set profile.steps, too")
    if not 0 < c.hardware.mfu <= 1:
        out.append(f"hardware.mfu={c.hardware.mfu} is a share of the peak; it must be in (0, 1]")
    if c.hardware.gpu != "auto":
        try:
            find_gpu(c.hardware.gpu)
        except ConfigError as error:
            out += error.problems
    return out + (rank_problems(c) if p.devices else [])


def deepspeed_problems(c: Config) -> list[str]:
    """What DeepSpeed cannot do, or not with these settings."""
    out, p, n, muon = [], c.parallel, c.optimizer.normuon, c.optimizer.stack == "deepspeed_muon"
    if p.mode != "deepspeed":
        if muon:
            out.append("optimizer.stack=deepspeed_muon is DeepSpeed's own: it needs parallel=deepspeed")
        return out
    if p.zero_stage not in (1, 2, 3):
        return [f"parallel.zero_stage={p.zero_stage} must be 1, 2 or 3"]
    if c.optimizer.stack == "normuon":
        out.append(
            "optimizer.stack=normuon does not work under parallel.mode=deepspeed, whose ZeRO hands an optimizer flat "
            "pieces of matrices; use optimizer=adamw or deepspeed_muon with it, or parallel=ddp, fsdp2 or hsdp"
        )
    if muon and p.zero_stage != 3:
        out.append(
            f"optimizer.stack=deepspeed_muon needs parallel.zero_stage=3: in stage {p.zero_stage} DeepSpeed "
            "orthogonalises in the backward pass, before a gradient is divided by the labels of the step and clipped"
        )
    if muon:
        fixed = {"normalize": False, "nesterov": True, "split": "none", "orthogonalize_dtype": "auto"}
        fixed |= {"momentum_warmup_steps": 0}
        out += [
            f"optimizer.normuon.{key}={getattr(n, key)}: DeepSpeed's Muon has no such choice, it must be {value}"
            for key, value in fixed.items()
            if getattr(n, key) != value
        ]
    if p.precision == "bf16_master" and p.zero_stage == 1:
        out.append("parallel.precision=bf16_master needs parallel.zero_stage=2 or 3 under parallel.mode=deepspeed")
    if c.ema_decay and (p.zero_stage == 3 or p.precision == "bf16_master"):
        out.append(
            f"ema_decay={c.ema_decay} needs whole fp32 weights under parallel.mode=deepspeed: parallel.zero_stage=1 or "
            "2 with parallel.precision=fp32 or bf16; or parallel=fsdp2, hsdp"
        )
    return out


def rank_problems(c: Config) -> list[str]:
    """What does not divide, with the number of ranks known."""
    out, p = [], c.parallel
    ranks = f"{p.devices} devices x {p.nodes} nodes"
    if c.global_rows % (c.world * c.micro_rows):
        out.append(
            f"global_rows={c.global_rows} must be a multiple of {ranks} x micro_rows={c.micro_rows}; change one of them"
            if c.world > 1
            else f"micro_rows={c.micro_rows} must divide global_rows={c.global_rows}"
        )
    shards = p.shards or p.devices
    if p.mode == "hsdp" and c.world % shards:
        out.append(f"parallel.shards={shards} must divide {ranks}")
    return out
