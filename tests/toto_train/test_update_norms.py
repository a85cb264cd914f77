"""How far a step moves the weights, as the optimizer notes it on demand."""

from __future__ import annotations

import math

import pytest
import torch

from toto_train.config import ModelConfig, OptimizerConfig
from toto_train.model.toto import Toto
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import build_optimizer


def steps(stack: str, measures: list[bool], bad: float = 0.0) -> tuple[dict[str, torch.Tensor], NorMuonAdamW, dict]:
    """Weights after some steps, the optimizer, and what the last step really moved, by kind. bad: what an entry of the
    last gradient is set to, if anything."""
    model = Toto.create(ModelConfig(d_model=32, d_ff=64), 0)
    config = OptimizerConfig(stack=stack)
    config.normuon.weight_decay, config.adamw.weight_decay, config.normuon.split = 0.01, 0.1, "fused"
    if stack == "adamw":
        config.normuon.split = "none"
    optimizer = build_optimizer(model.named_parameters(), config, 4)
    generator = torch.Generator().manual_seed(0)
    for k, measure in enumerate(measures):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        if bad and k == len(measures) - 1:
            p.grad.view(-1)[0] = bad
        before = {p: p.detach().clone() for p in model.parameters()}
        optimizer.measures = measure
        optimizer.step()
    moved = {
        group["kind"]: torch.stack([(p.detach() - before[p]).norm() for p in group["params"]]).norm()
        for group in optimizer.param_groups
    }
    return {n: p.detach() for n, p in model.named_parameters()}, optimizer, moved


@pytest.mark.parametrize("stack", ["normuon", "adamw"])
def test_they_are_the_distance_and_change_no_bit(stack):
    weights, optimizer, moved = steps(stack, [False, True, True])
    found = optimizer.update_norms()
    assert set(found) == set(moved) == ({"normuon", "adamw"} if stack == "normuon" else {"adamw"})
    for kind, norm in found.items():
        assert float(norm) == pytest.approx(float(moved[kind]), rel=1e-4), kind
        assert norm > 0
    plain, other, _ = steps(stack, [False, False, False])
    assert not other.update_norms()
    assert all(torch.equal(plain[name], t) for name, t in weights.items())


def test_a_skipped_step_moves_nothing():
    _, optimizer, _ = steps("normuon", [True, True], bad=math.nan)
    assert int(optimizer.skipped_steps) == 1
    assert [float(norm) for norm in optimizer.update_norms().values()] == [0.0, 0.0]
