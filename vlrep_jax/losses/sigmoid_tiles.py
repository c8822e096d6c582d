"""Sums of pairwise sigmoid costs over a similarity matrix that is never whole, and their VJP.

One product a pass, a tile at a time. Columns are all on this shard, or travel around the ring of
shards.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import round_trip, vary_like
from vlrep_jax.losses.chunks import for_chunks, put, take
from vlrep_jax.losses.maxima import no_maxima
from vlrep_jax.losses.pairs import logits_by_kind


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def cost_sums(rows, columns, bias, of_rows, of_columns, unique, chunk, ring):
    """Returns the cost of every row, and the largest logits for the metrics.

    Args:
      rows: float32[b, d].
      columns: float32[c, d]; logits are <row, column> + bias.
      bias: float32[], typed as varying like the rows (see `vary_like`).
      of_rows, of_columns: their `Labels`.
      unique: every row has one positive, which the caller adds: only negatives are summed.
      chunk: columns a tile.
      ring: the mapped axis around which columns travel; None if these are all.

    Returns:
      (costs float32[b], (Maxima of rows, of columns)). Those of rows are over all columns; those
      of columns over this shard's rows, or over all shards' in a ring. Maxima are without the bias
      and carry no gradient.
    """
    return _forward(rows, columns, bias, of_rows, of_columns, unique, chunk, ring)[0]


def _forward(rows, columns, bias, of_rows, of_columns, unique, chunk, ring):
    def step(kept, travelling):
        def tile(carry, start, size):
            costs, seen_rows, seen_columns = carry
            part, labels, seen = take((columns, of_columns, seen_columns), start, size)
            negative, positive = logits_by_kind(rows, part, of_rows, labels)
            terms = _softplus(negative + bias)
            if not unique:
                terms += _softplus(_opposite(positive, bias))
            terms = _weighted(terms, of_rows, labels)
            return (
                costs + jnp.sum(terms, axis=1),
                seen_rows.seeing(negative, positive, axis=1),
                put(seen_columns, seen.seeing(negative, positive, axis=0), start),
            )

        columns, of_columns, seen_columns = travelling
        *kept, seen_columns = for_chunks(tile, (*kept, seen_columns), len(columns), chunk)
        return tuple(kept), (columns, of_columns, seen_columns)

    costs, seen_rows, seen_columns = vary_like(
        (
            jnp.zeros(len(rows), jnp.float32),
            no_maxima(len(rows), with_positive=True),
            no_maxima(len(columns), with_positive=not unique),
        ),
        (rows, columns),
    )
    travelling = (columns, of_columns, seen_columns)
    (costs, seen_rows), (*_, seen_columns) = round_trip(step, (costs, seen_rows), travelling, ring)
    return (costs, (seen_rows, seen_columns)), (rows, columns, bias, of_rows, of_columns)


def _backward(unique, chunk, ring, residuals, cotangents):
    rows, columns, bias, of_rows, of_columns = residuals
    cotangent, _ = cotangents

    def step(kept, travelling):
        def tile(carry, start, size):
            # The gradient of a chunk takes the place of the chunk: one [c, d] instead of two.
            row_gradient, by_bias, columns = carry
            part, labels = take((columns, of_columns), start, size)
            negative, positive = logits_by_kind(rows, part, of_rows, labels)
            by_logit = lax.logistic(negative + bias)
            if not unique:
                by_logit -= lax.logistic(_opposite(positive, bias))
            by_logit = _weighted(by_logit, of_rows, labels) * cotangent[:, None]
            by_bias += jnp.sum(by_logit, axis=1)
            row_gradient += jnp.dot(by_logit, part, preferred_element_type=jnp.float32)
            part_gradient = jnp.dot(by_logit.T, rows, preferred_element_type=jnp.float32)
            return row_gradient, by_bias, put(columns, part_gradient, start)

        columns, of_columns, gradient = travelling
        *kept, share = for_chunks(tile, (*kept, columns), len(columns), chunk)
        gradient = share if gradient is None else gradient + share
        return tuple(kept), (columns, of_columns, gradient)

    gradient = None if ring is None else jnp.zeros_like(columns)
    *zeros, gradient = vary_like(
        (jnp.zeros_like(rows), jnp.zeros(len(rows), jnp.float32), gradient), (rows, columns)
    )
    travelling = (columns, of_columns, gradient)
    (row_gradient, by_bias), (*_, gradient) = round_trip(step, tuple(zeros), travelling, ring)
    return row_gradient, gradient, jnp.sum(by_bias), None, None


cost_sums.defvjp(_forward, _backward)


def _softplus(x):
    """log(1 + exp(x)), accurate where it is small."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _opposite(positive, bias):
    """-(logit + bias) of positives; elsewhere as low as their logits are."""
    return jnp.where(positive > -1e29, -(positive + bias), positive)


def _weighted(terms, of_rows, of_columns):
    """Each term by the mean weight of its two pairs."""
    if of_rows.weights is None:
        return terms
    return terms * ((of_rows.weights[:, None] + of_columns.weights[None, :]) / 2)
