"""Queue a run with SLURM: python scripts/launch_slurm.py [train.py's arguments] [slurm.OPTION=VALUE ...] [submit=true]

  python scripts/launch_slurm.py experiment=toto2_xl data.mixture.corpus.path=shards/mine parallel=hsdp \\
      parallel.nodes=2 parallel.devices=8 slurm.partition=gpu slurm.time=24:00:00 slurm.account=me submit=true

Checks the config, prints the plan, writes runs/<name>/launch.yaml (what the ranks read) and launch.sbatch; submit=true
hands that to sbatch. Nodes and GPUs of a node are the run's parallel.nodes and parallel.devices.
slurm.OPTION=VALUE  any option of sbatch by its long name, slurm.FLAG=true for one without a value
grace=300           seconds before the time limit at which the run saves and goes back into the queue
python=             what starts Python on a node (this interpreter): python='apptainer exec --nv image.sif python'
setup=              a line of shell before that: setup='source .venv/bin/activate'
srun=               options of srun: srun='--container-image=image.sqsh --container-mounts=/shared'
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from toto_train.arguments import fail_on, parse
from toto_train.jobs import prepare, write_sbatch
from toto_train.planning.describe import describe

OWN = {"grace": 300, "python": sys.executable, "setup": "", "srun": "", "submit": False}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: list[str]) -> int:
    own = [arg for arg in argv if arg.partition("=")[0] in OWN or arg.startswith("-")]
    sbatch = [arg for arg in argv if arg.startswith("slurm.") and "=" in arg]
    args = parse(__doc__, own, required={}, optional=OWN)
    job = prepare([arg for arg in argv if arg not in own + sbatch], CONFIGS, args["grace"])
    options = dict(arg.removeprefix("slurm.").split("=", 1) for arg in sbatch)
    file = write_sbatch(job, options, args["python"], args["setup"], args["srun"])
    print(describe(job.config))
    if not args["submit"]:
        print(f"\nwrote {job.file} and {file}; submit=true, or sbatch {file}, puts it into the queue")
        return 0
    if not shutil.which("sbatch"):
        raise ValueError(f"there is no sbatch on this machine; on one of the cluster: sbatch {file}")
    return subprocess.run(["sbatch", str(file)], check=False).returncode


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="launch_slurm"):
        sys.exit(main(sys.argv[1:]))
