"""Checkpoints as files: a folder each, what it says of itself, whether it is whole, which are kept, which is chosen.

checkpoints/step-00001000 holds the tensors (*.distcp), where each of them lies (.metadata) and meta.json: position,
config, data, versions, the validation scores of its step where there are any, and size and sha256 of every other file
as well as of itself. It is written as step-00001000.tmp and renamed when whole; checkpoints/latest, a line of text,
names the newest only then. Which checkpoint is the best follows from the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from toto_train.config import CheckpointConfig
from toto_train.files import sync_folder, write_text
from toto_train.model.toto import Toto

log = logging.getLogger(__name__)

LATEST = "latest"
REMEDY = "restore it from a copy, or give another checkpoint of the run"


def folders(run: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first; what a save that was cut short left behind is none."""
    found = [p for p in run.glob("checkpoints/step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def folder_of(run: Path, step: int, suffix: str = "") -> Path:
    return run / "checkpoints" / f"step-{step:08d}{suffix}"


def readable(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Those whose meta.json is undamaged, with what it says, oldest first."""
    found = []
    for folder in folders(run):
        try:
            found.append((folder, read_meta(folder)))
        except ValueError:
            continue
    return found


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises ValueError where that is damaged."""
    file = folder / "meta.json"
    try:
        meta = json.loads(file.read_bytes())
        sha256 = meta.pop("sha256")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; {REMEDY}") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); {REMEDY}") from error
    except KeyError:
        raise ValueError(f"{file} has no sha256: an earlier version of toto-train wrote it; {REMEDY}") from None
    if sha256 != _digest(meta):
        raise ValueError(f"{file} is damaged (its sha256 is another); {REMEDY}")
    return meta


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    meta = json.loads(json.dumps(meta, allow_nan=False))  # as it will be read
    with (folder / "meta.json").open("w") as file:
        json.dump({**meta, "sha256": _digest(meta)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, meta: dict[str, Any], rank: int = 0, world: int = 1) -> list[str]:
    """What is wrong with the files that are rank's share to check, a line each that names the file."""
    files = sorted(meta["files"].items(), key=lambda item: (-item[1]["bytes"], item[0]))
    found = (_damage(folder / name, **promised) for name, promised in files[rank::world])
    return [problem for problem in found if problem]


def _damage(path: Path, bytes: int, sha256: str) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != bytes:
                return f"{path} has {size:,} bytes instead of {bytes:,}"
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return f"{path} does not hold the bytes that were written (its sha256 is another)"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""


def commit(temporary: Path, final: Path, meta: dict[str, Any]) -> None:
    """Give a folder with all its tensors its meta.json and its name, and make it the latest."""
    write_meta(temporary, meta)
    sync_folder(temporary)
    former = final.with_name(f"{final.name}.old.tmp")
    if final.exists():  # the same step of an earlier attempt
        os.replace(final, former)
    os.replace(temporary, final)
    write_text(final.with_name(LATEST), final.name + "\n")
    sync_folder(final.parent)
    shutil.rmtree(former, ignore_errors=True)


def prune(run: Path, settings: CheckpointConfig) -> None:
    """Remove all but the newest `keep_last`, the best, and those of every `keep_every` steps."""
    kept = best(run)
    for old in folders(run)[: -settings.keep_last]:
        step = int(old.name.removeprefix("step-"))
        if old != kept and not (settings.keep_every and step % settings.keep_every == 0):
            doomed = old.with_name(old.name + ".tmp")  # half of it is no checkpoint, should this be killed
            os.replace(old, doomed)
            shutil.rmtree(doomed)


def set_aside(damaged: Path) -> Path:
    """Rename a checkpoint that is damaged, so that nothing counts on it; it stays for whoever wants to look."""
    aside = damaged.with_name(damaged.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(damaged, aside)
    return aside


def remove_leftovers(run: Path) -> None:
    """Remove what saves that were killed left behind."""
    for leftover in (run / "checkpoints").glob("*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def best(run: Path, tasks: str = "") -> Path | None:
    """The checkpoint that validation chooses: the newest whose MWQL is within the bound of the newest validation (see
    `callbacks.validation.Validation`), else the one with the lowest; None where none was validated.

    Only scores on the same windows compare: those of the newest validation, or with the fingerprint `tasks`.
    """
    newest_first = reversed(readable(run))
    validated = [(meta["validation"], p) for p, meta in newest_first if math.isfinite(validation_mwql(meta))]
    tasks = tasks or (validated[0][0]["tasks"] if validated else "")
    same = [(record, p) for record, p in validated if record["tasks"] == tasks]
    within = [p for record, p in same if record["mwql"] <= same[0][0]["bound"]]
    return within[0] if within else min(same, key=lambda pair: pair[0]["mwql"])[1] if same else None


def validation_mwql(meta: dict[str, Any]) -> float:
    """MWQL of a meta.json; infinity, which never wins, where there is none."""
    score = (meta.get("validation") or {}).get("mwql")
    return math.inf if score is None else score


def choose(run: str | Path, which: str = "best") -> Path:
    """A run's best or last checkpoint. The best is the one that validation chooses, or the last where none was."""
    if which not in ("best", "last"):
        raise ValueError(f"checkpoint={which!r} must be best or last")
    found = folders(Path(run))
    if not found:
        raise ValueError(f"{run} holds no complete checkpoint; expected {run}/checkpoints/step-*")
    return (best(Path(run)) if which == "best" else None) or found[-1]


def describe(run: str | Path, meta: dict[str, Any]) -> str:
    """Which of a run's checkpoints this is: 'step 1,000 of 1,200 (chosen by validation, MWQL 0.912)'."""
    if "imported" in meta:
        return f"imported from {meta['imported']['path']}"
    chosen = best(Path(run))
    newest = found[-1][1] if (found := readable(Path(run))) else meta
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
