"""One run: config -> data, module, callbacks -> fit -> export, scores, report. Everything lies in runs/<name>/."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
import uuid
import warnings
from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from data_pipelines.shards import ShardSet
from data_pipelines.store import is_url
from toto_train import checkpoint, checkpoint_files, hub
from toto_train.callbacks.communication import Communication
from toto_train.callbacks.garbage import Garbage
from toto_train.callbacks.guarding import Guarding
from toto_train.callbacks.losses import Losses
from toto_train.callbacks.meters import Meters
from toto_train.callbacks.profiling import Profiling
from toto_train.callbacks.reads import Reads
from toto_train.callbacks.saving import Saving
from toto_train.callbacks.validation import Validation
from toto_train.config import Config, ConfigError, RunStopped, TasksConfig, to_yaml
from toto_train.data.loader import RowDataModule
from toto_train.data.order import Order
from toto_train.data.rows import verify_shards
from toto_train.evaluation import output
from toto_train.evaluation.job import progress_bar
from toto_train.evaluation.report import write_report
from toto_train.evaluation.score import Scores, evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.files import write_text
from toto_train.forecast import Forecaster
from toto_train.initial import choose_source
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule, keep_freed_memory
from toto_train.optim.orthogonalize import multiplies_bf16
from toto_train.optim.recipe import describe_routing
from toto_train.parallel import build, make_optimizer
from toto_train.parallel import trainer as make_trainer
from toto_train.planning.describe import describe
from toto_train.ranks import check_shared, join, pick_device, resolve_devices
from toto_train.run_folder import open_folder
from toto_train.watchdog import Watchdog

log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Do what the config says, as one of its ranks; the same config again resumes where it stopped."""
    # everything that can be wrong is found before a folder is touched
    source = choose_source(config)
    if config.plan:
        start = [f"starts from {source.folder}: {source.about}"] if source else []
        sys.stdout.write("\n".join([describe(config), describe_data(config), *start, ""]))
        return
    device = pick_device(config.parallel.device, "parallel.device")
    if device == "cpu":
        keep_freed_memory()
    resolve_devices(config, device)
    data = RowDataModule(config)
    fingerprint = data.order.fingerprint
    check_shards(config, data.order)
    validation = open_tasks(config, "validation", data.order) if config.validate_every else None
    heldout = open_tasks(config, "heldout", data.order) if config.report and config.heldout.path else None
    if config.logger.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise ConfigError([f"logger.wandb={config.logger.wandb!r} needs wandb: pip install 'toto-train[wandb]'"])
    if config.parallel.mode == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(["parallel.mode=deepspeed needs deepspeed: pip install 'toto-train[deepspeed]'"])
    with ExitStack() as stack:
        with join(config, device) as ranks:
            folder = Path(config.out) / config.name
            ranks.agreed(lambda: stack.enter_context(open_folder(config)))
            if config.parallel.nodes > 1:
                check_shared(folder, ranks)
            if ranks.first:
                log.info("%s\n", describe(config))
                if config.parallel.precision != "fp32" and not multiplies_bf16(torch.device(device)):
                    log.warning("parallel.precision=%s will be slow: this %s has no instructions for bf16; leave it at "
                                "fp32 here", config.parallel.precision, device)  # fmt: skip
            model = build(config, ranks)
            optimizer = make_optimizer(config, model)
            position = checkpoint.resume(folder, config, model, optimizer, fingerprint, data.order.facts)
            if source and not position.step:
                source.load_into(model)
                if source.fingerprint == fingerprint:
                    log.warning("the rows will be those that %s saw, from the first on; seed= draws others",
                                source.folder)  # fmt: skip
            ranks.agreed(lambda: write_facts(folder, config, model))
            data.start_step = position.step
            module = TrainingModule(config, model, optimizer, position, ranks)
            checkpoint.load_extra(folder, position, module.extra)
            if position.step < config.schedule.max_steps:
                fit(folder, module, data, validation)
        if ranks.first and config.report:  # the others have parted
            finish(folder, config, device, heldout)


def write_facts(folder: Path, config: Config, model: Toto) -> None:
    """What is known before the first step: every setting, and which optimizer each parameter has."""
    write_text(folder / "config.yaml", to_yaml(config))
    routing = describe_routing(model.named_parameters(), config.optimizer, config.model.num_layers)
    write_text(folder / "routing.txt", routing + "\n")


def check_shards(config: Config, order: Order) -> None:
    """data.verify=full: every byte, before anything is trained; what is bad stops the run or goes into quarantine."""
    if config.data.verify == "full":
        log.info("verifying the shards of %d sources", len(order.shares))
        if bad := verify_shards(order):
            if config.data.on_fault == "stop":
                raise ValueError("\n".join(sorted(bad.values())))
            log.warning("quarantine: %d shards: %s", len(bad), "; ".join(sorted(bad.values())))


def describe_data(config: Config) -> str:
    """The mixture of a plan, where its shards are there to look at."""
    paths = dict.fromkeys(entry.path for entry in config.data.mixture.values() if not entry.families)
    missing = [path for path in paths if not is_url(path) and not Path(path or "?").is_dir()]
    if missing or not config.data.mixture:
        return f"data: not looked at, missing: {', '.join(repr(p) for p in missing) or 'a mixture'}"
    order = RowDataModule(config).order
    wide = max(map(len, order.shares))
    lines = [
        f"data ({order.fill:.0%} of all slots are observed)",
        f"  {'source'.ljust(wide)}  rows     fill  rows/epoch",
    ]
    for row in order.table():
        fills = ", ".join(f"{v} {fill:.0%}" for v, fill in row["fills"].items())
        lines.append(
            f"  {row['label'].ljust(wide)}  {row['share']:6.2%}  {row['fill']:4.0%}  {row['rows']:10,}"
            + (f"  by variates: {fills}" if fills else "  made on the fly")
        )
    return "\n".join(lines)


def open_tasks(config: Config, key: str, order: Order) -> TaskSet:
    """The task set at config.KEY; says where its sources are trained on too."""
    settings: TasksConfig = getattr(config, key)
    try:
        tasks = TaskSet.open(settings)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    opened = map(order.open, order.shares)
    trained = {(_place(shards.path), source) for shards, source in opened if isinstance(shards, ShardSet)}
    if both := [s for s in tasks.sources if (_place(settings.path), s) in trained]:
        log.warning("%s: %s are trained on too; their scores say nothing about unseen series", key, ", ".join(both))
    return tasks


def _place(path: str | Path) -> str:
    return str(path) if is_url(path) else str(Path(path).resolve())


def fit(folder: Path, module: TrainingModule, data: RowDataModule, validation: TaskSet | None) -> None:
    """Train from the module's position to the end of the schedule. Raises RunStopped where a signal ended it before."""
    config, start = module.config, module.position.step
    total = config.schedule.max_steps
    validating = Validation(
        validation, *checkpoint.best_so_far(folder, validation.fingerprint if validation is not None else "")
    )
    every, first = config.logger.every_steps, module.ranks.first
    profiling = Profiling(config.profile, folder / "profile", start)
    communication = Communication(profiling.steps)
    meters = Meters(config, folder / "metrics.csv", start, validating, communication, first)
    callbacks: list[pl.Callback] = [
        communication,  # ends what it measures before the others work
        profiling,
        validating,  # scores before meters and saving, which take them along
        meters,
        Guarding(meters, data.order, str(folder)),  # before anything is saved
        Reads(folder / "sources.csv", data.order, start, every, first),
        Losses(folder / "losses.csv", data.rows.labels, start, every, first),
        Saving(folder, config, data.order, validating),
        Garbage(),
    ]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in (
        ".*isinstance.treespec, LeafSpec.*",
        "FSDP2-wrapped module .* returned a view",  # which nothing changes in place: the modes' losses are compared
        ".*`torch.distributed.* is deprecated",
    ):
        warnings.filterwarnings("ignore", message=harmless)
    logger = wandb_logger(config, folder) if module.ranks.first else False
    trainer = make_trainer(config, module.ranks, total - start, callbacks=callbacks, logger=logger)
    module.watchdog = Watchdog(folder / f"stack-rank{module.ranks.rank}.txt")
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:  # what Lightning makes of a second Ctrl-C: status 1, as if something had failed
        message = "stopped at once, without another save; the same command goes on from the last checkpoint"
        raise RunStopped(message, 128 + signal.SIGINT) from error
    finally:
        module.watchdog.stop()
    if module.position.step < total:
        message = f"stopped at step {module.position.step} of {total}, saved; the same command goes on from there"
        raise RunStopped(message, 128 + module.stop if module.stop else 1)


def wandb_logger(config: Config, folder: Path) -> Logger | bool:
    """The run's W&B logger, which a resumed run continues and a fresh one does not."""
    if config.logger.wandb == "off":
        return False
    from lightning.pytorch.loggers import WandbLogger

    if not (folder / "wandb.id").exists():
        write_text(folder / "wandb.id", f"{config.name}-{uuid.uuid4().hex[:8]}")
    return WandbLogger(
        name=config.name,
        project=config.logger.project,
        save_dir=str(folder),
        offline=config.logger.wandb == "offline",
        id=(folder / "wandb.id").read_text(),
        resume="allow",
    )


def finish(folder: Path, config: Config, device: str, heldout: TaskSet | None) -> None:
    """Score the best checkpoint on series the run never saw, export it, report."""
    model, meta = checkpoint.load_model(folder)
    model.to(device)
    facts = checkpoint_files.facts(folder, model, meta)
    scores: Scores | None = None
    if heldout is not None:
        with progress_bar(len(heldout), "scoring") as advance:
            scores = evaluate(
                Forecaster(model, next(model.parameters()).device),
                heldout,
                examples=6,
                seed=config.seed,
                progress=advance,
            )
        output.write(folder, scores)
        for name, interval in scores.overall.items():
            facts[f"held-out {name.upper()} over Seasonal Naive's"] = (
                f"{interval.value:.3f} (95% interval {interval.low:.3f} to {interval.high:.3f})"
            )
        log.info("\n%s", output.table(scores))
    title = f"{config.name}: a {config.model.name} Toto 2.0-class forecaster"
    training = {"context_length": config.data.length, "steps": meta["step"], "points": meta["points"]}
    export = hub.save_pretrained(model, folder / "export", hub.model_card(title, facts), training)
    report = write_report(folder, title, facts, folder / "metrics.csv", scores)
    made = {
        "report": report,
        "scores": folder / "scores.json",
        "all windows": folder / "rows.parquet",
        "metrics": folder / "metrics.csv",
        "config": folder / "config.yaml",
        "checkpoints": folder / "checkpoints",
        "export": export,
    }
    lines = [f"  {what.ljust(12)}{path}" for what, path in made.items() if path.exists()]
    sys.stdout.write("\n".join([f"run {config.name} is complete:", *lines, ""]))
