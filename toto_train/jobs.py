"""Jobs of a cluster that train one run: what they need, from its config, and the file that SLURM or Kubernetes takes.

Every node runs `python -m toto_train.node launch.yaml`. A job that is asked to stop gets SIGTERM while there is time to
save, ends with status 143, and is put back into the queue; it then goes on where it was.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from toto_train.checkpoint_files import LATEST
from toto_train.cli import config_from_overrides
from toto_train.config import GAVE_UP, Config, ConfigError, to_yaml
from toto_train.files import write_text
from toto_train.launch import SAVED
from toto_train.run_folder import write_launch


@dataclass(frozen=True)
class Job:
    config: Config
    grace: int
    """Seconds between SIGTERM and the end: for a step, a save and what is under way."""
    file: Path
    """What the ranks read."""

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def gpus(self) -> int:
        """Of a node."""
        return 0 if self.config.parallel.device == "cpu" else self.config.parallel.devices

    @property
    def cpus(self) -> int:
        """Of a node: for every rank its loader's processes, itself and what saves beside it."""
        return self.config.parallel.devices * (self.config.data.workers + 2)

    @property
    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "2" if self.gpus else "1", "NCCL_DEBUG": "WARN"}


def prepare(overrides: list[str], configs: Path, grace: int = 300) -> Job:
    """Compose and check the config of a run and write it to its folder. Raises ConfigError before anything is made.

    overrides: train.py's arguments. configs: the folder of configs. grace: seconds for the last save.
    """
    config = config_from_overrides(overrides, configs)
    p, problems = config.parallel, []
    if not p.devices:
        problems.append(
            "parallel.devices=0 means every visible GPU, which are not those of a node here; give their number"
        )
    if config.plan:
        problems.append(
            "plan=true trains nothing; python train.py plan=true prints the plan, and so does this without it"
        )
    if config.fresh:
        problems.append("fresh=true would start over each time the job is started again; choose another name=")
    if grace <= 0:
        problems.append(f"grace={grace} must be positive: seconds to save in")
    if problems:
        raise ConfigError(problems)
    if p.device == "auto":
        p.device = "cuda"  # a node whose GPUs are out of order must not train on its CPU
    return Job(config, grace, write_launch(config))


SBATCH = Template("""\
#!/usr/bin/env bash
# The run $name, written by scripts/launch_slurm.py. sbatch on this file submits it again and the run goes on.
$options

# Before the time limit SLURM sends SIGTERM to the ranks (not to this shell, and never to srun, which would kill them).
# They save and end with status $saved, which puts the job back into the queue under the same number.
cd $cwd || exit 1
$setup
$exports
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    # where they pick a network that does not connect the nodes
MASTER_ADDR=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$$((10000 + SLURM_JOB_ID % 20000))
echo "job $$SLURM_JOB_ID, start $${SLURM_RESTART_COUNT:-0}: $$SLURM_JOB_NODELIST, rank 0 at $$MASTER_ADDR:$$MASTER_PORT"

# a node that failed, a rank that was killed or hung: worth another start where the run has got further in this one
latest() { cat $latest 2> /dev/null; }
before=$$(latest)

# kill-on-bad-exit would send SIGTERM to ranks that did not start to train yet, which end with status $saved, too
srun --kill-on-bad-exit=0 --cpus-per-task="$$SLURM_CPUS_PER_TASK" $srun\\
    bash -c 'NODE_RANK=$$SLURM_NODEID exec "$$@"' node $command
status=$$?
if [ "$$status" -eq $saved ]; then
    echo "job $$SLURM_JOB_ID was asked to stop and has saved; back into the queue"
    scontrol requeue "$$SLURM_JOB_ID"
elif [ "$$status" -ne 0 ] && [ "$$status" -ne 2 ] && [ "$$status" -ne $gave_up ] && [ "$$(latest)" != "$$before" ]; then
    echo "job $$SLURM_JOB_ID failed with status $$status after $$(latest), which it has saved; back into the queue"
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$status"
""")

FIXED = ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "gpus", "gpus-per-task", "gpus-per-socket", "array",
         "open-mode", "requeue", "signal")  # fmt: skip
"""Options of sbatch that follow from the run, or that going on depends on."""


def write_sbatch(job: Job, options: dict[str, str], python: str, setup: str = "", srun: str = "") -> Path:
    """Write launch.sbatch into the run's folder.

    options: of sbatch, by their long names without dashes ("true" for flags). python: what starts Python on a node.
    setup: a line of shell before. srun: further options of srun, for example a container's. Raises ConfigError.
    """
    problems = [f"slurm.{key} follows from the run and cannot be given" for key in options if key in FIXED]
    asked = [options.get("gpus-per-node", ""), *options.get("gres", "").split(",")]
    for text in asked if job.gpus else []:  # h100:8, gpu:8, gpu:h100:8, 8
        count = text.partition("(")[0].rpartition(":")[2]
        if (text in asked[:1] or text.startswith("gpu")) and count.isdecimal() and int(count) != job.gpus:
            problems.append(f"{text!r} GPUs on a node, but parallel.devices={job.gpus}; make them the same")
    if problems:
        raise ConfigError(problems)
    gpus = {"gpus-per-node": str(job.gpus)} if job.gpus and not {"gres", "gpus-per-node"} & set(options) else {}
    all_options = {
        "job-name": job.config.name,
        "nodes": str(job.config.parallel.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus),
        **gpus,
        "output": str((job.folder / "launch.log").absolute()).replace("%", "%%"),
        "open-mode": "append",
        "requeue": "true",
        "signal": f"TERM@{job.grace}",
        **options,
    }
    text = SBATCH.substitute(
        name=job.config.name,
        options="\n".join(
            f"#SBATCH --{k}" + ("" if v == "true" else f"={shlex.quote(v)}") for k, v in all_options.items()
        ),
        saved=SAVED,
        gave_up=GAVE_UP,
        latest=shlex.quote(str((job.folder / "checkpoints" / LATEST).absolute())),
        cwd=shlex.quote(os.getcwd()),
        setup=setup,
        exports="\n".join(f"export {k}=${{{k}:-{v}}}" for k, v in job.environment.items()),
        srun=f"{srun} " if srun else "",
        command=shlex.join([*shlex.split(python), "-m", "toto_train.node", str(job.file)]),
    )
    return write_text(job.folder / "launch.sbatch", text)


@dataclass(frozen=True)
class Cluster:
    """What a manifest says of the cluster. Quantities are Kubernetes's, such as 64Gi."""

    image: str
    """Has toto_train and its requirements installed."""
    claim: str
    """A PersistentVolumeClaim that all pods can write: runs and shards."""
    mount: str = "/data"
    """Where it is mounted, and what relative paths of the config are relative to."""
    namespace: str = ""
    memory: str = ""
    """Of a pod; empty leaves it to the cluster."""
    shm: str = "16Gi"
    """Shared memory: batches of loaders, NCCL between GPUs of a node."""


def write_manifest(job: Job, cluster: Cluster) -> Path:
    """Write launch.kubernetes.yaml into the run's folder: a ConfigMap with launch.yaml, and a PyTorchJob
    (kubeflow.org/v1) of one pod a node, restarted where its status is 128 or more."""
    name = re.sub("[^a-z0-9]+", "-", job.config.name.lower()).strip("-")[:40].strip("-")
    name = name if name[:1].isalpha() else f"run-{name}".strip("-")
    metadata = {"name": name, **({"namespace": cluster.namespace} if cluster.namespace else {})}
    workers = job.config.parallel.nodes - 1
    spec = _pod(job, cluster, name)
    replicas = {"Master": _replicas(1, spec), **({"Worker": _replicas(workers, spec)} if workers else {})}
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"launch.yaml": to_yaml(job.config)},
        },
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": metadata,
            "spec": {"runPolicy": {"cleanPodPolicy": "Running"}, "pytorchReplicaSpecs": replicas},
        },
    ]
    return write_text(job.folder / "launch.kubernetes.yaml", yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False))


def _replicas(count: int, spec: dict[str, Any]) -> dict[str, Any]:
    return {"replicas": count, "restartPolicy": "ExitCode", "template": {"spec": spec}}


def _pod(job: Job, cluster: Cluster, name: str) -> dict[str, Any]:
    limits = {
        **({"nvidia.com/gpu": job.gpus} if job.gpus else {}),
        **({"memory": cluster.memory} if cluster.memory else {}),
    }
    return {
        "terminationGracePeriodSeconds": job.grace,
        "containers": [
            {
                "name": "pytorch",  # the operator looks for it
                "image": cluster.image,
                "workingDir": cluster.mount,
                # the operator sets RANK to the number of the pod, and MASTER_ADDR and MASTER_PORT to the first; exec,
                # so that SIGTERM reaches the run and not a shell
                "command": ["sh", "-c", "NODE_RANK=$RANK exec python -m toto_train.node /etc/toto-train/launch.yaml"],
                "env": [{"name": key, "value": value} for key, value in job.environment.items()],
                "resources": {"requests": {"cpu": job.cpus}, **({"limits": limits} if limits else {})},
                "volumeMounts": [
                    {"name": "data", "mountPath": cluster.mount},
                    {"name": "config", "mountPath": "/etc/toto-train", "readOnly": True},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": cluster.claim}},
            {"name": "config", "configMap": {"name": name}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm}},
        ],
    }


class _Dumper(yaml.SafeDumper):
    """The config as a block of lines, and no references between equal parts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str, lambda d, text: d.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)
