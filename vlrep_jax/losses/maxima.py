"""Accuracies without a matrix: the largest negative and positive logit of every row and column."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlrep_jax.collectives import global_max, own_rows
from vlrep_jax.losses.pairs import NO_LOGIT


class Maxima(NamedTuple):
    """The largest logits seen so far, float32[n] of rows or of columns."""

    negative: jax.Array
    positive: jax.Array | None  # None on columns if pairs are unique: it is the row's

    def seeing(self, negative, positive, *, axis):
        """These and another tile's, whose logits of either kind are reduced along `axis`."""
        if self.positive is None:
            return Maxima(jnp.maximum(self.negative, jnp.max(negative, axis)), None)
        return Maxima(
            jnp.maximum(self.negative, jnp.max(negative, axis)),
            jnp.maximum(self.positive, jnp.max(positive, axis)),
        )


def no_maxima(n: int, *, with_positive: bool) -> Maxima:
    """Of n rows or columns before any tile."""
    nothing = jnp.full(n, NO_LOGIT, jnp.float32)
    return Maxima(nothing, nothing if with_positive else None)


def of_own(maxima: Maxima, rows: int, axis_name) -> Maxima:
    """From each shard's maxima of all shards' rows along an axis to those of this shard's own."""
    everywhere = jax.tree.map(lambda x: global_max(x, axis_name), maxima)
    return jax.tree.map(lambda x: own_rows(x, rows, axis_name), everywhere)


def accuracies(of_rows: Maxima, of_columns: Maxima):
    """float32[b] by direction: 1 where a positive is above every negative; a tie is a miss."""
    of_texts = of_rows.positive if of_columns.positive is None else of_columns.positive
    return {
        "image_to_text_accuracy": (of_rows.positive > of_rows.negative).astype(jnp.float32),
        "text_to_image_accuracy": (of_texts > of_columns.negative).astype(jnp.float32),
    }
