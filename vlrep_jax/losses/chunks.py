"""Loops over chunks of columns, so that a matrix of logits exists one tile at a time."""

import operator

import jax
from jax import lax

# Entries of the largest tile [rows, chunk] that the automatic choice makes, 8 MiB in float32: small
# enough for the fast memory of an accelerator, large enough to keep its matrix unit busy.
_TILE_ENTRIES = 2**21


def chunk_size(chunk: int | None, rows: int, columns: int) -> int:
    """Returns how many columns a tile has: `chunk`, or a good choice for None.

    Raises:
      ValueError: not a positive integer.
    """
    if chunk is None:
        chunk = max(_TILE_ENTRIES // rows, 128)
        chunk = 2 ** (chunk.bit_length() - 1)  # a batch size is most often a multiple of this
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


def for_chunks(step, carry, columns: int, chunk: int):
    """Runs carry = step(carry, start, size) over all columns; the last may be short."""
    whole, rest = divmod(columns, chunk)
    if whole == 1:
        carry = step(carry, 0, chunk)
    else:
        carry = lax.fori_loop(0, whole, lambda i, c: step(c, i * chunk, chunk), carry)
    return step(carry, whole * chunk, rest) if rest else carry


def take(tree, start, size):
    """Entries start ... start + size - 1 of every leaf's first dimension."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), tree)


def put(tree, part, start):
    """The tree with `part` written over its entries from `start` on."""
    return jax.tree.map(lambda x, p: lax.dynamic_update_slice_in_dim(x, p, start, 0), tree, part)
