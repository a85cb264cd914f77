"""One rank of a run: python -m toto_train.rank runs/<name>/launch.yaml, as `launch` and torchrun start it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from toto_train.cli import guarded, log_to_stderr
from toto_train.config import Config, ConfigError
from toto_train.config_check import from_tree


def main(argv: list[str]) -> int:
    place = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK")]
    if len(argv) != 1 or not all(number.isdecimal() for number in place):
        sys.stderr.write("usage: torchrun ... -m toto_train.rank runs/<name>/launch.yaml\n"
                         "       (what starts a rank sets RANK and LOCAL_RANK, its numbers)\n")  # fmt: skip
        return 2
    rank, local_rank = map(int, place)
    log_to_stderr(logging.INFO if rank == 0 else logging.ERROR, f"[rank {rank}] " if rank else "")
    return guarded(lambda: _run(Path(argv[0]), local_rank), rank, local_rank)


def _run(file: Path, local_rank: int) -> None:
    from toto_train.environment import LaunchError
    from toto_train.run import run

    try:
        run(read(file))
    except LaunchError as error:
        if error.agreed and local_rank:  # one rank of a node says it
            raise SystemExit(1) from None
        raise


def read(file: Path) -> Config:
    """The config that `launch` wrote, checked again. Raises ConfigError."""
    if not file.is_file():
        raise ConfigError([f"{file} is not there; python train.py or scripts/launch_slurm.py writes it"])
    return from_tree(OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
