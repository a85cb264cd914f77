"""Pretrain a model: python train.py [experiment=...] [model=xl] [key=value ...]; --help lists the choices."""

import sys
from pathlib import Path

from toto_train.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent / "configs"))
