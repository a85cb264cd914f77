"""How the model is laid out over the ranks, and what Lightning is told of it.

`build` applies everything to the model from outside, in a fixed order: activation checkpointing, compile, shard, then
memory and weights. The rest of the code sees a Toto whose parameters are plain tensors, or DTensors where sharded.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from toto_train.config import Config
from toto_train.deepspeed import ZeroStrategy
from toto_train.model.toto import Toto
from toto_train.model.umup import init_weights, set_replicas
from toto_train.optim.normuon import NorMuonAdamW
from toto_train.optim.recipe import build_optimizer, routed
from toto_train.optim.zero import ZeroOptimizer, is_cut, save_whole, zero_optimizer
from toto_train.optim.zero import whole as whole_weight
from toto_train.ranks import Ranks
from toto_train.tensors import copy_into


def build(config: Config, ranks: Ranks) -> Toto:
    """The model of a run on its devices, with the weights that its seed gives."""
    p = config.parallel
    with torch.device("meta"):
        model = Toto(config.model)
    set_replicas(model, config.world * config.accumulation)
    model.recompute = math.ceil(p.activation_checkpointing * config.model.num_layers)
    if p.compile:
        compile_model(model, ranks.mesh is not None)
    if ranks.mesh is not None:
        # the dtype of activations is autocast's; the policy casts weights before they are gathered
        low = p.precision == "bf16_master"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        options: dict[str, Any] = {"mesh": ranks.mesh, **({"mp_policy": policy} if low else {})}
        for layer in model.layers:
            fully_shard(layer, **options)
        fully_shard(model, **options)
    model.to_empty(device=ranks.device)
    init_weights(model, config.seed)
    return model


def compile_model(model: Toto, sharded: bool) -> None:
    """Compile in place: the whole model as one graph, or, where weights are gathered between layers, each layer."""
    if not sharded:
        model.compile()
        return
    # layers share their code and differ in the weights of their residuals, which are constants of the graph
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(model.layers))
    for layer in model.layers:
        layer.compile()


def make_optimizer(config: Config, model: Toto) -> NorMuonAdamW | ZeroOptimizer:
    """The recipe's optimizer for a model as `build` laid it out."""
    named, settings, depth = model.named_parameters(), config.optimizer, config.model.num_layers
    if config.parallel.mode == "deepspeed":
        save_whole(model)
        return zero_optimizer(routed(named, settings, depth), settings)
    copies = config.parallel.mode == "ddp" and config.world > 1
    return build_optimizer(named, settings, depth, dist.group.WORLD if copies else None)


def gradients(model: Toto, optimizer: NorMuonAdamW | ZeroOptimizer) -> tuple[list[Tensor], dist.ProcessGroup | None]:
    """What this rank has of the gradients before a step, and the ranks among which they are cut where they are plain
    tensors all the same."""
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.gradients(), dist.group.WORLD
    return [p.grad for p in model.parameters() if p.grad is not None], None


def trainer(config: Config, ranks: Ranks, max_steps: int, **options: Any) -> pl.Trainer:
    """Lightning's trainer for these ranks, without what a run does itself. max_steps: from here on."""
    made = pl.Trainer(
        **_strategy(config, ranks),
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulation,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **options,
    )
    # before every micro batch Lightning broadcasts whether rank 0 was asked to stop, and waits for the device;
    # module.end_step settles that once a step, for all ranks and through host memory
    made.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # its handler of SIGTERM broadcasts wherever the signal finds a rank, which no other rank expects; before the first
    # step (`Saving` takes over there) and after the last a signal simply ends the process
    made._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return made


def _strategy(config: Config, ranks: Ranks) -> dict[str, Any]:
    """What the trainer is to be told of the ranks."""
    p, accelerator = config.parallel, "gpu" if ranks.device.type == "cuda" else "cpu"
    if p.mode == "single":
        # else Lightning takes tasks of SLURM around it for ranks, and refuses some
        return {"accelerator": accelerator, "devices": 1, "plugins": [LightningEnvironment()]}
    chosen: Strategy
    if p.mode == "deepspeed":
        chosen = ZeroStrategy(config, ranks.device)
    else:
        chosen = _Sharded(ranks.mesh) if ranks.mesh is not None else _ddp()
    return {
        "accelerator": accelerator,
        "devices": p.devices,
        "num_nodes": p.nodes,
        "strategy": chosen,
        "plugins": [TorchElasticEnvironment()],
        "use_distributed_sampler": False,
    }


def _ddp() -> DDPStrategy:
    """DDP whose buckets stay as they are first made: otherwise they are made anew after a step, other gradients are
    summed together, and a resumed run, whose first step has the first ones again, differs in the last bit."""
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)


class _Sharded(ModelParallelStrategy):
    """Lightning's strategy for a model that is sharded already, over a mesh that may have replicas."""

    def __init__(self, mesh: DeviceMesh | None):
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)
        self.mesh = mesh

    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        self._device_mesh = self.mesh


def whole(model: Toto, weights: dict[str, Tensor] | None = None) -> Toto:
    """The model with whole weights on every rank: itself where it has them, else a copy (all ranks must call this).

    weights: others in place of its own, by name and laid out as they are.
    """
    cut = is_cut(model)
    if weights is None and not cut and not any(isinstance(p, DTensor) for p in model.parameters()):
        return model
    with torch.device("meta"):
        copy = Toto(model.config)
    copy.to_empty(device=next(model.parameters()).device)
    with torch.no_grad():
        for (name, own), mine in zip(model.named_parameters(), copy.parameters(), strict=True):
            copy_into(mine, weights[name] if weights is not None else whole_weight(own) if cut else own)
    return copy
