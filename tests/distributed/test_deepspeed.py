"""DeepSpeed's ZeRO beyond its steps, which test_modes.py compares: state, skipped steps, Muon, checkpoints, export."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import warnings
import zlib
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from toto_train import checkpoint, hub
from toto_train.checkpoint import Position
from toto_train.checkpoint_files import folders
from toto_train.checkpoint_storage import load, read_metadata
from toto_train.cli import config_from_overrides
from toto_train.data.loader import RowDataModule
from toto_train.module import TrainingModule
from toto_train.optim import orthogonalize
from toto_train.parallel import build, make_optimizer, trainer, whole
from toto_train.ranks import join
from toto_train.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("deepspeed")]

ROOT = Path(__file__).parents[2]
MUON = ("optimizer=deepspeed_muon", "parallel.zero_stage=3")


def overrides(corpus, *more):
    return [
        "name=zero", "data=shards", f"data.mixture.corpus.path={corpus / 'train'}", "model.d_model=32",
        "model.d_ff=68", "data.variates=4", "data.length=256", "data.workers=0", "data.lanes=12", "global_rows=12",
        "micro_rows=2", "schedule.max_steps=6", "schedule.warmup_steps=2", "schedule.decay_steps=0",
        "validate_every=0", "validation.context=256", f"heldout.path={corpus / 'heldout'}", "heldout.context=256",
        "parallel=deepspeed", "optimizer=adamw", "parallel.device=cpu", "parallel.precision=fp32",
        "optimizer.adamw.lr=0.012", *more,
    ]  # fmt: skip


class Events(pl.Callback):
    """Makes the data of one step infinite on rank 0, and notes what every step was like."""

    def __init__(self, broken: int = -1):
        self.broken, self.seen = broken, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.position.step == self.broken and module.ranks.first:
            batch["target"].fill_(math.inf)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.whole_step(batch_idx):
            norm, skipped = module.last["grad_norm"], module.optimizer.skipped_steps
            self.seen.append((float(norm), int(skipped), module.position.points))


def trained(rank, world, arguments, steps, broken=-1, first=None):
    """What steps were like, whole weights, and this rank's part of what a checkpoint holds.

    first: what the run begins with, as if loaded from a checkpoint.
    """
    warnings.simplefilter("ignore")
    config = config_from_overrides(arguments, ROOT / "configs")
    events = Events(broken)
    with join(config, "cpu") as ranks:
        model = build(config, ranks)
        optimizer = make_optimizer(config, model)
        if first is not None:
            for name, tensor in leaves(checkpoint.state_of(model, optimizer)).items():
                tensor.copy_(first(name, tensor.shape))
        module = TrainingModule(config, model, optimizer, Position(), ranks)
        trainer(config, ranks, steps, callbacks=[events], logger=False).fit(module, datamodule=RowDataModule(config))
        weights = {name: p.detach().float() for name, p in whole(model).named_parameters()}
        return events.seen, weights, leaves(checkpoint.state_of(model, optimizer))


def leaves(tree, prefix=""):
    if isinstance(tree, torch.Tensor):
        return {prefix: tree.detach()}
    return {k: v for key, value in tree.items() for k, v in leaves(value, f"{prefix}/{key}").items()}


def some(name, shape):
    """Values that follow from a name; counts are alike."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) if shape else torch.tensor(7)


def close(got, expected):
    assert set(got) == set(expected)
    # of biases, some gradients are rounding alone (softmax does not see those of the keys), which AdamW scales up
    for name in (n for n in expected if n.endswith("weight")):
        assert float((got[name] - expected[name]).abs().max()) <= 1e-5 * float(expected[name].abs().max()), name


CASES = {
    "zero1": ("parallel.zero_stage=1",),
    "zero2-bf16_master": ("parallel.zero_stage=2", "parallel.precision=bf16_master"),
    "zero3": ("parallel.zero_stage=3",),
    "muon": MUON,
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_checkpoint_gives_comes_out_of_the_engine_bit_by_bit(corpus, processes, case):
    """Three ranks, which cut matrices and vectors unevenly."""
    found = processes(3, trained, overrides(corpus, *CASES[case], "parallel.devices=3"), 0, -1, some)
    state = {}
    for _, _, own in found:
        state |= own
    if case != "muon":
        (alone,) = processes(1, trained, overrides(corpus, "parallel=single"), 0)
        assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in alone[2].items()}
    assert not [name for name, t in state.items() if not torch.equal(t.float(), some(name, t.shape).float())]
    for _, weights, own in found:
        assert not [name for name, w in weights.items() if not torch.equal(w, some(f"/model/{name}", w.shape))]
        moments = [name for name in own if name.endswith(("exp_avg", "momentum_buffer"))]
        assert 0 < len(moments) <= math.ceil(len(weights) / 3)  # each on one rank


@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_that_is_not_finite_is_skipped_as_in_one_process(corpus, processes, stage):
    clip = "optimizer.clip_norm=0.01"
    ((expected, weights, _),) = processes(1, trained, overrides(corpus, "parallel=single", clip), 4, 1)
    assert [skipped for _, skipped, _ in expected] == [0, 1, 1, 1]
    zero = overrides(corpus, "parallel.devices=3", f"parallel.zero_stage={stage}", clip)
    for seen, got, _ in processes(3, trained, zero, 4, 1):  # so many that what stage 3 cuts does not come out even
        assert [step[1:] for step in seen] == [step[1:] for step in expected]
        assert [step[0] for step in seen] == pytest.approx([step[0] for step in expected], rel=1e-5, nan_ok=True)
        close(got, weights)


def in_fp32(*arguments):
    """Products of their kernel in fp32, on whatever CPU."""
    from deepspeed.runtime.zero.muon import original_muon

    original_muon.ns_compute_dtype = lambda method: torch.float32
    return trained(*arguments)


def with_their_kernel(*arguments):
    """NorMuon without normalisation is Muon; here with DeepSpeed's kernel, which sees 1 - momentum of our updates."""
    from deepspeed.runtime.zero.muon.original_muon import zeropower_via_gram_newtonschulz

    orthogonalize.orthogonalize = lambda u, dtype: zeropower_via_gram_newtonschulz(u * (1 - 0.96), steps=5)
    return in_fp32(*arguments)


def test_their_muon_takes_the_steps_of_ours_with_their_kernel(corpus, processes):
    """Rates of each matrix, momentum, decay, clipping before it, a skipped step: all are the recipe's."""
    alike = ("optimizer.clip_norm=0.01", "optimizer.normuon.weight_decay=0.01")
    alone = overrides(corpus, "parallel=single", "optimizer=muon", "optimizer.normuon.orthogonalize_dtype=fp32", *alike)
    ((expected, weights, _),) = processes(1, with_their_kernel, alone, 5, 2)
    assert [skipped for _, skipped, _ in expected] == [0, 0, 1, 1, 1]
    for seen, got, _ in processes(2, in_fp32, overrides(corpus, *MUON, *alike, "parallel.devices=2"), 5, 2):
        assert [step[1:] for step in seen] == [step[1:] for step in expected]
        close(got, weights)


def job(rank, world, arguments):
    warnings.simplefilter("ignore")
    run(config_from_overrides(arguments, ROOT / "configs"))


def saved(run_folder):
    """All tensors of a run's last checkpoint, read by one process."""
    folder = folders(run_folder)[-1]
    entries = read_metadata(folder).state_dict_metadata.items()
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries}
    load(folder, tensors, alone=True)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("case", ["zero1", "muon"])
def test_a_run_goes_on_with_the_same_bits_and_on_other_numbers_of_ranks(corpus, processes, tmp_path, case):
    def go(world, name, *more):
        arguments = overrides(corpus, f"out={tmp_path}", "report=false", "checkpoint.every_steps=2", *CASES[case])
        processes(world, job, [*arguments, f"parallel.devices={world}", f"name={name}", *more])
        return tmp_path / name

    expected = saved(go(2, "straight"))
    shutil.copytree(go(2, "stopped", "schedule.max_steps=4"), tmp_path / "other")
    got = saved(go(2, "stopped"))
    assert set(got) == set(expected)
    assert not [name for name, t in got.items() if not torch.equal(t, expected[name])]
    close(saved(go(3, "other", "micro_rows=4", "parallel.zero_stage=3")), expected)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_is_scored_and_exported_as_one_of_any_other_mode(corpus, processes, tmp_path):
    """Validation on whole weights during stage 3, report, export by the run and by the command, and another mode."""
    job_of = partial(
        overrides, corpus, f"out={tmp_path}", "validate_every=3", f"validation.path={corpus / 'validation'}"
    )
    processes(2, job, job_of("parallel.devices=2", "parallel.zero_stage=3", "heldout.limit=2"))
    folder, expected = tmp_path / "zero", saved(tmp_path / "zero")
    model, meta = checkpoint.load_model(folder, "last")
    assert meta["step"] == 6
    assert math.isfinite(meta["validation"]["mwql"])
    export = [sys.executable, str(ROOT / "scripts" / "export_hf.py"), f"run={folder}", f"out={tmp_path / 'export'}"]
    done = subprocess.run([*export, "checkpoint=last"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for loaded in (model, hub.load_pretrained(tmp_path / "export"), hub.load_pretrained(folder / "export")):
        weights = dict(loaded.named_parameters())
        assert not [name for name, w in weights.items() if not torch.equal(w, expected[f"model.{name}"])]
    processes(1, job, job_of("parallel=single", "report=false", "schedule.max_steps=8"))
    assert checkpoint.load_model(folder, "last")[1]["step"] == 8
