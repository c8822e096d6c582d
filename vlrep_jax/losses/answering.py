"""The loss of answers to questions, each answer judged alone (arXiv:1708.02711, section 3.6).

In two parts, as in `captioning.py`: `answer_costs` row by row, `answering` over the global batch.
"""

import jax
import jax.numpy as jnp

from vlrep_jax.losses.pairs import weighted_mean


def answer_costs(logits, scores):
    """The cross-entropy of every row's answers, summed, and the score of the likeliest.

    Args:
      logits: [b, n], of any float type; computed in float32.
      scores: float32[b, n] in [0, 1], what each answer would get; several may be right.

    Returns:
      (float32[b], float32[b]).

    Raises:
      ValueError: shapes that do not fit.
    """
    if logits.ndim != 2 or logits.shape != scores.shape:
        raise ValueError(f"logits {logits.shape} and scores {scores.shape} must both be [b, n].")
    logits = logits.astype(jnp.float32)
    costs = jnp.sum(jax.nn.softplus(logits) - scores * logits, axis=1)
    chosen = jnp.take_along_axis(scores, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    return costs, chosen


def answering(costs, scores, *, axis_name=None, weights=None):
    """The mean over the global batch.

    Args:
      costs, scores: float32[b] of `answer_costs`; under a mapped axis one shard's rows.
      axis_name, weights: as in `vlrep_jax.losses`; a row of weight 0 is not there at all.

    Returns:
      The mean cost, float32[], equal on every shard, and as a metric `answer_score`, the mean score
      of the likeliest answers.

    Example: for n logits that are all 0 the value is n ln 2.
    """
    if weights is not None:
        weights = jax.lax.stop_gradient(weights).astype(jnp.float32)
        costs, scores = (jnp.where(weights > 0, x, 0) for x in (costs, scores))
    value, score = weighted_mean((costs, scores), weights, axis_name)
    return value, {"answer_score": jax.lax.stop_gradient(score)}
