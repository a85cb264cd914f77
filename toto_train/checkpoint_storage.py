"""Tensors of a checkpoint through torch.distributed.checkpoint (DCP): how they are written, safe reading.

Nothing that a checkpoint says is executed. DCP's list of tensors, .metadata, is a pickle: it is read by an unpickler
that knows the handful of classes such a list is made of and refuses every other name, and anything but tensors in it.
The tensors themselves are read by torch.load(weights_only=True). Sizes and checksums are compared before that, so
damage is found; they are no signature: who can write the folder can put other numbers there, but no code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.futures import Future as TorchFuture

T = TypeVar("T")
Files = dict[str, dict[str, Any]]
"""Name of a file -> its bytes and sha256."""

CLASSES = {
    **dict.fromkeys(
        ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
         "StorageMeta", "_MEM_FORMAT_ENCODING"),
        "torch.distributed.checkpoint.metadata",
    ),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "_get_layout": "torch.serialization",
    "Size": "torch",
}  # fmt: skip
"""What a list of tensors is made of, besides dtypes, with the module of each."""

# one process needs no process group; torch would say so at every save and load, also from the thread that writes
warnings.filterwarnings("ignore", message=".*torch.distributed is disabled, unavailable or uninitialized")


def gathered(value: T) -> list[T]:
    """The values of all ranks."""
    if not dist.is_initialized():
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def from_first(job: Callable[[], T]) -> T:
    """What a job gives on rank 0, the only one to do it; every rank raises what it raises there."""
    box: list[Any] = [None, None]
    if is_first():
        try:
            box = [job(), None]
        except Exception as error:
            box = [None, error]
    if dist.is_initialized():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    if box[1] is not None:
        raise box[1]
    return box[0]


def reasons(error: BaseException) -> str:
    """Why a save or load failed, in a line, with the rank where there are several."""
    if not isinstance(error, dcp.api.CheckpointException):
        return f"{type(error).__name__}: {error}"
    several = dist.is_initialized() and dist.get_world_size() > 1
    failures = (
        (f"rank {rank}: " if several else "", str(cause).strip()) for rank, (cause, _) in error.failures.items()
    )
    return "; ".join(rank + cause for rank, cause in failures)


def write(
    planner: SavePlanner,
    folder: Path,
    finish: Callable[[Files], None],
    group: dist.ProcessGroup | None = None,
    alone: bool = False,
) -> Future[Metadata]:
    """Write the tensors of all ranks into a new folder, in a thread. Whatever lies there before is removed.

    planner: has this rank's tensors (`checkpoint_copy.HostCopy`). finish: called with all files of the folder, on rank
    0, once every rank has written and synced its own. What it or any rank raises comes out of the future on every rank.
    group: for the thread's messages alone; gloo. alone: this process writes although it is one of several ranks.
    """
    writer = _Writer(folder, finish)
    # the planner holds what is saved already, copied or not
    return cast(
        "Future[Metadata]",
        dcp.async_save({}, storage_writer=writer, planner=planner, process_group=group, no_dist=alone),
    )


class _HashedFile(io.BufferedWriter):
    """A file that knows the sha256 of what is written to it, one byte after the other."""

    def __init__(self, path: Path):
        super().__init__(cast(io.RawIOBase, io.FileIO(path, "w")))
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


class _HashedFiles(FileSystem):
    """Files whose sizes and checksums are known once they are written."""

    def __init__(self) -> None:
        self.files: Files = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        path, file = Path(path), None
        try:
            with _HashedFile(path) as file:
                yield file
        except Exception as error:
            # torch.save wraps what its file raises, and neither the system nor Python says in which file
            cause = (file and file.error) or error
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            raise
        self.files[path.name] = {"bytes": path.stat().st_size, "sha256": file.sha256.hexdigest()}

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.files[Path(new_path).name] = self.files.pop(Path(path).name)


class _Writer(FileSystemWriter):
    def __init__(self, folder: Path, finish: Callable[[Files], None]):
        super().__init__(folder)
        self.fs = self._files = _HashedFiles()
        self._finish = finish

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0, before any rank writes."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.fs.mkdir(self.path)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[Any]:
        results = super().write_data(plan, planner).wait()
        both: TorchFuture[Any] = TorchFuture()
        both.set_result((results, self._files.files))  # checksums reach rank 0 with the results
        return both

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        super().finish(metadata, [own for own, _ in results])
        files = dict(self._files.files)  # .metadata
        for _, theirs in results:
            files |= theirs
        self._finish(files)

    def storage_meta(self) -> StorageMeta | None:
        return None  # it would hold this machine's path


def read_metadata(folder: Path) -> Metadata:
    """The list of a checkpoint's tensors. Raises ValueError where it is none or names anything else."""
    file = folder / ".metadata"
    try:
        with file.open("rb") as stream:
            metadata = _Unpickler(stream).load()
        entries, places = metadata.state_dict_metadata.values(), metadata.storage_data.values()
        tensors = all(isinstance(entry, TensorStorageMetadata) for entry in entries)
        inside = all(Path(place.relative_path).name == place.relative_path for place in places)
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{file} is no list of tensors ({type(error).__name__}: {error})") from error
    if not (tensors and inside):
        raise ValueError(f"{file} is no list of tensors in {folder}")
    return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if CLASSES.get(name) == module:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")


class _Reader(FileSystemReader):
    def __init__(self, folder: Path, metadata: Metadata):
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def load(folder: Path, state: dict[str, Any], alone: bool = False) -> None:
    """Read tensors in place, each rank what it holds of them; one tensor of the file at a time is in memory besides.

    state: dicts of tensors, of which the folder may hold more. alone: this process reads although it is one of several
    ranks. Raises ValueError on all ranks.
    """
    metadata, problem = None, ""
    try:
        metadata = read_metadata(folder)
    except ValueError as error:
        problem = str(error)
    if found := [p for p in ([problem] if alone else gathered(problem)) if p]:
        raise ValueError(found[0])
    assert metadata is not None
    try:
        dcp.load(state, storage_reader=_Reader(folder, metadata), no_dist=alone)
    except dcp.api.CheckpointException as error:  # no Exception to torch, but a ValueError to a user
        raise ValueError(f"{folder} cannot be read ({reasons(error)})") from error
