"""What every loss needs of the global batch: its rows, which are positives, sums over it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import first_row, gather_batch, global_sum

# Stands for -inf on absent columns: exp() of it is 0, and a row of nothing else makes no NaN.
_ABSENT_LOGIT = -1e30


class Pairs(NamedTuple):
    """A shard's b rows beside all B rows of the global batch; embeddings of absent pairs are 0."""

    image: jax.Array  # float32[b, d]
    text: jax.Array  # float32[b, d]
    all_image: jax.Array  # float32[B, d]
    all_text: jax.Array  # float32[B, d]
    is_positive: jax.Array  # bool[b, B], in either direction; False on absent columns
    weights: jax.Array  # float32[b]
    all_weights: jax.Array  # float32[B]


def gather_pairs(image, text, *, axis_name, pair_ids, weights) -> Pairs:
    """Checks a loss's arguments and gathers the global batch (see `vlrep_jax.losses`)."""
    _check_rows(image, text, pair_ids, weights)
    rows = image.shape[0]
    if pair_ids is None:
        pair_ids = first_row(rows, axis_name) + jnp.arange(rows)
    weights = jnp.ones(rows) if weights is None else lax.stop_gradient(weights)
    weights = weights.astype(jnp.float32)
    # Absent rows may hold anything, NaN included. The cast comes before the gather so that the
    # gradients of gathered bfloat16 rows are summed over the shards in float32.
    present = (weights > 0)[:, None]
    image = jnp.where(present, image.astype(jnp.float32), 0)
    text = jnp.where(present, text.astype(jnp.float32), 0)
    all_ids = gather_batch(pair_ids, axis_name)
    all_weights = gather_batch(weights, axis_name)
    return Pairs(
        image=image,
        text=text,
        all_image=gather_batch(image, axis_name),
        all_text=gather_batch(text, axis_name),
        is_positive=(pair_ids[:, None] == all_ids[None, :]) & (all_weights > 0)[None, :],
        weights=weights,
        all_weights=all_weights,
    )


def scaled_similarity(rows, columns, scale):
    """Returns scale * <row, column>, float32[b, B]. Precision: `jax_default_matmul_precision`."""
    return _scalar(scale, "scale") * (rows @ columns.T)


def add_bias(logits, bias):
    """Returns logits + bias."""
    return logits + _scalar(bias, "bias")


def without_absent(logits, pairs: Pairs):
    """Returns the logits with absent columns too low to count in a softmax or to be the largest."""
    return jnp.where((pairs.all_weights > 0)[None, :], logits, _ABSENT_LOGIT)


def hits(logits, pairs: Pairs):
    """Returns float32[b]: 1 where the row's largest logit is a positive's."""
    best = jnp.argmax(logits, axis=1, keepdims=True)
    return jnp.take_along_axis(pairs.is_positive, best, axis=1)[:, 0].astype(jnp.float32)


def per_weight(rows, pairs: Pairs, axis_name):
    """Sums every float32[b] leaf of `rows` over the global batch and divides by the sum of weights.

    Without any weight the sums, which are then 0, come back as they are.
    """
    sums = jax.tree.map(jnp.sum, rows)
    sums, total = global_sum((sums, jnp.sum(pairs.weights)), axis_name)
    total = jnp.where(total > 0, total, 1)
    return jax.tree.map(lambda x: x / total, sums)


def _scalar(x, name):
    """float32[] from a scalar of any kind."""
    if jnp.shape(x) != ():
        raise ValueError(
            f"{name} must be a scalar, not of shape {jnp.shape(x)}; index or reshape it."
        )
    return jnp.asarray(x, jnp.float32)


def _check_rows(image, text, pair_ids, weights):
    """Raises ValueError on arguments whose shapes or dtypes do not fit."""
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image {image.shape} and text {text.shape} must have one shape [batch, features]: "
            "row i of each is a pair."
        )
    for name, x in (("pair_ids", pair_ids), ("weights", weights)):
        if x is not None and x.shape != image.shape[:1]:
            raise ValueError(
                f"{name} {x.shape} must be {image.shape[:1]}: one for each of the "
                f"{image.shape[0]} pairs of this shard."
            )
    if pair_ids is not None and not jnp.issubdtype(pair_ids.dtype, jnp.integer):
        raise ValueError(
            f"pair_ids must be integers, not {pair_ids.dtype}: rounding could merge two pairs."
        )
