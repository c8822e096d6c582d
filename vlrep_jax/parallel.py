"""Wirings of one step over many devices; losses and models know nothing of meshes."""

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")  # mesh axes that split the batch


def per_shard(fn, mesh, *, batched: int):
    """Returns `fn` as an island of a `jit`: run once per shard of the batch, over global arrays.

    Args:
      fn: called with `axis_name=BATCH_AXES` and one shard's rows; what it returns must be equal
        on every shard.
      mesh: has the axes BATCH_AXES.
      batched: how many leading positional arguments are split by rows; the others are copied.

    Returns:
      run(*args, **batched_kwargs): every keyword argument that is not None is split by rows too.
    """

    def run(*args, **batched_kwargs):
        given = {name: x for name, x in batched_kwargs.items() if x is not None}
        specs = tuple(P(BATCH_AXES) if i < batched else P() for i in range(len(args)))
        return jax.shard_map(
            lambda given, *args: fn(*args, axis_name=BATCH_AXES, **given),
            mesh=mesh,
            in_specs=(P(BATCH_AXES), *specs),
            out_specs=P(),
        )(given, *args)

    return run
