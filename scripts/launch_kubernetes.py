"""Start a run on Kubernetes: python scripts/launch_kubernetes.py [train.py's arguments] image=IMAGE claim=CLAIM

  python scripts/launch_kubernetes.py experiment=toto2_xl data.mixture.corpus.path=shards/mine parallel=hsdp \\
      parallel.nodes=2 parallel.devices=8 image=registry/toto-train:1 claim=training submit=true

Checks the config, prints the plan, writes runs/<name>/launch.kubernetes.yaml: the config, and a PyTorchJob of
Kubeflow's training operator with one pod a node. Nodes and GPUs of a node are the run's parallel.nodes and
parallel.devices; relative paths, also of runs/, are relative to where the claim is mounted.
image=         has toto_train installed     claim=    a PersistentVolumeClaim that all pods can write
mount=/data    where it is mounted          namespace=, memory= (of a pod, as 512Gi), shm=16Gi (shared memory)
grace=300      seconds a pod that must go has to save in
submit=true    hands the file to kubectl apply
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from toto_train.arguments import fail_on, parse
from toto_train.jobs import Cluster, prepare, write_manifest
from toto_train.planning.describe import describe

REQUIRED = {"image": str, "claim": str}
OWN = {"mount": "/data", "namespace": "", "memory": "", "shm": "16Gi", "grace": 300, "submit": False}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PATIENCE = "parallel.rendezvous_timeout=86400"
"""Pods come when there is room for them, some long before others."""


def main(argv: list[str]) -> int:
    own = [arg for arg in argv if arg.partition("=")[0] in {**OWN, **REQUIRED} or arg.startswith("-")]
    args = parse(__doc__, own, required=REQUIRED, optional=OWN)
    grace, submit = args.pop("grace"), args.pop("submit")
    job = prepare([PATIENCE, *(a for a in argv if a not in own)], CONFIGS, grace)
    file = write_manifest(job, Cluster(**args))
    print(describe(job.config))
    if not submit:
        print(f"\nwrote {file}; submit=true, or kubectl apply -f {file}, starts it")
        return 0
    if not shutil.which("kubectl"):
        raise ValueError(f"there is no kubectl on this machine; where there is: kubectl apply -f {file}")
    return subprocess.run(["kubectl", "apply", "-f", str(file)], check=False).returncode


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="launch_kubernetes"):
        sys.exit(main(sys.argv[1:]))
