"""What a benchmark leaves: one line a configuration while it runs, tables in the leaderboards' layout at the end."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from toto_train.evaluation.leaderboards.benchmarks import PREFIX, Benchmark, Tables
from toto_train.evaluation.lines import Lines, without_nan
from toto_train.files import whole, write_text

RESULTS = "results.jsonl"
TABLE = "all_results.csv"
NAIVE = "seasonal_naive"
"""Key of its scores in a line."""
SUBMITTER = ("model_link", "code_link", "org", "testdata_leakage", "replication_code_available")
"""Fields of config.json that only who submits can fill in."""


class Results(Lines):
    """Scored configurations by name."""

    def done(self, name: str, data: str) -> bool:
        """Whether a configuration is scored, on the same data and with all that the report needs."""
        line = self.lines.get(name, {})
        return line.get("data") == data and "spread" in line


def read_table(file: Path, columns: Iterable[str]) -> dict[str, dict[str, float]]:
    """A leaderboard's table of some forecaster -> configuration -> metric -> value."""
    try:
        frame = pd.read_csv(file)
        names = {c.removeprefix(PREFIX): c for c in frame.columns}
        if missing := [c for c in columns if c not in names]:
            raise ValueError(f"no column {missing[0]}")
        key = "dataset" if "dataset" in frame else "task_name"
        return {str(row[key]): {metric: float(row[names[metric]]) for metric in columns} for _, row in frame.iterrows()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is no table of a leaderboard ({error})") from error


def read_others(folder: str, columns: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Tables of other forecasters by name: MODEL/all_results.csv below a leaderboard's folder of results, or MODEL.csv
    in it (fev)."""
    if not folder:
        return {}
    found = {file.parent.name: file for file in sorted(Path(folder).glob(f"*/{TABLE}"))}
    found = found or {file.stem: file for file in sorted(Path(folder).glob("*.csv"))}
    if not found:
        raise ValueError(f"against={folder} holds no MODEL/{TABLE}; give a leaderboard's folder of results")
    return {name: read_table(file, columns) for name, file in found.items()}


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


def write_folder(out: Path, name: str, rows: Sequence[Mapping[str, Any]], dtype: str, pretrained: bool) -> None:
    """out/name/all_results.csv of one forecaster, and beside it config.json, with the fields of GIFT-Eval's
    submissions: what only the submitter knows is empty, and a folder that was filled in stays so."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path = folder / "config.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    config = {"model": name, "model_type": "pretrained" if pretrained else "statistical", "model_dtype": dtype}
    config |= {field: before.get(field, "") for field in SUBMITTER}
    write_text(path, json.dumps(config, indent=4))


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
    benchmark: Benchmark,
    part: str,
    forecasters: Mapping[str, Mapping[str, float]],
    published: Mapping[str, tuple[float, float]],
) -> str:
    """Forecasters in order, the published ones among them and marked: by CRPS, or the first score if more is better."""
    columns = list(next(iter(forecasters.values())))
    found = {name: [row[c] for c in columns] for name, row in forecasters.items()}
    found |= {f"{name} (published)": [*scores] for name, scores in published.items()}
    wide = max(len(name) for name in found) + 2
    lines = [f"{benchmark.title}: {part}", f"{'':<{wide}}" + "".join(f"{c:>{max(12, len(c) + 2)}}" for c in columns)]
    first = (lambda row: -row[0]) if benchmark.higher else (lambda row: row[1])
    for name, values in sorted(found.items(), key=lambda item: (not math.isfinite(first(item[1])), first(item[1]))):
        lines.append(
            f"{name:<{wide}}"
            + "".join(f"{v:>z{max(12, len(c) + 2)}.3f}" for c, v in zip(columns, values, strict=False))
        )
    return "\n".join(lines)
