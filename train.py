"""Pretrain a model: python train.py [experiment=...] [model=xl] [key=value ...]; --help lists the choices."""

import sys
from pathlib import Path

from toto_train import cli

if __name__ == "__main__":
    argv, configs = sys.argv[1:], Path(__file__).resolve().parent / "configs"
    flags = {arg for arg in argv if arg.startswith("-")}
    if flags and flags <= {"-m", "--multirun"}:
        from toto_train import multirun

        sys.exit(multirun.main(argv, configs))
    sys.exit(cli.main(argv, configs))
