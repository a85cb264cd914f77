"""The two sides that model.py compares, our modules and the official ones: same weights, same inputs, same loss."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from counting import Counter
from omegaconf import OmegaConf
from torch import Tensor, nn

from toto_train import hub
from toto_train.config import ModelConfig, ObjectiveConfig
from toto_train.model.decoder import MaskFlags
from toto_train.model.toto import Prediction, Toto
from toto_train.objective import loss_sum, patch_mask

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
MISSING = "toto-2 is missing: make test"
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""glibc then returns every freed tensor to the system at once: resident memory is live memory."""

THREADS = 2
PATIENCE = 90.0
"""Seconds after which the round that runs is the last."""

Shape = tuple[int, int, int]
Forward = Callable[..., Prediction]


def device() -> torch.device:
    """BENCH_DEVICE, by default CUDA where there is one."""
    return torch.device(os.environ.get("BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def wait() -> None:
    """Until the device has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()


@dataclass
class Batch:
    """Inputs of a training step: target, target_mask, cpm_mask [B, V, T] and series_ids [B, V]."""

    target: Tensor
    target_mask: Tensor
    cpm_mask: Tensor
    series_ids: Tensor
    flags: MaskFlags

    @classmethod
    def draw(cls, shape: Shape, masks: bool = False) -> Batch:
        """Random walks, some patches hidden. masks: with gaps, late starts, and two variates a series."""
        rows, variates, _ = shape
        patch, objective = ModelConfig.patch_size, ObjectiveConfig()
        random = np.random.default_rng(0)
        target = torch.from_numpy(random.normal(size=shape).cumsum(-1).astype(np.float32))
        observed = torch.ones(shape, dtype=torch.bool)
        ids = torch.zeros(rows, variates, dtype=torch.long)
        if masks:
            observed = torch.from_numpy(random.random(shape) > 0.1)
            observed[:, ::3, : 2 * patch] = False
            observed[..., 4 * patch : 5 * patch + 12] = False
            ids[:] = torch.arange(variates) // 2
        known = observed.unflatten(-1, (-1, patch)).any(-1).numpy()
        pairs = zip(known, ids.numpy(), strict=True)
        hidden = np.stack([patch_mask(random, *pair, objective.max_span, objective.max_rate) for pair in pairs])
        visible = torch.from_numpy(hidden).repeat_interleave(patch, -1)
        inputs = torch.where(observed, target, 0.0), observed, visible, ids
        return cls(*(t.to(device()) for t in inputs), MaskFlags(masks, masks))


@dataclass
class Sides:
    ours: Toto
    official: nn.Module | None
    """None where the package is missing."""

    @classmethod
    def build(cls, size: str) -> Sides:
        model = Toto.create(config(size), seed=0, device=device()).train()
        return cls(model, official(model))

    def recompute(self, share: float) -> Sides:
        """With activation checkpointing in so many of our layers."""
        self.ours.recompute = math.ceil(share * len(self.ours.layers))
        return self

    def steps(self, batch: Batch, bf16: bool) -> dict[str, Callable[[], None]]:
        """A training step of every side that is there."""
        steps = {"ours": training_step(self.ours, as_in_training(self.ours), batch, bf16)}
        if self.official is not None:
            steps["official"] = training_step(self.official, OfficialForward(self.official), batch, bf16)
        return steps


def as_in_training(forward: Callable[..., Prediction]) -> Forward:
    """Our forward as the training module calls it: no prediction where there is no label."""
    return partial(forward, labelled=True)


def config(size: str) -> ModelConfig:
    known = {f.name for f in fields(ModelConfig)}
    raw: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{size}.yaml"))
    return ModelConfig(**{k: v for k, v in raw.items() if k in known})


def installed() -> bool:
    return importlib.util.find_spec("toto2") is not None


def official(model: Toto) -> Any:
    """The official model with the weights of ours, or None."""
    if not installed():
        return None
    import toto2

    peer = toto2.Toto2Model(toto2.Toto2ModelConfig(**hub.config_to_official(model.config)))
    peer.load_state_dict(hub.to_official(model))
    return peer.to(device()).train()


class OfficialForward:
    """The official forward with the arguments and the result of ours; it has no use for flags."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, target: Tensor, mask: Tensor, cpm: Tensor, ids: Tensor, flags: MaskFlags) -> Prediction:
        out = self.model(target, mask, cpm, ids)
        ends = slice(ModelConfig.patch_size - 1, None, ModelConfig.patch_size)  # held over the patch
        return Prediction(out.quantiles.permute(1, 2, 3, 4, 0).float(), out.loc[..., ends], out.scale[..., ends])


def training_step(model: nn.Module, forward: Forward, batch: Batch, bf16: bool) -> Callable[[], None]:
    """One step on fresh gradients; forward: of this model, perhaps compiled."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        accumulate(forward, batch, bf16)

    return run


def accumulate(forward: Forward, batch: Batch, bf16: bool) -> None:
    """Forward, pinball loss, backward; as in training, the loss is outside autocast."""
    b = batch
    with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
        prediction = forward(b.target, b.target_mask, b.cpm_mask, b.series_ids, b.flags)
    clamp = ObjectiveConfig.label_clamp
    loss, weight = loss_sum(prediction, b.target, b.target_mask, b.cpm_mask, ModelConfig.patch_size, clamp)
    (loss / weight).backward()


def count(run: Callable[[], object]) -> Counter:
    """What a second run asks of the machine: the first fills caches."""
    run()
    with Counter() as counter:
        run()
    return counter


@dataclass
class Times:
    """Seconds of every round."""

    seconds: list[float]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return median(self.seconds)


class Effort(NamedTuple):
    """Least rounds and least seconds of a measurement."""

    rounds: int
    seconds: float


def interleaved(runs: dict[str, Callable[[], object]], effort: Effort) -> dict[str, Times]:
    """Run them in turn, so that company disturbs all alike, until the effort is made or patience lost.

    The first round, slower than others, is dropped where others follow.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    with no_gc():
        begin = time.perf_counter()
        for done in itertools.count():
            spent = time.perf_counter() - begin
            if done and (spent > PATIENCE or (done > effort.rounds and spent > effort.seconds)):
                break
            for name, run in runs.items():
                times[name].append(seconds(run))
    return {name: Times(found[1:] or found) for name, found in times.items()}


def seconds(run: Callable[[], object]) -> float:
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


@contextmanager
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def activations(side: str, size: str, shape: Shape, bf16: bool, recompute: float = 0.0) -> int:
    """Most bytes that a training step adds to a process that holds the model, its gradients and the inputs.

    For a process of its own under MALLOC. A small step before makes the gradients, and what the libraries set up once;
    the step measured accumulates into the gradients, so that what it adds is activations. recompute: a share of layers.
    """
    torch.set_num_threads(THREADS)
    both = Sides.build(size)
    both.recompute(recompute)
    forward: Forward = as_in_training(both.ours)
    if both.official is not None and side == "official":
        forward = OfficialForward(both.official)
    accumulate(forward, Batch.draw((1, 2, 4 * ModelConfig.patch_size)), bf16)
    batch = Batch.draw(shape)
    gc.collect()
    before = reset_peak()
    accumulate(forward, batch, bf16)
    wait()
    return peak() - before


def reset_peak() -> int:
    """Start a new peak at the memory held now, which is returned; on a CPU Linux only."""
    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    return torch.cuda.max_memory_allocated() if device().type == "cuda" else status("VmHWM")


def status(key: str) -> int:
    """Bytes of this process by /proc."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
