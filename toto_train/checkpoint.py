"""Save and resume: weights, optimizer state and the one integer that is the position of the run.

A checkpoint is a folder checkpoints/step-00001000 in torch.distributed.checkpoint's format with a meta.json beside.
It is written under a temporary name and renamed when whole, so a folder with its final name is complete. Its meta.json
holds the validation scores of its step, where there are any: which checkpoint is the best follows from the files.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from toto_train.config import Config, ConfigError, ModelConfig
from toto_train.files import whole_folder
from toto_train.model.toto import Toto
from toto_train.optim.normuon import NorMuonAdamW

log = logging.getLogger(__name__)

FROZEN = ("model", "objective", "data.variates", "data.length", "global_rows", "seed", "optimizer.stack")
"""Settings that a resumed run must keep; with the fingerprint of its data they decide what every step sees,
and which state the optimizer has."""


@dataclass
class Position:
    """How far a run is: completed optimizer steps (the next row is step * global_rows) and observed values seen."""

    step: int = 0
    points: int = 0


def folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    found = run.glob("checkpoints/step-*")
    return sorted(p for p in found if re.fullmatch(r"step-\d+", p.name) and (p / "meta.json").is_file())


def best(run: Path, tasks: str = "") -> Path | None:
    """The checkpoint that validation chooses: the newest whose MWQL is within the bound of the newest validation (see
    `callbacks.validation.Validation`), else the one with the lowest; None where none was validated.

    Only scores on the same windows compare: those of the newest validation, or with the fingerprint `tasks`.
    """
    newest_first = [(read_meta(p), p) for p in reversed(folders(run))]
    validated = [(meta["validation"], p) for meta, p in newest_first if math.isfinite(validation_mwql(meta))]
    tasks = tasks or (validated[0][0]["tasks"] if validated else "")
    same = [(record, p) for record, p in validated if record["tasks"] == tasks]
    within = [p for record, p in same if record["mwql"] <= same[0][0]["bound"]]
    return within[0] if within else min(same, key=lambda pair: pair[0]["mwql"])[1] if same else None


def validation_mwql(meta: dict[str, Any]) -> float:
    """MWQL of a meta.json; infinity, which never wins, where there is none."""
    score = (meta.get("validation") or {}).get("mwql")
    return math.inf if score is None else score


def save(
    run: Path,
    config: Config,
    model: Toto,
    optimizer: NorMuonAdamW,
    position: Position,
    fingerprint: str,
    validation: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint and drop all but the newest `checkpoint.keep_last` and the best.

    validation: `Validation.record` of exactly this step, where there was a validation. data: `Order.facts`, whose
    fingerprint is given: what a refusal to resume names.
    """
    record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in (validation or {}).items()}
    meta = {
        **asdict(position),
        "validation": record or None,
        "data_fingerprint": fingerprint,
        "data": data or {},
        "config": asdict(config),
    }
    final = _write(run, _state(model, optimizer), meta)
    kept = best(run)
    for old in folders(run)[: -config.checkpoint.keep_last]:
        if old != kept:
            doomed = old.with_name(old.name + ".tmp")  # half of it is no checkpoint, should this be killed
            os.replace(old, doomed)
            shutil.rmtree(doomed)
    return final


def save_import(out: Path, model: Toto, origin: dict[str, Any]) -> Path:
    """A run folder with nothing but weights that were made elsewhere, as step 0; runs start from it by `init_from`.

    origin: `hub.origin` of the folder they come from. An earlier import at `out` is replaced, nothing else is.
    """
    config = {
        "name": Path(origin["path"]).resolve().name,
        "model": asdict(model.config),
        "data": {"length": origin["training"]["context_length"]},
    }
    meta = {**asdict(Position()), "validation": None, "config": config, "imported": origin}
    with whole_folder(out, "imported model", _is_import) as folder:
        _write(folder, {"model": model.state_dict()}, meta)
    return out


def _is_import(folder: Path) -> bool:
    found = folders(folder)
    return len(found) == 1 == len(list(folder.iterdir())) and "imported" in read_meta(found[0])


def _write(run: Path, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write the checkpoint of step meta["step"] under its final name when whole."""
    final = run / "checkpoints" / f"step-{meta['step']:08d}"
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with _alone():
        dcp.save(state, checkpoint_id=temporary)
    meta = {**meta, "versions": {name: _version(name) for name in ("torch", "lightning", "numpy", "toto-train")}}
    with (temporary / "meta.json").open("w") as file:
        json.dump(meta, file, indent=2, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # the same step of an earlier attempt
        shutil.rmtree(final)
    os.replace(temporary, final)
    return final


def resume(
    run: Path,
    config: Config,
    model: Toto,
    optimizer: NorMuonAdamW,
    fingerprint: str,
    data: dict[str, Any] | None = None,
) -> Position:
    """Load the newest checkpoint into model and optimizer, in place; the start of the run where there is none.

    Settings such as learning rates stay those of the config. Raises ConfigError naming every setting that differs
    where the run would no longer be the same run, and ValueError naming a checkpoint that cannot be read.
    """
    found = folders(run)
    if not found:
        return Position()
    meta = read_meta(found[-1])
    if problems := _differences(found[-1], meta, config):
        raise ConfigError(problems)
    if meta["data_fingerprint"] != fingerprint:
        changes = data_changes(meta.get("data") or {}, data or {})
        if not config.allow_data_change:
            raise ConfigError([
                f"{change}; rows would no longer be those that {found[-1]} was made for. Restore it, use another name= "
                "or fresh=true, or go on with other rows from here: allow_data_change=true"
                for change in changes
            ])  # fmt: skip
        log.warning("%s goes on with other data from step %d: %s", run, meta["step"], "; ".join(changes))
    _load(found[-1], _state(model, optimizer))
    log.info("resumed %s at step %d", run, meta["step"])
    return Position(meta["step"], meta["points"])


def choose(run: str | Path, which: str = "best") -> Path:
    """A run's best or last checkpoint. The best is the one that validation chooses, or the last where none was."""
    if which not in ("best", "last"):
        raise ValueError(f"checkpoint={which!r} must be best or last")
    found = folders(Path(run))
    if not found:
        raise ValueError(f"{run} holds no complete checkpoint; expected {run}/checkpoints/step-*")
    return (best(Path(run)) if which == "best" else None) or found[-1]


def load_model(run: str | Path, which: str = "best") -> tuple[Toto, dict[str, Any]]:
    """Model of a run's best or last checkpoint, on CPU, and the checkpoint's meta.json."""
    folder = choose(run, which)
    meta = read_meta(folder)
    model = Toto.create(ModelConfig(**meta["config"]["model"]), seed=0)
    load_weights(folder, model)
    return model, meta


def load_weights(folder: Path, model: Toto) -> None:
    """Copy a checkpoint's weights into a model of the same config, in place."""
    _load(folder, {"model": model.state_dict()})


def describe(run: str | Path, meta: dict[str, Any]) -> str:
    """Which of a run's checkpoints this is: 'step 1,000 of 1,200 (chosen by validation, MWQL 0.912)'."""
    if "imported" in meta:
        return f"imported from {meta['imported']['path']}"
    chosen = best(Path(run))
    newest = read_meta(found[-1]) if (found := folders(Path(run))) else meta
    step = f"step {meta['step']:,} of {newest['config']['schedule']['max_steps']:,}"
    is_best = chosen is not None and read_meta(chosen)["step"] == meta["step"]
    return f"{step} (chosen by validation, MWQL {validation_mwql(meta):.3f})" if is_best else step


def facts(run: str | Path, model: Toto, meta: dict[str, Any]) -> dict[str, str]:
    """What a model card and a report say of a run's checkpoint."""
    config = meta["config"]
    return {
        "model": f"{model.config.name}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "exported checkpoint": describe(run, meta),
        "observed points seen": f"{meta['points']:,}",
        **({"started from": config["init_from"]} if config.get("init_from") else {}),
        **({"seed": str(config["seed"])} if "seed" in config else {}),
    }


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "meta.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged ({error}); {_REMEDY}") from error


_REMEDY = "remove this checkpoint's folder to go on from the one before"


def data_changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "data") -> list[str]:
    """What differs between two `Order.facts`, a line each; at least one line."""
    out = []
    for key in sorted({*before, *now}):
        old, new, name = before.get(key), now.get(key), f"{prefix}.{key}"
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            out += data_changes(old, new, name)
        elif old is None or new is None:
            out.append(f"{name} is {'new' if old is None else 'gone'}")
        else:
            out.append(f"{name} changed" if len(f"{old}{new}") > 80 else f"{name} is {new!r} and was {old!r}")
    return out or ["data: the mixture, its weights or its shards changed"]


def _differences(folder: Path, meta: dict[str, Any], config: Config) -> list[str]:
    """Why a run with this config would not continue the run that was saved."""
    saved, now = meta["config"], asdict(config)
    remedy = "use that value, another name=, or fresh=true to start over"
    problems = []
    for key in FROZEN:
        after = _get(now, key)
        before = _get(saved, key, after)  # an import has no optimizer, an older checkpoint not every setting
        for sub in sorted(before) if isinstance(before, dict) else [""]:
            old, new = (before[sub], after.get(sub)) if sub else (before, after)
            if old != new:
                name = f"{key}.{sub}" if sub else key
                problems.append(f"{name}={new!r}, but {folder} was made with {old!r}; {remedy}")
    if config.schedule.max_steps < meta["step"]:
        problems.append(f"schedule.max_steps={config.schedule.max_steps} is behind step {meta['step']} of {folder}")
    return problems


def _state(model: Toto, optimizer: NorMuonAdamW) -> dict[str, Any]:
    """Tensors of the run by name: the live ones, which dcp.load writes into."""
    state = optimizer.state_dict()
    return {
        "model": model.state_dict(),
        "optimizer": {"state": state["state"], "skipped_steps": state["skipped_steps"]},
    }


def _load(folder: Path, state: dict[str, Any]) -> None:
    try:
        with _alone():
            dcp.load(state, checkpoint_id=folder)
    except dcp.api.CheckpointException as error:  # no Exception to torch, but a ValueError to a user
        reasons = "; ".join(str(failure).strip() for failure, _ in error.failures.values())
        raise ValueError(f"{folder} cannot be read ({reasons}); {_REMEDY}") from error


@contextmanager
def _alone() -> Iterator[None]:
    """Without torch's remark, at every save and load, that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")
        yield


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its folder, not installed
        return "unknown"


def _get(tree: Any, key: str, default: Any = None) -> Any:
    for part in key.split("."):
        if part not in tree:
            return default
        tree = tree[part]
    return tree
