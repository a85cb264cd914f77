"""The long-horizon study: what it forecasts, what it measures, what it leaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from scripts import evaluate
from toto_train import hub
from toto_train.config import ModelConfig
from toto_train.evaluation import long_horizon
from toto_train.evaluation.long_horizon import LongHorizonJob, measure, pearson, sinusoids
from toto_train.model.toto import Toto

from .pages import check_page


def test_the_series_have_the_three_periods_and_nothing_else():
    values = sinusoids(3, 5000)[:, 0].astype(np.float64)
    power = np.abs(np.fft.rfft(values)) ** 2
    at = np.array([5000 // period for period in (500, 100, 20)])
    assert power[:, at].sum(1) == pytest.approx(power.sum(1), rel=1e-6)
    assert power[:, at[0]] == pytest.approx(power[:, at[2]], rel=1e-3)
    assert not np.array_equal(values[0], values[1])
    np.testing.assert_array_equal(sinusoids(3, 5000, seed=1), sinusoids(3, 5000, seed=1))


def test_pearson_is_numpys_and_0_for_a_constant():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 4, 50))
    assert pearson(a, b) == pytest.approx([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
    assert pearson(np.ones((1, 5)), b[:1, :5]) == 0


@pytest.mark.parametrize(("shift", "r"), [(0, 1.0), (10, 1 / 3 * (np.cos(np.pi / 25) + np.cos(np.pi / 5) - 1))])
def test_a_forecast_out_of_phase_is_told(shift, r):
    """A shift of 10 steps turns the three waves by 2 pi / 50, 2 pi / 10 and pi: r is the mean of the cosines."""
    values = sinusoids(2, 512 + 1000 + shift)

    def forecaster(contexts, horizon):
        at = 512 + shift
        rows = [np.flatnonzero((values[:, 0, :512] == c[0]).all(1))[0] for c in contexts]
        return np.repeat(values[rows][:, None, :, at : at + horizon], 9, 1)

    found = measure(forecaster, values, 512, 1000)
    assert found["r"] == pytest.approx([r] * 2, abs=1e-4)
    assert ((found["mase"] == 0) == (shift == 0)).all()


def test_the_study_leaves_scores_and_two_plots(model, tmp_path, capsys):
    asked = LongHorizonJob([model], tmp_path / "out", series=2, block=64, horizons=(32, 64, 160), device="cpu")
    found = long_horizon.run(asked)["small"]
    one, blocks = found["one pass"], found["blocks of 64"]
    for horizon in (32, 64):  # one block is one pass
        assert one[horizon] == pytest.approx(blocks[horizon], rel=1e-5)
    assert one[160]["mase"] != pytest.approx(blocks[160]["mase"], rel=1e-5)
    result = json.loads((tmp_path / "out" / "long_horizon.json").read_text())
    assert result["scores"]["small"]["one pass"]["160"] == one[160]
    assert result["context"] == {"small": 256}
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 2
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 4 + len(long_horizon.PUBLISHED_R)
    assert printed[1].startswith("small, one pass, r")
    low = long_horizon.run(replace(asked, out=tmp_path / "low", precision="bf16"))["small"]
    assert low != found
    for way, of in found.items():
        for horizon, score in of.items():
            assert low[way][horizon] == pytest.approx(score, rel=0.02, abs=0.02)


def test_the_command(model, tmp_path, monkeypatch, capsys):
    arguments = [f"model={model}", "tasks=long_horizon", f"out={tmp_path / 'out'}", "limit=1", "tasks.context=128"]
    monkeypatch.setattr(long_horizon, "LongHorizonJob", lambda *a, **k: LongHorizonJob(*a, horizons=(32, 800), **k))
    assert evaluate.main(arguments) == 0
    assert "Toto-2.0-22m, r (published)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "long_horizon.json").read_text())["context"] == {"small": 128}
    with pytest.raises(ValueError, match=r"missing tasks\.path="):
        evaluate.main([f"model={model}"])
    with pytest.raises(ValueError, match="workers= is not for tasks=long_horizon; it takes tasks, out"):
        evaluate.main([*arguments, "workers=2"])


def test_a_killed_study_goes_on_where_it_was(model, tmp_path, monkeypatch):
    asked = LongHorizonJob([model], tmp_path / "whole", series=3, block=64, horizons=(32, 160), device="cpu")
    whole = long_horizon.run(asked)
    calls: list[tuple[int, int]] = []

    def killed(forecaster, values, context, horizon):
        calls.append((horizon, len(values)))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(forecaster, values, context, horizon)

    monkeypatch.setattr(long_horizon, "measure", killed)
    small = replace(asked, out=tmp_path / "out", max_points=2 * (256 + 160))
    with pytest.raises(KeyboardInterrupt):
        long_horizon.run(small)
    file = tmp_path / "out" / long_horizon.RESULTS
    assert file.read_text().count("\n") == 3
    file.write_text(file.read_text() + '{"piece": "small, one pa')  # the line that was being written
    found = long_horizon.run(small)["small"]
    assert calls == [(160, 2), (160, 1)] * 2 + [(160, 1)] + [(32, 2), (32, 1)] * 2  # longest first, no more than fit
    for way, of in whole["small"].items():
        for horizon, score in of.items():
            assert found[way][horizon] == pytest.approx(score, rel=1e-5)
    del calls[:]
    long_horizon.run(small)
    assert not calls


def test_published_r_stands_beside_ours_and_is_marked(model, tmp_path):
    asked = LongHorizonJob([model], tmp_path, series=1, horizons=(32, 2048, 4096), block=2048, device="cpu")
    ours = long_horizon.run(asked)["small"]["blocks of 2048"]
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "Toto-2.0-22m published 0.805 0.484 " in text  # at 2,048 and 4,096; none at 32
    assert f" blocks of 2048 {ours[32]['r']:.3f} {ours[2048]['r']:.3f} {ours[4096]['r']:.3f} " in text
    dashed = page[: page.index("<table")].count("stroke-dasharray")
    assert dashed >= len(long_horizon.PUBLISHED_R)


@pytest.mark.slow
def test_processes_give_the_same_scores(model, tmp_path):
    asked = LongHorizonJob(
        [model], tmp_path / "one", series=3, block=64, horizons=(32, 160), max_points=500, device="cpu"
    )
    two = replace(asked, out=tmp_path / "two", processes=2)
    assert long_horizon.run(asked) == long_horizon.run(two)
    lines = [[json.loads(line) for line in (out / "results.jsonl").open()] for out in (asked.out, two.out)]
    kept = [{line["piece"]: (line["r"], line["mase"]) for line in of} for of in lines]
    assert kept[0] == kept[1]
    assert len(lines[1]) == 2 * 2 * 3


def test_a_block_of_half_a_patch_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="block=50 must be a positive multiple of the patch size 32"):
        long_horizon.run(LongHorizonJob([model], tmp_path / "out", block=50, device="cpu"))


def test_several_models_share_a_page_with_plots_of_each(model, tmp_path, monkeypatch, capsys):
    other = tmp_path / "wider"
    toto = Toto.create(ModelConfig(d_model=64, num_layers=2, num_heads=2, d_ff=64), seed=1)
    hub.save_pretrained(toto, other, "card", {"context_length": 192})
    monkeypatch.setattr(long_horizon, "LongHorizonJob", lambda *a, **k: LongHorizonJob(*a, horizons=(32, 800), **k))
    arguments = ["tasks=long_horizon", "limit=1", "device=cpu"]
    assert evaluate.main([f"model={model},{other}", *arguments, f"out={tmp_path / 'both'}"]) == 0
    assert evaluate.main([f"model={other}", *arguments, f"out={tmp_path / 'alone'}"]) == 0
    both, alone = (json.loads((tmp_path / o / "long_horizon.json").read_text()) for o in ("both", "alone"))
    assert both["context"] == {"small": 256, "wider": 192}
    assert both["scores"]["wider"] == alone["scores"]["wider"] != both["scores"]["small"]
    page = (tmp_path / "both" / "report.html").read_text()
    assert page.count("<svg") == 6  # r and MASE of both, then of each
    assert "<h2>wider</h2>" in page
    with pytest.raises(ValueError, match="two are named small; give them folders of different names"):
        long_horizon.run(LongHorizonJob([model, model], tmp_path / "twice", device="cpu"))
