"""Where the first weights of a run come from, when not from its seed: `init_from`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from toto_train import checkpoint, checkpoint_files, hub, sizes
from toto_train.config import Config, ConfigError, ModelConfig
from toto_train.model.toto import Toto

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Weights to start from, looked at but not read."""

    folder: Path
    """A checkpoint, or a Hugging Face folder."""
    model: ModelConfig
    about: str
    fingerprint: str = ""
    """Of the data that made them, where that is known."""

    @property
    def is_checkpoint(self) -> bool:
        return (self.folder / "meta.json").is_file()

    def load_into(self, model: Toto) -> None:
        """Copy the weights into a model of the same architecture, in place."""
        load = checkpoint.load_weights if self.is_checkpoint else hub.load_weights
        load(self.folder, model)
        hub.refuse_non_finite(model, self.folder)
        log.info("starts from the weights of %s: %s", self.folder, self.about)


def open_source(path: str | Path) -> Source:
    """Look at a run (at the checkpoint that validation chose, else its last), a checkpoint (checkpoints/latest names
    the newest), or a Hugging Face folder.

    Raises ValueError naming what is wrong with it; of weights in the official format every header is checked.
    """
    folder = Path(path)
    if folder.name == checkpoint_files.LATEST and folder.is_file():
        folder = folder.with_name(folder.read_text().strip())
    if (folder / "checkpoints").is_dir():
        folder = checkpoint_files.choose(folder)
    if (folder / "meta.json").is_file():
        meta = checkpoint_files.read_meta(folder)
        model = ModelConfig(**meta["config"]["model"])
        about = f"{model.name}, {checkpoint_files.describe(folder.resolve().parents[1], meta)}"
        return Source(folder, model, about, meta.get("data_fingerprint", ""))
    if (folder / "config.json").is_file():
        model = hub.check_folder(folder)
        return Source(folder, model, f"{model.name}, Hugging Face folder")
    problem = "has no checkpoints/, meta.json or config.json" if folder.is_dir() else "is no folder"
    raise ValueError(f"{path} {problem}; give a run, one of its checkpoints, or a Hugging Face folder")


def choose_source(config: Config) -> Source | None:
    """What a run begins with; None where it takes its seed's weights, or goes on from a checkpoint of its own.

    In the latter case config.init_from becomes what it was when the run began, for its records to stay true.
    Raises ConfigError where the source cannot be used.
    """
    run = Path(config.out) / config.name
    if (begun := checkpoint_files.readable(run)) and not config.fresh:
        before = begun[-1][1]["config"].get("init_from", "")
        if config.init_from not in ("", before):
            origin = f"init_from={before}" if before else "its seed"
            log.warning("init_from=%s changes nothing: %s began from %s and goes on", config.init_from, run, origin)
        config.init_from = before
        return None
    if not config.init_from or (config.plan and not Path(config.init_from).exists()):  # a plan may leave it open
        return None
    if config.fresh and Path(config.init_from).resolve().is_relative_to(run.resolve()):
        raise ConfigError(
            [f"init_from={config.init_from} lies in {run}, which fresh=true empties; choose another name="]
        )
    try:
        source = open_source(config.init_from)
    except (ValueError, OSError) as error:
        raise ConfigError([f"init_from: {error}"]) from error
    if problems := differences(config.model, source.model, config.init_from):
        raise ConfigError(problems)
    return source


def differences(ours: ModelConfig, theirs: ModelConfig, path: str) -> list[str]:
    """Every setting in which a run's model is not the one whose weights it is to start from, with the way out."""
    before, now = sizes.architecture(theirs), sizes.architecture(ours)
    name = sizes.name_of(theirs)
    return [
        f"model.{key}={now[key]!r}, but init_from={path} was made with {before[key]!r}; "
        f"use {f'model={name}' if name else f'model.{key}={before[key]}'}"
        for key in before
        if now[key] != before[key]
    ]
