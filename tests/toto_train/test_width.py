"""How far one step moves a layer's output, by width: what each learning rate rule predicts.

A unit-scaled layer computes y = x W^T n^(-1/2) with W [m, n] of entries of size 1. An orthogonal update D [m, n] maps
the inputs it was made from, |x| = n^(1/2), to outputs of that norm, so of size (n/m)^(1/2) each. With the rule's factor
s on the learning rate, the output moves by lr s n^(-1/2) (n/m)^(1/2) = lr s m^(-1/2).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from toto_train.config import AdamWConfig, NorMuonConfig, OptimizerConfig
from toto_train.optim.recipe import build_optimizer

LR, SAMPLES = 0.02, 8
EXPONENTS = {"spectral": -0.5, "unit_scaled": 0.0, "original": -0.5, "match_rms_adamw": 0.0, "adamw": 0.0}
"""Of width, where m and n grow with it."""
FACTORS = {
    "spectral": lambda m, n: n**-0.5,
    "unit_scaled": lambda m, n: 1.0,
    "original": lambda m, n: max(1 / m, 1 / n) ** 0.5,
    "match_rms_adamw": lambda m, n: 0.2 * max(1, n / m) ** 0.5,
}
"""s m^(-1/2)."""


def output_change(rule: str, m: int, n: int) -> float:
    """Root mean square change of y after one step on a batch, seen on that batch."""
    generator = torch.Generator().manual_seed(m + n)
    weight = torch.nn.Parameter(torch.randn(m, n, generator=generator))
    x, g = torch.randn(SAMPLES, n, generator=generator), torch.randn(SAMPLES, m, generator=generator)
    before, weight.grad = weight.detach().clone(), g.T @ x / math.sqrt(SAMPLES)
    settings = NorMuonConfig(lr=LR, lr_rule="spectral" if rule == "adamw" else rule, orthogonalize_dtype="fp32")
    stack = "adamw" if rule == "adamw" else "normuon"
    config = OptimizerConfig(stack, settings, AdamWConfig(lr=LR))
    build_optimizer([("layers.0.attn.out_proj.weight", weight)], config, 1).step()
    return float((x @ (weight.detach() - before).T / math.sqrt(n)).square().mean().sqrt())


@pytest.mark.parametrize("rule", EXPONENTS)
def test_output_change_follows_width_as_the_rule_says(rule):
    widths = [64, 128, 256, 512, *([1024] if rule in ("spectral", "unit_scaled") else [])]
    changes = [output_change(rule, w, w) for w in widths]
    slope = np.polyfit(np.log(widths), np.log(changes), 1)[0]
    assert slope == pytest.approx(EXPONENTS[rule], abs=0.05), changes


@pytest.mark.parametrize("rule", FACTORS)
@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (192, 64), (64, 192), (352, 64)])
def test_output_change_is_the_predicted_one(rule, shape):
    assert output_change(rule, *shape) == pytest.approx(LR * FACTORS[rule](*shape), rel=0.1)
