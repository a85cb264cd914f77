"""Weights & Biases beside metrics.csv, offline: what is written needs no network."""

from __future__ import annotations

import csv
import json
import struct
from collections import Counter
from pathlib import Path

import pytest

wandb = pytest.importorskip("wandb")

BLOCK, WHOLE, LAST = 32768, 1, 4


def logged(file: Path) -> list[dict[str, float]]:
    """The figures that one start of a run wrote, in order: records of LevelDB's log format behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, record, out = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:  # of a block, too short for the head of a record
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            message = wandb_internal_pb2.Record.FromString(record)
            out += [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in message.history.item}]
            record = b""
    return [point for point in out if point]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_resumed_run_goes_on_as_the_same_run_with_the_figures_of_metrics_csv(train_here):
    more = ("logger.wandb=offline", "schedule.decay_steps=0", "report=false", "validate_every=0")
    for steps in (2, 4):
        folder = train_here(*more, f"schedule.max_steps={steps}", "logger.every_steps=2")
        wandb.finish()  # of one process; a run of its own ends with it
    (name,) = {file.stem.removeprefix("run-") for file in folder.glob("wandb/offline-run-*/run-*.wandb")}
    assert name == (folder / "wandb.id").read_text()
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    points = [point for file in files for point in logged(file) if "train/loss" in point]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [(str(p["trainer/global_step"]), p["train/loss"]) for p in points] == [
        (row["step"], float(row["train/loss"])) for row in rows
    ]
    sources = Counter(key for file in files for point in logged(file) for key in point if key.startswith("loss/source"))
    assert set(sources.values()) == {len(rows)}
