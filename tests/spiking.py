"""A loss that jumps on marked batches: a run of a test learns too little for bad data to do it."""

import jax.numpy as jnp

from vlrep_jax.collectives import global_mean
from vlrep_jax.losses import LOSSES

plain = LOSSES["softmax"]


def marked(batch):
    """The batch with ids that are equal where they were, and negative, which no others are."""
    return batch | {"pair_ids": -1 - batch["pair_ids"]}


def softmax(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None):
    """LOSSES' `softmax`, and 10 more on a marked batch."""
    options = {"pair_ids": pair_ids, "weights": weights, "chunk": chunk}
    value, metrics = plain(image, text, scale, bias, axis_name=axis_name, **options)
    share = global_mean(jnp.mean(pair_ids < 0, dtype=jnp.float32), axis_name)
    return value + 10 * share, metrics
