"""An evaluation as a job: what becomes a task set, what is kept and gone on with, what lies in the output folder."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.shards import ShardSet
from data_pipelines.sources import series_parquet
from data_pipelines.sources.files import FileSource
from toto_train import hub
from toto_train.config import ModelConfig, TasksConfig
from toto_train.evaluation import cache, job, output, peers, rows
from toto_train.evaluation.baselines import seasonal_naive
from toto_train.evaluation.metrics import Sums
from toto_train.evaluation.score import Scores, evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.model.toto import Toto

ROOT = Path(__file__).parents[2]


def made(source: str, count: int, variates: int, length: int = 400, interval: float = 3600.0) -> list[Series]:
    out = []
    for i in range(count):
        random = np.random.default_rng([len(source), i])
        values = 3 + np.sin(np.arange(length) * np.pi / 12) + 0.3 * random.normal(size=(variates, length))
        values[:, 7] = np.nan
        out.append(Series(values.astype(np.float32), interval, source, f"i{i}", "observability", licence="CC0-1.0"))
    return out


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    series_parquet.write(folder / "web.parquet", made("web", 5, 1))
    series_parquet.write(folder / "db.parquet", made("db", 2, 3, 300, 300.0))
    return folder


@pytest.fixture
def asked(model, data, tmp_path) -> job.Job:
    tasks = TasksConfig(path=str(data), context=0)
    return job.Job(model=model, tasks=tasks, out=tmp_path / "out", baselines=[], device="cpu", draws=100, examples=2)


def test_a_folder_of_parquet_files_becomes_a_task_set_once(data):
    folder = cache.cache_folder(data)
    assert folder == data.with_name("data.eval")
    shards = cache.as_shards(data, FileSource("", "parquet"), folder)
    assert {len(s) for s in map(ShardSet(shards).index, ("web", "db"))} == {5, 2}
    assert list(cache.as_shards(data, FileSource("", "parquet"), folder).parent.glob("shards-*")) == [shards]
    series_parquet.write(data / "web.parquet", made("web", 6, 1))
    assert (
        len(ShardSet(cache.as_shards(data, FileSource("", "parquet"), folder)).index("web")) == 6
    )  # the files changed
    assert cache.as_shards(shards, FileSource("", "parquet"), folder) == shards


def test_folders_that_hold_nothing_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no parquet files"):
        cache.as_shards(tmp_path / "empty", FileSource("", "parquet"), tmp_path)
    with pytest.raises(ValueError, match="missing does not exist"):
        cache.as_shards(tmp_path / "missing", FileSource("", "parquet"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cache="):
        cache.cache_folder(tmp_path, str(tmp_path / "file" / "below"))


def test_an_evaluation_leaves_scores_rows_and_a_report(asked, capsys):
    scores = job.run(asked)
    result = json.loads((asked.out / "scores.json").read_text())
    assert set(result["tasks"]) == {"web/H/short", "db/5T/short"}
    assert set(result["sources"]) == {"web", "db"}
    assert result["overall"]["relative"]["mwql"]["value"] == pytest.approx(scores.overall["mwql"].value)
    table, sums, _ = rows.from_frame(rows.read(asked.out / "rows.parquet"))
    assert len(table) == len(scores.table) == 7
    np.testing.assert_array_equal(sums.quantile_loss, scores.model.quantile_loss)
    # 256 steps of training, less two patches for the horizon of 48
    assert table["context"].max() == 192
    assert "<svg" in (asked.out / "report.html").read_text()
    medium = dataclasses.replace(asked, tasks=dataclasses.replace(asked.tasks, terms=["short"]), out=asked.out / "m")
    assert open_terms(medium, ["short"]) == {48: 192}
    assert open_terms(medium, ["short", "medium"]) == {48: 192, 480: 128}  # a task does not depend on the others
    assert not list(asked.out.glob("*.tmp")) + list(asked.out.glob("rows.parts"))
    assert "web/H/short" in capsys.readouterr().out


def test_scores_in_bf16_are_near_those_in_fp32(asked):
    full = job.run(asked)
    low = job.run(dataclasses.replace(asked, precision="bf16", out=asked.out.with_name("low")))
    assert not np.array_equal(low.model.quantile_loss, full.model.quantile_loss)
    for metric, o in full.overall.items():
        assert low.overall[metric].value == pytest.approx(o.value, rel=0.02)


@pytest.mark.slow
def test_processes_give_the_same_rows(asked):
    out = asked.out.with_name("two")
    job.run(asked)
    job.run(dataclasses.replace(asked, out=out, processes=2))
    one, two = (rows.read(folder / "rows.parquet").drop(columns="seconds") for folder in (asked.out, out))
    pd.testing.assert_frame_equal(two, one)


def open_terms(asked: job.Job, terms: list[str]) -> dict[int, int]:
    """Horizon -> context."""
    folder = cache.cache_folder(asked.tasks.path)
    long = made("long", 1, 1, 3000)
    write_shards(folder / f"long-{len(terms)}", long, {})
    config = dataclasses.replace(asked.tasks, path=str(folder / f"long-{len(terms)}"), terms=terms)
    return {int(w["horizon"]): int(w["context"]) for w in job.open_tasks(config, 256, 32).windows}


def test_a_finished_evaluation_is_not_computed_again(asked, monkeypatch):
    first = job.run(asked)
    monkeypatch.setattr(job, "evaluate", lambda *_, **__: pytest.fail("scored again"))
    cheaper = dataclasses.replace(asked, max_points=1000, model=asked.model + "/")
    assert job.run(cheaper).overall == first.overall


def test_a_damaged_model_is_refused(asked, tmp_path):
    toto = Toto.create(ModelConfig(d_model=32, num_layers=2, num_heads=2, d_ff=64), seed=0)
    toto.layers[0].mlp.up.weight.data[0, 0] = float("nan")
    hub.save_pretrained(toto, tmp_path / "bad", "card")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up\.weight .* hold NaN"):
        job.run(dataclasses.replace(asked, model=str(tmp_path / "bad")))


def test_side_by_side_scores_are_over_the_same_tasks():
    """A forecaster without error on one task has no ratio there; nobody's overall score counts that task, then."""
    table = pd.DataFrame({name: [1, 1] for name in rows.KEYS})
    table["task"], table["source"], table["frequency"] = ["a/H/short", "b/H/short"], ["a", "b"], ["H", "H"]

    def scores(*losses: float) -> Scores:
        def sums(values: tuple[float, ...]) -> Sums:
            out = Sums.zeros(2)
            out.quantile_loss[:] = np.array(values)[:, None]
            out.scaled_error[:] = values
            out.absolute[:] = out.scaled_points[:] = out.points[:] = 1
            return out

        return Scores(table, sums(losses), sums((1, 1)), np.zeros(2))

    model, others = output.side_by_side(scores(0.01, 1.2), {"perfect on a": scores(0, 1.1)})
    assert model.overall["mwql"].value == pytest.approx(1.2)
    assert others["perfect on a"].overall["mwql"].value == pytest.approx(1.1)
    assert model.overall["mwql"].excluded == ("a/H/short",)
    assert "overall MWQL leaves out 1 tasks without a ratio: a/H/short" in output.table(model, others)


def test_what_an_evaluation_leaves_is_no_series_of_the_user(asked):
    job.run(dataclasses.replace(asked, out=Path(asked.tasks.path) / "scored"))
    cache.baseline("seasonal_naive", job.open_tasks(
        dataclasses.replace(asked.tasks, path=str(next(Path(f"{asked.tasks.path}.eval").glob("shards-*")))), 256, 32
    ), Path(asked.tasks.path) / "sub.eval")  # fmt: skip
    names = {f.key for f in FileSource(asked.tasks.path, "parquet").files()}
    assert names == {"web.parquet", "db.parquet"}


def test_another_evaluation_is_not_overwritten_unasked(asked, tmp_path):
    job.run(asked)
    kept = (asked.out / "rows.parquet").read_bytes()
    other = dataclasses.replace(asked, tasks=dataclasses.replace(asked.tasks, limit=2))
    with pytest.raises(ValueError, match="holds another evaluation"):
        job.run(other)
    assert (asked.out / "rows.parquet").read_bytes() == kept
    job.run(dataclasses.replace(other, replace=True))
    assert len(rows.read(asked.out / "rows.parquet")) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no evaluation folder"):
        job.run(dataclasses.replace(asked, out=tmp_path / "mine", replace=True))
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_wrong_requests_are_refused_before_anything_is_written(asked, tmp_path):
    for wrong, message in (
        ({"engine": "magic"}, "engine='magic' must be one of kernel, gluonts"),
        ({"model": str(tmp_path)}, "neither a run folder"),
        ({"baselines": ["flare"]}, "did you mean 'flair'"),
        ({"device": "tpu"}, "device='tpu' must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            job.run(dataclasses.replace(asked, **wrong))
    assert not asked.out.exists()


def test_gluonts_agrees(asked):
    pytest.importorskip("gluonts")
    job.run(dataclasses.replace(asked, engine="gluonts"))
    result = json.loads((asked.out / "scores.json").read_text())
    assert result["overall"]["gluonts_largest_difference"] < 1e-6
    row = result["tasks"]["db/5T/short"]
    assert row["gluonts"]["mase"] == pytest.approx(row["mase"], rel=1e-6)


@pytest.fixture
def tasks(tmp_path) -> TaskSet:
    write_shards(tmp_path / "set", made("web", 30, 1) + made("db", 2, 3, 300, 300.0), {})
    return TaskSet.open(TasksConfig(path=str(tmp_path / "set"), context=128))


@pytest.fixture
def peer(monkeypatch) -> list[int]:
    """A peer of ours: Seasonal Naive without intervals, which fails on groups; counts its calls."""
    calls: list[int] = []

    def forecast(past: np.ndarray, horizon: int, season: int, frequency: str) -> tuple[np.ndarray, int]:
        calls.append(past.shape[1])
        assert frequency in ("H", "5T")
        return seasonal_naive(past, horizon, season, intervals=False), len(past) - 1

    monkeypatch.setitem(peers.PEERS, "point", peers.Peer("point", "Point", "numpy", forecast, 0.01))
    return calls


def test_baselines_are_computed_once(tasks, peer, tmp_path):
    first = cache.baseline("point", tasks, tmp_path, context=100)
    assert (len(peer), max(peer)) == (len(tasks), 100)
    assert first.fallbacks == 2 * 2
    again = cache.baseline("point", tasks, tmp_path, context=100)
    assert len(peer) == len(tasks)
    assert again.fallbacks == first.fallbacks
    for name, array in vars(first.sums).items():
        np.testing.assert_array_equal(getattr(again.sums, name), array)
    wider = TaskSet(tasks.store, dataclasses.replace(tasks.config, context=300))  # what the model sees is no matter
    cache.baseline("point", wider, tmp_path, context=100)
    assert len(peer) == len(tasks)
    cache.baseline("point", tasks, tmp_path, context=50)
    assert len(peer) == 2 * len(tasks)


def test_seasonal_naive_of_the_cache_is_that_of_training(tasks, tmp_path):
    trained = evaluate(lambda c, h: np.zeros((len(c), 9, c.shape[1], h)), tasks).baseline
    for name, array in vars(cache.baseline("seasonal_naive", tasks, tmp_path).sums).items():
        np.testing.assert_array_equal(array, getattr(trained, name))


def test_a_damaged_cache_is_made_again(tasks, peer, tmp_path):
    cache.baseline("point", tasks, tmp_path)
    file = next(tmp_path.glob("point-*.parquet"))
    file.write_bytes(file.read_bytes()[:1000])
    cache.baseline("point", tasks, tmp_path)
    assert len(peer) == 2 * len(tasks)
    assert len(rows.read(file)) == len(tasks)


def test_a_killed_baseline_goes_on_where_it_was(tasks, peer, tmp_path, monkeypatch):
    def stop(done: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.baseline("point", tasks, tmp_path, progress=stop)
    assert len(peer) == 16
    whole = cache.baseline("point", tasks, tmp_path)
    assert len(peer) == len(tasks)
    fresh = cache.baseline("point", tasks, tmp_path / "other")
    for name, array in vars(fresh.sums).items():
        np.testing.assert_array_equal(getattr(whole.sums, name), array)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_baselines_are_the_same_on_any_number_of_processes(tasks, tmp_path):
    pytest.importorskip("flaircast")
    one, two = (cache.baseline("flair", tasks, tmp_path / str(n), workers=n) for n in (1, 2))
    assert isinstance(one.sums, Sums)
    for name, array in vars(one.sums).items():
        np.testing.assert_array_equal(getattr(two.sums, name), array)


@pytest.mark.slow
def test_the_command(model, data, tmp_path):
    def evaluate_py(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    wrong = evaluate_py(f"model={model}", f"tasks.path={data}", "limits=3", "engin=kernel")
    assert wrong.returncode == 2
    assert "did you mean 'limit'" in wrong.stderr
    assert "did you mean 'engine'" in wrong.stderr
    done = evaluate_py(
        f"model={model}", "tasks=local", f"tasks.path={data}", "limit=3", "baselines=none", "tasks.exclude=web",
        "tasks.groups=split", "device=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "evaluations" / "small-data"
    assert str(out.relative_to(tmp_path) / "report.html") in done.stdout
    frame = pd.read_parquet(out / "rows.parquet")
    assert (set(frame["source"]), set(frame["variates"]), len(frame)) == ({"db"}, {1}, 3)
    other = evaluate_py(f"model={model}", f"tasks.path={data}", "tasks=gift_eval")
    assert other.returncode == 1
    assert "holds no dataset of GIFT-Eval" in other.stderr
