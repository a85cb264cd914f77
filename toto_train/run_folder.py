"""The folder of a run: made, held against a second run, and emptied of what runs leave."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from toto_train import checkpoint_files
from toto_train.config import Config, ConfigError, to_yaml
from toto_train.files import write_text

log = logging.getLogger(__name__)

OWN = ("checkpoints", "export", "profile", "routing.txt", "metrics.csv", "sources.csv", "losses.csv", "scores.json",
       "rows.parquet", "seasonal_naive.parquet", "report.html",
       "wandb", "wandb.id", "config.yaml")  # fmt: skip
"""What a run leaves in its folder; fresh=true removes these and nothing else."""


@contextmanager
def open_folder(config: Config) -> Iterator[Path]:
    """The run folder, made or (fresh=true) emptied of what runs leave, and held against a second run."""
    folder, opened = Path(config.out) / config.name, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not _is_run(folder):
            hint = f"; init_from={folder} starts from its weights" if checkpoint_files.folders(folder) else ""
            raise ConfigError(
                [f"name={config.name!r}: {folder} is not empty and no run folder; choose another name={hint}"]
            )
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError([f"name={config.name!r}: another run is writing {folder}"]) from None
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):  # Lustre without -o flock, say
                    raise
                log.warning("%s is on a disk that locks no files: start no second run of this name", folder)
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
        raise OSError(
            f"cannot write the run folder {folder}: {error.strerror}; choose another out= or name="
        ) from error


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or the start of one."""
    if not (folder / "config.yaml").is_file():
        return all(p.name in (".lock", ".config.yaml.tmp") or p.stem.startswith("launch") for p in folder.iterdir())
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
