"""One evaluation: a model and baselines on a task set -> scores.json, rows as Parquet, report.html."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_pipelines.build import TableOptions
from toto_train import checkpoint, hub
from toto_train.config import TasksConfig
from toto_train.evaluation import cache, peers, reference, rows
from toto_train.evaluation.metrics import METRICS
from toto_train.evaluation.report import write_report
from toto_train.evaluation.score import Scores, evaluate, without_nan
from toto_train.evaluation.tasks import TaskSet
from toto_train.forecast import Forecaster
from toto_train.model.toto import Toto

log = logging.getLogger(__name__)

ENGINES = ("kernel", "gluonts")
REQUEST = "evaluation.json"


@dataclass
class Job:
    """What scripts/evaluate.py is asked for."""

    model: str
    """Run folder, or a Hugging Face folder in the official format."""
    tasks: TasksConfig
    """context 0: as much as the model was trained on, less the horizon."""
    out: Path
    baselines: list[str]
    baseline_context: int = 1024
    engine: str = "kernel"
    checkpoint: str = "best"
    device: str = "auto"
    cache: str = ""
    workers: int = 0
    max_points: int = 2**20
    examples: int = 8
    draws: int = 1000
    seed: int = 0
    replace: bool = False
    source: TableOptions = field(default_factory=TableOptions)


def run(job: Job) -> Scores:
    """Score; everything is in `job.out` afterwards. A killed evaluation is gone on with by the same call."""
    if job.engine not in ENGINES:
        raise ValueError(f"engine={job.engine!r} must be one of {', '.join(ENGINES)}")
    peers.check(job.baselines)
    device = _device(job.device)
    model, about, trained = load(job.model, job.checkpoint)
    beside = cache.cache_folder(job.tasks.path, job.cache)
    config = dataclasses.replace(job.tasks, path=str(cache.as_shards(job.tasks.path, job.source, beside)))
    tasks = open_tasks(config, trained, model.config.patch_size)
    request = {
        **about,
        "weights": weights_hash(model),
        "tasks.path": job.tasks.path,
        "tasks": tasks.fingerprint,
        **{f"tasks.{k}": v for k, v in vars(tasks.config).items() if k != "path"},
        "max_points": job.max_points,
        "precision": "fp32",
    }
    _open_out(job.out, request, job.replace)
    forecaster = Forecaster(model.to(device), device)
    with progress_bar(len(tasks), "Seasonal Naive") as advance:
        naive = cache.baseline(cache.SEASONAL_NAIVE, tasks, beside, progress=advance)
    with progress_bar(len(tasks), str(about["model"])) as advance:
        scores = evaluate(
            forecaster,
            tasks,
            baseline=naive.sums,
            examples=job.examples,
            max_points=job.max_points,
            draws=job.draws,
            seed=job.seed,
            progress=advance,
            parts=job.out / "rows.parts",
        )
    others: dict[str, Scores] = {}
    notes: dict[str, Any] = {}
    write(job.out, scores, naive)  # the model's scores are safe before slow baselines begin
    if job.engine == "gluonts":
        with progress_bar(len(tasks), "gluonts") as advance:
            found = reference.gluonts_scores(forecaster, tasks, job.max_points, progress=advance)
        notes["gluonts"] = {"tasks": found, "largest_difference": largest_difference(scores, found)}
    workers = job.workers or cache.available_workers()
    for name in job.baselines:
        with progress_bar(len(tasks), peers.PEERS[name].title) as advance:
            made = cache.baseline(name, tasks, beside, job.baseline_context, workers, progress=advance)
        others[name] = Scores(scores.table, made.sums, naive.sums, made.seconds, job.draws, job.seed)
        notes.setdefault("baselines", {})[name] = {
            "version": peers.version(name),
            "context": job.baseline_context,
            "fallbacks": made.fallbacks,
        }
    write(job.out, scores, naive, others, notes)
    facts = {k: str(v) for k, v in about.items()}
    facts |= {"task set": job.tasks.path, "context": f"{tasks.config.context} steps", "groups": tasks.config.groups}
    if job.tasks.limit:
        facts["limit"] = f"{job.tasks.limit} windows of a task, chosen evenly"
    for name, made_of in notes.get("baselines", {}).items():
        facts[peers.PEERS[name].title] = (
            f"{made_of['version']}, last {made_of['context']} steps, "
            f"{made_of['fallbacks']:,} variates fell back to Seasonal Naive"
        )
    titled = {peers.PEERS[name].title: other for name, other in others.items()}
    write_report(job.out, f"{about['model']} on {Path(job.tasks.path).name}", facts, None, scores, titled)
    shutil.rmtree(job.out / "rows.parts", ignore_errors=True)
    sys.stdout.write(table(scores, titled) + "\n")
    if job.engine == "gluonts":
        sys.stdout.write(f"gluonts: largest relative difference {notes['gluonts']['largest_difference']:.1e}\n")
    return scores


def load(path: str, which: str) -> tuple[Toto, dict[str, Any], int]:
    """Model of a run or of an official folder, facts about it, and the steps of the rows it was trained on."""
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        model, meta = checkpoint.load_model(folder, which)
        about = {"model": folder.resolve().name, "path": path, "step": meta["step"], "points": meta["points"]}
        return model, about, int(meta["config"]["data"]["length"])
    if (folder / "config.json").is_file():
        name = folder.resolve().parent.name if folder.name == "export" else folder.resolve().name
        return hub.load_pretrained(folder), {"model": name, "path": path}, hub.context_length(folder)
    raise ValueError(f"model={path} is neither a run folder (checkpoints/) nor a Hugging Face folder (config.json)")


def open_tasks(config: TasksConfig, trained: int, patch: int) -> TaskSet:
    """The task set; context 0 becomes what fits, with the longest horizon, into a row of `trained` steps."""
    if config.context:
        return TaskSet.open(config)
    tasks = TaskSet.open(dataclasses.replace(config, context=trained))
    ahead = -(-int(tasks.windows["horizon"].max()) // patch) * patch
    return TaskSet.open(dataclasses.replace(config, context=max(trained - ahead, trained // 2)))


def write(
    out: Path,
    scores: Scores,
    naive: cache.Baseline | None = None,
    others: Mapping[str, Scores] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """scores.json, and one Parquet table of scored windows each for the model (rows.parquet) and every baseline."""
    result, others, notes = scores.to_dict(), others or {}, notes or {}
    for name, other in others.items():
        found = other.to_dict()
        result.setdefault("baselines", {})[name] = {
            **notes["baselines"][name],
            "overall": found["overall"],
            "tasks": {task: {m: row[m] for m in (*METRICS, "relative")} for task, row in found["tasks"].items()},
        }
    for task, row in notes.get("gluonts", {}).get("tasks", {}).items():
        result["tasks"][task]["gluonts"] = row
    if "gluonts" in notes:
        result["overall"]["gluonts_largest_difference"] = notes["gluonts"]["largest_difference"]
    text = json.dumps(without_nan(result), indent=2, allow_nan=False)
    write_text(out / "scores.json", text)
    rows.write(out / "rows.parquet", rows.to_frame(scores.table, scores.model, scores.seconds))
    seconds = naive.seconds if naive is not None else scores.seconds * 0
    rows.write(out / "seasonal_naive.parquet", rows.to_frame(scores.table, scores.baseline, seconds))
    for name, other in others.items():
        rows.write(out / f"{name}.parquet", rows.to_frame(other.table, other.model, other.seconds))


def largest_difference(scores: Scores, found: dict[str, dict[str, float]]) -> float:
    """Between the kernel's and gluonts' scores of every task, relative."""
    pairs = [(row[m], found[task][m]) for task, row in scores.tasks().items() for m in METRICS]
    return max((abs(ours - theirs) / abs(theirs) for ours, theirs in pairs if theirs and theirs == theirs), default=0.0)


def table(scores: Scores, others: Mapping[str, Scores] | None = None) -> str:
    """Scores as aligned text: a line a task, then the overall ones with their intervals."""
    tasks, others = scores.tasks(), others or {}
    wide = max(map(len, ("overall", *tasks)))
    found = {title: other.tasks() for title, other in others.items()}
    heads = "".join(f"{title[:14]:>16}" for title in others)
    lines = [f"{'task':<{wide}}{'windows':>9}{'MASE':>9}{'MWQL':>9}{'rel. MASE':>11}{'rel. MWQL':>11}{heads}"]
    for name, row in tasks.items():
        cells = "".join(f"{of[name]['relative']['mwql']:>16.3f}" for of in found.values())
        lines.append(
            f"{name:<{wide}}{row['windows']:>9,}{row['mase']:>9.3f}{row['mwql']:>9.3f}"
            f"{row['relative']['mase']:>11.3f}{row['relative']['mwql']:>11.3f}{cells}"
        )
    cells = "".join(f"{other.overall['mwql'].value:>16.3f}" for other in others.values())
    lines.append(
        f"{'overall':<{wide}}{scores.windows:>9,}{'':>18}"
        f"{scores.overall['mase'].value:>11.3f}{scores.overall['mwql'].value:>11.3f}{cells}"
    )
    spans = {m: f"{o.value:.3f} [{o.low:.3f}, {o.high:.3f}]" for m, o in scores.overall.items()}
    lines.append(
        f"{scores.windows:,} windows of {scores.series_count:,} series; relative to Seasonal Naive, geometric mean "
        "over tasks,\nthen sources, with 95% bootstrap interval over series (windows where a task has one): "
        f"MASE {spans['mase']}, MWQL {spans['mwql']}"
    )
    if others:
        lines.append("columns of the other forecasters: relative MWQL")
    if excluded := scores.overall["mase"].excluded:
        lines.append(f"MASE leaves out {len(excluded)} tasks without a ratio: {', '.join(excluded)}")
    return "\n".join(lines)


def weights_hash(model: Toto) -> str:
    """sha256 over all tensors of the model, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _open_out(out: Path, request: dict[str, Any], replace: bool) -> None:
    """Make the output folder for this request; what another request left there goes only when asked."""
    file = out / REQUEST
    if out.exists() and any(out.iterdir()):
        if not file.is_file():
            raise ValueError(f"out={out} is not empty and no evaluation folder; choose another out=")
        if json.loads(file.read_text()) != json.loads(json.dumps(request)):
            if not replace:
                raise ValueError(
                    f"out={out} holds another evaluation ({REQUEST} there says which); choose another out=, or "
                    "replace it with replace=true"
                )
            shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(request, indent=2))


def _device(wanted: str) -> str:
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={wanted!r} must be one of auto, cpu, cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device; use device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of windows done so far."""
    with tqdm(total=total, unit="window", desc=what, disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        yield advance
