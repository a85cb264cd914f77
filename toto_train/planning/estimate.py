"""A run priced: what it holds, sends and takes on a device that need not be here."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch

from toto_train.config import Config, ConfigError
from toto_train.config_check_run import rank_problems
from toto_train.hardware import GPU, GPUS, find_gpu, memory_bytes, name_of, peak_flops
from toto_train.optim.orthogonalize import resolve_dtype
from toto_train.plan import Plan, plan
from toto_train.planning.activations import Activations
from toto_train.planning.duration import Duration, duration
from toto_train.planning.exchange import Exchange, exchange
from toto_train.planning.layout import Layout
from toto_train.planning.memory import Memory, memory
from toto_train.planning.traffic import Message, messages

GIB = 2**30
RESERVE = 2 * GIB
"""Set aside for CUDA, its libraries and NCCL, or for the interpreter and its libraries."""
SLACK = 1.05
"""On what tensors take: what an allocator cannot use."""


@dataclass(frozen=True)
class Target:
    """What a rank of the run has."""

    name: str
    memory: float
    """Bytes."""
    peak: float
    """FLOP/s of products in the run's precision."""
    gpu: GPU | None
    """None for a CPU, and for a GPU that the table lacks."""
    on_cpu: bool = False


@dataclass(frozen=True)
class Estimate:
    config: Config
    """With the number of devices settled."""
    target: Target
    counts: Plan
    layout: Layout
    memory: Memory
    update: Exchange
    messages: list[Message]
    duration: Duration

    @property
    def needed(self) -> float:
        """Bytes of a device, with what is set aside."""
        return self.memory.peak * SLACK + RESERVE

    @property
    def fits(self) -> bool:
        return self.needed <= self.target.memory

    @property
    def mfu(self) -> float:
        """Of the whole step: model FLOPs over what the devices could do meanwhile."""
        return self.counts.flops_per_step / (self.layout.world * self.target.peak * self.duration.step)


def find_target(config: Config) -> Target:
    """hardware.gpu by name, or the device at hand. Raises ConfigError where the table lacks the name, and where the
    device does not multiply in the run's precision."""
    wanted, p = config.hardware.gpu, config.parallel
    if wanted == "auto" and (p.device == "cpu" or not torch.cuda.is_available()):
        part = min(1.0, len(os.sched_getaffinity(0)) / p.devices / torch.get_num_threads())  # of threads, for a rank
        peak = part * peak_flops("cpu", p.precision)
        return Target("share of this CPU" if p.devices > 1 else "this CPU", memory_bytes("cpu") / p.devices, peak, None,
                      on_cpu=True)  # fmt: skip
    if wanted == "auto":
        known = name_of(torch.cuda.get_device_name())
        gpu = GPUS.get(known)
        return Target(known or torch.cuda.get_device_name(), memory_bytes("cuda"), peak_flops("cuda", p.precision), gpu)
    gpu = find_gpu(wanted)
    if not gpu.flops(p.precision):
        raise ConfigError([f"hardware.gpu={wanted} has no {p.precision} products; use parallel.precision=fp32"])
    return Target(wanted, gpu.memory * GIB, gpu.flops(p.precision), gpu)


def settled(config: Config) -> Config:
    """A copy, with parallel.devices=0, every visible GPU, replaced by their number. Raises ConfigError where there is
    none, and where it does not divide the batch."""
    config = copy.deepcopy(config)
    if config.parallel.devices:
        return config
    config.parallel.devices = torch.cuda.device_count()
    if not config.parallel.devices:
        raise ConfigError([
            "parallel.devices=0 means every visible GPU and there is none; give parallel.devices= (of a node), "
            "parallel.nodes= and hardware.gpu= to plan for others"
        ])  # fmt: skip
    if problems := rank_problems(config):
        raise ConfigError(problems)
    return config


def estimate(config: Config, target: Target | None = None) -> Estimate:
    """Raises ConfigError as `settled` and `find_target` do."""
    config = settled(config)
    target = target or find_target(config)
    counts, layout = plan(config), Layout.of(config)
    choice = config.optimizer.normuon.orthogonalize_dtype
    if choice == "auto" and target.gpu is not None:
        choice = "bf16" if target.gpu.bf16 else "fp32"
    dtype = resolve_dtype(choice, torch.device("cpu" if target.on_cpu or target.gpu is not None else "cuda"))
    cut = layout.gathered and layout.weights > 1  # hsdp with one shard copies matrices, as ddp does
    together = layout.weights if cut else layout.world
    update = exchange(config, layout.shapes, together, cut, dtype, "cpu" if target.on_cpu else "cuda")
    sent = messages(config, layout, update)
    held = memory(config, layout, update, on_cpu=target.on_cpu)
    flops, repeated = counts.flops_per_step, repeated_flops(config, counts)
    spent = duration(config, layout, sent, update, flops, repeated, target.peak, target.gpu)
    return Estimate(config, target, counts, layout, held, update, sent, spent)


def repeated_flops(config: Config, counts: Plan) -> float:
    """Of the forward passes that activation checkpointing runs again, a step."""
    share = Activations(config).recomputed / config.model.num_layers
    return share * (2.0 * counts.stack_matrices * counts.patches_per_step + counts.attention_flops / 3)
