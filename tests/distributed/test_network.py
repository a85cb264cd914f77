"""Two hosts, in name and network: namespaces of Linux, joined by a cable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.distributed

RANK = """
import torch, torch.distributed as dist
from toto_train.config import Config
from toto_train.ranks import join
config = Config(global_rows=2)
p = config.parallel
p.mode, p.devices, p.nodes, p.device, p.first_timeout, p.timeout, p.rendezvous_timeout = "ddp", 1, 2, "cpu", 10, 10, 60
with join(config, "cpu") as ranks:
    total = torch.tensor(float(ranks.rank + 1))
    dist.all_reduce(total)
    print(total.item())
"""


def call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"namespaces of networks are not permitted here: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two network namespaces; 10.77.0.1 and 10.77.0.2."""
    names = [f"tt{os.getpid()}-{k}" for k in range(2)]
    try:
        for name in names:
            call("ip", "netns", "add", name)
        call(
            "ip",
            "link",
            "add",
            "cable0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable1",
            "netns",
            names[1],
        )
        for k, name in enumerate(names):
            call("ip", "-n", name, "addr", "add", f"10.77.0.{k + 1}/24", "dev", f"cable{k}")
            for device in ("lo", f"cable{k}"):
                call("ip", "-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_hosts_that_know_themselves_as_127_0_1_1_find_the_network_between_them(hosts, tmp_path):
    running = []
    for k, name in enumerate(hosts):
        table = tmp_path / f"hosts{k}"
        table.write_text(f"127.0.0.1 localhost\n127.0.1.1 node{k}\n10.77.0.{2 - k} node{1 - k}\n")
        shell = f"mount --bind {table} /etc/hosts && hostname node{k} && exec {sys.executable} -c '{RANK}'"
        place = {"RANK": str(k), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(k)}
        running.append(subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", shell],
            cwd=ROOT, env={**os.environ, **place, "MASTER_ADDR": "node0", "MASTER_PORT": "29511"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    for process in running:
        said, errors = process.communicate(timeout=120)
        assert said == "3.0\n", errors
