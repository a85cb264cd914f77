"""The folder of a run: made, held against a second run, and emptied of what runs leave."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from toto_train import checkpoint_files
from toto_train.config import Config, ConfigError, to_yaml
from toto_train.files import write_text
from toto_train.run_lock import hold

OWN = ("checkpoints", "export", "profile", "routing.txt", "metrics.csv", "sources.csv", "losses.csv", "scores.json",
       "rows.parquet", "seasonal_naive.parquet", "report.html",
       "wandb", "wandb.id", "config.yaml")  # fmt: skip
"""What a run leaves in its folder; fresh=true removes these and nothing else."""


@contextmanager
def open_folder(config: Config) -> Iterator[Path]:
    """The run folder, made or (fresh=true) emptied of what runs leave, and held against a second run."""
    folder, opened = folder_of(config), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not _is_run(folder):
            hint = f"; init_from={folder} starts from its weights" if checkpoint_files.folders(folder) else ""
            raise ConfigError(
                [f"name={config.name!r}: {folder} is not empty and no run folder; choose another name={hint}"]
            )
        with hold(folder):
            if config.fresh:
                _clear(folder)
            if not (folder / "config.yaml").exists():
                write_text(folder / "config.yaml", to_yaml(config))
            (folder / "checkpoints").mkdir(exist_ok=True)
            checkpoint_files.remove_leftovers(folder)
            opened = True
            yield folder
    except OSError as error:
        if opened:
            raise
        raise _unwritable(folder, error) from error


def write_launch(config: Config) -> Path:
    """launch.yaml, which the ranks of a run read, in its folder. Raises ConfigError where a live run would find another
    there than the one it began with."""
    file, text = folder_of(config) / "launch.yaml", to_yaml(config)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text() != text:
            with hold(file.parent):
                write_text(file, text)
    except OSError as error:
        raise _unwritable(file.parent, error) from error
    return file


def folder_of(config: Config) -> Path:
    return Path(config.out) / config.name


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(f"cannot write the run folder {folder}: {error.strerror}; choose another out= or name=")


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or the start of one."""
    if not (folder / "config.yaml").is_file():
        return all(p.name.startswith((".lock", ".config.yaml.", ".launch.", "launch")) for p in folder.iterdir())
    tree = OmegaConf.load(folder / "config.yaml")
    return isinstance(tree, DictConfig) and {"model", "data", "schedule"} <= set(tree)


def _clear(folder: Path) -> None:
    """Remove what a run leaves; checkpoints get another name first, so that half of them is never resumed from."""
    doomed = folder / "checkpoints.tmp"
    shutil.rmtree(doomed, ignore_errors=True)
    if (folder / "checkpoints").exists():
        os.replace(folder / "checkpoints", doomed)
    for path in (doomed, *(folder / name for name in OWN)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
