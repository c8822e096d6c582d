"""Chips and slices that a step can be planned for, and their devices for ahead-of-time compilation.

The devices of a TPU slice come from libtpu, which compiles for them on any machine. Importing this
file touches no backend; `find` sets jax's platform to the CPU, so that chips which are here stay
free, and must come before anything is computed.
"""

import importlib.util
import itertools
import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """One generation of TPU.

    name: as users know it. peak_flops: published, bfloat16, per second. clock_hz: that peak over
    what the matrix units do in a cycle; the compiler's cycles are over it. is_calibrated: whether
    cycles over the clock give a plausible time for an 8192^3 product, at 0.85 to 1 of the peak.
    memory_bytes: what the compiler lets a program use. link_bytes_per_second: of one link in one
    direction (the published total over its links). wraps_at: a dimension closes into a ring where
    it has this many chips (2-D), or all are multiples of it (3-D). shapes: slices that exist; of
    3-D slices only the small ones, the others are multiples of 4 up to max_chips.
    config: the way the compiler is to see a chip, where there is a choice.
    """

    name: str
    peak_flops: float
    clock_hz: float
    is_calibrated: bool
    memory_bytes: int
    link_bytes_per_second: float
    wraps_at: int
    shapes: tuple[str, ...]
    max_chips: int
    config: str | None = None


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# Peak, memory, links: cloud.google.com/tpu/docs. Memory and clock are checked against libtpu in
# the tests. A v4 chip has two cores, which programs use as one device, as jax does on a v4 host.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1.05e9, True, int(30.75 * GIB), 50e9, 4, _CUBES, 4096, "megacore"),
    "v5e": Chip("TPU v5e", 197e12, 1.503e9, True, int(15.75 * GIB), 50e9, 16, _FLAT, 256),
    "v5p": Chip("TPU v5p", 459e12, 1.75e9, True, int(95.74 * GIB), 100e9, 4, _CUBES, 6144),
    "v6e": Chip("TPU v6e", 918e12, 1.75e9, False, int(31.25 * GIB), 100e9, 16, _FLAT, 256),
}
EXAMPLES = {
    "v4": "v4:2x2x1, v4:4x4x8, v4:16x16x16",
    "v5e": "v5e:2x4, v5e:4x8, v5e:16x16",
    "v5p": "v5p:2x2x1, v5p:4x4x8, v5p:16x16x24",
    "v6e": "v6e:2x4, v6e:4x8, v6e:16x16",
}
# libtpu would look for a TPU host's metadata, and log what it does not find.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Compiling needs no TPU, so a program that holds one need not be waited for.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """A slice, or CPU devices: `chip` is None for those, `shape` () and memory this machine's.

    name: such as 'v5e:16x16'. devices: one a chip. shape: chips by dimension. memory_bytes: of
    one device.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    shape: tuple[int, ...]
    memory_bytes: int

    def wraps(self) -> tuple[bool, ...]:
        """By dimension, whether its last chip is linked to its first."""
        if len(self.shape) == 3:
            return (all(n % self.chip.wraps_at == 0 for n in self.shape),) * 3
        return tuple(n == self.chip.wraps_at for n in self.shape)

    def bytes_per_second(self, positions: Sequence[int]) -> float:
        """What each of a group of chips can receive, over all links that lie within the group.

        Args:
          positions: of the group in `devices`.
        """
        links = 0
        coordinates = [self.devices[i].coords for i in positions]
        for size, wraps, *values in zip(self.shape, self.wraps(), *coordinates, strict=False):
            spanned = len(set(values))
            links += 0 if spanned == 1 else 2 if wraps and spanned == size else 1
        return links * self.chip.link_bytes_per_second


def find(name: str) -> Topology:
    """The topology of a name such as 'v5e:16x16' or 'cpu:8'; sets jax's platform to the CPU.

    Raises:
      ValueError: no such slice, or more CPU devices than can still be had.
      ModuleNotFoundError: libtpu is missing.
    """
    generation, _, size = name.partition(":")
    if generation == "cpu":
        return _cpu(name, size)
    if generation not in CHIPS:
        known = ", ".join([*CHIPS, "cpu"])
        raise ValueError(
            f"--topology={name}: unknown chip {generation!r}; known: {known}. {_such()}"
        )
    chip = CHIPS[generation]
    if not _exists(chip, size):
        raise ValueError(
            f"--topology={name}: there is no {chip.name} slice of shape {size!r}; "
            f"valid are {_shapes(chip, generation)}."
        )
    shape = tuple(int(n) for n in size.split("x"))
    return Topology(name, _tpu_devices(name, shape, chip), chip, shape, chip.memory_bytes)


def _cpu(name, size):
    if not re.fullmatch("[1-9][0-9]{0,3}", size):
        raise ValueError(f"--topology={name}: give the number of CPU devices, as in cpu:8.")
    count = int(size)
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # computed before: the devices are what they are
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"--topology={name}: jax was already started with {len(devices)} CPU devices, or "
            "XLA_FLAGS sets their number."
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Topology(name, devices[:count], None, (), memory // count)


def _tpu_devices(name, shape, chip):
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ModuleNotFoundError(
            f"--topology={name} needs libtpu, which compiles for TPUs without one: "
            "pip install -e '.[tpu]'. Without it there is --topology=cpu:8."
        )
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here stays free
    from jax.experimental import topologies

    options = {} if chip.config is None else {"chip_config_name": chip.config}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    with _silent_stderr():
        try:
            devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
        except jax.errors.JaxRuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"--topology={name}: libtpu refuses it: {reason}") from None
    if len(devices) != math.prod(shape):
        raise ValueError(
            f"--topology={name}: libtpu shows {len(devices)} devices for {math.prod(shape)} chips; "
            "this version of it is not known here."
        )
    return devices


def _exists(chip, size):
    if size in chip.shapes:
        return True
    if chip.shapes is _FLAT or not re.fullmatch(r"[0-9]{1,3}x[0-9]{1,3}x[0-9]{1,3}", size):
        return False
    dims = [int(n) for n in size.split("x")]
    return all(n and n % 4 == 0 for n in dims) and math.prod(dims) <= chip.max_chips


def _shapes(chip, generation):
    if chip.shapes is _FLAT:
        return ", ".join(f"{generation}:{shape}" for shape in chip.shapes)
    small = ", ".join(f"{generation}:{shape}" for shape in chip.shapes)
    return f"{small} and multiples of 4 up to {chip.max_chips} chips, as {EXAMPLES[generation]}"


def _such():
    return f"For example {'; '.join(itertools.chain(EXAMPLES.values(), ['cpu:8']))}."


@contextmanager
def _silent_stderr():
    """Nothing that C++ code writes to file descriptor 2 is seen; libtpu logs before it can be told.

    An error is raised in Python, so nothing is lost.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
