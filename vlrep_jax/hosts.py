"""What the hosts of a run must have in common, and the lines that say what runs where."""

import os
import socket
from collections import Counter

import jax
from ml_collections import ConfigDict

from vlrep_jax import workdirs
from vlrep_jax.build import plain

_GIB = 2**30


def check_equal(cluster, config: ConfigDict, data_fingerprint: str) -> None:
    """Raises ValueError, on every process, where they run another config, code, data or device.

    Args:
      cluster: a `cluster.Cluster`.
      data_fingerprint: of the pipeline, as its state holds it.
    """
    values = {f"config.{key}": value for key, value in workdirs.flat(plain(config)).items()}
    values |= {f"version of {name}": value for name, value in workdirs.versions().items()}
    values["data"] = data_fingerprint[:12]
    values["devices"] = dict(Counter(device.device_kind for device in jax.local_devices()))
    cluster.check_equal(values, config.cluster.start_s)


def describe(cluster, config: ConfigDict) -> list[dict[str, str]] | None:
    """On process 0, the host, devices and memory of every process; None on the others."""
    devices = jax.local_devices()
    mine = {
        "host": socket.gethostname(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "memory": f"{_memory(devices[0]) / _GIB:.1f} GiB",
    }
    return cluster.gather("hosts", mine, config.cluster.start_s)


def names(found: list[dict[str, str]]) -> list[str]:
    """What processes are called in messages."""
    return [f"process {index} ({each['host']})" for index, each in enumerate(found)]


def summary(found: list[dict[str, str]], config: ConfigDict, mesh) -> str:
    """What runs where: a line for the run and one for each kind of host."""
    count = len(found)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    lines = [
        f"{count} process{'es' if count > 1 else ''}, {mesh.size} devices, mesh "
        f"{shape}{f' over {slices} slices' if slices > 1 else ''}; batch "
        f"{config.batch_size // count:,} per process, "
        f"{config.batch_size // mesh.size:,} per device; code {workdirs.code_version()}."
    ]
    kinds = {}  # what a process has -> which processes
    for index, each in enumerate(found):
        kind = f"{each['devices']}, {each['memory']} of memory each"
        kinds.setdefault(kind, []).append(f"{index} {each['host']}")
    for kind, hosts in kinds.items():
        listed = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
        lines.append(f"  {kind}: {listed}")
    return "\n".join(lines)


def _memory(device):
    """Bytes of a device, or of this machine for its own processor."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
