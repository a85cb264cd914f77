"""gluonts, cutting the windows and pooling the metrics itself, finds the scores that we find."""

from __future__ import annotations

import sys
import zlib

import numpy as np
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import TasksConfig
from toto_train.evaluation.reference import gluonts_scores
from toto_train.evaluation.score import evaluate
from toto_train.evaluation.tasks import TaskSet

MINUTE, HOUR, DAY, MONTH = 60.0, 3_600.0, 86_400.0, 2_629_800.0


def walk(source: str, item: str, variates: int, length: int, interval: float, missing: float = 0.0) -> Series:
    random = np.random.default_rng(zlib.crc32(f"{source}/{item}".encode()))
    values = (20 + random.normal(size=(variates, length)).cumsum(1)).astype(np.float32)
    values[random.random(values.shape) < missing] = np.nan
    return Series(values=values, interval=interval, source=source, item_id=item)


def noisy(contexts: np.ndarray, horizon: int) -> np.ndarray:
    """The last observed value and noise that only the context decides, so that it is the same in any batch."""
    out = np.empty((len(contexts), 9, contexts.shape[1], horizon), np.float32)
    for n, context in enumerate(contexts):
        random = np.random.default_rng(zlib.crc32(context.tobytes()))
        known = context[np.isfinite(context)]
        out[n] = (known[-1] if len(known) else 0) + np.sort(random.normal(size=out.shape[1:]) * 9, 0)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    silent, flat = walk("hourly", "silent", 1, 320, HOUR), walk("hourly", "flat", 2, 320, HOUR)
    silent.values[:, -60:] = np.nan  # labels without any value
    flat.values[0, :-48] = 5.0  # a seasonal error of 0 in one variate of two
    path = tmp_path_factory.mktemp("reference") / "set"
    records = [
        walk("hourly", "short", 1, 300, HOUR),
        walk("hourly", "long", 1, 1300, HOUR, missing=0.3),
        walk("hourly", "group", 3, 1100, HOUR, missing=0.1),
        silent,
        flat,
        *[walk("mixed", f"day{k}", 3, 650 + 7 * k, DAY, missing=0.1) for k in range(3)],
        *[walk("mixed", f"month{k}", 1, 250 + 11 * k, MONTH) for k in range(3)],
        walk("mixed", "ten", 3, 400, 10 * MINUTE, missing=0.2),
        walk("mixed", "seven", 1, 1500, 7 * MINUTE),
        walk("mixed", "tiny", 1, 50, DAY),
        walk("season", "minutes", 1, 1440 + 48, MINUTE),
        walk("zeros", "zeros", 1, 200, DAY),
    ]
    records[-1].values[:, -60:] = 0.0
    write_shards(path, records, {})
    return str(path)


def both(tasks: TaskSet) -> tuple[dict, dict]:
    return gluonts_scores(noisy, tasks, max_points=20_000), evaluate(noisy, tasks, draws=0).tasks()


@pytest.mark.parametrize("limit", [0, 4])
@pytest.mark.parametrize("groups", ["keep", "split"])
def test_scores_equal_gluonts(folder, groups, limit):
    config = TasksConfig(
        path=folder, include=["hourly", "mixed"], terms=["short", "medium"], context=256, groups=groups, limit=limit
    )
    reference, ours = both(TaskSet.open(config))
    assert set(reference) == set(ours)
    assert {"hourly/H/medium", "mixed/D/short", "mixed/D/medium", "mixed/M/medium", "mixed/10T/short"} <= set(ours)
    for name, scores in reference.items():
        for metric, value in scores.items():
            assert ours[name][metric] == pytest.approx(value, rel=1e-6), (name, metric)


def test_the_wanted_differences(folder):
    reference, ours = both(TaskSet.open(TasksConfig(path=folder, include=["season", "zeros"], max_windows=1)))
    assert np.isnan(reference["season/T/short"]["mase"])  # the past is one season long: no pair for gluonts
    assert ours["season/T/short"]["mase"] > 0  # lag 1 for us
    assert reference["season/T/short"]["mwql"] == pytest.approx(ours["season/T/short"]["mwql"], rel=1e-6)
    assert np.isinf(reference["zeros/D/short"]["mwql"])
    assert np.isnan(ours["zeros/D/short"]["mwql"])
    assert reference["zeros/D/short"]["mase"] == pytest.approx(ours["zeros/D/short"]["mase"], rel=1e-6)


@pytest.mark.parametrize(("field", "shift"), [("start", -1), ("start", 1), ("horizon", -1), ("series", 1)])
def test_a_wrong_window_is_found(folder, field, shift):
    tasks = TaskSet.open(TasksConfig(path=folder, include=["mixed"], limit=5))
    tasks.windows[field][3] += shift
    with pytest.raises(ValueError, match="windows of the task set are wrong"):
        gluonts_scores(noisy, tasks)


def test_a_missing_window_is_found(folder):
    tasks = TaskSet.open(TasksConfig(path=folder, include=["mixed"]))
    tasks.windows = np.delete(tasks.windows, 2)
    with pytest.raises(ValueError, match="windows of the task set are wrong"):
        gluonts_scores(noisy, tasks)


def test_batches_stay_small_progress_counts_and_nothing_is_printed(folder, capsys):
    tasks = TaskSet.open(TasksConfig(path=folder, include=["hourly"], context=100))
    points, seen = [], []

    def watched(contexts, horizon):
        points.append((len(contexts), len(contexts) * contexts.shape[1] * (contexts.shape[2] + horizon)))
        return noisy(contexts, horizon)

    gluonts_scores(watched, tasks, max_points=400, progress=seen.append)
    assert all(count == 1 or size <= 400 for count, size in points)
    assert seen == np.cumsum([count for count, _ in points]).tolist()
    assert seen[-1] == len(tasks)
    assert capsys.readouterr() == ("", "")


def test_wrong_forecasts_are_refused(folder):
    tasks = TaskSet.open(TasksConfig(path=folder, include=["hourly"]))
    with pytest.raises(ValueError, match=r"returned shape .* expected \[N, 9, V, H\]"):
        gluonts_scores(lambda c, h: np.zeros((len(c), c.shape[1], h)), tasks)
    with pytest.raises(ValueError, match="NaN"):
        gluonts_scores(lambda c, h: np.full((len(c), 9, c.shape[1], h), np.nan), tasks)


def test_missing_gluonts_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gluonts.ev.metrics", None)
    with pytest.raises(ValueError, match=r"pip install 'toto-train\[eval\]'"):
        gluonts_scores(noisy, TaskSet.open(TasksConfig(path=folder, include=["hourly"])))
