"""Log-sum-exps of every row and column of a similarity matrix that is never whole, and their VJP.

One product gives both directions. It is computed a tile at a time in the forward pass, and once
more in the backward pass.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlrep_jax.losses.chunks import product_gradients, see_tiles, sum_by_product
from vlrep_jax.losses.maxima import Maxima, no_maxima
from vlrep_jax.losses.pairs import is_logit, logits_by_kind


class LogSums(NamedTuple):
    """Float32[n] of rows or of columns; all but `negative` None if positives are unique."""

    negative: jax.Array  # log sum exp of the negatives
    positive: jax.Array | None  # log sum exp of the positives
    positive_total: jax.Array | None  # their sum
    positives: jax.Array | None  # their number, without gradient


class _Sums(NamedTuple):
    """As `LogSums` while running: sums of exp(logit - the maximum so far)."""

    negative: jax.Array
    positive: jax.Array | None
    positive_total: jax.Array | None
    positives: jax.Array | None


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def log_sums(rows, columns, of_rows, of_columns, unique, chunk, ring):
    """Returns what the softmax losses need of the logits <row, column>.

    Args:
      rows: float32[b, d].
      columns: float32[c, d].
      of_rows, of_columns: their `Labels`.
      unique: every row has one positive, which the caller knows: only negatives are summed.
      chunk: columns a tile.
      ring: the mapped axis around which columns travel; None if these are all.

    Returns:
      ((LogSums of rows, of columns), (Maxima of rows, of columns)). Those of rows are over all
      columns; those of columns over this shard's rows, or over all shards' in a ring. Maxima
      carry no gradient.
    """
    return _forward(rows, columns, of_rows, of_columns, unique, chunk, ring)[0]


def _forward(rows, columns, of_rows, of_columns, unique, chunk, ring):
    def see(seen_rows, seen, part, labels):
        kinds = logits_by_kind(rows, part, of_rows, labels)
        return _see(seen_rows, *kinds, axis=1), _see(seen, *kinds, axis=0)

    def nothing(n, with_positive):
        zero = jnp.zeros(n, jnp.float32)
        return no_maxima(n, with_positive=with_positive), _Sums(
            zero, *[None if unique else zero] * 3
        )

    seen = nothing(len(rows), True), nothing(len(columns), not unique)
    seen = see_tiles(see, seen[0], columns, of_columns, seen[1], chunk, ring)
    sums = tuple(_to_log_sums(*of) for of in seen)
    residuals = rows, columns, of_rows, of_columns, sums
    return (sums, tuple(maxima for maxima, _ in seen)), residuals


def _backward(unique, chunk, ring, residuals, cotangents):
    rows, columns, of_rows, of_columns, (row_sums, column_sums) = residuals
    (from_rows, from_columns), _ = cotangents

    def by_logits(part, beside):
        labels, sums, from_part = beside
        negative, positive = logits_by_kind(rows, part, of_rows, labels)
        by_logit = _share(negative, row_sums.negative, from_rows.negative, axis=1)
        by_logit += _share(negative, sums.negative, from_part.negative, axis=0)
        if not unique:
            by_logit += _share(positive, row_sums.positive, from_rows.positive, axis=1)
            by_logit += _share(positive, sums.positive, from_part.positive, axis=0)
            total = from_rows.positive_total[:, None] + from_part.positive_total[None, :]
            by_logit += jnp.where(is_logit(positive), total, 0)
        return by_logit, None

    others = of_columns, column_sums, from_columns
    by_row, by_column, _ = product_gradients(by_logits, rows, columns, others, None, chunk, ring)
    return by_row, by_column, None, None


log_sums.defvjp(_forward, _backward)


def _see(seen, negative, positive, axis):
    """Maxima and sums with another tile's."""
    before, sums = seen
    now = before.seeing(negative, positive, axis=axis)

    def total(sum_, before, now, logits):
        terms = jnp.exp(logits - jnp.expand_dims(now, axis))
        return sum_ * jnp.exp(before - now) + sum_by_product(terms, axis)

    negatives = total(sums.negative, before.negative, now.negative, negative)
    if sums.positive is None:
        return now, _Sums(negatives, None, None, None)
    positives = total(sums.positive, before.positive, now.positive, positive)
    there = is_logit(positive)
    linear = sums.positive_total + jnp.sum(jnp.where(there, positive, 0), axis)
    number = sums.positives + jnp.sum(there, axis, dtype=jnp.float32)
    return now, _Sums(negatives, positives, linear, number)


def _to_log_sums(maxima: Maxima, sums: _Sums) -> LogSums:
    negative = maxima.negative + jnp.log(sums.negative)
    if sums.positive is None:
        return LogSums(negative, None, None, None)
    positive = maxima.positive + jnp.log(sums.positive)
    return LogSums(negative, positive, sums.positive_total, sums.positives)


def _share(logits, log_sum, cotangent, axis):
    """The gradient by logits of log_sum = log sum exp(logits) along `axis`."""
    share = jnp.exp(logits - jnp.expand_dims(log_sum, axis))
    return share * jnp.expand_dims(cotangent, axis)
