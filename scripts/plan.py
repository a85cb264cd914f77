"""What a run would cost: python scripts/plan.py model=xl gpus=8 gpu=h100 parallel=fsdp2 [any setting of train.py]

gpus: how many, 8 on a node; several, as in gpus=8,64,512, add a table of a model of how the run scales. gpu: their kind
(hardware.gpu). The batch and the horizon are those of the published recipe of the model (experiment=toto2_xl),
where there is one and no experiment= says otherwise. Nothing is read, allocated or run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from toto_train.cli import config_from_overrides
from toto_train.config import Config, ConfigError
from toto_train.hardware import GPUS
from toto_train.planning.describe import describe
from toto_train.planning.scaling import places, scaling, table

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(f"{(__doc__ or '').strip()}\n\ngpu: {', '.join(GPUS)}")
        return 0
    try:
        config, gpus = read(argv)
        print(describe(config))
        if len(gpus) > 1:
            print(f"\n{table(scaling(config, gpus))}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def read(argv: list[str]) -> tuple[Config, list[int]]:
    """(config, numbers of GPUs asked for). Raises ConfigError."""
    given = dict(arg.partition("=")[::2] for arg in argv)
    numbers = [n for n in given.get("gpus", "").split(",") if n]
    if bad := [n for n in numbers if not n.isdecimal()]:
        raise ConfigError([f"gpus={bad[0]!r} must be whole numbers, as in gpus=8 or gpus=8,64,512"])
    rest = [arg for arg in argv if arg.partition("=")[0] not in ("gpus", "gpu")]
    rest += [f"hardware.gpu={given['gpu']}"] if "gpu" in given else []
    recipe = f"toto2_{given.get('model', '')}"
    if "experiment" not in given and (CONFIGS / "experiment" / f"{recipe}.yaml").is_file():
        rest.append(f"experiment={recipe}")
    gpus = [int(n) for n in numbers]
    rest += [f"{key}={value}" for key, value in places(gpus[0]).items()] if gpus else []
    return config_from_overrides([*rest, "plan=true"], CONFIGS), gpus


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
