"""What a benchmark leaves: one line a configuration while it runs, tables in the leaderboards' layout at the end."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Tables
from toto_train.evaluation.leaderboards.measures import COLUMNS
from toto_train.evaluation.score import without_nan
from toto_train.files import whole, write_text

log = logging.getLogger(__name__)

RESULTS = "results.jsonl"
TABLE = "all_results.csv"
_PREFIX = "eval_metrics/"
NAIVE = "seasonal_naive"
"""Key of its scores in a line."""


class Results:
    """Scored configurations by name, in a file that a line at a time is added to; a torn last line is cut off."""

    def __init__(self, file: Path):
        self.file = file
        self.lines: dict[str, dict[str, Any]] = {}
        if not file.is_file():
            return
        end = 0
        for line in file.read_bytes().splitlines(keepends=True):
            try:
                found = json.loads(line) if line.endswith(b"\n") else {}
                self.lines[str(found["configuration"])] = found
            except (ValueError, TypeError, KeyError):
                log.warning("%s: cut off after %d configurations, the rest is scored again", file, len(self.lines))
                os.truncate(file, end)
                return
            end += len(line)

    def done(self, name: str, data: str) -> bool:
        """Whether a configuration is scored, on the same data."""
        return name in self.lines and self.lines[name]["data"] == data

    def add(self, line: dict[str, Any]) -> None:
        """Append; on the disk when this returns."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines[line["configuration"]] = line


def read_table(file: Path) -> dict[str, dict[str, float]]:
    """all_results.csv of some forecaster -> configuration -> metric -> value."""
    try:
        frame = pd.read_csv(file)
        named = {c.removeprefix(_PREFIX): c for c in frame.columns if c.startswith(_PREFIX)}
        if not {*COLUMNS} <= set(named):
            raise ValueError(f"no column {_PREFIX}{sorted({*COLUMNS} - set(named))[0]}")
        return {
            str(row["dataset"]): {metric: float(row[column]) for metric, column in named.items()}
            for _, row in frame.iterrows()
        }
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is no table of a leaderboard ({error})") from error


def read_others(folder: str) -> dict[str, dict[str, dict[str, float]]]:
    """Tables of the forecasters whose folders lie in a leaderboard's folder of results, by the folder's name."""
    files = sorted(Path(folder).glob(f"*/{TABLE}")) if folder else []
    if folder and not files:
        raise ValueError(f"against={folder} holds no MODEL/{TABLE}; give a leaderboard's folder of results")
    return {file.parent.name: read_table(file) for file in files}


def tables(scores: Mapping[str, Mapping[str, Mapping[str, float]]], naive: str) -> Tables:
    """Forecaster -> configuration -> metric -> value, as one table a metric over the configurations all have; Seasonal
    Naive last."""
    order = [*(name for name in scores if name != naive), naive]
    shared = [c for c in scores[naive] if all(c in of for of in scores.values())]
    metrics = scores[naive][shared[0]] if shared else {}
    return {
        metric: pd.DataFrame({name: {c: scores[name][c].get(metric, float("nan")) for c in shared} for name in order})
        for metric in metrics
    }


def write_folder(out: Path, name: str, key: str, lines: Iterable[dict[str, Any]], size_column: bool) -> None:
    """out/name/all_results.csv of one forecaster (`key` in the lines), and beside it config.json.

    size_column: BOOM's sixteenth column, the windows of a configuration.
    """
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["dataset", "model", *(_PREFIX + c for c in COLUMNS), "domain", "num_variates"]
    with whole(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, "dataset_size"] if size_column else columns)
        for line in lines:
            row = [line["configuration"], name, *(line[key][c] for c in COLUMNS), line["domain"], line["num_variates"]]
            writer.writerow([*row, line["windows"]] if size_column else row)
    kind = "statistical" if key == NAIVE else "pretrained"
    config = {"model": name, "model_type": kind, "model_dtype": "float32"}
    write_text(folder / "config.json", json.dumps(config, indent=4))


def write_scores(
    out: Path, benchmark: Benchmark, summary: dict[str, Any], lines: Iterable[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """scores.json: the summary and every configuration's scores; what does not exist or is infinite is null."""
    lines = list(lines)
    every = {line["configuration"]: {k: v for k, v in line.items() if k != "configuration"} for line in lines}
    result = {"benchmark": benchmark.title, "configurations": len(lines), "of": benchmark.size, **facts}
    text = json.dumps(without_nan(result | {"summary": summary, "scores": every}), indent=2, allow_nan=False)
    write_text(out / "scores.json", text)


def text(
    title: str, part: str, forecasters: Mapping[str, Mapping[str, float]], published: Mapping[str, tuple[float, float]]
) -> str:
    """Forecasters in the order of their second score, the published ones among them and marked."""
    columns = list(next(iter(forecasters.values())))
    found = {name: [row[c] for c in columns] for name, row in forecasters.items()}
    found |= {f"{name} (published)": [*scores] for name, scores in published.items()}
    wide = max(len(name) for name in (title, *found)) + 2
    lines = [f"{title}: {part}", f"{'':<{wide}}" + "".join(f"{c:>12}" for c in columns)]
    for name, values in sorted(found.items(), key=lambda item: (not item[1][1] < float("inf"), item[1][1])):
        lines.append(f"{name:<{wide}}" + "".join(f"{v:>12.3f}" for v in values))
    return "\n".join(lines)
