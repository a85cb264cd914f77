"""From summed losses to the update: division by the global weight, clipping, the schedule, and what resume restores."""

import math
import platform
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from toto_train import checkpoint, checkpoint_files
from toto_train.checkpoint import Position
from toto_train.checkpoint_saver import Saver
from toto_train.config import Config, ConfigError, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from toto_train.model.decoder import MaskFlags
from toto_train.module import TrainingModule
from toto_train.objective import loss_sum
from toto_train.optim.recipe import build_optimizer
from toto_train.parallel import build, trainer, whole
from toto_train.ranks import ALONE


def module(clip: float = 7.0, micro: int = 4, **parallel) -> TrainingModule:
    config = Config(
        model=ModelConfig(d_model=32, d_ff=64),
        data=DataConfig(variates=2, length=128),
        optimizer=OptimizerConfig(clip_norm=clip),
        schedule=ScheduleConfig(max_steps=10, warmup_steps=2, decay_steps=4),
        global_rows=4,
        micro_rows=micro,
    )
    for key, value in parallel.items():
        setattr(config.parallel, key, value)
    model = build(config, ALONE)
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, config.model.num_layers)
    return TrainingModule(config, model, optimizer, Position())


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 2, 128, generator=generator).cumsum(-1) + 10
    mask = torch.rand(target.shape, generator=generator) > 0.3
    mask[0, 0] = False
    cpm = torch.ones_like(mask)
    cpm[:, :, 64:96] = False
    ids = torch.tensor([[0, 1]] * 4)
    return {
        "target": torch.where(mask, target, 0.0), "target_mask": mask, "cpm_mask": cpm, "series_ids": ids,
        "flags": MaskFlags(), "points": int(mask.sum()),
    }  # fmt: skip


def rows(whole: dict, start: int, stop: int) -> dict:
    return {k: v[start:stop] if isinstance(v, torch.Tensor) else v for k, v in whole.items()}


def gradients(m: TrainingModule, micro: int) -> dict[str, torch.Tensor]:
    """Gradients as the optimizer gets them; Lightning divides each loss by the accumulation."""
    whole = batch()
    for i in range(0, 4, micro):
        (m.training_step(rows(whole, i, i + micro), i) / m.config.accumulation).backward()
    m.on_before_optimizer_step(m.optimizer)
    return {n: p.grad for n, p in m.model.named_parameters()}


def test_gradients_are_those_of_the_global_mean_at_any_accumulation():
    whole, model = batch(), module().model
    prediction = model(whole["target"], whole["target_mask"], whole["cpm_mask"], whole["series_ids"])
    loss, weight = loss_sum(prediction, whole["target"], whole["target_mask"], whole["cpm_mask"], 32, 20.0)
    (loss / weight).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    for micro in (4, 2, 1):
        m = module(micro=micro, clip=0.0)
        got = gradients(m, micro)
        for name, g in expected.items():
            torch.testing.assert_close(got[name], g, rtol=1e-4, atol=1e-6 * float(g.abs().max()) + 1e-12)
        torch.testing.assert_close(m.last["loss"], (loss / weight).detach())


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_bounds_the_global_norm_and_keeps_the_direction(clip):
    free, clipped = gradients(module(clip=0.0), 4), gradients(module(clip=clip), 4)
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    assert 1e-3 < norm < 1e6
    factor = min(1.0, clip / float(norm))
    for name, g in free.items():
        torch.testing.assert_close(clipped[name], g * factor, rtol=1e-4, atol=1e-12)


def test_each_step_uses_its_own_learning_rate():
    m = module()
    for step, factor in ((0, 0.5), (1, 1.0), (6, 1.0), (9, 0.25)):
        m.position.step = step
        gradients(m, 4)
        assert m.optimizer.param_groups[0]["lr"] == pytest.approx(0.652 * factor)


def test_each_step_uses_its_own_momentum():
    m = module()
    m.config.optimizer.normuon.momentum_warmup_steps = 10
    for step, momentum in ((0, 0.85), (5, 0.905), (30, 0.96)):
        m.position.step = step
        gradients(m, 4)
        assert m.optimizer.param_groups[0]["momentum"] == pytest.approx(momentum)


@pytest.mark.parametrize("value", [3e38, math.inf, math.nan])
def test_a_gradient_whose_norm_overflows_skips_the_step(value):
    """Clipped by an infinite norm all gradients would be 0, and old momentum would move the weights."""
    m = module()
    gradients(m, 4)
    m.optimizer.step()
    before = {n: p.clone() for n, p in m.model.named_parameters()}
    m.optimizer.zero_grad()
    m.training_step(batch(), 0).backward()
    next(m.model.parameters()).grad.view(-1)[:2].fill_(value)
    m.on_before_optimizer_step(m.optimizer)
    m.optimizer.step()
    assert int(m.optimizer.skipped_steps) == 1
    assert all(torch.equal(p, before[n]) for n, p in m.model.named_parameters())


def test_a_batch_without_any_label_changes_nothing_but_decay():
    m = module()
    dead = batch()
    dead["target_mask"] = torch.zeros_like(dead["target_mask"])
    dead["target"] = torch.zeros_like(dead["target"])
    before = {n: p.clone() for n, p in m.model.named_parameters()}
    m.training_step(dead, 0).backward()
    m.on_before_optimizer_step(m.optimizer)
    m.optimizer.step()
    for name, p in m.model.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=1e-6, atol=1e-6)
    assert int(m.optimizer.skipped_steps) == 0


def save(run: Path, m: TrainingModule) -> None:
    saver = Saver(run, m.config, "data")
    saver.save(m.model, m.optimizer, m.position)
    saver.wait()


def test_a_checkpoint_restores_every_tensor_and_the_position(tmp_path):
    m = module()
    for _ in range(3):
        gradients(m, 4)
        m.optimizer.step()
        m.optimizer.zero_grad()
        m.position.step += 1
    save(tmp_path, m)
    again = module()
    position = checkpoint.resume(tmp_path, again.config, again.model, again.optimizer, "data")
    assert position == m.position
    for (name, a), (_, b) in zip(m.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    one, two = (x.optimizer.state_dict()["state"] for x in (m, again))
    for name, state in one.items():
        for key, tensor in state.items():
            assert torch.equal(tensor, two[name][key]), (name, key)
    assert any(bool(s["momentum"].any()) for s in one.values() if "momentum" in s)


def test_a_resumed_run_may_change_its_learning_rate(tmp_path):
    m = module()
    save(tmp_path, m)
    other = module()
    other.config.optimizer.normuon.lr = 0.1
    optimizer = build_optimizer(other.model.named_parameters(), other.config.optimizer, 4)
    checkpoint.resume(tmp_path, other.config, other.model, optimizer, "data")
    assert optimizer.param_groups[0]["initial_lr"] == 0.1


def test_a_resumed_run_keeps_what_trains_its_stack(tmp_path):
    m = module()
    save(tmp_path, m)
    other = module()
    other.config.optimizer.stack = "adamw"
    with pytest.raises(ConfigError, match=r"optimizer.stack='adamw', but .* was made with 'normuon'"):
        checkpoint.resume(tmp_path, other.config, other.model, other.optimizer, "data")


def test_old_checkpoints_go_when_new_ones_are_whole(tmp_path):
    m = module()
    for step in (1, 2, 3, 10):
        m.position.step = step
        save(tmp_path, m)
    assert [p.name for p in checkpoint_files.folders(tmp_path)] == ["step-00000003", "step-00000010"]


@pytest.mark.slow
def test_compiled_training_takes_the_same_step():
    eager, compiled = gradients(module(), 4), gradients(module(compile=True), 4)
    for name, g in eager.items():
        torch.testing.assert_close(compiled[name], g, rtol=1e-3, atol=1e-4 * float(g.abs().max()))


def test_a_share_of_the_layers_is_recomputed():
    assert module().model.recompute == 0
    assert module(activation_checkpointing=0.5).model.recompute == 2
    assert module(activation_checkpointing=1.0).model.recompute == 4
    kept, again = (gradients(module(activation_checkpointing=share), 4) for share in (0.0, 1.0))
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.slow
def test_compiled_steps_have_no_graph_breaks_and_one_graph_per_mask_case():
    """The flags come from the loader as plain booleans; values of a batch lead to no new graph."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    m, eager = module(), module()
    m.model.compile(backend=counter, fullgraph=True)
    cases = [MaskFlags(a, b) for a in (False, True) for b in (False, True)]
    for repeat in range(2):
        for flags in cases:
            whole = batch() | {"flags": flags}
            if repeat:
                whole["target"] = whole["target"] * 2
            losses = [module_.training_step(whole, 0) for module_ in (m, eager)]
            for loss in losses:
                loss.backward()
            torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert counter.frame_count == len(cases)
    for (name, a), b in zip(m.model.named_parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4 * float(b.grad.abs().max()), msg=name)
    torch._dynamo.reset()


def page_faults(before: str) -> int:
    """Of a process that makes and drops a tensor of 40 MiB twenty times, after `before` and five to settle the heap."""
    code = (
        f"import resource, torch; from toto_train.module import keep_freed_memory; {before}\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): torch.ones(10 * 2**20)\n"
        "start = faults()\n"
        "for _ in range(20): torch.ones(10 * 2**20)\n"
        "print(faults() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_freed_tensors_are_used_again():
    assert page_faults("keep_freed_memory()") < 0.1 * page_faults("pass")


def test_averaged_weights_follow_the_weights_and_are_what_is_validated():
    m = module()
    m.config.ema_decay = 0.75
    m = TrainingModule(m.config, m.model, m.optimizer, Position())
    expected = {name: p.detach().clone() for name, p in m.model.named_parameters()}
    for _ in range(3):
        m.training_step(batch(), 0).backward()
        m.on_before_optimizer_step(m.optimizer)
        m.optimizer.step()
        m.optimizer.zero_grad()
        m.end_step()
        for name, p in m.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    assert m.ema.keys() == expected.keys()
    for name, t in expected.items():
        torch.testing.assert_close(m.ema[name], t, rtol=1e-5, atol=1e-6)
    averaged = whole(m.model, m.ema)
    assert averaged is not m.model
    assert all(torch.equal(p, m.ema[name]) for name, p in averaged.named_parameters())
    assert whole(m.model) is m.model


def test_a_cluster_around_one_process_and_its_signals_are_none_of_lightnings_business(monkeypatch):
    """Inside an allocation of SLURM with several tasks; a handler of Lightning's would broadcast in the middle of
    whatever SIGTERM meets."""
    for name, value in {"SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    here, handlers = module(), []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, module):
            handlers.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)])

    made = trainer(here.config, ALONE, 1, callbacks=[Watch()], logger=False)
    made.fit(here, train_dataloaders=map(dict, [batch()]))
    assert here.position.step == 1
    assert handlers == [[signal.SIG_DFL, signal.SIG_DFL]]
