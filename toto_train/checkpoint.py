"""Resume, and weights for other uses: a checkpoint of any number of ranks, in any parallel mode, loads into any other.

Every tensor goes where it is held now; a run's position is one integer, the completed steps. No state of a random
generator is kept: rows, masks, augmentation and first weights are functions of the seed and a number, and training
draws from no global generator. Schedules are functions of the step. `checkpoint_saver` saves.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from toto_train import checkpoint_files as files
from toto_train.checkpoint_settings import changes, data_changes, refusals
from toto_train.checkpoint_storage import from_first, gathered, is_first, load
from toto_train.config import Config, ConfigError, ModelConfig
from toto_train.model.toto import Toto

log = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a run is: completed optimizer steps (the next row is step * global_rows) and observed values seen."""

    step: int = 0
    points: int = 0


def resume(
    run: Path,
    config: Config,
    model: Toto,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    data: dict[str, Any] | None = None,
) -> Position:
    """Load the newest whole checkpoint into model and optimizer, in place; the start of the run where there is none.

    Settings such as learning rates stay those of the config. A damaged checkpoint gives way to the one before it, with
    a warning. All ranks call this together. Raises ConfigError naming every setting that differs where the run would
    no longer be the same run (`checkpoint_settings.RULES`), and ValueError where there are checkpoints and none is
    whole.
    """
    known = from_first(lambda: files.readable(run))
    if known:
        _refuse(*known[-1], config, fingerprint, data or {})  # before every byte is read
    if (found := latest_good(run)) is None:
        return Position()
    folder, meta = found
    _refuse(folder, meta, config, fingerprint, data or {})
    load(folder, state_of(model, optimizer))
    if is_first():
        log.info("resumed %s at step %d", run, meta["step"])
        if changed := changes(meta, config):
            log.info("settings that changed: %s", ", ".join(changed))
        if meta["data_fingerprint"] != fingerprint:
            changed = data_changes(meta["data"], data or {})
            log.warning("%s goes on with other data from step %d: %s", run, meta["step"], "; ".join(changed))
    return Position(meta["step"], meta["points"])


def load_extra(run: Path, position: Position, extra: dict[str, Any]) -> None:
    """Load groups of tensors in place from the checkpoint that `resume` took, as far as it has them and they fit.

    Others keep what they hold, which is said. All ranks call this together.
    """
    if not (folder := files.folder_of(run, position.step)).is_dir():
        return
    there = from_first(lambda: files.read_meta(folder))["extra"]
    for name, tensors in extra.items():
        problem = "" if name in there else "it was not kept"
        if not problem:
            try:
                load(folder, {"extra": {name: tensors}})
            except ValueError as error:
                problem = str(error)
        if problem and is_first():
            log.warning("%s begins anew at step %d: %s", name, position.step, problem)


def latest_good(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """A run's newest checkpoint of which every byte is as it was written, and its meta.json; None where it has none.

    Each rank checks its share of the files, and all come to the same result. What is damaged is named in a warning and
    set aside as step-*.damaged, so that neither this run nor its retention counts on it. Raises ValueError where there
    are checkpoints and none is whole; then nothing is renamed.
    """
    found = from_first(lambda: [(folder, _meta_or_problem(folder)) for folder in files.folders(run)])
    bad: dict[Path, list[str]] = {}
    whole: tuple[Path, Any] | None = None
    for folder, meta in reversed(found):
        problems = [meta] if isinstance(meta, str) else damage(folder, meta)
        if not problems:
            whole = folder, meta
            break
        bad[folder] = problems
    if whole is None and bad:
        every = "".join(f"\n  {problem}" for problems in bad.values() for problem in problems)
        raise ValueError(
            f"no checkpoint of {run} is whole:{every}\n"
            "Restore one from a copy; or start over with fresh=true or another name="
        )
    if whole is not None:
        from_first(partial(_set_aside, bad, whole[0]))
    return whole


def best_so_far(folder: Path, tasks: str) -> tuple[float, float]:
    """Lowest MWQL of a run on the validation windows of a fingerprint, and its bound, as rank 0 finds them.

    Ranks to whom a shared disk shows other files would choose, and save, at other steps, and wait for each other.
    """

    def read() -> tuple[float, float]:
        best = files.best(folder, tasks)
        record = files.read_meta(best)["validation"] if best else {"best": math.inf, "bound": math.inf}
        return record["best"], record["bound"]

    return from_first(read)


def _meta_or_problem(folder: Path) -> dict[str, Any] | str:
    try:
        return files.read_meta(folder)
    except ValueError as error:
        return str(error).removesuffix(f"; {files.REMEDY}")


def _set_aside(bad: dict[Path, list[str]], instead: Path) -> None:
    for folder, problems in bad.items():
        aside = files.set_aside(folder)
        log.warning("%s; going on from %s, the damaged one is now %s", "; ".join(problems), instead.name, aside)


def damage(folder: Path, meta: dict[str, Any], alone: bool = False) -> list[str]:
    """What is wrong with a checkpoint's files, a line each; every rank checks its share and knows all."""
    if alone or not dist.is_initialized():
        return files.damage(folder, meta)
    mine = files.damage(folder, meta, dist.get_rank(), dist.get_world_size())
    return [problem for problems in gathered(mine) for problem in problems]


def load_model(run: str | Path, which: str = "best") -> tuple[Toto, dict[str, Any]]:
    """Model of a run's best or last checkpoint, on CPU and in this process alone, and the checkpoint's meta.json.

    Besides the model one tensor at a time is in memory. Raises ValueError naming what is damaged.
    """
    folder = files.choose(run, which)
    meta = files.read_meta(folder)
    with torch.device("meta"):
        model = Toto(ModelConfig(**meta["config"]["model"]))
    model.to_empty(device="cpu")
    load_weights(folder, model, alone=True)
    return model, meta


def load_weights(folder: Path, model: Toto, alone: bool = False) -> None:
    """Copy a checkpoint's weights, averaged ones where it keeps them, into a model of the same config, in place.

    The model may be sharded; all ranks call this together, unless `alone`. Raises ValueError naming what is damaged.
    """
    meta = files.read_meta(folder) if alone else from_first(lambda: files.read_meta(folder))
    if problems := damage(folder, meta, alone):
        raise ValueError(f"{'; '.join(problems)}; {files.REMEDY}")
    weights = model.state_dict()
    load(folder, {"extra": {"ema": weights}} if "ema" in meta["extra"] else {"model": weights}, alone)


def _refuse(folder: Path, meta: dict[str, Any], config: Config, fingerprint: str, data: dict[str, Any]) -> None:
    if problems := refusals(folder, meta, config):
        raise ConfigError(problems)
    if meta["data_fingerprint"] != fingerprint and not config.allow_data_change:
        raise ConfigError([
            f"{change}; rows would no longer be those that {folder} was made for. Restore it, use another name= "
            "or fresh=true, or go on with other rows from here: allow_data_change=true"
            for change in data_changes(meta["data"], data)
        ])  # fmt: skip


def state_of(model: Toto, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Tensors of the run by name: the live ones, which loading writes into."""
    state = optimizer.state_dict()
    return {
        "model": model.state_dict(),
        "optimizer": {"state": state["state"], "skipped_steps": state["skipped_steps"]},
    }
