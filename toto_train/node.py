"""The ranks of one node of a run: python -m toto_train.node runs/<name>/launch.yaml, once on every node.

NODE_RANK is the number of the node, from 0; MASTER_ADDR and MASTER_PORT are where rank 0 listens, on node 0. A run of
one node needs none of them. The exit status is the run's, which torchrun replaces by 1: 143 asks to be started again.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from toto_train.cli import guarded, log_to_stderr
from toto_train.config import Config, ConfigError
from toto_train.launch import Place, launch, run_ranks
from toto_train.processes import end_as_init
from toto_train.rank import read


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write("usage: NODE_RANK=0 MASTER_ADDR=host0 MASTER_PORT=29500 "
                         "python -m toto_train.node runs/<name>/launch.yaml\n")  # fmt: skip
        return 2
    end_as_init()
    log_to_stderr(logging.INFO)
    return guarded(lambda: _run(Path(argv[0])))


def _run(file: Path) -> None:
    config = read(file)
    for name in ("RANK", "LOCAL_RANK"):  # of this node in some clusters; those of its ranks are other numbers
        os.environ.pop(name, None)
    if config.parallel.nodes == 1:
        launch(config)
        return
    place = find_place(config)
    from toto_train.ranks import pick_device, resolve_devices

    resolve_devices(config, pick_device(config.parallel.device, "parallel.device"))
    run_ranks(file, config, place)


def find_place(config: Config) -> Place:
    """The place of this node that the environment gives. Raises ConfigError with all that is wrong with it."""
    nodes = config.parallel.nodes
    node, address, port = (os.environ.get(name, "") for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
    problems = []
    if not node.isdecimal() or int(node) >= nodes:
        problems.append(
            f"NODE_RANK={node!r} must be the number of this node, 0 to {nodes - 1} (parallel.nodes={nodes})"
        )
    if not address:
        problems.append("MASTER_ADDR is not set; it is the name or address of node 0")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        problems.append(f"MASTER_PORT={port!r} must be a free port of node 0, the same on all nodes")
    if problems:
        raise ConfigError(problems)
    return Place(int(port), address, int(node), nodes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
