"""The place of a rank that its environment gives, and what the rank is made of: checked before ranks talk to each
other, while a mistake is still a message and not a hang. `rendezvous.meet` compares the latter over all ranks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from toto_train.config import Config

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


class LaunchError(ValueError):
    """Ranks were not started as the run needs them. The message lists every problem, one a line.

    agreed: whether every rank that came raises the same.
    """

    def __init__(self, problems: list[str], agreed: bool = False):
        self.problems, self.agreed = problems, agreed
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[LaunchError], tuple[list[str], bool]]:
        return type(self), (self.problems, self.agreed)


def check_environment(config: Config, device: str) -> None:
    """Raise LaunchError with everything wrong about the place of this rank that its environment gives.

    device: cpu or cuda.
    """
    p, problems = config.parallel, []
    absent = [name for name in (*NUMBERS, "MASTER_ADDR") if not os.environ.get(name)]
    if absent:
        problems.append(
            f"{', '.join(absent)} not set; start ranks by train.py, toto_train.node or torchrun (docs/launching.md)"
        )
    place: dict[str, int] = {}
    for name in set(NUMBERS) - set(absent):
        if os.environ[name].isdecimal():
            place[name] = int(os.environ[name])
        else:
            problems.append(f"{name}={os.environ[name]!r} is not a number")
    if len(place) < len(NUMBERS):
        raise LaunchError(sorted(problems))

    rank, local, world, here = (place[name] for name in NUMBERS[:4])
    wanted = f"parallel.devices={p.devices} x parallel.nodes={p.nodes}"
    way_out = f"start {p.devices} ranks on each of {p.nodes} nodes, or write launch.yaml anew with other settings"
    if world != config.world:
        problems.append(f"WORLD_SIZE={world}, but {wanted} asks for {config.world} ranks; {way_out}")
    if here != p.devices:
        problems.append(f"LOCAL_WORLD_SIZE={here}, but {wanted} asks for {p.devices} ranks on a node; {way_out}")
    if rank >= world:
        problems.append(f"RANK={rank} must be below WORLD_SIZE={world}; ranks count from 0")
    if local >= here:
        problems.append(f"LOCAL_RANK={local} must be below LOCAL_WORLD_SIZE={here}; ranks count from 0")
    elif rank % here != local:
        problems.append(
            f"RANK={rank} and LOCAL_RANK={local} do not fit LOCAL_WORLD_SIZE={here}: the ranks of a node follow each "
            "other, RANK = node x LOCAL_WORLD_SIZE + LOCAL_RANK"
        )
    if not 0 < place["MASTER_PORT"] < 2**16:
        problems.append(f"MASTER_PORT={place['MASTER_PORT']} must be a port, 1 to 65535")
    if device == "cuda" and local >= (seen := torch.cuda.device_count()):
        problems.append(
            f"LOCAL_RANK={local} needs GPU {local} of {socket.gethostname()}, but this process sees {seen} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); ask for {here} GPUs a node "
            "and let every rank see all of them, as SLURM does with --gpus-per-node and without --gpus-per-task"
        )
    if problems:
        raise LaunchError(problems)


def facts(config: Config, device: str) -> dict[str, str]:
    """What this rank is made of: what must be alike on all ranks, its settings (config.KEY), and where it runs.

    device: cpu or cuda, whose current device is this rank's.
    """
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("lightning", "numpy", "toto-train")},
        "CUDA": str(torch.version.cuda),
        "code": _code(),
        "host": socket.gethostname(),
        "process": str(os.getpid()),
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {"NCCL": ".".join(map(str, torch.cuda.nccl.version())), "GPU": gpu.name, "GPU id": str(gpu.uuid)}
    return found | dict(_settings(dataclasses.asdict(config), "config"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its folder, not installed
        return "unknown"


def _code() -> str:
    """Digest of the source files of this package and of the one it stands on."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(f for package in ("toto_train", "data_pipelines") for f in (root / package).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _settings(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", str(value)
