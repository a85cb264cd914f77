"""One table of all runs in a folder: what differs in their settings, how far they are, how they end, their scores.

It is read from what runs leave, whoever started them: train.py, train.py -m, scripts/launch_sweep.py or a cluster.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from toto_train import checkpoint_files
from toto_train.checkpoint_settings import differing
from toto_train.config import Config
from toto_train.evaluation.compare import differences, flat, read_run
from toto_train.files import write_text
from toto_train.launch import FAILED
from toto_train.run_lock import is_held

SCORES = {"loss": "last training loss", "val mwql": "best validation", "mwql": "held out", "mase": "held out"}
"""Columns of scores; the last three are relative to Seasonal Naive."""
WIDEST = 60
"""Characters of a message in the printed table; the file has all of it."""


@dataclass
class State:
    """What a run's folder says of it."""

    name: str
    state: str
    """done | running | failed | stopped (the same command goes on) | waiting (not begun)"""
    step: int = 0
    steps: int = 0
    message: str = ""
    """Why it failed."""
    scores: dict[str, float] = field(default_factory=dict)
    """By SCORES; NaN where there is none."""
    settings: dict[str, str] = field(default_factory=dict)


def read_state(folder: Path) -> State:
    """Of one run. Raises ValueError where a file of it cannot be read."""
    found = State(folder.name, "stopped")
    config = next((f for f in (folder / "config.yaml", folder / "launch.yaml") if f.is_file()), None)
    if config is not None:
        tree = OmegaConf.to_container(OmegaConf.load(config))
        assert isinstance(tree, dict)
        found.settings = flat({str(key): value for key, value in tree.items()})
        found.steps = int(found.settings.get("schedule.max_steps", 0))
    if (folder / "config.yaml").is_file():
        run = read_run(folder)
        step, loss, (_, validated) = run.last("step"), run.last("train/loss"), run.curve("val/mwql", "step")
        found.step = int(step) if math.isfinite(step) else 0
        held = {m: run.reported[m].value if m in run.reported else math.nan for m in ("mwql", "mase")}
        found.scores = {"loss": loss, "val mwql": float(validated.min()) if len(validated) else math.nan, **held}
    if is_held(folder):
        found.state = "running"
    elif found.settings and _complete(folder, found.steps, found.settings.get("report") == "true"):
        found.state = "done"
    elif (folder / FAILED).is_file():
        found.state, found.message = "failed", (folder / FAILED).read_text().strip()
    elif not (folder / "config.yaml").is_file():
        found.state = "waiting"
    return found


def _complete(folder: Path, steps: int, report: bool) -> bool:
    found = checkpoint_files.readable(folder)
    return bool(found) and found[-1][1]["step"] == steps and (not report or (folder / "report.html").is_file())


def is_done(folder: Path, config: Config) -> bool:
    """Whether a run with this config is complete. Raises ValueError where one with other settings is."""
    if is_held(folder) or not _complete(folder, config.schedule.max_steps, config.report):
        return False
    meta = checkpoint_files.readable(folder)[-1][1]
    if changed := differing(meta["config"], config):
        raise ValueError(
            f"{folder} is complete, but with other settings: {'; '.join(changed)}; choose another name= or out="
        )
    return True


def read_states(out: Path) -> list[State]:
    """All runs in a folder, by name. Raises ValueError where there is none."""
    marks = ("config.yaml", "launch.yaml", FAILED)
    folders = sorted(p for p in out.iterdir() if any((p / m).is_file() for m in marks)) if out.is_dir() else []
    if not folders:
        raise ValueError(f"out={out} holds no runs; give settings to sweep, or the out= of a sweep")
    return [read_state(folder) for folder in folders]


def rows(states: Sequence[State]) -> list[dict[str, str]]:
    """A row a run, column -> text: run, state, step, what differs between the runs, scores, message."""
    known = [s for s in states if s.settings]
    differ = differences([s.settings for s in known])
    if "model.name" in differ:
        differ = {key: v for key, v in differ.items() if not key.startswith("model.") or key == "model.name"}
    at = {s.name: k for k, s in enumerate(known)}
    shown = [score for score in SCORES if any(math.isfinite(s.scores.get(score, math.nan)) for s in states)]
    out = []
    for s in states:
        row = {"run": s.name, "state": s.state, "step": f"{s.step:,} of {s.steps:,}" if s.steps else ""}
        row |= {key: (v[at[s.name]] or "") if s.name in at else "" for key, v in differ.items()}
        values = {score: s.scores.get(score, math.nan) for score in shown}
        row |= {score: f"{v:.4f}" if math.isfinite(v) else "" for score, v in values.items()}
        out.append({**row, "message": s.message})
    return out


def table(states: Sequence[State]) -> str:
    """As aligned text, with a last line that counts the states."""
    found = rows(states)
    names = [name for name in found[0] if any(row[name] for row in found)]
    cells = [names, *([_short(row[name]) for name in names] for row in found)]
    wide = [max(len(line[k]) for line in cells) for k in range(len(names))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(line, wide, strict=True)).rstrip() for line in cells]
    counts = {state: sum(s.state == state for s in states) for state in dict.fromkeys(s.state for s in states)}
    return "\n".join([*lines, f"{len(states)} runs: {', '.join(f'{n} {state}' for state, n in counts.items())}"])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def write_table(states: Sequence[State], path: Path) -> Path:
    """As CSV."""
    found, text = rows(states), io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return write_text(path, text.getvalue())
