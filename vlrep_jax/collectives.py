"""Collectives over the axis (or axes) that splits the batch; identities if `axis_name=None`.

The only file that asks whether there is an axis: losses and train step are written once, for the
global batch, and run alone, under `vmap(axis_name=...)`, `pmap` and `shard_map`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# The gradient of a gathered matrix is summed over the shards this many bytes at a time: a TPU puts
# the sum into memory of its own, which for a global batch of a million is 2 GiB.
_SUMMED_BYTES = 2**24


def gather_batch(x: jax.Array, axis_name) -> jax.Array:
    """Returns the rows of all shards, [b, ...] -> [B, ...], in shard order.

    Args:
      x: this shard's rows.
      axis_name: a mapped axis, a tuple of them (the first one slowest), or None if `x` is whole.
    """
    return x if axis_name is None else _gather(x, axis_name)


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
    return x if axis_name is None else _sum_to_owner(x, axis_name)


def first_row(rows: int, axis_name):
    """Returns the index in the global batch of this shard's first row; each shard has `rows`."""
    return 0 if axis_name is None else rows * lax.axis_index(axis_name)


def global_rows(rows: int, axis_name) -> int:
    """Returns the rows of the global batch; each shard has `rows`."""
    return rows if axis_name is None else rows * lax.axis_size(axis_name)


def own_rows(x: jax.Array, rows: int, axis_name) -> jax.Array:
    """Returns this shard's `rows` of [B, ...]."""
    return lax.dynamic_slice_in_dim(x, first_row(rows, axis_name), rows)


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


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x, axis_name):
    return lax.all_gather(x, axis_name, tiled=True)


def _sum_to_owner(x, axis_name):
    shards = lax.axis_size(axis_name)
    rows = len(x) // shards
    by_shard = x.reshape(shards, rows, *x.shape[1:])
    # Fewer than 8 rows would fill a part of each of a TPU's registers.
    sizes = (n for n in range(rows, 0, -1) if rows % n == 0)
    small = (n for n in sizes if n <= 8 or shards * n * x[0].nbytes <= _SUMMED_BYTES)
    size = next(small)

    def piece(i, summed):
        part = lax.dynamic_slice_in_dim(by_shard, i * size, size, 1)
        part = lax.psum_scatter(part, axis_name)
        return lax.dynamic_update_slice_in_dim(summed, part, i * size, 0)

    if size == rows:
        return lax.psum_scatter(by_shard, axis_name)
    summed = vary_like(jnp.zeros(by_shard.shape[1:], x.dtype), x)
    return lax.fori_loop(0, rows // size, piece, summed)


_gather.defvjp(
    lambda x, axis_name: (_gather(x, axis_name), None),
    lambda axis_name, _, gradient: (_sum_to_owner(gradient, axis_name),),
)
