"""Comparisons pair windows, decide only what the evidence carries, and show what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toto_train.evaluation import rows
from toto_train.evaluation.compare import differences, flat, matched, notes, read_run, read_runs, standings, verdict
from toto_train.evaluation.compare_page import write_comparison
from toto_train.evaluation.lines import without_nan
from toto_train.evaluation.metrics import Interval, Sums
from toto_train.evaluation.score import Scores

ROOT = Path(__file__).parents[2]
SERIES, STARTS = 20, 3
CONFIG = "name: {name}\nout: runs\nmodel:\n  d_model: {width}\ndata:\n  include:\n  - '*'\nfresh: true\n"
METRICS = (
    "step,points,seconds,train/loss,val/mwql,val/mase\n10,100,1.5,0.9,,\n20,200,3,0.8,0.7,0.9\n30,300,4.5,0.7,0.75,\n"
)


def windows() -> pd.DataFrame:
    fields = []
    for source in ("left", "right"):
        for series in range(SERIES):
            for k in range(STARTS):
                fields.append((f"{source}/H/short", source, f"item{series}", series, 100 + 48 * k))
    table = pd.DataFrame(fields, columns=["task", "source", "item_id", "series", "start"])
    constant = {"domain": "general", "frequency": "H", "term": "short", "variate": "", "horizon": 48, "season": 24}
    return table.assign(**constant, context=96, variates=1)


def frame(factor: float, noise: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """Rows whose errors are `factor` times what is hard about a window, the same for every forecaster."""
    table = windows()
    hard = np.random.default_rng(9).lognormal(0, 1, len(table))
    error = factor * hard * np.random.default_rng(seed).lognormal(0, noise, len(table))
    sums = Sums.zeros(len(table))
    sums.quantile_loss[:] = error[:, None]
    sums.scaled_error[:] = 48 * error
    sums.absolute[:] = 10 + np.arange(len(table))
    sums.scaled_points[:] = sums.points[:] = 48
    return rows.to_frame(table, sums, np.full(len(table), 0.002))


def make(folder: Path, scored: pd.DataFrame | None, width: int = 64, trained: bool = True) -> Path:
    """A run folder."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(name=folder.name, width=width))
    if trained:
        (folder / "metrics.csv").write_text(METRICS)
    if scored is not None:
        rows.write(folder / "rows.parquet", scored)
        rows.write(folder / "seasonal_naive.parquet", frame(2.0, 0.3, seed=7))
    return folder


def test_pairing_finds_a_run_that_is_a_tenth_better(tmp_path):
    paths = [make(tmp_path / n, frame(f, seed=k)) for k, (n, f) in enumerate({"a": 1.0, "b": 0.9, "c": 1.15}.items())]
    found = standings(read_runs(paths), draws=300)
    for metric in ("mwql", "mase"):
        _, better, worse = (s.paired.overall[metric] for s in found)
        assert better.value == pytest.approx(0.9, abs=0.03)
        assert (verdict(better), verdict(worse)) == ("better", "worse")
        own = [s.own[metric] for s in found]
        assert own[0].low < own[1].high  # apart from each other the two would overlap
        assert [s.rank[metric] for s in found] == [2, 1, 3]


def test_equal_runs_show_no_clear_difference(tmp_path):
    paths = [make(tmp_path / str(k), frame(1.0, seed=k)) for k in range(2)]
    found = standings(read_runs([*paths, paths[0]]), draws=300)
    assert verdict(found[1].paired.overall["mwql"]) == "no clear difference"
    same = found[2].paired.overall["mwql"]
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert verdict(same) == "no clear difference"


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.8, 0.99, "better"), (1.01, 1.2, "worse"), (0.9, 1.1, "no clear difference")]
)
def test_only_an_interval_without_one_decides(low, high, word):
    assert verdict(Interval(1.05, low, high, ())) == word
    assert verdict(Interval(1.05, float("nan"), float("nan"), ())) == ""


def test_only_shared_windows_are_compared(tmp_path):
    whole, part = frame(1.0), frame(0.9, seed=1)
    part = part[part["start"] != 148].sample(frac=1, random_state=0)  # fewer, in another order
    longer = part.iloc[:2].assign(horizon=96)  # windows of its own
    part = pd.concat([part, longer], ignore_index=True)
    other = frame(0.9, seed=1)
    other.loc[other["item_id"] == "item3", "absolute"] += 1  # the same windows of changed data
    paths = [make(tmp_path / n, f) for n, f in {"a": whole, "b": part, "c": other}.items()]
    a, b, c = standings(read_runs(paths), draws=50)
    total = 2 * SERIES * STARTS
    assert (b.lacks, b.extra, b.changed, b.paired.windows) == (total // 3, 2, 0, total * 2 // 3)
    assert (c.lacks, c.extra, c.changed, c.paired.windows) == (0, 0, 2 * STARTS, total - 2 * STARTS)
    assert a.rank == {"mwql": 1, "mase": 1}
    assert b.rank == c.rank == {}
    assert "b: compared on 80 windows; 40 only a has, 2 only it has; not ranked, the windows differ." in notes(
        [a, b, c]
    )
    assert b.paired.overall["mwql"].value == pytest.approx(0.9, abs=0.03)
    at, there = matched(part, whole)
    for column in ("task", "item_id", "start"):
        assert part[column].to_numpy()[at].tolist() == whole[column].to_numpy()[there].tolist()


def test_no_window_in_common(tmp_path):
    paths = [make(tmp_path / "a", frame(1.0)), make(tmp_path / "b", frame(1.0).assign(horizon=24))]
    found = standings(read_runs(paths), draws=0)
    assert found[1].paired is None
    assert "b: no window in common with a." in notes(found)
    assert "<svg" in write_comparison(tmp_path / "page.html", found).read_text()


def test_windows_without_a_label_do_not_count(tmp_path):
    scored = frame(1.0)
    scored.loc[:4, "points"] = 0
    assert len(read_run(make(tmp_path / "a", scored)).frame) == len(scored) - 5


def test_settings_that_differ():
    a = {"name": "a", "model": {"width": 64, "heads": 2}, "include": ["*"], "fresh": True, "empty": {}}
    b = {"name": "b", "model": {"width": 128, "heads": 2}, "include": ["*", "x"], "fresh": True, "more": None}
    assert flat(a)["model.width"] == "64"
    assert differences([flat(a), flat(b), flat(a)]) == {
        "model.width": ["64", "128", "64"],
        "include": ["[*]", "[*, x]", "[*]"],
        "empty": ["{}", None, "{}"],
        "more": [None, "None", None],
    }
    assert differences([flat(a), flat(a | {"name": "c"})]) == {}


def test_page_shows_curves_scores_and_settings(tmp_path):
    first, second = make(tmp_path / "a", frame(1.0)), make(tmp_path / "b$x$<i>", frame(0.9, seed=1), width=128)
    still = make(tmp_path / "training", None)
    page = write_comparison(
        tmp_path / "new" / "page.html", standings(read_runs([first, second, still]), 100)
    ).read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    assert page.count('<svg class="plot"') == 2
    assert page.count("b$x$&lt;i&gt;") > 4
    assert "<i>" not in re.sub(r"<i>(smoothed|over|\d)", "", page[page.index("</style>") :]).replace("&lt;i&gt;", "")
    assert "better" in text
    assert "training: no rows.parquet, so no paired comparison." in text
    for shown in ("0.700", "model.d_model", "128", "left", "right"):
        assert shown in text
    assert "http" not in page
    assert not re.search(r"<link|<img|@import|src=", page)
    assert set(re.findall(r"#[0-9a-f]{6}\b", page[page.index("</style>") :])) == set()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.html"]


def test_no_difference_is_said(tmp_path):
    page = write_comparison(
        tmp_path / "page.html", standings(read_runs([make(tmp_path / n, None) for n in "ab"]))
    ).read_text()
    assert "No difference." in page
    assert "Scores</h2>" not in page


def test_an_evaluation_folder_and_pieces_that_are_missing(tmp_path):
    run = make(tmp_path / "run", frame(1.0), trained=False)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    scored = frame(0.9, seed=1)
    table, sums, seconds = rows.from_frame(scored)
    scores = Scores(table, sums, rows.from_frame(frame(2.0, 0.3, seed=7))[1], seconds, 50)
    (folder / "evaluation.json").write_text(json.dumps({"model": "m", "points": 1234, "tasks.terms": ["short"]}))
    (folder / "scores.json").write_text(json.dumps(without_nan(scores.to_dict())))
    evaluated = read_run(folder)
    assert evaluated.last("points") == 1234
    assert evaluated.request == {"model": "m", "points": "1234", "tasks.terms": "[short]"}
    reported = standings([read_run(run), evaluated], draws=50)[1]
    assert reported.paired is None
    assert reported.own["mwql"].value == pytest.approx(scores.overall["mwql"].value)
    rows.write(folder / "rows.parquet", scored)  # without Seasonal Naive's
    again = standings([read_run(run), read_run(folder)], draws=50)
    assert verdict(again[1].paired.overall["mwql"]) == "better"
    assert again[1].own["mwql"].value == pytest.approx(scores.overall["mwql"].value)
    assert "evaluation: no seasonal_naive.parquet." in notes(again)
    page = write_comparison(tmp_path / "page.html", again).read_text()
    assert "<svg" not in page  # no curves
    assert f"{scores.overall['mwql'].value:.3f}" in page


def test_folders_of_one_name_are_told_apart(tmp_path):
    paths = [make(tmp_path / parent / "run", None) for parent in "ab"]
    assert [run.name for run in read_runs([*paths, paths[0]])] == [
        str(paths[0]),
        str(paths[1]),
        f"{paths[0]} (2)",
    ]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a run folder .* nor an evaluation folder"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere is neither"):
        read_run(tmp_path / "nowhere")
    make(tmp_path / "a", frame(1.0))
    for name, content in {"config.yaml": "a: [", "scores.json": "{", "rows.parquet": "no"}.items():
        kept = (tmp_path / "a" / name).read_bytes() if (tmp_path / "a" / name).exists() else None
        (tmp_path / "a" / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            read_run(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(kept or b"{}")


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, ROOT / "scripts" / "compare.py", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_command(tmp_path):
    make(tmp_path / "base", frame(1.0))
    make(tmp_path / "base-model=wide", frame(0.9, seed=1))  # a multirun's folder
    done = command("base", "base-model=wide", "draws=100", "out=page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"base-model=wide +300 +0\.700 .* better", done.stdout)
    assert done.stdout.rstrip().endswith("page.html")
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["base"], 2, "at least two"),
        (["base", "base", "drawz=3"], 2, "did you mean 'draws'"),
        (["base", "base", "draws=-1"], 2, "must not be negative"),
        (["base", "nowhere"], 1, "neither a run folder"),
    ],
)
def test_mistakes_have_their_exit_status(tmp_path, arguments, status, message):
    make(tmp_path / "base", None)
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "compare.html").exists()
