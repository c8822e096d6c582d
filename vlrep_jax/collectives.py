"""Collectives over the axis (or axes) that splits the batch; identities if `axis_name=None`.

The only file that asks whether there is an axis: losses and train step are written once, for the
global batch, and run alone, under `vmap(axis_name=...)`, `pmap` and `shard_map`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Sums that leave each shard its part go through groups of at most so many shards, one after the
# other: over 256 at once the TPU compiler sums the whole array on every chip, which moves twice the
# bytes and needs memory for all of it. (Under `shard_map`; `vmap` has no groups.)
_GROUP = 16
# Each sum needs memory of its own for a part of its bytes: of a large matrix, so many bytes are
# summed at a time.
_LARGE_BYTES, _PIECE_BYTES = 2**29, 2**24


def gather_batch(x: jax.Array, axis_name) -> jax.Array:
    """Returns the rows of all shards, [b, ...] -> [B, ...], in shard order.

    Args:
      x: this shard's rows.
      axis_name: a mapped axis, a tuple of them (the first one slowest), or None if `x` is whole.
    """
    return x if axis_name is None else _gather(x, axis_name, 0)


def grid_axes(axis_name):
    """Returns (the axis along which texts are gathered, that along which images are), or None each.

    Of two axes, whose shards lie on a grid, one of either kind: each shard then compares the images
    of its row of the grid with the texts of its column, and every image meets every text once.
    """
    if not isinstance(axis_name, tuple):
        return axis_name, None
    first, *others = axis_name
    return first, tuple(others) or None


def gather_parts(x: jax.Array, axis_name, dim: int) -> jax.Array:
    """Returns the array whose equal parts along `dim` lie on the shards; its gradient is scattered.

    The gradients of all shards are summed, and each shard gets the part that is its own.
    """
    return _gather(x, axis_name, dim)


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
    return x if axis_name is None else _sum_parts(x, axis_name, 0)


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


def fetch_rows(tree, index: jax.Array, axis_name):
    """Returns rows of the global batch by their index, wherever they lie; gradients go back there.

    The rows travel once around the ring of shards, and each shard keeps those it asked for when
    they pass: memory of what is asked for and of one shard's rows. All B rows pass each shard.

    Args:
      tree: this shard's rows, arrays [b, ...].
      index: int32[n], of rows of the global batch.
      axis_name: as for `gather_batch`.

    Returns:
      The tree with arrays [n, ...].
    """
    if axis_name is None:
        return jax.tree.map(lambda x: jnp.asarray(x)[index], tree)
    rows = len(jax.tree.leaves(tree)[0])

    def step(fetched, travelling):
        passing, first = travelling
        place = index - first
        is_here = (place >= 0) & (place < rows)

        def keep(old, x):
            taken = x[jnp.clip(place, 0, rows - 1)]
            return jnp.where(is_here.reshape(-1, *(1,) * (x.ndim - 1)), taken, old)

        return jax.tree.map(keep, fetched, passing), travelling

    empty = jax.tree.map(lambda x: jnp.zeros((len(index), *x.shape[1:]), x.dtype), tree)
    started = vary_like((empty, (tree, first_row(rows, axis_name))), (tree, index))
    return round_trip(step, *started, axis_name)[0]


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


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, axis_name, dim):
    return lax.all_gather(x, axis_name, axis=dim, tiled=True)


def _sum_parts(x, axis_name, dim):
    """The sum over shards, of which each has its part along `dim`."""
    shards = lax.axis_size(axis_name)
    rows = x.shape[dim] // shards
    if dim or x.nbytes <= _LARGE_BYTES:
        return _scatter(x, axis_name, dim)
    # Fewer than 8 rows would fill a part of each of a TPU's registers.
    sizes = (n for n in range(rows, 0, -1) if rows % n == 0)
    size = next(n for n in sizes if n <= 8 or x.nbytes // rows * n <= _PIECE_BYTES)
    by_shard = x.reshape(shards, rows, *x.shape[1:])

    def piece(i, summed):
        part = lax.dynamic_slice_in_dim(by_shard, i * size, size, 1)
        part = _scatter(part.reshape(-1, *x.shape[1:]), axis_name, 0)
        return lax.dynamic_update_slice_in_dim(summed, part, i * size, 0)

    summed = vary_like(jnp.zeros((rows, *x.shape[1:]), x.dtype), x)
    return lax.fori_loop(0, rows // size, piece, summed)


def _scatter(x, axis_name, dim):
    """As `_sum_parts`, all at once."""
    for name in axis_name if isinstance(axis_name, tuple) else (axis_name,):
        shards = left = lax.axis_size(name)
        while left > 1:
            # Blocks of `left` neighbours share what they have, and split it into `group` parts.
            group = next((n for n in range(_GROUP, 1, -1) if left % n == 0), left)
            group = group if name in jax.sharding.get_abstract_mesh().manual_axes else shards
            apart = left // group
            groups = [
                [start + apart * member for member in range(group)]
                for block in range(0, shards, left)
                for start in range(block, block + apart)
            ]
            x = lax.psum_scatter(
                x,
                name,
                scatter_dimension=dim,
                axis_index_groups=groups if group < shards else None,
                tiled=True,
            )
            left = apart
    return x


_gather.defvjp(
    lambda x, axis_name, dim: (_gather(x, axis_name, dim), None),
    lambda axis_name, dim, _, gradient: (_sum_parts(gradient, axis_name, dim),),
)
