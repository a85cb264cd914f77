"""What SLURM and Kubernetes are given: the sbatch file runs here with commands of SLURM that act locally."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from toto_train.config import ConfigError
from toto_train.jobs import Cluster, Job, prepare, write_manifest, write_sbatch
from toto_train.planning.describe import describe
from toto_train.rank import read

ROOT = Path(__file__).parents[2]

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "option $1"; shift; done
worst=0
for node in 0 1; do SLURM_NODEID=$node "$@" || { status=$?; ((status > worst)) && worst=$status; }; done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo first-host; echo second-host ;;
    requeue) echo "requeued $2" ;;
esac
"""
ON_A_NODE = """#!/usr/bin/env bash
echo "node $NODE_RANK of $MASTER_ADDR:$MASTER_PORT runs $* in $PWD with $OMP_NUM_THREADS threads, $TOKEN"
eval "$SAVE"
exit $STATUS
"""


@pytest.fixture
def job(small_job) -> Job:
    return prepare([*small_job, "parallel=ddp", "parallel.nodes=2", "parallel.devices=1"], ROOT / "configs", grace=90)


@pytest.fixture
def run_sbatch(tmp_path):
    """Run an sbatch file as SLURM would run it on the first of two hosts."""

    def run(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("on_a_node", ON_A_NODE)):
            (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "40001",
               "SLURM_JOB_NODELIST": "h[1-2]", "SLURM_CPUS_PER_TASK": "3", **environment}  # fmt: skip
        env.pop("OMP_NUM_THREADS", None)
        return subprocess.run(["bash", str(file)], capture_output=True, text=True, env=env, cwd="/", timeout=60)

    return run


def options(file: Path) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in file.read_text().splitlines() if line.startswith("#SBATCH")]


def test_the_ranks_read_the_config_that_was_checked(job):
    assert read(job.file) == job.config


def test_an_sbatch_file_asks_for_what_the_run_needs(job):
    file = write_sbatch(job, {"partition": "gpu", "time": "1-00:00:00", "exclusive": "true"}, "python")
    assert options(file) == [
        "job-name=small", "nodes=2", "ntasks-per-node=1", "cpus-per-task=3",
        f"output={job.folder.absolute() / 'launch.log'}", "open-mode=append", "requeue", "signal=TERM@90",
        "partition=gpu", "time=1-00:00:00", "exclusive",
    ]  # fmt: skip


def test_gpus_of_a_node_are_the_devices_of_the_run(small_job):
    given = ["parallel=fsdp2", "parallel.devices=4", "global_rows=8", "parallel.device=auto"]
    job = prepare([*small_job, *given], ROOT / "configs")
    assert job.config.parallel.device == "cuda"  # a node without its GPUs does not train on its CPU
    assert "gpus-per-node=4" in options(write_sbatch(job, {}, "python"))
    asked = options(write_sbatch(job, {"gres": "gpu:h100:4"}, "python"))
    assert "gres=gpu:h100:4" in asked
    assert not any(option.startswith("gpus-per-node") for option in asked)


def test_a_job_for_gpus_is_not_priced_as_one_of_the_login_nodes_cpu(small_job, monkeypatch):
    """It read 942,000 hours for a run that takes days."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides = [arg for arg in small_job if not arg.startswith("parallel.device=")]
    queued = [*overrides, "global_rows=8", "micro_rows=1", "parallel=fsdp2", "parallel.devices=8"]
    text = describe(prepare(queued, ROOT / "configs").config)
    assert "8 x GPU, fsdp2" in text
    assert "memory of a rank" in text
    assert "CPU" not in text
    assert "hours" not in text
    assert "hardware.gpu=h100, say, names that of the job" in text
    priced = describe(prepare([*queued, "hardware.gpu=h100"], ROOT / "configs").config)
    assert "GPU-hours" in priced
    memory = [text[text.index("memory of a rank") :].splitlines()[:8] for text in (text, priced)]
    assert memory[0] == memory[1]


def test_names_with_blanks_and_percent_signs_stay_whole(small_job):
    job = prepare([*small_job, "name='a run, 50%'"], ROOT / "configs")
    file = write_sbatch(job, {}, "python")
    assert "job-name='a run, 50%'" in options(file)
    assert f"output='{job.folder.absolute()}%/launch.log'" in options(file)
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (2, False), (137, False), (143, True)])
def test_only_a_run_that_has_saved_goes_back_into_the_queue(job, run_sbatch, status, again):
    done = run_sbatch(write_sbatch(job, {}, "on_a_node"), STATUS=str(status))
    assert done.returncode == status, done.stderr
    assert ("requeued 40001" in done.stdout) == again


@pytest.mark.parametrize(
    ("status", "again"), [("1", True), ("137", True), ("2", False), ("3", False), ("0", False)]
)  # fmt: skip
def test_a_run_that_failed_starts_again_where_it_had_got_further(job, run_sbatch, status, again):
    """A wrong setting and a run that its guards stopped would end the same way once more."""
    latest = job.folder / "checkpoints" / "latest"
    latest.parent.mkdir()
    latest.write_text("step-00000004\n")
    file = write_sbatch(job, {}, "on_a_node")
    save = f"echo step-00000008 > {latest}"
    done = run_sbatch(file, STATUS=status, SAVE=save)
    assert ("requeued 40001" in done.stdout) == again, done.stdout
    assert "requeued" not in run_sbatch(file, STATUS=status).stdout  # no further than before: nobody waits for a loop


def test_every_node_is_told_its_place(job, run_sbatch):
    setup = "export TOKEN='set up'"
    file = write_sbatch(job, {}, "on_a_node --here", setup=setup, srun="--container-image=image.sqsh")
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    done = run_sbatch(file, STATUS="0")
    assert done.stdout.splitlines() == [
        "job 40001, start 0: h[1-2], rank 0 at first-host:10001",
        "option --kill-on-bad-exit=0", "option --cpus-per-task=3", "option --container-image=image.sqsh",
        *(
            f"node {node} of first-host:10001 runs --here -m toto_train.node {job.file} in {os.getcwd()} with 1 threads"
            ", set up"
            for node in (0, 1)
        ),
    ]  # fmt: skip


def test_what_requeueing_depends_on_cannot_be_given(job):
    with pytest.raises(ConfigError) as error:
        write_sbatch(job, {"signal": "USR1@60", "nodes": "4", "qos": "high"}, "python")
    assert [p.split()[0] for p in error.value.problems] == ["slurm.signal", "slurm.nodes"]


def test_gpus_that_contradict_the_run_are_refused(small_job):
    job = prepare([*small_job, "parallel=ddp", "parallel.devices=2", "parallel.device=cuda"], ROOT / "configs")
    for same in (
        {"gpus-per-node": "h100:2"},
        {"gres": "gpu:h100:2,nvme:1"},
        {"gres": "gpu:2(S:0)"},
        {"gres": "nvme:1"},
    ):
        write_sbatch(job, same, "python")
    for other in ({"gpus-per-node": "4"}, {"gres": "gpu:h100:4"}, {"gpus": "2"}, {"gpus-per-task": "1"}):
        with pytest.raises(ConfigError):
            write_sbatch(job, other, "python")


def test_a_run_that_cannot_go_on_is_refused_before_anything_is_made(small_job, tmp_path):
    with pytest.raises(ConfigError) as error:
        prepare([*small_job, "parallel=ddp", "fresh=true", "plan=true"], ROOT / "configs", grace=0)
    assert [p.split()[0].split("=")[0] for p in error.value.problems] == ["parallel.devices", "plan", "fresh", "grace"]
    with pytest.raises(ConfigError, match=r"parallel\.devces"):
        prepare([*small_job, "parallel.devces=2"], ROOT / "configs")
    assert not (tmp_path / "runs").exists()


CLUSTER = Cluster("registry/image:1", "training", namespace="team", memory="512Gi")


def test_a_manifest_holds_the_config_and_one_pod_a_node(small_job):
    given = ["name=Mine_2.5B", "parallel=hsdp", "parallel.devices=4", "parallel.nodes=3", "global_rows=24"]
    job = prepare([*small_job, *given, "parallel.device=auto"], ROOT / "configs", grace=600)
    config_map, pytorch_job = yaml.safe_load_all(write_manifest(job, CLUSTER).read_text())
    assert config_map["kind"] == "ConfigMap"
    assert config_map["data"]["launch.yaml"] == job.file.read_text()
    assert (pytorch_job["apiVersion"], pytorch_job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert pytorch_job["metadata"] == config_map["metadata"] == {"name": "mine-2-5b", "namespace": "team"}
    assert set(pytorch_job["spec"]) == {"runPolicy", "pytorchReplicaSpecs"}
    replicas = pytorch_job["spec"]["pytorchReplicaSpecs"]
    assert {kind: one["replicas"] for kind, one in replicas.items()} == {"Master": 1, "Worker": 2}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    for one in replicas.values():
        assert set(one) == {"replicas", "restartPolicy", "template"}
        assert one["restartPolicy"] == "ExitCode"  # 128 and above start again, so 143 does
        check_pod(one["template"]["spec"])
    pod = replicas["Master"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4, "memory": "512Gi"}


def check_pod(pod: dict) -> None:
    """The rules of a PodSpec and of the operator that a manifest can break."""
    assert set(pod) == {"terminationGracePeriodSeconds", "containers", "volumes"}  # no restartPolicy: the replica's
    [container] = pod["containers"]
    assert container["name"] == "pytorch"
    assert container["image"]
    assert all(isinstance(entry["value"], str) for entry in container["env"])
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert all(len(volume) == 2 for volume in pod["volumes"])  # a name and one source
    assert sorted(mount["name"] for mount in container["volumeMounts"]) == sorted(volumes)
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in pod["volumes"]


def test_a_pod_starts_its_node_with_the_number_the_operator_gives(small_job, tmp_path):
    job = prepare([*small_job, "name=3"], ROOT / "configs")
    documents = list(yaml.safe_load_all(write_manifest(job, CLUSTER).read_text()))
    assert documents[1]["metadata"]["name"] == "run-3"  # a DNS label that begins with a letter
    assert list(documents[1]["spec"]["pytorchReplicaSpecs"]) == ["Master"]
    container = documents[1]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$NODE_RANK $*"\n')
    (tmp_path / "python").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RANK": "2"}
    said = subprocess.run(container["command"], env=env, capture_output=True, text=True, check=True).stdout
    assert said == "2 -m toto_train.node /etc/toto-train/launch.yaml\n"
