"""Save and resume: weights, optimizer state and the one integer that is the position of the run.

A checkpoint is a folder checkpoints/step-00001000 in torch.distributed.checkpoint's format with a meta.json beside.
It is written under a temporary name and renamed when whole, so a folder with its final name is complete.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from toto_train.config import ConfigError, ModelConfig
from toto_train.model.toto import Toto
from toto_train.module import TrainingModule

log = logging.getLogger(__name__)

FROZEN = ("model", "objective", "data.variates", "data.length", "global_rows", "seed")
"""Settings that a resumed run must keep; with the fingerprint of its data they decide what every step sees."""


def folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    found = run.glob("checkpoints/step-*")
    return sorted(p for p in found if re.fullmatch(r"step-\d+", p.name) and (p / "meta.json").is_file())


def save(run: Path, module: TrainingModule, fingerprint: str, keep: int) -> Path:
    """Write the checkpoint of the module's current step and drop all but the newest `keep`."""
    config = module.config
    final = run / "checkpoints" / f"step-{module.steps_done:08d}"
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with warnings.catch_warnings():  # one process, no process group: said by torch at every save
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")
        dcp.save(_state(module), checkpoint_id=temporary)
    meta = {
        "step": module.steps_done,
        "points": module.points_done,
        "data_fingerprint": fingerprint,
        "config": asdict(config),
        "versions": {name: version(name) for name in ("torch", "lightning", "numpy", "toto-train")},
    }
    (temporary / "meta.json").write_text(json.dumps(meta, indent=2))
    if final.exists():  # the same step of an earlier attempt
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in folders(run)[:-keep]:
        shutil.rmtree(old)
    return final


def resume(run: Path, module: TrainingModule, fingerprint: str) -> int:
    """Load the newest checkpoint, if there is one; returns the step to go on from.

    Raises ConfigError naming every setting that differs where the run would no longer be the same run.
    """
    found = folders(run)
    if not found:
        return 0
    meta = json.loads((found[-1] / "meta.json").read_text())
    saved, now = meta["config"], asdict(module.config)
    where = f"{found[-1]} was made with"
    remedy = "use that value, another name=, or fresh=true to start over"
    problems = []
    for key in FROZEN:
        before, after = _get(saved, key), _get(now, key)
        for sub in sorted(before) if isinstance(before, dict) else [""]:
            old, new = (before[sub], after.get(sub)) if sub else (before, after)
            if old != new:
                problems.append(f"{key}{'.' if sub else ''}{sub}={new!r}, but {where} {old!r}; {remedy}")
    if not problems and meta["data_fingerprint"] != fingerprint:
        problems.append(
            f"data.mixture: shards, weights or sources changed since {found[-1]} was made; rows would no longer be "
            "the ones this run was to see; restore them, or use another name= or fresh=true"
        )
    if module.config.schedule.max_steps < meta["step"]:
        problems.append(f"schedule.max_steps={module.config.schedule.max_steps} is behind step {meta['step']} of {run}")
    if problems:
        raise ConfigError(problems)
    load(found[-1], module)
    module.steps_done, module.points_done = meta["step"], meta["points"]
    log.info("resumed %s at step %d", run, module.steps_done)
    return module.steps_done


def load(folder: Path, module: TrainingModule) -> None:
    """Restore weights and optimizer state in place; settings such as learning rates stay those of the config."""
    state = _state(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")
        dcp.load(state, checkpoint_id=folder)
    module.model.load_state_dict(state["model"])


def load_model(run: str | Path) -> tuple[Toto, dict[str, Any]]:
    """Model of a run's newest checkpoint, on CPU, and the checkpoint's meta.json."""
    found = folders(Path(run))
    if not found:
        raise ValueError(f"{run} holds no complete checkpoint; expected {run}/checkpoints/step-*")
    meta = json.loads((found[-1] / "meta.json").read_text())
    model = Toto.create(ModelConfig(**meta["config"]["model"]), seed=0)
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")
        dcp.load(state, checkpoint_id=found[-1])
    return model, meta


def _state(module: TrainingModule) -> dict[str, Any]:
    """Tensors of the run by name. They are the live ones: dcp.load writes into them."""
    optimizer = module.optimizer.state_dict()
    return {
        "model": module.model.state_dict(),
        "optimizer": {"state": optimizer["state"], "skipped_steps": optimizer["skipped_steps"]},
    }


def _get(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
