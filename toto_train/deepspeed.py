"""DeepSpeed's ZeRO through Lightning: stage 1 shards the optimizer over the ranks, 2 gradients too, 3 weights too.

DeepSpeed owns gradients and steps. What a step is stays ours: losses are summed, and before DeepSpeed steps, its pieces
of the summed gradient are divided by the labels of the whole step and clipped by their global norm, as gradients are in
any other mode (`TrainingModule`). Its own clipping, loss scale and division by accumulation are not used.

Checkpoints are those of the other modes: the `state_dict` of model and optimizer hold whole tensors by name, each on
one rank, which has it in main memory. They fit any number of ranks and any mode.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn

from toto_train.config import Config
from toto_train.optim.zero import MUON, ZeroOptimizer

BUCKET = 50_000_000
"""Most numbers of one message between ranks."""


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's strategy, on a CPU as well, with one step of the engine for all micro batches of a step of ours.

    The module it trains has the model and the `ZeroOptimizer` made for it.
    """

    def __init__(self, config: Config, device: torch.device):
        super().__init__(config=engine_config(config, device), logging_level=logging.ERROR)

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False  # Lightning would call the engine's step, and end a step of ours, after every micro batch

    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        import deepspeed

        self.set_world_ranks()
        deepspeed.init_distributed("nccl" if self.root_device.type == "cuda" else "gloo")  # takes the group there is

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        import deepspeed

        assert isinstance(optimizer, ZeroOptimizer)
        assert isinstance(self.config, dict)
        # the engine rounds weights to bf16 and makes its fp32 weights of that
        weights = optimizer.share_of_weights() if "bf16" in self.config else {}
        engine, zero, _, _ = deepspeed.initialize(
            args=Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=list(optimizer.parameters.values()),
            optimizer=optimizer,
            dist_init_required=False,
        )
        engine.set_gradient_accumulation_boundary(True)
        optimizer.begin(zero, weights)
        return engine, zero

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Around every micro batch but the last of a step."""
        self.deepspeed_engine.set_gradient_accumulation_boundary(False)
        yield
        self.deepspeed_engine.set_gradient_accumulation_boundary(True)

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Lightning has divided by the number of micro batches already
        return super().backward(closure_loss, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().optimizer_step(optimizer, *args, **kwargs)
        optimizer.optimizer.settle(self.deepspeed_engine.was_step_applied())
        return result


def engine_config(config: Config, device: torch.device) -> dict[str, Any]:
    """What DeepSpeed is told."""
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_rows,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "reduce_scatter": config.optimizer.stack != MUON,  # which DeepSpeed refuses together
            "overlap_comm": device.type == "cuda",
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": 10 * config.model.d_model,  # vectors stay whole on every rank
        },
    }
    if config.parallel.precision == "bf16_master":
        out["bf16"] = {"enabled": True, "check_grad_overflow": True}
        out["data_types"] = {"grad_accum_dtype": "fp32"}
        out["communication_data_type"] = "fp32"
    return out
