"""SigLIP's pairwise sigmoid loss over the global batch."""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.losses.pairs import (
    add_bias,
    gather_pairs,
    hits,
    per_weight,
    scaled_similarity,
    without_absent,
)


def sigmoid(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None):
    """Pairwise sigmoid loss: -sum_ij log_sigmoid(z_ij * logit_ij) / B.

    SigLIP's loss (arXiv:2303.15343, algorithm 1):
    logit = scale * <image, text> + bias, z = 1 for positives and -1 otherwise; the sum over all
    B x B pairs is divided by B, not B^2. With `weights` term (i, j) weighs (w_i + w_j) / 2 if both
    are present, else 0, and the sum is divided by the sum of weights.
    Arguments, result and errors as in `vlrep_jax.losses`; `bias` is required.
    """
    if bias is None:
        raise ValueError("sigmoid needs a bias, got None: create the model with a logit bias.")
    pairs = gather_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    similarity = scaled_similarity(pairs.image, pairs.all_text, scale)
    logits = add_bias(similarity, bias)
    costs = jax.nn.softplus(jnp.where(pairs.is_positive, -logits, logits))
    value = per_weight(jnp.sum(_term_weights(pairs) * costs, axis=1), pairs, axis_name)

    # One direction covers the whole matrix for the loss; the other is for the metrics alone.
    to_text, to_image = lax.stop_gradient(
        (similarity, scaled_similarity(pairs.text, pairs.all_image, scale))
    )
    metrics = {
        "image_to_text_accuracy": pairs.weights * hits(without_absent(to_text, pairs), pairs),
        "text_to_image_accuracy": pairs.weights * hits(without_absent(to_image, pairs), pairs),
    }
    return value, per_weight(metrics, pairs, axis_name)


def _term_weights(pairs):
    """float32[b, B]: (w_i + w_j) / 2 where pairs i and j are both present, else 0."""
    rows, columns = pairs.weights[:, None], pairs.all_weights[None, :]
    return jnp.where((rows > 0) & (columns > 0), (rows + columns) / 2, 0)
