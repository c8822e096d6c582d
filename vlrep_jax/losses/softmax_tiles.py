"""Log-sum-exps of every row and column of a similarity matrix that is never whole, and their VJP.

One product gives both directions. It is computed a tile at a time in the forward pass, and once
more in the backward pass. Columns are all on this shard, or travel around the ring of shards.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlrep_jax.collectives import round_trip, vary_like
from vlrep_jax.losses.chunks import for_chunks, put, take
from vlrep_jax.losses.maxima import Maxima, no_maxima
from vlrep_jax.losses.pairs import logits_by_kind


class LogSums(NamedTuple):
    """Float32[n] of rows or of columns; all but `negative` None if unique."""

    negative: jax.Array  # log sum exp of the negatives
    positive: jax.Array | None  # log sum exp of the positives
    positive_total: jax.Array | None  # their sum
    positives: jax.Array | None  # their number, without gradient


class _Sums(NamedTuple):
    """Running sums that go with running maxima: of exp(logit - maximum), of logits."""

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
    def step(seen_rows, travelling):
        def tile(carry, start, size):
            seen_rows, seen_columns = carry
            part, labels, seen = take((columns, of_columns, seen_columns), start, size)
            kinds = logits_by_kind(rows, part, of_rows, labels)
            return (
                _see(seen_rows, *kinds, axis=1),
                put(seen_columns, _see(seen, *kinds, axis=0), start),
            )

        columns, of_columns, seen_columns = travelling
        carry = (seen_rows, seen_columns)
        seen_rows, seen_columns = for_chunks(tile, carry, len(columns), chunk)
        return seen_rows, (columns, of_columns, seen_columns)

    seen_rows, seen_columns = vary_like(
        (_nothing(len(rows), unique, True), _nothing(len(columns), unique, not unique)),
        (rows, columns),
    )
    travelling = (columns, of_columns, seen_columns)
    seen_rows, (_, _, seen_columns) = round_trip(step, seen_rows, travelling, ring)
    sums = _to_log_sums(*seen_rows), _to_log_sums(*seen_columns)
    residuals = rows, columns, of_rows, of_columns, sums
    return (sums, (seen_rows[0], seen_columns[0])), residuals


def _backward(unique, chunk, ring, residuals, cotangents):
    rows, columns, of_rows, of_columns, (row_sums, column_sums) = residuals
    (from_rows, from_columns), _ = cotangents

    def step(row_gradient, travelling):
        def tile(carry, start, size):
            # The gradient of a chunk takes the place of the chunk: one [c, d] instead of two.
            row_gradient, columns = carry
            part = take(columns, start, size)
            labels, sums, cotangent = take((of_columns, column_sums, from_columns), start, size)
            negative, positive = logits_by_kind(rows, part, of_rows, labels)
            by_logit = _share(negative, row_sums.negative, from_rows.negative, 1)
            by_logit += _share(negative, sums.negative, cotangent.negative, 0)
            if not unique:
                by_logit += _share(positive, row_sums.positive, from_rows.positive, 1)
                by_logit += _share(positive, sums.positive, cotangent.positive, 0)
                total = from_rows.positive_total[:, None] + cotangent.positive_total[None, :]
                by_logit += jnp.where(_counts(positive), total, 0)
            row_gradient += jnp.dot(by_logit, part, preferred_element_type=jnp.float32)
            part_gradient = jnp.dot(by_logit.T, rows, preferred_element_type=jnp.float32)
            return row_gradient, put(columns, part_gradient, start)

        columns, of_columns, column_sums, from_columns, gradient = travelling
        carry = (row_gradient, columns)
        row_gradient, share = for_chunks(tile, carry, len(columns), chunk)
        gradient = share if gradient is None else gradient + share
        return row_gradient, (columns, of_columns, column_sums, from_columns, gradient)

    gradient = None if ring is None else jnp.zeros_like(columns)
    zeros = vary_like((jnp.zeros_like(rows), gradient), (rows, columns))
    travelling = (columns, of_columns, column_sums, from_columns, zeros[1])
    row_gradient, (*_, gradient) = round_trip(step, zeros[0], travelling, ring)
    return row_gradient, gradient, None, None


log_sums.defvjp(_forward, _backward)


def _nothing(n, unique, with_positive):
    """(Maxima, _Sums) before any tile."""
    zero = jnp.zeros(n, jnp.float32)
    sums = _Sums(zero, *[None if unique else zero] * 3)
    return no_maxima(n, with_positive=with_positive), sums


def _see(seen, negative, positive, axis):
    """Maxima and sums with another tile's."""
    before, sums = seen
    now = before.seeing(negative, positive, axis=axis)

    def total(sum_, before, now, logits):
        terms = jnp.exp(logits - jnp.expand_dims(now, axis))
        return sum_ * jnp.exp(before - now) + jnp.sum(terms, axis)

    negatives = total(sums.negative, before.negative, now.negative, negative)
    if sums.positive is None:
        return now, _Sums(negatives, None, None, None)
    positives = total(sums.positive, before.positive, now.positive, positive)
    counts = _counts(positive)
    linear = sums.positive_total + jnp.sum(jnp.where(counts, positive, 0), axis)
    number = sums.positives + jnp.sum(counts, axis, dtype=jnp.float32)
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


def _counts(logits):
    return logits > -1e29
