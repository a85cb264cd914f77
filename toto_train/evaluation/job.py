"""One evaluation: a model and baselines on a task set -> scores.json, rows as Parquet, report.html."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_pipelines.sources.files import FileSource
from toto_train import checkpoint, hub
from toto_train.config import TasksConfig
from toto_train.evaluation import cache, peers, reference, rows
from toto_train.evaluation.output import largest_difference, side_by_side, table, write
from toto_train.evaluation.processes import cores
from toto_train.evaluation.report import write_report
from toto_train.evaluation.score import Scores, draw_examples, evaluate
from toto_train.evaluation.tasks import TERMS, TaskSet
from toto_train.files import write_text
from toto_train.forecast import Forecaster, check_precision
from toto_train.model.toto import Toto
from toto_train.ranks import pick_device

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
    precision: str = "fp32"
    """fp32 | bf16: what forecasts are computed in."""
    cache: str = ""
    workers: int = 0
    """Processes for baselines; 0: as many as cores."""
    processes: int = 1
    """For the model."""
    max_points: int = 2**20
    examples: int = 8
    draws: int = 1000
    seed: int = 0
    replace: bool = False
    source: FileSource = field(default_factory=lambda: FileSource("", "parquet"))


def run(job: Job) -> Scores:
    """Score; everything is in `job.out` afterwards. A killed evaluation is gone on with by the same call."""
    if job.engine not in ENGINES:
        raise ValueError(f"engine={job.engine!r} must be one of {', '.join(ENGINES)}")
    if wrong := [term for term in job.tasks.terms if term not in TERMS]:
        raise ValueError(f"tasks.terms: {wrong[0]!r} is not one of {', '.join(TERMS)}")
    check_precision(job.precision)
    peers.check(job.baselines)
    check_out(job.out)
    device = pick_device(job.device)
    model, about, trained = load(job.model, job.checkpoint)
    beside = cache.cache_folder(job.tasks.path, job.cache)
    config = dataclasses.replace(job.tasks, path=str(cache.as_shards(job.tasks.path, job.source, beside)))
    tasks = open_tasks(config, trained, model.config.patch_size)
    request = {
        "weights": weights_hash(model),
        "tasks": tasks.fingerprint,
        "context": "all but the horizon" if not job.tasks.context else job.tasks.context,
        **{f"tasks.{k}": v for k, v in vars(job.tasks).items() if k not in ("path", "context")},
        "precision": job.precision,
    }
    with open_out(job.out, about, request, job.replace):
        forecasters = partial(forecaster_of, job.model, job.checkpoint, request["weights"], device, job.precision)
        forecaster = Forecaster(model.to(device), device, precision=job.precision)
        return _score(job, forecaster, forecasters, about, tasks, beside)


def _score(
    job: Job,
    forecaster: Forecaster,
    forecasters: Callable[[int], Forecaster],
    about: dict[str, Any],
    tasks: TaskSet,
    beside: Path,
) -> Scores:
    with progress_bar(len(tasks), "Seasonal Naive") as advance:
        naive = cache.baseline(cache.SEASONAL_NAIVE, tasks, beside, progress=advance)
    with progress_bar(len(tasks), str(about["model"])) as advance:
        if (job.out / "rows.parquet").is_file():  # of this request: scored before
            windows, sums, seconds = rows.from_frame(rows.read(job.out / "rows.parquet"))
            scores = Scores(windows, sums, naive.sums, seconds, job.draws, job.seed)
            scores.examples = draw_examples(forecaster, tasks, scores, job.examples)
        else:
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
                processes=job.processes,
                forecasters=forecasters if job.processes > 1 else None,
            )
    others: dict[str, Scores] = {}
    notes: dict[str, Any] = {}
    write(job.out, scores, naive)  # the model's scores are safe before slow baselines begin
    shutil.rmtree(job.out / "rows.parts", ignore_errors=True)
    if job.engine == "gluonts":
        with progress_bar(len(tasks), "gluonts") as advance:
            found = reference.gluonts_scores(forecaster, tasks, job.max_points, progress=advance)
        notes["gluonts"] = {"tasks": found, "largest_difference": largest_difference(scores, found)}
    workers = job.workers or cores()
    for name in job.baselines:
        with progress_bar(len(tasks), peers.PEERS[name].title) as advance:
            made = cache.baseline(name, tasks, beside, job.baseline_context, workers, progress=advance)
        others[name] = Scores(scores.table, made.sums, naive.sums, made.seconds, draws=0)
        notes.setdefault("baselines", {})[name] = {
            "version": peers.version(name),
            "context": job.baseline_context,
            "fallbacks": made.fallbacks,
        }
    if notes:
        scores, others = side_by_side(scores, others)
        write(job.out, scores, naive, others, notes)
    facts = {k: str(v) for k, v in about.items()}
    facts |= {"task set": job.tasks.path, "context": _span(tasks.windows["context"]), "groups": tasks.config.groups}
    facts["precision"] = job.precision
    if job.tasks.limit:
        facts["limit"] = f"{job.tasks.limit} windows of a task, drawn once and for all"
    for name, made_of in notes.get("baselines", {}).items():
        facts[peers.PEERS[name].title] = (
            f"{made_of['version']}, last {made_of['context']} steps, "
            f"{made_of['fallbacks']:,} variates fell back to Seasonal Naive"
        )
    titled = {peers.PEERS[name].title: other for name, other in others.items()}
    write_report(job.out, f"{about['model']} on {Path(job.tasks.path).name}", facts, None, scores, titled)
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
        trained = int(meta["config"]["data"]["length"])
    elif (folder / "config.json").is_file():
        name = folder.resolve().parent.name if folder.name == "export" else folder.resolve().name
        model, about, trained = hub.load_pretrained(folder), {"model": name, "path": path}, hub.context_length(folder)
    else:
        raise ValueError(f"model={path} is neither a run folder (checkpoints/) nor a Hugging Face folder (config.json)")
    if bad := [n for n, p in model.named_parameters() if not bool(p.isfinite().all())]:
        raise ValueError(f"model={path}: {bad[0]} and {len(bad) - 1} more tensors hold NaN or infinite values")
    return model, about, trained


def forecaster_of(path: str, which: str, weights: str, device: str, precision: str, rank: int) -> Forecaster:
    """The model anew in a process of its own, on a GPU of its own where there are enough. ValueError unless its weights
    still have the hash `weights`."""
    model, _, _ = load(path, which)
    if weights_hash(model) != weights:
        raise ValueError(f"model={path} has changed while it was being scored; start again when it is whole")
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
    return Forecaster(model.to(device), device, precision=precision)


def open_tasks(config: TasksConfig, trained: int, patch: int) -> TaskSet:
    """The task set; context 0 becomes, task by task, what fits with the horizon into a row of `trained` steps."""
    if config.context:
        return TaskSet.open(config)
    tasks = TaskSet.open(dataclasses.replace(config, context=trained))
    ahead = -(-tasks.windows["horizon"] // patch) * patch
    tasks.windows["context"] = np.minimum(tasks.windows["context"], np.maximum(trained - ahead, trained // 2))
    return tasks


def weights_hash(model: Toto) -> str:
    """sha256 over the architecture and all tensors of the model, by name."""
    shape = {k: v for k, v in vars(model.config).items() if k != "name"}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_out(out: Path) -> None:
    begun = (".lock", f".{REQUEST}.tmp")  # all that a killed start leaves
    if out.exists() and not (out / REQUEST).is_file() and any(p.name not in begun for p in out.iterdir()):
        raise ValueError(f"out={out} is not empty and no evaluation folder; choose another out=")


@contextmanager
def open_out(out: Path, about: dict[str, Any], request: dict[str, Any], replace: bool) -> Iterator[None]:
    """The output folder for this request, held against a second process; another request's goes only when asked."""
    check_out(out)
    file = out / REQUEST
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out={out}: another evaluation is writing there") from None
        if file.is_file() and json.loads(file.read_text())["request"] != json.loads(json.dumps(request)):
            if not replace:
                raise ValueError(
                    f"out={out} holds another evaluation ({REQUEST} there says which); choose another out=, or "
                    "replace it with replace=true"
                )
            for path in out.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
        write_text(file, json.dumps({**about, "request": request}, indent=2))
        yield


def _span(steps: np.ndarray) -> str:
    low, high = int(steps.min()), int(steps.max())
    return f"{high:,} steps" if low == high else f"{low:,} to {high:,} steps"


@contextmanager
def progress_bar(total: int, what: str, unit: str = "window") -> Iterator[Callable[[int], None]]:
    """A function that takes the number of windows, or other units, done so far."""
    with tqdm(total=total, unit=f" {unit}", desc=what, disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        yield advance
