"""Where a process of a run listens: at the address that faces the others, and nowhere else."""

import ipaddress
import os
import socket

from jax._src import distributed, xla_bridge  # no public way leads to either
from jax._src.lib import _jax


def own_address(coordinator: str) -> str:
    """Where process 0 listens: at the coordinator's address and nowhere else.

    On many machines the own name means the loopback address, which other nodes cannot reach.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        address = socket.gethostbyname(host.strip("[]"))
    except OSError:
        return coordinator
    nodes = os.environ.get("SLURM_NNODES", "1")
    if ipaddress.ip_address(address).is_loopback and nodes != "1":
        address = _facing("192.0.2.1")
    return f"{address}:{port}"


def check_listens(place: str) -> None:
    """Raises ValueError where this process cannot listen at HOST:PORT; jax would end in C++."""
    host, _, port = place.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        kind, *_, where = found[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            # As jax does: connections of a run that has ended may linger.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Process 0 cannot listen at {place} ({error}): --coordinator must name an address of "
            "its own host, and a port that is free there."
        ) from None


def _facing(host):
    """The address of this host's interface that leads to another host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing; only asks for the way
        return probe.getsockname()[0]


def keep_collectives_to(coordinator: str) -> None:
    """Has gloo, which carries the collectives of CPUs, listen only where the coordinator is faced.

    By itself it takes what the host's own name leads to: another network, or loopback, which no
    other host can reach.
    """
    try:
        address = _facing(socket.gethostbyname(coordinator.rpartition(":")[0].strip("[]")))
    except OSError:  # not reached over IPv4: gloo finds an address itself
        return

    def make_client():
        client = distributed.global_state.client
        gloo = _jax.make_gloo_tcp_collectives(distributed_client=client, hostname=address)
        return xla_bridge.make_cpu_client(gloo)

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)
