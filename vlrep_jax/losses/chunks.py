"""Passes over a similarity matrix that is never whole: tiles of all rows by a chunk of columns.

The columns are all on this shard, or travel around the ring of shards.
"""

import operator

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import round_trip, vary_like

# Entries of the largest tile [rows, chunk] that the automatic choice makes, 32 MiB in float32:
# small enough for a TPU's on-chip memory, large enough that a loop's own costs are little.
_TILE_ENTRIES = 2**23


def chunk_size(chunk: int | None, rows: int, columns: int) -> int:
    """Returns how many columns a tile has: `chunk`, or a good choice for None.

    Raises:
      ValueError: not a positive integer.
    """
    if chunk is None:
        # Not the whole matrix, unless it is small; powers of two divide most batch sizes.
        size = max(min(_TILE_ENTRIES // max(rows, 1), columns // 2), min(columns, 256), 1)
        return 2 ** (size.bit_length() - 1)
    try:
        size = 0 if isinstance(chunk, bool) else operator.index(chunk)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(
            f"chunk={chunk!r} must be a positive integer, the columns of the similarity matrix "
            "computed at a time, or None to leave the choice to the loss."
        )
    return min(size, columns)


def see_tiles(see, seen_rows, columns, others, seen_columns, chunk, ring):
    """The forward pass: what is seen of rows and of columns after every tile.

    Args:
      see: (seen_rows, seen of c columns, columns [c, d], others of c) -> both, updated.
      seen_rows: pytree of what is known of the rows.
      columns: float32[n, d].
      others: pytree of arrays [n, ...] that go with the columns.
      seen_columns: pytree of arrays [n, ...] of what is known of the columns.
      chunk: c; the last chunk may have less.
      ring: the mapped axis around which columns travel; None if these are all.

    Returns:
      (seen_rows, seen_columns).
    """
    # A TPU's product rounds to bfloat16. Ahead of the loop that would be a copy of all columns; the
    # compiler cannot hoist the rounding of a product with a number that it does not know.
    one = lax.optimization_barrier(jnp.ones((), jnp.float32))

    def step(seen_rows, travelling):
        columns, others, seen_columns = travelling

        def tile(carry, start, size):
            seen_rows, seen_columns = carry
            part, beside, seen = _take((columns, others, seen_columns), start, size)
            seen_rows, seen = see(seen_rows, seen, part * one, beside)
            return seen_rows, _put(seen_columns, seen, start)

        carry = _for_chunks(tile, (seen_rows, seen_columns), len(columns), chunk)
        return carry[0], (columns, others, carry[1])

    seen_rows, seen_columns = vary_like((seen_rows, seen_columns), columns)
    travelling = (columns, others, seen_columns)
    seen_rows, (_, _, seen_columns) = round_trip(step, seen_rows, travelling, ring)
    return seen_rows, seen_columns


def product_gradients(by_logits, rows, columns, others, total, chunk, ring):
    """The backward pass: gradients of rows and columns through logits <row, column>.

    Args:
      by_logits: (columns [c, d], others of c) -> (gradient by the logits [b, c], terms of totals).
      rows: float32[b, d].
      columns, others, chunk, ring: as in `see_tiles`.
      total: pytree of zeros; terms are added to it.

    Returns:
      (gradient of rows [b, d], gradient of columns [n, d], total).
    """

    def step(kept, travelling):
        columns, others, gradient = travelling

        def tile(carry, start, size):
            row_gradient, total, gradient = carry
            before, beside = _take((gradient, others), start, size)
            part = before if ring is None else _take(columns, start, size)
            by_logit, terms = by_logits(part, beside)
            row_gradient += jnp.dot(by_logit, part, preferred_element_type=jnp.float32)
            part_gradient = jnp.dot(by_logit.T, rows, preferred_element_type=jnp.float32)
            if ring is not None:
                part_gradient += before
            total = jax.tree.map(jnp.add, total, terms)
            return row_gradient, total, _put(gradient, part_gradient, start)

        *kept, gradient = _for_chunks(tile, (*kept, gradient), len(gradient), chunk)
        return tuple(kept), (columns, others, gradient)

    kept = vary_like((jnp.zeros_like(rows), total), (rows, columns))
    if ring is None:
        # The gradient of a chunk takes the place of the chunk: one [n, d] instead of two.
        travelling = (None, others, columns)
    else:
        travelling = (columns, others, vary_like(jnp.zeros_like(columns), columns))
    (row_gradient, total), (*_, gradient) = round_trip(step, kept, travelling, ring)
    return row_gradient, gradient, total


def sum_by_product(tile, axis):
    """The sum of a tile along an axis by the matrix unit, which need not read it from memory.

    A sum of elements is a pass of its own over a stored tile; a product takes its operand from the
    operation before it. Precision: `jax_default_matmul_precision`.
    """
    ones = jnp.ones((8, tile.shape[axis]), tile.dtype)  # a single row would become a sum again
    dims = (((1,), (axis,)), ((), ()))
    return lax.dot_general(ones, tile, dims, preferred_element_type=jnp.float32)[0]


def _for_chunks(step, carry, columns, chunk):
    """Runs carry = step(carry, start, size) over all columns; the last chunk may be short."""
    whole, rest = divmod(columns, chunk)
    if whole == 1:
        carry = step(carry, 0, chunk)
    elif whole:
        carry = lax.fori_loop(0, whole, lambda i, c: step(c, i * chunk, chunk), carry)
    return step(carry, whole * chunk, rest) if rest else carry


def _take(tree, start, size):
    """Entries start ... start + size - 1 of every leaf's first dimension."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), tree)


def _put(tree, part, start):
    """The tree with `part` written over its entries from `start` on."""
    return jax.tree.map(lambda x, p: lax.dynamic_update_slice_in_dim(x, p, start, 0), tree, part)
