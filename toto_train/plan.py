"""What a run costs, from its config alone: nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toto_train.config import Config, ModelConfig
from toto_train.model.decoder import over_time
from toto_train.model.toto import Toto


@dataclass(frozen=True)
class Plan:
    """Counts of one optimizer step and of the run; FLOPs count a multiply-add as two."""

    parameters: int
    stack_matrices: int
    """Parameters in the stack's matrices, which NorMuon trains unless optimizer.stack says otherwise."""
    patches_per_step: int
    slots_per_step: int
    matmul_flops: float
    attention_flops: float
    state_bytes: int
    """fp32 weights, gradients and optimizer state."""

    @property
    def flops_per_step(self) -> float:
        return self.matmul_flops + self.attention_flops


def attention_flops_per_patch(model: ModelConfig, patches: int, variates: int) -> float:
    """Forward FLOPs of q k^T and of weights times v for one patch: 4 d_model S a layer, full (no causal discount)."""
    spans = (patches if over_time(model, i) else variates for i in range(model.num_layers))
    return float(sum(4 * model.d_model * span for span in spans))


def plan(config: Config) -> Plan:
    m, d = config.model, config.data
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Toto(m).named_parameters()}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    matrices = {n for n, s in shapes.items() if len(s) == 2}
    stack = sum(sizes[n] for n in matrices if n.startswith("layers."))
    outer = sum(sizes[n] for n in matrices if not n.startswith("layers."))
    rows = sum(shapes[n][0] for n in matrices if n.startswith("layers."))
    total = sum(sizes.values())
    patches = config.global_rows * d.variates * (d.length // m.patch_size)
    # NorMuon keeps momentum and one float a row, Muon momentum, AdamW two moments
    of_stack = {"normuon": stack + rows, "deepspeed_muon": stack, "adamw": 2 * stack}[config.optimizer.stack]
    state = 2 * (total - stack) + of_stack
    return Plan(
        parameters=total,
        stack_matrices=stack,
        patches_per_step=patches,
        slots_per_step=config.points_per_step,
        matmul_flops=6.0 * (stack + outer) * patches,  # 2 forward, 4 backward for each weight and patch
        attention_flops=3 * attention_flops_per_patch(m, d.length // m.patch_size, d.variates) * patches,
        state_bytes=4 * (2 * total + state),
    )
