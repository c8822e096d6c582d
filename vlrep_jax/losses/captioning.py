"""CoCa's captioning loss (arXiv:2205.01917): each token's cross-entropy given those before it.

It is no entry of LOSSES: it compares a text with its own image, never with other pairs. It comes in
two parts, so that logits live no longer than the rows they are of: `token_costs` row by row, where
a model is run in chunks or on one shard's rows, and `captioning` over the global batch.
"""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import global_sum


def token_costs(logits, tokens, *, pad_id: int = 0):
    """The cross-entropy of every row's tokens, summed, and how many there are.

    Args:
      logits: [b, l, v], of any float type; computed in float32.
      tokens: int[b, l], what the logits were to predict.
      pad_id: tokens of this id are padding and not counted.

    Returns:
      (float32[b], float32[b]).

    Raises:
      ValueError: shapes that do not fit.
    """
    if logits.shape[:-1] != tokens.shape or tokens.ndim != 2:
        raise ValueError(
            f"logits {logits.shape} and tokens {tokens.shape} must be [b, l, v] and [b, l]: one "
            "row of logits for each token."
        )
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    counted = tokens != pad_id
    costs = jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0)
    return costs.sum(axis=1), counted.sum(axis=1, dtype=jnp.float32)


def captioning(costs, counts, *, axis_name=None, weights=None):
    """The mean cost of all tokens of the global batch.

    A mean of the shards' means would weigh a token by how much padding its shard has.

    Args:
      costs, counts: float32[b] of `token_costs`; under a mapped axis one shard's rows.
      axis_name, weights: as in `vlrep_jax.losses`; a row of weight 0 is not there at all.

    Returns:
      The mean, float32[], equal on every shard, 0 where there is no token; and as metrics
      `captioning`, the same without gradient.

    Example: for logits that are all equal the value is ln v.
    """
    if weights is not None:
        weights = lax.stop_gradient(weights).astype(jnp.float32)
        costs = jnp.where(weights > 0, costs, 0) * weights
        counts = counts * weights
    total, number = global_sum((costs.sum(), counts.sum()), axis_name)
    value = total / jnp.where(number > 0, number, 1)
    return value, {"captioning": lax.stop_gradient(value)}
