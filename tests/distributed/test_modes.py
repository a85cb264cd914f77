"""Every parallel mode takes the steps of one process on the same global batches, through Lightning's trainer."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed.tensor import DTensor

from toto_train.checkpoint import Position
from toto_train.cli import config_from_overrides
from toto_train.data.loader import RowDataModule
from toto_train.module import TrainingModule
from toto_train.parallel import build, make_optimizer, trainer, whole
from toto_train.ranks import join

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
STEPS = 6


class Losses(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.whole_step(batch_idx):
            self.losses.append(float(module.last["loss"]))


def trained(rank, world, overrides):
    """Weights and optimizer state, whole, and losses after STEPS steps; DeepSpeed has each tensor of it on one rank."""
    warnings.simplefilter("ignore")
    config = config_from_overrides(overrides, ROOT / "configs")
    losses = Losses()
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        optimizer = make_optimizer(config, model)
        module = TrainingModule(config, model, optimizer, Position(), ranks)
        trainer(config, ranks, STEPS, callbacks=[losses], logger=False).fit(module, datamodule=RowDataModule(config))
        tensors = dict(whole(model).named_parameters())
        tensors |= {f"{n}.{k}": t for n, s in optimizer.state_dict()["state"].items() for k, t in s.items()}
        tensors = {n: t.detach() for n, t in tensors.items()}
        full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
        return full, losses.losses, module.position.points


def overrides(corpus, *more):
    return [
        "name=modes", "data=shards", f"data.mixture.corpus.path={corpus / 'train'}", "model.d_model=32",
        "model.d_ff=64", "data.variates=4", "data.length=256", "data.workers=0", "global_rows=8", "micro_rows=2",
        "schedule.max_steps=12", "schedule.warmup_steps=2", "schedule.decay_steps=4", "validate_every=0",
        "validation.context=256", "heldout.context=256", "optimizer.adamw.lr=0.012",
        "parallel.device=cpu", "parallel.precision=fp32", "optimizer.normuon.orthogonalize_dtype=fp32", *more,
    ]  # fmt: skip


ADAMW = ("optimizer=adamw", "optimizer.clip_norm=0.01")
"""Clipped in every step: AdamW itself does not see how large gradients are."""
DDP, FSDP, HSDP = ("parallel=ddp",), ("parallel=fsdp2",), ("parallel=hsdp", "parallel.shards=2")
ZERO = {stage: ("parallel=deepspeed", f"parallel.zero_stage={stage}") for stage in (1, 2, 3)}
RECOMPUTE = ("parallel.activation_checkpointing=1",)
CASES = {
    "ddp": (2, (), DDP),
    "ddp4": (4, (), DDP),
    "owner": (4, (), (*DDP, "optimizer.normuon.replicated_state=owner")),
    "fsdp2": (4, (), FSDP),
    "hsdp": (4, (), HSDP),
    "checkpointing": (2, (), (*FSDP, *RECOMPUTE)),
    "zero1": (2, ADAMW, ZERO[1]),
    "zero2": (2, ADAMW, ZERO[2]),
    "zero3": (2, ADAMW, (*ZERO[3], *RECOMPUTE)),
}


@pytest.fixture(scope="module")
def alone(corpus, processes):
    """What one process makes of overrides; made once."""
    made = {}

    def make(*more):
        if more not in made:
            (made[more],) = processes(1, trained, overrides(corpus, *more))
        return made[more]

    return make


@pytest.mark.parametrize("case", CASES)
def test_a_mode_takes_the_steps_of_one_process(corpus, processes, alone, case, request):
    """To the order in which ranks and micro batches are summed: 1e-6 of the largest entry was seen after six steps."""
    world, more, mode = CASES[case]
    if mode[0] == "parallel=deepspeed":
        request.getfixturevalue("deepspeed")
    expected, expected_losses, expected_points = alone(*more)
    compared = set()
    for got, losses, points in processes(world, trained, overrides(corpus, *more, *mode, f"parallel.devices={world}")):
        assert points == expected_points
        assert losses == pytest.approx(expected_losses, rel=2e-6)
        # of biases, some gradients are rounding alone (softmax does not see those of the keys), which AdamW scales up
        for name in (n for n in got if n.endswith(("weight", "weight.momentum", "weight.exp_avg"))):
            assert float((got[name] - expected[name]).abs().max()) <= 1e-5 * float(expected[name].abs().max()), name
            compared.add(name)
    assert compared == {n for n in expected if n.endswith(("weight", "weight.momentum", "weight.exp_avg"))}


def test_sharding_alone_and_the_kind_of_copies_change_no_bit(corpus, processes, alone):
    """One rank is one process; two ranks have one order of summing, with one micro batch each."""
    ((sharded, *rest),) = processes(1, trained, overrides(corpus, *FSDP, "parallel.devices=1"))
    assert rest == list(alone()[1:])
    assert not [name for name, t in alone()[0].items() if not torch.equal(sharded[name], t)]
    two = ("parallel.devices=2", "micro_rows=4")
    copies, parts = (processes(2, trained, overrides(corpus, *mode, *two))[0] for mode in (DDP, FSDP))
    assert copies[1:] == parts[1:]
    assert not [name for name, t in copies[0].items() if not torch.equal(parts[0][name], t)]


LOW = {"bf16": (), "bf16_master": (), "bf16_master-zero2": (*ADAMW, *ZERO[2]), "bf16_master-zero3": (*ADAMW, *ZERO[3])}


@pytest.mark.parametrize("case", LOW)
def test_low_precision_follows_the_loss_curve_of_one_process(corpus, processes, alone, case, request):
    """bf16 rounds products alike; what differs is that weights are rounded before they are gathered, or after."""
    mode = LOW[case] or FSDP
    if "parallel=deepspeed" in mode:
        request.getfixturevalue("deepspeed")
    optimizer = ADAMW if LOW[case] else ()
    _, expected, _ = alone(*optimizer, "parallel.precision=bf16")
    low = f"parallel.precision={case.partition('-')[0]}"
    for _, losses, _ in processes(2, trained, overrides(corpus, *mode, low, "parallel.devices=2")):
        assert losses == pytest.approx(expected, rel=2e-3)
        assert losses != alone(*optimizer)[1]
