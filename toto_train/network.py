"""Between hosts, the network that gloo takes. By itself it takes the address that a host's own name stands for, which
is 127.0.1.1 where /etc/hosts says so, as Debian's installer has it: the other hosts would connect to themselves.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from datetime import timedelta

import psutil
import torch.distributed as dist

from toto_train.environment import LaunchError

log = logging.getLogger(__name__)


def choose_interface(store: dist.Store, rank: int, ranks_per_node: int, nodes: int, timeout: float) -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, to the interface that leads to the other hosts of the run.

    All ranks call this once they have met in `store`. Raises LaunchError where there is none.
    """
    if nodes == 1:
        return
    host, node = socket.gethostname(), rank // ranks_per_node
    keys = [f"network/{k}" for k in range(nodes)]
    if rank % ranks_per_node == 0:
        store.set(keys[node], f"{host} {_source(os.environ['MASTER_ADDR'])}")
    store.wait(keys, timedelta(seconds=timeout))
    places = [store.get(key).decode().split() for key in keys]
    others = [address for name, address in places if name != host and not _loops(address)]
    if os.environ.get("GLOO_SOCKET_IFNAME") or not others or not _loops(host):
        return
    mine = _source(others[0])
    names = [name for name, of in psutil.net_if_addrs().items() if mine in [a.address for a in of]]
    if not names or _loops(mine):
        raise LaunchError([
            f"the name of {host} stands for an address of itself alone, and no interface leads to {others[0]}; give "
            f"{host} its address in /etc/hosts, or set GLOO_SOCKET_IFNAME to the interface of the other nodes' network"
        ])  # fmt: skip
    os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    log.info("%s stands for itself alone in /etc/hosts: GLOO_SOCKET_IFNAME=%s (%s)", host, names[0], mine)


def _loops(host: str) -> bool:
    """Whether a name or address leads back to this host alone, or nowhere."""
    try:
        return ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0]).is_loopback
    except OSError:
        return True


def _source(host: str) -> str:
    """The address of this host that others see when it connects to one; nothing is sent."""
    family, _, _, _, place = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.connect(place)
        except OSError:  # no way there
            return "127.0.0.1"
        return str(s.getsockname()[0])
