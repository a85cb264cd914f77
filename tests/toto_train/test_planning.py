"""The planner's arithmetic on cases that can be done by hand, and its advice."""

from pathlib import Path

import pytest

from toto_train.checkpoint import state_of
from toto_train.checkpoint_copy import HostCopy
from toto_train.cli import config_from_overrides
from toto_train.config import ConfigError
from toto_train.hardware import GPUS, name_of
from toto_train.parallel import build, make_optimizer
from toto_train.planning.advice import changed, remedies
from toto_train.planning.describe import saved_bytes
from toto_train.planning.estimate import estimate
from toto_train.planning.scaling import scaling, spread, table
from toto_train.ranks import ALONE

CONFIGS = Path(__file__).parents[2] / "configs"
N = 348_480  # nano's parameters
MATRICES = 200_704  # of these in the stack's matrices


def priced(*overrides: str):
    config = config_from_overrides(["model=nano", "hardware.gpu=h100", "plan=true", *overrides], CONFIGS)
    return estimate(config)


def test_copies_send_their_gradients_twice_round_the_ring_and_updates_once():
    e = priced("parallel=ddp", "parallel.devices=4", "micro_rows=1", "global_rows=16")
    sent = {m.what: (m.kind, m.sent, m.least) for m in e.messages}
    assert sent["gradients"] == ("all-reduce", 2 * 3 / 4 * 4 * N, 2 * 3 / 4 * 4 * N)
    kind, busiest, least = sent["updates"]
    assert kind == "all-gather"
    assert least == 2 * MATRICES * 3 / 4
    assert busiest >= least


def test_shards_are_gathered_twice_a_micro_batch_and_their_gradients_summed():
    e = priced("parallel=fsdp2", "parallel.devices=4", "micro_rows=1", "global_rows=16", "parallel.precision=fp32")
    least = {(m.kind, m.phase): m.least for m in e.messages}
    layers = sum(4 * shape[0] * (shape[1] if len(shape) > 1 else 1) for n, shape in e.layout.shapes.items()
                 if n.startswith("layers."))  # fmt: skip
    assert least["all-gather", "forward"] == 4 * 3 / 4 * 4 * N  # four micro batches, fp32
    assert least["all-gather", "backward"] == 4 * 3 / 4 * layers  # the root's weights stay
    assert least["reduce-scatter", "backward"] == 4 * 3 / 4 * 4 * N


def test_one_shard_with_copies_sends_updates_as_copies_do():
    modes = [["parallel=hsdp", "parallel.shards=1"], ["parallel=ddp"]]
    plans = [priced(*mode, "parallel.devices=4", "micro_rows=1", "global_rows=16") for mode in modes]
    one, copies = ({m.what: m for m in e.messages}["updates"] for e in plans)
    assert one == copies
    assert plans[0].memory.update.total == plans[1].memory.update.total


def test_gloo_copies_messages_on_a_cpu_and_nothing_does_on_gpus():
    few = ["data.variates=1", "micro_rows=1", "global_rows=2", "parallel.devices=2"]
    here = [*few, "hardware.gpu=auto", "parallel.device=cpu"]
    gathered, updates = (priced(*here, f"parallel={mode}").memory for mode in ("fsdp2", "ddp"))
    assert gathered.forward.copies > 0
    assert gathered.update.copies == 0  # all-to-alls are written in place
    assert updates.update.copies >= 2 * MATRICES  # bf16
    for mode in ("fsdp2", "ddp"):
        assert all(held.copies == 0 for held in priced(*few, f"parallel={mode}").memory.moments.values())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_beside_training_takes_the_main_memory_that_was_planned(asynchronous):
    e = priced(f"checkpoint.asynchronous={str(asynchronous).lower()}")
    model = build(e.config, ALONE)
    buffers: dict = {}
    HostCopy(state_of(model, make_optimizer(e.config, model)), buffers if asynchronous else None)
    copied = sum(t.numel() * t.element_size() for t in buffers.values())
    assert copied == pytest.approx(saved_bytes(e), rel=1e-3)  # counts of steps besides


@pytest.mark.parametrize("mode", [["ddp"], ["ddp", "optimizer.normuon.replicated_state=owner"], ["fsdp2"]])
def test_ranks_divide_the_copy_of_a_save(mode):
    several = priced(f"parallel={mode[0]}", *mode[1:], "parallel.devices=4", "micro_rows=1", "global_rows=16")
    assert saved_bytes(several) == pytest.approx(saved_bytes(priced()) / 4, rel=1e-6)


def test_nothing_is_sent_where_there_is_one_rank():
    assert priced().messages == []
    assert priced().duration.exposed == 0


@pytest.mark.parametrize(("shards", "share"), [(1, 1.0), (8, 1 / 8)])
def test_sharding_divides_weights_gradients_and_state(shards, share):
    mode = ["parallel=fsdp2", f"parallel.devices={shards}", "micro_rows=1"]
    held = priced(*mode).memory.update
    whole = priced("micro_rows=1").memory.update
    for part in ("weights", "gradients", "optimizer"):
        # tensors are cut by rows, which need not divide
        assert getattr(held, part) == pytest.approx(getattr(whole, part) * share, rel=0.03), part


def test_every_remedy_fits_and_the_least_turns_come_first():
    config = config_from_overrides(
        ["experiment=toto2_xl", "hardware.gpu=a100-40g", "parallel=fsdp2", "parallel.devices=8", "micro_rows=8",
         "parallel.precision=bf16", "plan=true"], CONFIGS)  # fmt: skip
    too_much = estimate(config)
    found = remedies(too_much)
    assert not too_much.fits
    assert found
    for text, made in found:
        assert made.fits
        turned = dict(part.strip().split("=") for part in text.split(","))
        again = {k: float(v) if "." in v else int(v) for k, v in turned.items()}
        assert estimate(changed(config, again)).memory.peak == made.memory.peak


def test_more_gpus_are_never_slower_a_point_than_alone_and_the_table_says_it_is_a_model():
    config = config_from_overrides(["experiment=toto2_xl", "hardware.gpu=h100", "parallel=fsdp2", "plan=true",
                                    "parallel.devices=1"], CONFIGS)  # fmt: skip
    points = scaling(config, [8, 64, 512])
    rates = [p.points_per_second for p in points]
    assert rates == sorted(rates)
    assert all(0 < p.efficiency <= 1 for p in points)
    assert "a model, not a measurement" in table(points)
    with pytest.raises(ConfigError, match="multiple of 8"):
        spread(config, 12)


def test_the_horizon_costs_what_its_steps_cost():
    e = priced("hardware.dollars_per_hour=2")
    assert e.counts.flops_per_step / (e.target.peak * e.mfu) == pytest.approx(e.duration.step)


def test_gpus_are_known_by_the_name_cuda_gives_them():
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA A100-SXM4-40GB": "a100-40g",
             "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA L40S": "l40s",
             "NVIDIA L4": "l4", "Tesla V100-SXM2-32GB": "v100", "NVIDIA GeForce GTX 1080": ""}  # fmt: skip
    assert {name: name_of(name) for name in names} == names
    assert set(names.values()) - {""} <= set(GPUS)


def test_an_unknown_gpu_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match="did you mean h100"):
        config_from_overrides(["model=nano", "hardware.gpu=H100", "plan=true"], CONFIGS)
