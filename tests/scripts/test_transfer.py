"""Sweeps of learning rates over widths: what they train, keep, refuse and conclude."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import transfer as script

from toto_train.config import ConfigError
from toto_train.model.toto import Toto
from toto_train.optim.recipe import build_optimizer
from toto_train.swept_setting import is_log
from toto_train.transfer import Result, Shared, Trial, _set_stack_lr, train, training_config
from toto_train.transfer_folder import _keep, read_results, sweep
from toto_train.transfer_report import best_runs, comparison_table, lines, points_to_reach, transfer_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shared(corpus) -> Shared:
    return Shared(str(corpus / "train"), "web", str(corpus / "heldout"), 4, 16, 4, 2, 4, 128)


def result(
    rule: str, width: int, lr: float, loss: float, seed: int = 0, curve: list[float] | None = None, depth: int = 4
) -> Result:
    rows = [
        {"step": i + 1, "points": 10.0 * (i + 1), "train": y, "heldout": y} for i, y in enumerate(curve or [loss] * 10)
    ]
    return Result(Trial(rule, width, depth, lr, seed), loss, loss, 100, 60.0, rows)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "transfer.py"), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)


def test_runs_see_the_same_rows_and_repeat_to_the_bit(shared):
    first = train(Trial("spectral", 16, 2, 0.1, 0), shared)
    again = train(Trial("spectral", 16, 2, 0.1, 0), shared)
    other = train(Trial("adamw", 32, 2, 0.2, 0), shared)
    assert (first.train, first.heldout) == (again.train, again.heldout)
    assert [row["points"] for row in first.curve] == [row["points"] for row in other.curve]
    assert first.curve[0]["train"] != first.curve[3]["train"] != other.curve[3]["train"]
    assert first.heldout == first.curve[-1]["heldout"]


def test_a_run_that_diverges_counts_as_infinite(shared):
    r = train(Trial("adamw", 16, 2, 1e30, 0), shared)
    assert r.train == r.heldout == math.inf


def test_the_rate_of_adamw_is_that_of_the_stacks_matrices(shared):
    config = training_config(Trial("adamw", 32, 2, 0.3, 0), shared)
    optimizer = build_optimizer(Toto.create(config.model, 0).named_parameters(), config.optimizer, 2)
    before = dict(zip(optimizer.param_groups[0]["param_names"], optimizer.param_groups[0]["multipliers"], strict=True))
    _set_stack_lr(optimizer, 0.3)
    (group,) = optimizer.param_groups
    rates = {n: m * group["lr"] for n, m in zip(group["param_names"], group["multipliers"], strict=True)}
    changed = {name for name, rate in rates.items() if rate != before[name] * group["lr"]}
    assert changed == {
        f"layers.{i}.{part}.weight" for i in (0, 1) for part in ("attn.in_proj", "attn.out_proj", "mlp.up", "mlp.down")
    }
    assert rates["layers.1.attn.in_proj.weight"] == pytest.approx(0.3 * 32**-0.5 * 2**-0.5)


def test_rules_choose_what_trains_the_stack(shared):
    chosen = {
        rule: training_config(Trial(rule, 32, 2, 0.3, 0), shared).optimizer for rule in ("unit_scaled", "muon", "adamw")
    }
    assert chosen["unit_scaled"].normuon.lr_rule == "unit_scaled"
    assert (chosen["muon"].normuon.lr_rule, chosen["muon"].normuon.normalize) == ("spectral", False)
    assert chosen["adamw"].stack == "adamw"
    assert {o.adamw.lr for o in chosen.values()} == {0.012}
    assert (training_config(Trial("muon", 256, 2, 0.3, 0), shared).model.d_ff) == 688


@pytest.mark.slow
def test_a_sweep_goes_on_with_what_is_missing(shared, tmp_path):
    out = tmp_path / "sweep"
    keys = ("path", "exclude", "heldout", "windows", "head_width", "steps", "rows", "variates", "length")
    same = [f"{key}={getattr(shared, key)}" for key in keys] + ["depths=2"]
    done = run(f"out={out}", *same, "rules=spectral", "widths=16,32", "lr.spectral=0.1,0.4", "processes=2")
    assert done.returncode == 0, done.stderr
    assert "| 32 |" in done.stdout
    before = (out / "results.jsonl").read_text()
    assert len(before.splitlines()) == len(list((out / "curves").iterdir())) == 4
    assert (out / "lr_transfer.png").read_bytes()[:4] == b"\x89PNG"
    assert not (out / "optimizers.png").exists()
    more = run(f"out={out}", *same, "rules=spectral,muon", "widths=16", "lr.spectral=0.1", "lr.muon=0.2", "at=16")
    assert more.returncode == 0, more.stderr
    assert (out / "results.jsonl").read_text().startswith(before)
    assert len((out / "results.jsonl").read_text().splitlines()) == 5
    assert "Points to reach" in more.stdout
    assert (out / "optimizers.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        train(Trial("spectral", 16, 2, 0.4, 0), shared).train
        == read_results(out)[Trial("spectral", 16, 2, 0.4, 0)].train
    )
    other = run(f"out={out}", *same, "steps=5")
    assert other.returncode == 1
    assert "steps=4, not 5" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_what_cannot_be_swept_is_refused_before_anything_is_made(shared, tmp_path):
    cases = [
        (Trial("sgd", 16, 2, 0.1, 0), shared, "spectral, unit_scaled"),
        (Trial("spectral", 24, 2, 0.1, 0), shared, "widths=24 must be a multiple of head_width=16"),
        (Trial("spectral", 16, 2, -0.1, 0), shared, "optimizer.normuon.lr=-0.1"),
        (Trial("spectral", 16, 2, 0.1, 0), Shared(**{**vars(shared), "heldout": "nowhere"}), "heldout=nowhere"),
        (Trial("spectral", 16, 2, 0.1, 0), Shared(**{**vars(shared), "steps": 0}), "schedule.max_steps=0"),
    ]
    for trial, settings, message in cases:
        with pytest.raises((ConfigError, ValueError), match=message):
            sweep(tmp_path / "out", [trial], settings, 1, print)
        assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds no sweep"):
        sweep(tmp_path / "mine", [Trial("spectral", 16, 2, 0.1, 0)], shared, 1, print)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rules=sgd", "rules='sgd' must be of spectral"),
        ("widths=64,x", "widths='64,x' must be numbers"),
        ("depths=0", "model.num_layers=0"),
        ("depths=2,4", "give several of one, and one of the other"),
        ("measure=mase", "measure='mase' must be one of train, heldout"),
        ("processes=0", "processes=0 must be positive"),
        (
            "setting=optimizer.normuon.momentun values=0.9",
            "is no number of .* did you mean 'optimizer.normuon.momentum'",
        ),
        ("setting=optimizer.normuon.nesterov values=0,1", "is no number of optimizer, schedule, objective"),
        ("setting=optimizer.normuon.lr values=0.1", "leave setting= out and give lr.RULE="),
        ("setting=schedule.max_steps values=8", "all runs of a study have the same steps="),
        ("setting=optimizer.clip_norm", "needs values="),
        ("setting=optimizer.clip_norm values=1,high", "values='1,high' must be numbers .* of type float"),
        ("setting=schedule.warmup_steps values=1,2.5", "values='1,2.5' must be numbers .* of type int"),
        ("values=0.1", "values=0.1 needs setting="),
        ("setting=optimizer.clip_norm values=1 lr.spectral=0.1,0.2", "lr.spectral=0.1,0.2: one rate"),
        ("setting=optimizer.normuon.momentum values=1.5", "optimizer.normuon.momentum=1.5"),
        ("setting=optimizer.clip_norm values=nan", "values='nan' must be numbers"),
        ("setting=schedule.warmup_steps values=500", "warmup_steps=500"),
        ("setting=optimizer.normuon.beta2 values=0.9 rules=spectral,muon", "beta2 does nothing under rules=muon"),
        ("setting=optimizer.normuon.momentum values=0.9 rules=adamw", "momentum does nothing under rules=adamw"),
        ("setting=objective.max_rate values=0.2,0.4", "give measure=heldout"),
    ],
)
def test_arguments_a_user_can_get_wrong(argument, message, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=message):
        script.main([f"out={tmp_path / 'never'}", "path=nowhere", *argument.split()])
    assert not (tmp_path / "never").exists()


def test_the_optimum_is_the_vertex_of_a_parabola_in_the_logarithm():
    rates = [0.1, 0.2, 0.4, 0.8]
    moved = {w: 0.25 * (w / 64) ** 0.5 for w in (64, 128)}
    results = [result("spectral", w, lr, 1 + math.log2(lr / at) ** 2) for w, at in moved.items() for lr in rates]
    found = lines(results, "train")
    assert [line.optimum for line in found] == pytest.approx(list(moved.values()))
    text = transfer_table(results, "train")
    assert "The optimum moves as width^+0.50." in text
    assert "**1.1036**" in text  # width 64 at 0.2
    deep = [result("spectral", 64, r.trial.lr, r.train, depth=r.trial.width // 16) for r in results]
    assert "The optimum moves as depth^+0.50." in transfer_table(deep, "train")
    edge = transfer_table([result("spectral", 64, lr, lr) for lr in rates], "train")
    assert "<= 0.1" in edge


def test_the_axis_is_logarithmic_where_the_values_are_geometric():
    assert is_log("optimizer.adamw.lr", [0.003, 0.012, 0.006])
    assert not is_log("optimizer.normuon.momentum", [0.9, 0.95, 0.98])
    assert not is_log("optimizer.normuon.weight_decay", [0, 1e-8, 1e-7])
    assert is_log("schedule.warmup_steps", [4, 8, 16, 32])
    assert not is_log("schedule.warmup_steps", [5, 10, 15, 20])
    assert is_log("lr", [0.1, 0.2, 0.3])


def test_another_setting_has_its_optimum_on_its_own_axis():
    best = {64: 0.92, 128: 0.94}
    results = [
        Result(
            Trial("spectral", w, 4, 0.33, 0, "optimizer.normuon.momentum", m), *[1 + (m - at) ** 2] * 2, 100, 60.0, []
        )
        for w, at in best.items()
        for m in (0.90, 0.93, 0.96)
    ]
    assert [line.optimum for line in lines(results, "train")] == pytest.approx([0.92, 0.94])
    text = transfer_table(results, "train")
    assert "**spectral**, training loss by optimizer.normuon.momentum" in text
    assert "The optimum moves by +0.02 with each doubling of width." in text


def test_a_folder_holds_the_rate_and_other_settings_beside_each_other(shared, tmp_path):
    """Lines of results.jsonl that are of the rate have the fields they always had."""
    out, momentum = tmp_path / "out", "optimizer.normuon.momentum"
    trials = [Trial("spectral", 16, 2, 0.1, 0), Trial("spectral", 16, 2, 0.1, 0, momentum, 0.5)]
    sweep(out, [], shared, 1, print)
    done = {}
    for trial in trials:
        done[trial] = train(trial, shared)
        _keep(out, done)
    rate, other = (json.loads(line) for line in (out / "results.jsonl").read_text().splitlines())
    assert list(rate) == ["rule", "width", "depth", "lr", "seed", "heldout", "train", "points", "cpu_seconds"]
    assert (other["setting"], other["value"], other["lr"]) == (momentum, 0.5, 0.1)
    assert rate["train"] != other["train"]
    same = train(Trial("spectral", 16, 2, 0.1, 0, momentum, 0.96), shared)  # the recipe's
    assert same.train == rate["train"]
    again, failed = sweep(out, trials, shared, 1, lambda r: pytest.fail("nothing is missing"))
    assert ([r.trial for r in again], [r.train for r in again], failed) == (trials, [rate["train"], other["train"]], {})
    assert {p.name for p in (out / "curves").iterdir()} == {
        "spectral-16x2-lr0.1-s0.csv", f"spectral-16x2-lr0.1-{momentum}0.5-s0.csv"}  # fmt: skip


def test_seeds_are_averaged_and_only_those_that_have_every_rate():
    results = [result("muon", 64, 0.1, 1.0, 0), result("muon", 64, 0.2, 2.0, 0)]
    results += [result("muon", 64, 0.1, 2.0, 1), result("muon", 64, 0.2, 3.5, 1), result("muon", 64, 0.1, 0.0, 2)]
    (line,) = lines(results, "heldout")
    assert line.losses == [1.5, 2.75]
    assert line.spread == pytest.approx(0.25)
    assert [b.losses["train"] for b in best_runs(results, "train")] == [1.5]


def test_a_diverged_rate_is_never_the_best():
    results = [result("muon", 64, 0.1, 1.0), result("muon", 64, 0.2, math.inf, curve=[1.0, math.nan])]
    assert [b.value for b in best_runs(results, "train")] == [0.1]
    assert "inf" in transfer_table(results, "train")


def test_points_to_reach_a_loss_and_their_ratio():
    x, y = np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.0])
    assert points_to_reach(x, y, 1.5) == 25
    assert points_to_reach(x, y, 3.5) == 10
    assert math.isnan(points_to_reach(x, y, 0.9))
    slow, fast = [5 - 0.1 * i for i in range(40)], [5 - 0.2 * i for i in range(40)]
    table = comparison_table([result("muon", 64, 1, 1, curve=fast), result("adamw", 64, 1, 2, curve=slow)], "train")
    *_, ratios = [row.split("|") for row in table.splitlines() if row.startswith("| Muon |")]
    assert [float(ratio) for ratio in ratios[2:-1]] == pytest.approx([0.5] * 4, abs=0.06)


def test_results_are_read_back_as_they_were(shared, tmp_path):
    results, failed = sweep(tmp_path / "out", [], shared, 1, print)
    assert (results, failed) == ([], {})
    facts = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert facts["steps"] == 4
    assert set(facts["fingerprints"]) == {"path", "heldout"}
