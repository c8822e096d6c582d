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


def gather_parts(x: jax.Array, axis_name, dim: int) -> jax.Array:
    """Returns the array whose equal parts along `dim` lie on the shards; its gradient is scattered.

    The gradients of all shards are summed, and each shard gets the part that is its own.
    """
    return lax.all_gather(x, axis_name, axis=dim, tiled=True)


def global_mean(tree, axis_name):
    """Returns the mean over shards of every leaf, equal on every shard."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def global_sum(tree, axis_name):
    """Returns the sum over shards of every leaf, equal on every shard."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def global_max(x: jax.Array, axis_name) -> jax.Array:
    """Returns the largest over shards of every entry, equal on every shard, without gradient."""
    return lax.stop_gradient(x) if axis_name is None else lax.pmax(lax.stop_gradient(x), axis_name)


def sum_to_owner(x: jax.Array, axis_name) -> jax.Array:
    """Returns the sum over shards of [B, ...], of which each shard gets its b rows."""
    return x if axis_name is None else lax.psum_scatter(x, axis_name, tiled=True)


def first_row(rows: int, axis_name):
    """Returns the index in the global batch of this shard's first row; each shard has `rows`."""
    return 0 if axis_name is None else rows * lax.axis_index(axis_name)


def round_trip(step, kept, travelling, axis_name):
    """Passes what travels once around the ring of shards; it ends where it began.

    Args:
      step: (kept, travelling) -> (kept, travelling), run once on each shard for each shard's
        `travelling`. Shapes and dtypes stay.
      kept: what stays on its shard.
      travelling: what moves on to the next shard after every step.
      axis_name: as for `gather_batch`; None is a ring of one.

    Returns:
      (kept, travelling) after as many steps as there are shards.
    """
    if axis_name is None:
        return step(kept, travelling)
    shards = lax.axis_size(axis_name)
    to_next = [(shard, (shard + 1) % shards) for shard in range(shards)]

    def step_and_shift(carry, _):
        kept, travelling = step(*carry)
        return (kept, lax.ppermute(travelling, axis_name, to_next)), None

    return lax.scan(step_and_shift, (kept, travelling), length=shards)[0]


def vary_like(tree, like):
    """Returns the leaves typed as differing between shards wherever an array of `like` does.

    Only `shard_map` has such types (and only if it checks them): a constant that a loop turns into
    a shard's own value needs it, and an argument of a function with its own gradient, whose shares
    are then summed over the shards.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(like)))

    def cast(x):
        missing = tuple(axes - _varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def _varying_axes(x):
    return jax.typeof(x).manual_axis_type.varying
