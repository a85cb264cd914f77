"""What only a CUDA device can show; `make gpu-check` runs these."""

import csv
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel

from toto_train import hub
from toto_train.checkpoint import Position
from toto_train.clock import Clock
from toto_train.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from toto_train.data.ahead import ahead
from toto_train.forecast import Forecaster
from toto_train.model.decoder import MaskFlags
from toto_train.model.toto import Prediction, Toto
from toto_train.module import TrainingModule
from toto_train.objective import loss_sum
from toto_train.optim.recipe import build_optimizer
from toto_train.parallel import build
from toto_train.ranks import Ranks

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


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "hsdp"])
def test_every_mode_trains_stops_and_goes_on_over_nccl(small_job, train_py, tmp_path, mode):
    """On as many devices as there are; with one, through the same collectives."""
    job = [*small_job, f"parallel={mode}", "parallel.device=cuda", "micro_rows=1", "data.lanes=4", "global_rows=8"]
    assert train_py(*job, "schedule.max_steps=8", "parallel.precision=fp32").returncode == 0
    done = train_py(*job, "parallel.precision=bf16" if mode == "ddp" else "parallel.precision=bf16_master")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "runs" / "small" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8, 10, 12]


def test_cpu_and_cuda_forecast_the_same():
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0)).cumsum(-1).numpy()
    cpu = Forecaster(Toto.create(ModelConfig(), 0))(x, 48)
    cuda = Forecaster(Toto.create(ModelConfig(), 0, "cuda"), "cuda")(x, 48)
    assert abs(cpu - cuda).max() <= 1e-3 * abs(cpu).max()


def test_an_optimizer_step_does_not_wait_for_the_device():
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


def _sharded_steps(rank, world, meet, folder):
    """Three steps on a device each, of sharded, replicated and plain parameters."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{meet}", rank=rank, world_size=world)
    mesh = init_device_mesh("cuda", (world,))
    found = {}
    for mode in ("fsdp", "ddp", "ddp owner", "plain"):
        model = Toto.create(ModelConfig(), 0, "cuda")
        if mode == "fsdp":
            for layer in model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        config = OptimizerConfig()
        config.normuon.replicated_state = "owner" if mode.endswith("owner") else "replicated"
        replicas = dist.group.WORLD if mode.startswith("ddp") else None
        optimizer = build_optimizer(model.named_parameters(), config, 4, replicas)
        for step in range(3):
            torch.manual_seed(step)
            for p in model.parameters():
                whole = torch.randn(p.shape, device="cuda")
                sharded = isinstance(p, DTensor)
                p.grad = distribute_tensor(whole, mesh, p.placements, src_data_rank=None) if sharded else whole
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step sets NCCL up
            optimizer.step()
            torch.cuda.set_sync_debug_mode("default")
        tensors = {n: p.detach() for n, p in model.named_parameters()}
        found[mode] = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    if rank == 0:
        torch.save({mode: {n: t.cpu() for n, t in tensors.items()} for mode, tensors in found.items()}, folder / "0.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_sharded_steps_over_nccl_give_the_bits_of_one_device(tmp_path):
    """On as many devices as there are.

    With one, DTensors and the small all-reduce over NCCL are run, and no matrix is exchanged; two or more are needed
    for the all-to-alls ("fsdp") and all-gathers ("ddp").
    """
    world = torch.cuda.device_count()
    mp.start_processes(_sharded_steps, (world, tmp_path / "meet", tmp_path), nprocs=world, start_method="spawn")
    found = torch.load(tmp_path / "0.pt")
    for mode, tensors in found.items():
        assert not [n for n, t in tensors.items() if not torch.equal(t, found["plain"][n])], mode


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("case", ["plain", "everything"])
def test_quantiles_and_gradients_are_the_official_ones_on_the_device(case, qk_norm):
    toto2 = pytest.importorskip("toto2", reason="the official package is installed by make test")
    config = ModelConfig("tiny", 256, 4, 4, 688, qk_norm=qk_norm)
    model = Toto.create(config, 0, "cuda").train()
    peer = toto2.Toto2Model(toto2.Toto2ModelConfig(**hub.config_to_official(config)))
    peer.load_state_dict(hub.to_official(model))
    peer.cuda().train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 512, generator=generator).cumsum(-1)
    mask, visible, ids = torch.ones_like(x, dtype=torch.bool), torch.ones_like(x, dtype=torch.bool), torch.zeros(2, 6)
    if case == "everything":
        mask = torch.rand(x.shape, generator=generator) > 0.1
        mask[0, 0, :96], mask[:, :, 128:170] = False, False
        visible[:, :, 256:320] = False
        ids[0] = torch.tensor([0, 0, 1, 1, 2, 3])
    x, mask, visible, ids = (t.cuda() for t in (torch.where(mask, x, 0.0), mask, visible, ids.long()))
    ours, theirs = model(x, mask, visible, ids), peer(x, mask, visible, ids)
    ends = slice(31, None, 32)
    theirs = Prediction(theirs.quantiles.permute(1, 2, 3, 4, 0), theirs.loc[..., ends], theirs.scale[..., ends])
    assert (ours.z - theirs.z).abs().max() <= 1e-4 * theirs.z.abs().max()
    for predicted in (ours, theirs):
        loss, weight = loss_sum(predicted, x, mask, visible, 32, 20.0)
        (loss / weight).backward()
    names, gradients = hub.official_names(config), {n: p.grad for n, p in peer.named_parameters()}
    for name, p in model.named_parameters():
        expected = gradients[names[name]]
        assert (p.grad - expected).abs().max() <= 1e-3 * expected.abs().max(), name


@pytest.mark.parametrize("qk_norm", [False, True])
def test_time_layers_take_flash_attention_in_bf16(qk_norm):
    model = Toto.create(ModelConfig("tiny", 256, 4, 4, 688, qk_norm=qk_norm), 0, "cuda").train()
    x = torch.randn(2, 8, 1024, device="cuda").cumsum(-1)
    seen, ids = torch.ones_like(x, dtype=torch.bool), torch.zeros(2, 8, dtype=torch.long, device="cuda")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cuda", torch.bfloat16):  # no other kernel is allowed
        out = model(x, seen, None, ids, MaskFlags(False, False))
    loss, _ = loss_sum(out, x, seen, None, 32, 20.0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_batches_copied_ahead_are_whole_when_used_and_memory_is_not_taken_from_under_the_step():
    """Each batch is dropped while the device still works on what uses it, and its memory is asked for at once."""

    def batches():
        for k in range(40):
            yield {"target": torch.full((64, 4096), float(k)).pin_memory(), "points": k}

    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in ahead(batches(), torch.device("cuda")):
        assert batch["target"].is_cuda
        busy = torch.tanh(busy @ busy)  # the copy of the next batch goes on beside this
        sums.append(batch["target"].double().sum() + 0 * busy.sum().double())
        del batch
    assert torch.stack(sums).tolist() == [k * 64 * 4096.0 for k in range(40)]


def test_a_whole_step_with_its_guard_and_meters_does_not_wait_for_the_device():
    config = Config(
        model=ModelConfig(), data=DataConfig(variates=4, length=256), schedule=ScheduleConfig(10, 0, 0),
        global_rows=2, micro_rows=2,
    )  # fmt: skip
    ranks = Ranks(torch.device("cuda"))
    model = build(config, ranks)
    optimizer = build_optimizer(model.named_parameters(), config.optimizer, config.model.num_layers)
    module = TrainingModule(config, model, optimizer, Position(), ranks)
    module.strata = torch.zeros(8, 2, dtype=torch.float64, device="cuda")
    x = torch.randn(2, 4, 256, device="cuda").cumsum(-1)
    seen = torch.ones_like(x, dtype=torch.bool)
    ids = torch.zeros(2, 4, dtype=torch.long, device="cuda")
    batch = {"target": x, "target_mask": seen, "cpm_mask": seen, "series_ids": ids, "stratum": ids,
             "flags": MaskFlags(False, False), "points": x.numel()}  # fmt: skip

    def step():
        module.on_train_batch_start(batch, 0)
        module.training_step(batch, 0).backward()
        module.on_after_backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.measures = True
        optimizer.step()
        optimizer.update_norms()
        optimizer.zero_grad()
        module.end_step()
        module.on_train_batch_end(None, batch, 0)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    phases = module.clock.read()
    assert phases["forward_backward"] > 0 < phases["optimizer"]
    assert int(module.guard.seen) == 6
    assert float(module.strata[0, 1]) == 6 * 2 * 4 * (256 - 32)


def test_the_clock_reads_what_the_device_did_and_keeps_few_events():
    clock = Clock(torch.device("cuda"))
    work = torch.randn(2048, 2048, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(2000):
        clock.mark("other")
        work = torch.tanh(work @ work)
        clock.mark("optimizer")
    end.record()
    torch.cuda.synchronize()
    phases = clock.read()
    assert phases["data"] == phases["forward_backward"] == 0
    assert 0 < phases["other"] < phases["optimizer"]
    assert phases["other"] + phases["optimizer"] <= begin.elapsed_time(end) / 1000 * 1.01


def test_a_trace_and_a_memory_snapshot_of_a_job(small_job, train_py, tmp_path):
    job = [*small_job, "parallel.device=cuda", "profile.steps=2", "profile.start=3", "profile.memory=true"]
    done = train_py(*job, "report=false")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small" / "profile"
    assert {p.name for p in folder.iterdir()} == {"trace-rank0.json", "memory-rank0.pickle"}
    events = json.loads((folder / "trace-rank0.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X" and event.get("cat") == "user_annotation"]
    assert [names.count(name) for name in ("data", "forward", "backward", "optimizer")] == [4, 4, 4, 2]
    assert any(event.get("cat") == "kernel" for event in events)
    with (tmp_path / "runs" / "small" / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["perf/memory_gib"]) > 0
    shares = [float(last[f"perf/{name}"]) for name in ("data_wait", "forward_backward", "optimizer", "other")]
    assert sum(shares) == pytest.approx(1, abs=3e-4)
