"""Sums of pairwise sigmoid costs over a similarity matrix that is never whole, and their VJP.

One product a pass, a tile at a time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.losses.chunks import product_gradients, see_tiles, sum_by_product
from vlrep_jax.losses.maxima import no_maxima
from vlrep_jax.losses.pairs import is_logit, logits_by_kind


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
    def see(seen_rows, seen, part, labels):
        costs, maxima = seen_rows
        negative, positive = logits_by_kind(rows, part, of_rows, labels)
        terms = _softplus(negative + bias)
        if not unique:
            terms += _softplus(_opposite(positive, bias))
        costs += sum_by_product(_weighted(terms, of_rows, labels), axis=1)
        maxima = maxima.seeing(negative, positive, axis=1)
        return (costs, maxima), seen.seeing(negative, positive, axis=0)

    nothing = jnp.zeros(len(rows), jnp.float32), no_maxima(len(rows), with_positive=True)
    seen = no_maxima(len(columns), with_positive=not unique)
    (costs, of), seen = see_tiles(see, nothing, columns, of_columns, seen, chunk, ring)
    # The backward pass writes over the columns, and needs nothing from here: begun before this pass
    # has ended, it would need a copy of them.
    columns, costs = lax.optimization_barrier((columns, costs))
    return (costs, (of, seen)), (rows, columns, bias, of_rows, of_columns)


def _backward(unique, chunk, ring, residuals, cotangents):
    rows, columns, bias, of_rows, of_columns = residuals
    from_costs, _ = cotangents

    def by_logits(part, labels):
        negative, positive = logits_by_kind(rows, part, of_rows, labels)
        by_logit = lax.logistic(negative + bias)
        if not unique:
            by_logit -= lax.logistic(_opposite(positive, bias))
        by_logit = _weighted(by_logit, of_rows, labels) * from_costs[:, None]
        return by_logit, sum_by_product(by_logit, axis=1)

    zeros = jnp.zeros(len(rows), jnp.float32)
    by_row, by_column, by_bias = product_gradients(
        by_logits, rows, columns, of_columns, zeros, chunk, ring
    )
    return by_row, by_column, jnp.sum(by_bias), None, None


cost_sums.defvjp(_forward, _backward)


def _softplus(x):
    """log(1 + exp(x)), accurate where it is small."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _opposite(positive, bias):
    """-(logit + bias) of positives; elsewhere as low as their logits are."""
    return jnp.where(is_logit(positive), -(positive + bias), positive)


def _weighted(terms, of_rows, of_columns):
    """Each term by the mean weight of its two pairs."""
    if of_rows.weights is None:
        return terms
    return terms * ((of_rows.weights[:, None] + of_columns.weights[None, :]) / 2)
