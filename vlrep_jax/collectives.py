"""Collectives over the axis (or axes) that splits the batch; identities if `axis_name=None`.

The only file that asks whether there is an axis: losses and train step are written once, for the
global batch, and run alone, under `vmap(axis_name=...)`, `pmap` and `shard_map`.
"""

import jax
from jax import lax


def gather_batch(x: jax.Array, axis_name) -> jax.Array:
    """Returns the rows of all shards, [b, ...] -> [B, ...], in shard order.

    Args:
      x: this shard's rows.
      axis_name: a mapped axis, a tuple of them (the first one slowest), or None if `x` is whole.
    """
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def global_mean(tree, axis_name):
    """Returns the mean over shards of every leaf, equal on every shard."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def global_sum(tree, axis_name):
    """Returns the sum over shards of every leaf, equal on every shard."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def first_row(rows: int, axis_name):
    """Returns the index in the global batch of this shard's first row; each shard has `rows`."""
    return 0 if axis_name is None else rows * lax.axis_index(axis_name)
