"""What only a CUDA device can show; `make gpu-check` runs these."""

import json

import pytest
import torch

from toto_train.config import ModelConfig
from toto_train.forecast import Forecaster
from toto_train.model.toto import Toto

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_job_runs_scores_and_runs_again_on_the_device(small_job, train_py, tmp_path, precision):
    job = [*small_job, "parallel.device=cuda", f"parallel.precision={precision}"]
    for attempt in range(2):  # the second start finds everything trained and scores again
        done = train_py(*job)
        assert done.returncode == 0, (attempt, done.stderr)
    scores = json.loads((tmp_path / "runs" / "small" / "scores.json").read_text())
    assert scores["overall"]["relative"]["mwql"]["value"] > 0


def test_cpu_and_cuda_forecast_the_same():
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0)).cumsum(-1).numpy()
    cpu = Forecaster(Toto.create(ModelConfig(), 0))(x, 48)
    cuda = Forecaster(Toto.create(ModelConfig(), 0, "cuda"), "cuda")(x, 48)
    assert abs(cpu - cuda).max() <= 1e-3 * abs(cpu).max()


def test_an_optimizer_step_does_not_wait_for_the_device():
    from toto_train.config import OptimizerConfig
    from toto_train.optim.recipe import build_optimizer

    model = Toto.create(ModelConfig(), 0, "cuda")
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(), 4)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
