"""Which steps are skipped, decided from losses alone, and what skipping leaves untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from toto_train.checkpoint import Position
from toto_train.config import Config, DataConfig, ModelConfig, ScheduleConfig
from toto_train.config_run import GuardConfig
from toto_train.guard import Guard
from toto_train.model.decoder import MaskFlags
from toto_train.module import TrainingModule
from toto_train.optim.recipe import build_optimizer
from toto_train.parallel import build
from toto_train.ranks import ALONE

CPU = torch.device("cpu")


def judged(guard: Guard, losses, norms=None) -> list[bool]:
    """norms: of the gradients; those of the losses where none are given."""
    pairs = zip(losses, losses if norms is None else norms, strict=True)
    return [bool(guard.skips(torch.tensor(float(x)), torch.tensor(float(n)), i)) for i, (x, n) in enumerate(pairs)]


def reference(losses, norms, spike: float, window: int) -> list[bool]:
    """The rule, read plainly."""
    kept: list[tuple[float, float]] = []
    out = []
    for pair in zip(losses, norms, strict=True):
        recent = np.array(kept[-window:])
        skip = not np.isfinite(pair).all()
        if not skip and 2 * len(recent) >= window:
            median = np.median(recent, axis=0)
            spread = 1.4826 * np.median(np.abs(recent - median), axis=0)
            above = pair - median
            skip = bool((above > spike * spread).all() or above[0] > 3 * spike * spread[0])
        out.append(skip)
        if not skip:
            kept.append(pair)
    return out


@pytest.mark.parametrize("window", [7, 16])
def test_it_follows_the_rule(window):
    rng = np.random.default_rng(0)
    losses = rng.normal(1, 0.1, 300).astype(np.float32)
    norms = rng.normal(5, 1, 300).astype(np.float32)
    high = rng.random((2, 300)) < [[0.2], [0.3]]
    losses[high[0]] += 1
    losses[rng.random(300) < 0.05] += 3
    norms[high[1]] += 50
    losses[[40, 41]], norms[42] = (np.nan, np.inf), np.inf
    expected = reference(losses.tolist(), norms.tolist(), 4.0, window)
    assert judged(guard := Guard(GuardConfig(spike=4.0, window=window), CPU), losses, norms) == expected
    assert not any(expected[: window // 2])
    assert 5 < sum(expected) < 60
    assert int(guard.non_finite) == 3
    assert int(guard.spikes) == sum(expected) - 3
    assert int(guard.seen) == 300 - sum(expected)


@pytest.mark.parametrize("drift", ["falls", "rises", "steps down"])
def test_a_loss_that_drifts_is_no_spike(drift):
    """The window moves along, and the spread within it grows with the drift."""
    t = np.arange(2000)
    noise = np.random.default_rng(1).standard_t(10, 2000) * 0.02  # heavier tails than normal ones
    curve = {"falls": 1.5 * (1 + t / 20) ** -0.3, "rises": 0.4 + t / 2000, "steps down": np.where(t < 900, 0.8, 0.4)}
    assert not any(judged(Guard(GuardConfig(), CPU), curve[drift] * (1 + noise)))


def test_a_high_loss_with_an_ordinary_gradient_is_a_hard_batch_and_a_high_gradient_alone_is_clipped():
    rng = np.random.default_rng(3)
    losses, norms = rng.normal(1, 0.1, 200), rng.normal(5, 1, 200)
    losses[150], norms[160] = 2, 1000
    assert not any(judged(guard := Guard(GuardConfig(), CPU), losses, norms))
    assert judged(guard, [2], [20]) == [True]
    assert judged(guard, [5], [5]) == [True]  # beyond any hard batch


def test_losses_that_are_all_the_same_differ_by_rounding():
    guard = Guard(GuardConfig(window=8), CPU)
    assert not any(judged(guard, [0.3] * 20 + [float(np.nextafter(np.float32(0.3), np.float32(1)))]))
    assert judged(guard, [0.31]) == [True]


def test_a_gradient_norm_that_overflows_skips_and_no_spike_is_sought_when_off():
    guard = Guard(GuardConfig(spike=0.0, window=2), CPU)
    assert not any(judged(guard, [1.0, 1.1, 1.0, 1.1, 1e6]))
    assert judged(guard, [1.0], [math.inf]) == [True]
    assert (int(guard.non_finite), int(guard.spikes), float(guard.worst)) == (1, 0, -math.inf)


def test_the_step_that_completes_a_series_of_skips_is_kept_and_one_good_step_ends_the_series():
    guard = Guard(GuardConfig(max_skipped=3), CPU)
    bad = math.nan
    judged(guard, [bad, bad, 1.0, bad, bad])
    assert (int(guard.in_a_row), int(guard.given_up)) == (2, -1)
    guard = Guard(GuardConfig(max_skipped=3), CPU)
    judged(guard, [1.0, bad, bad, bad, bad, 1.0, bad, bad, bad])
    assert (int(guard.in_a_row), int(guard.given_up)) == (3, 3)


def test_the_worst_score_is_that_since_the_last_look():
    guard = Guard(GuardConfig(spike=100.0, window=4), CPU)
    judged(guard, [1.0, 2.0, 3.0, 4.0, 20.0, 2.5])
    assert float(guard.worst) == pytest.approx((20 - 2.5) / 1.4826)
    guard.forget()
    assert float(guard.worst) == -math.inf
    judged(guard, [2.0])
    assert float(guard.worst) < 0


def test_a_resumed_guard_decides_the_same():
    rng = np.random.default_rng(2)
    losses = np.where(rng.random(60) < 0.2, 9.0, rng.normal(1, 0.1, 60))
    whole = Guard(config := GuardConfig(window=8, spike=5.0, max_skipped=2), CPU)
    expected = judged(whole, losses)
    for stop in (3, 30, 45):
        first, second = Guard(config, CPU), Guard(config, CPU)
        judged(first, losses[:stop])
        for name, t in second.state_dict().items():  # in place, as a checkpoint is loaded
            t.copy_(first.state_dict()[name])
        assert judged(second, losses[stop:]) == expected[stop:]
        assert all(torch.equal(t, whole.state_dict()[name]) for name, t in second.state_dict().items())


def make_module() -> TrainingModule:
    config = Config(
        model=ModelConfig(d_model=32, d_ff=64),
        data=DataConfig(variates=2, length=128),
        schedule=ScheduleConfig(max_steps=100, warmup_steps=0, decay_steps=0),
        guards=GuardConfig(window=16),
        global_rows=4,
        micro_rows=4,
    )
    config.optimizer.normuon.lr, config.optimizer.adamw.lr = 0.02, 0.001
    model = build(config, ALONE)
    return TrainingModule(
        config, model, build_optimizer(model.named_parameters(), config.optimizer, config.model.num_layers), Position()
    )


def batch(seed: int, jump: float = 0.0) -> dict:
    """Random walks; jump: how far they leap in their middle."""
    target = torch.randn(4, 2, 128, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    target[..., 70:] += jump * torch.linspace(1, 2, 58)
    seen = torch.ones_like(target, dtype=torch.bool)
    ids = torch.tensor([[0, 1]] * 4)
    return {"target": target, "target_mask": seen, "cpm_mask": seen, "series_ids": ids, "flags": MaskFlags(False, True),
            "points": target.numel()}  # fmt: skip


def take(m: TrainingModule, data: dict) -> None:
    m.training_step(data, 0).backward()
    m.on_before_optimizer_step(m.optimizer)
    m.optimizer.step()
    m.optimizer.zero_grad()
    m.end_step()


def tensors(m: TrainingModule) -> dict[str, torch.Tensor]:
    """Weights and optimizer state, copied."""
    out = {n: p.detach().clone() for n, p in m.model.named_parameters()}
    state = m.optimizer.state_dict()["state"]
    return out | {f"{n}.{key}": t.clone() for n, of in state.items() for key, t in of.items()}


@pytest.mark.parametrize("case", ["spike", "overflow"])
def test_a_skipped_step_leaves_every_bit_and_the_run_goes_on_as_without_it(case):
    """Data that no clamp tames: a leap of all variates; values at the end of fp32, whose deviations are infinite."""
    bad = batch(99, jump=1e6) if case == "spike" else batch(99)
    if case == "overflow":
        bad["target"][1, 0] = torch.where(torch.arange(128) % 3 == 0, 3e38, -3e38)
    m, other = make_module(), make_module()
    for step in range(12):
        take(m, batch(step))
        take(other, batch(step))
    before = tensors(m)
    take(m, bad)
    after = tensors(m)
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert (int(m.guard.spikes), int(m.guard.non_finite)) == ((1, 0) if case == "spike" else (0, 1))
    assert int(m.optimizer.skipped_steps) == 1
    assert m.position.step == 13  # its rows count as seen
    other.position.step += 1
    for step in range(13, 16):
        take(m, batch(step))
        take(other, batch(step))
    assert all(torch.equal(t, tensors(other)[name]) for name, t in tensors(m).items())
    assert torch.equal(m.guard.recent, other.guard.recent)
    assert not torch.equal(tensors(m)["head.linear1.weight"], before["head.linear1.weight"])


def test_without_the_guard_the_same_spike_is_taken():
    m = make_module()
    m.guard = Guard(GuardConfig(spike=0.0), CPU)
    for step in range(12):
        take(m, batch(step))
    before = tensors(m)
    take(m, batch(99, jump=1e6))
    assert not torch.equal(tensors(m)["head.linear1.weight"], before["head.linear1.weight"])
    assert int(m.optimizer.skipped_steps) == 0
