"""Save: what a rank is to write is copied into host memory, a thread writes it beside training, and a checkpoint has
its name once all ranks have written all of it."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from toto_train import checkpoint_files as files
from toto_train.checkpoint import Position, state_of
from toto_train.checkpoint_copy import HostCopy, Shares
from toto_train.checkpoint_storage import Files, is_first, reasons, write
from toto_train.config import Config, RunStopped
from toto_train.files import whole_folder
from toto_train.model.toto import Toto
from toto_train.ranks import message_timeout

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, one at a time, beside training unless checkpoint.asynchronous is false.

    All ranks make one and call its methods at the same places. fingerprint, data: of `Order`; what a refusal to resume
    names. From the first asynchronous save on a second copy of what the rank writes is kept in host memory.
    """

    def __init__(self, run: Path, config: Config, fingerprint: str = "", data: dict[str, Any] | None = None):
        self.run, self.config, self.fingerprint, self.data = run, config, fingerprint, data or {}
        self.group = dist.new_group(backend="gloo", timeout=message_timeout(config)) if dist.is_initialized() else None
        """Of the thread that writes, whose messages must not mix with those of training."""
        self._shares = Shares(self.group)
        self._buffers: dict[MetadataIndex, Tensor] | None = {} if config.checkpoint.asynchronous else None
        self._pending: Future[Any] | None = None
        self._step = 0

    def save(
        self,
        model: Toto,
        optimizer: torch.optim.Optimizer,
        position: Position,
        validation: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Save the present state; once this returns it may change. Waits for the save before; raises what that raised.

        validation: `Validation.record` of exactly this step, where there was a validation. extra: named groups of
        further tensors that `load_extra` is to restore; `ema` holds averaged weights by parameter name.
        """
        self.wait()
        extra = {name: tensors for name, tensors in (extra or {}).items() if tensors}
        record = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in (validation or {}).items()
        }
        meta = {
            **asdict(position),
            "validation": record or None,
            "schedule": [{k: g[k] for k in ("kind", "lr", "momentum") if k in g} for g in optimizer.param_groups],
            "data_fingerprint": self.fingerprint,
            "data": self.data,
            "extra": sorted(extra),
            "config": asdict(self.config),
        }
        state = {**state_of(model, optimizer), **({"extra": extra} if extra else {})}
        copy = HostCopy(state, self._buffers, self._shares)
        self._step = position.step
        self._pending = _write(self.run, copy, meta, self.group, lambda: files.prune(self.run, self.config.checkpoint))
        if not self.config.checkpoint.asynchronous:
            self.wait()

    @property
    def done(self) -> bool:
        """Whether this rank has no save in flight, or one that has come to an end."""
        return self._pending is None or self._pending.done()

    def check(self) -> None:
        """At the edge of a step: raises RunStopped, on all ranks at the same edge, where the save in flight has failed.

        Costs a message of a few bytes between the ranks while there is one, else nothing.
        """
        if self._pending is None:
            return
        done = torch.tensor(self.done, dtype=torch.int32)
        if dist.is_initialized():
            dist.all_reduce(done, dist.ReduceOp.MIN)
        if done:
            self.wait()

    def wait(self) -> None:
        """Until the save in flight is done. Raises RunStopped where it failed."""
        if self._pending is None:
            return
        try:
            self._pending.result()
        except (dcp.api.CheckpointException, Exception) as error:
            self._pending = None
            raise RunStopped(self._failure(error), 1) from error
        self._pending = None

    def _failure(self, error: BaseException) -> str:
        if is_first():  # all ranks have stopped writing
            shutil.rmtree(files.folder_of(self.run, self._step, ".tmp"), ignore_errors=True)
        kept = files.folders(self.run)
        before = f"the newest whole one is {kept[-1]}" if kept else "there is none before it"
        return (
            f"the checkpoint of step {self._step} could not be saved ({reasons(error)}); {before}. Once that is put "
            "right the same command goes on from there"
        )

    def close(self) -> None:
        """Wait for the save in flight, whose failure is logged, and part from the other ranks. For every way out."""
        try:
            self.wait()
        except RunStopped as error:
            log.error("%s", error)
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None


def _write(
    run: Path,
    copy: HostCopy,
    meta: dict[str, Any],
    group: dist.ProcessGroup | None = None,
    then: Callable[[], None] = lambda: None,
    alone: bool = False,
) -> Future[Any]:
    """Write the checkpoint of step meta["step"], under its final name when whole; `then` is done after that."""
    final, temporary = (files.folder_of(run, meta["step"], suffix) for suffix in ("", ".tmp"))
    versions = {name: _version(name) for name in ("torch", "lightning", "numpy", "toto-train")}

    def finish(written: Files) -> None:
        files.commit(temporary, final, {**meta, "versions": versions, "files": written})
        log.info("saved %s", final)
        try:
            then()
        except OSError as error:  # the checkpoint is there all the same
            log.warning("checkpoints that are no longer needed could not be removed: %s", error)

    return write(copy, temporary, finish, group, alone)


def save_import(out: Path, model: Toto, origin: dict[str, Any]) -> Path:
    """A run folder with nothing but weights that were made elsewhere, as step 0; runs start from it by `init_from`.

    origin: `hub.origin` of the folder they come from. An earlier import at `out` is replaced, nothing else is.
    """
    config = {
        "name": Path(origin["path"]).resolve().name,
        "model": asdict(model.config),
        "data": {"length": origin["training"]["context_length"]},
    }
    meta = {**asdict(Position()), "validation": None, "extra": [], "config": config, "imported": origin}
    with whole_folder(out, "imported model", _is_import) as folder:
        try:
            _write(folder, HostCopy({"model": model.state_dict()}, None), meta, alone=True).result()
        except dcp.api.CheckpointException as error:
            raise OSError(f"{out} could not be written ({reasons(error)})") from error
    return out


def _is_import(folder: Path) -> bool:
    found = files.folders(folder)
    return len(found) == 1 == len(list(folder.iterdir())) and "imported" in files.read_meta(found[0])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its folder, not installed
        return "unknown"
