"""One run: config -> data, module, callbacks -> fit -> export, scores, report. Everything lies in runs/<name>/."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from toto_train import checkpoint, hub, plan
from toto_train.callbacks.meters import Meters, MetricsFile
from toto_train.callbacks.saving import Saving
from toto_train.callbacks.validation import Validation
from toto_train.config import Config, ConfigError, to_yaml
from toto_train.data.loader import RowDataModule
from toto_train.evaluation.report import write_report
from toto_train.evaluation.score import Scores, evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.forecast import Forecaster
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule

log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Do what the config says; the same config again resumes where it stopped."""
    if config.plan:
        sys.stdout.write(plan.describe(config) + "\n")
        return
    data = RowDataModule(config)
    fingerprint = data.order.fingerprint  # opens the shards: a missing or truncated one stops here
    validation = TaskSet.open(config.validation) if config.validate_every else None
    heldout = TaskSet.open(config.heldout) if config.report and config.heldout.path else None
    folder = open_folder(config)
    log.info("%s\n", plan.describe(config))

    device = pick_device(config)
    model = Toto.create(config.model, config.seed, device)
    module = TrainingModule(config, model)
    start = data.start_step = checkpoint.resume(folder, module, fingerprint)
    write_text(folder / "config.yaml", to_yaml(config))
    if start < config.schedule.max_steps:
        fit(config, folder, module, data, validation, fingerprint)
    if config.report:
        finish(config, folder, module, heldout)


def pick_device(config: Config) -> str:
    if config.parallel.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["parallel.device='cuda', but torch sees no CUDA device; use parallel.device=cpu"])
    wanted = config.parallel.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def open_folder(config: Config) -> Path:
    """Make (or with fresh=true remake) the run folder, and be sure that it can be written."""
    folder = Path(config.out) / config.name
    try:
        if config.fresh and folder.exists():
            if any(folder.iterdir()) and not (folder / "config.yaml").is_file():
                raise ConfigError([f"fresh=true: {folder} is no run folder (no config.yaml); not deleting it"])
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for leftover in (folder / "checkpoints").glob("*.tmp"):  # of a save that was killed
            shutil.rmtree(leftover)
        write_text(folder / "config.yaml.probe", "")
        (folder / "config.yaml.probe").unlink()
    except OSError as error:
        raise OSError(
            f"cannot write the run folder {folder}: {error.strerror}; choose another out= or name="
        ) from error
    return folder


def fit(
    config: Config, folder: Path, module: TrainingModule, data: RowDataModule, validation: TaskSet | None, mark: str
) -> None:
    """Train from the module's position to the end of the schedule."""
    total, start = config.schedule.max_steps, module.steps_done
    meters = Meters(MetricsFile(folder / "metrics.csv", start), config.logger.every_steps, total)
    callbacks: list[pl.Callback] = []
    if validation is not None:
        callbacks.append(Validation(validation, meters, config.validate_every, total))
    callbacks += [meters, Saving(folder, mark, total)]  # in this order: scores, then the row that holds them
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The 'train_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    trainer = pl.Trainer(
        accelerator="gpu" if module.model.head.skip.weight.is_cuda else "cpu",
        devices=1,
        max_steps=total - start,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulation,
        callbacks=callbacks,
        logger=wandb_logger(config, folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    if module.steps_done < total:
        raise KeyboardInterrupt  # Lightning swallows it; the run is not whole


def wandb_logger(config: Config, folder: Path) -> Logger | bool:
    if config.logger.wandb == "off":
        return False
    try:
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(
            name=config.name,
            project=config.logger.project,
            save_dir=str(folder),
            offline=config.logger.wandb == "offline",
            id=config.name,
            resume="allow",
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            [f"logger.wandb={config.logger.wandb!r} needs wandb: pip install 'toto-train[wandb]'"]
        ) from error


def finish(config: Config, folder: Path, module: TrainingModule, heldout: TaskSet | None) -> None:
    """Export, score on series the run never saw, report."""
    facts = {
        "model": f"{config.model.name}, {sum(p.numel() for p in module.model.parameters()):,} parameters",
        "steps": f"{module.steps_done:,}",
        "observed points seen": f"{module.points_done:,}",
        "seed": str(config.seed),
    }
    scores: Scores | None = None
    if heldout is not None:
        with tqdm(total=len(heldout), unit="window", desc="scoring", disable=not sys.stderr.isatty()) as bar:
            scores = evaluate(
                Forecaster(module.model, module.device),
                heldout,
                examples=6,
                seed=config.seed,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        write_text(folder / "scores.json", json.dumps(scores.to_dict(), indent=2))
        for name, interval in scores.overall.items():
            facts[f"held-out {name.upper()} over Seasonal Naive's"] = (
                f"{interval.value:.3f} (95% interval {interval.low:.3f} to {interval.high:.3f})"
            )
        log.info("\n%s", score_table(scores))
    title = f"{config.name}: a {config.model.name} Toto 2.0-class forecaster"
    export = hub.save_pretrained(module.model, folder / "export", hub.model_card(title, facts))
    report = write_report(folder, title, facts, folder / "metrics.csv", scores)
    lines = [f"  {what.ljust(12)}{path}" for what, path in {
        "report": report, "scores": folder / "scores.json", "metrics": folder / "metrics.csv",
        "config": folder / "config.yaml", "checkpoints": folder / "checkpoints", "export": export,
    }.items() if path.exists()]  # fmt: skip
    sys.stdout.write("\n".join([f"run {config.name} is complete:", *lines, ""]))


def score_table(scores: Scores) -> str:
    """Scores on held-out sources as aligned text."""
    lines = [f"{'held-out source':<24}{'windows':>8}{'MASE':>9}{'MWQL':>9}{'rel. MASE':>11}{'rel. MWQL':>11}"]
    for name, row in scores.table().items():
        relative = row["relative"]
        lines.append(
            f"{name:<24}{row['windows']:>8}{row['mase']:>9.3f}{row['mwql']:>9.3f}"
            f"{relative['mase']:>11.3f}{relative['mwql']:>11.3f}"
        )
    overall = {name: f"{o.value:.3f} [{o.low:.3f}, {o.high:.3f}]" for name, o in scores.overall.items()}
    lines.append(
        f"{scores.windows} windows of {scores.series_count} series; geometric mean relative to Seasonal Naive, with "
        f"95% bootstrap interval over series: MASE {overall['mase']}, MWQL {overall['mwql']}"
    )
    return "\n".join(lines)


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
