"""How long this process's devices take for a fixed piece of work.

All devices of a run end a step together, so what a step takes says nothing of one of them; the same
work, done by each process for itself, does.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SIDE, PRODUCTS = 2048, 200  # of matrices: some milliseconds on an accelerator
CPU_SIDE, CPU_PRODUCTS = 256, 10


class Probe:
    """Multiplies matrices on all devices of this process at once."""

    def __init__(self):
        devices = jax.local_devices()
        is_cpu = devices[0].platform == "cpu"
        side, products = (CPU_SIDE, CPU_PRODUCTS) if is_cpu else (SIDE, PRODUCTS)
        each = NamedSharding(Mesh(np.array(devices), ("device",)), P("device"))
        # Its square is itself, so the numbers stay what they are.
        matrix = np.full((side, side), 1 / side, jnp.float32 if is_cpu else jnp.bfloat16)
        self._matrices = jax.device_put(np.stack([matrix] * len(devices)), each)
        self._run = jax.jit(
            lambda x: jax.lax.fori_loop(0, products, lambda _, y: y @ x, x), out_shardings=each
        )
        self.seconds()  # compiles

    def seconds(self) -> float:
        """The time it takes, when nothing else is under way."""
        began = time.perf_counter()
        self._run(self._matrices).block_until_ready()
        return time.perf_counter() - began
