"""The losses as their definitions read, with whole b x B matrices: references for the fast forms.

Two gathers, one product for each direction, gradients by differentiation.
"""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import gather_batch
from vlrep_jax.losses.pairs import NO_LOGIT, as_scalar, make_pairs, per_weight, weighted_mean


def softmax_matrix(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None):
    """`softmax`, with matrices. Arguments, result and errors as in `vlrep_jax.losses`."""
    del bias
    pairs, to_text, to_image, is_positive, _ = _matrices(
        image, text, scale, axis_name, pair_ids, weights
    )
    # An absent row may have no positive; its weight of 0 removes it.
    positives = jnp.maximum(jnp.sum(is_positive, axis=1), 1)

    def cross_entropy(logits):
        log_probs = jax.nn.log_softmax(logits, axis=1)
        return -jnp.sum(jnp.where(is_positive, log_probs, 0), axis=1) / positives

    costs = (cross_entropy(to_text) + cross_entropy(to_image)) / 2
    hits = _hits(to_text, to_image, is_positive)
    return weighted_mean((costs, hits), pairs.labels.weights, axis_name)


def sigmoid_matrix(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None):
    """`sigmoid`, with matrices. Arguments, result and errors as in `vlrep_jax.losses`."""
    if bias is None:
        raise ValueError("sigmoid_matrix needs a bias, got None: create the model with one.")
    bias = as_scalar(bias, "bias")
    pairs, to_text, to_image, is_positive, all_weights = _matrices(
        image, text, scale, axis_name, pair_ids, weights
    )
    logits = to_text + bias
    costs = jax.nn.softplus(jnp.where(is_positive, -logits, logits))
    if weights is not None:
        own, others = pairs.labels.weights[:, None], all_weights[None, :]
        costs *= jnp.where((own > 0) & (others > 0), (own + others) / 2, 0)
    value = per_weight(jnp.sum(costs, axis=1), pairs.labels.weights, axis_name)
    hits = _hits(to_text, to_image, is_positive)
    return value, weighted_mean(hits, pairs.labels.weights, axis_name)


def _matrices(image, text, scale, axis_name, pair_ids, weights):
    """(pairs, logits of images [b, B], logits of texts [b, B], is_positive [b, B], weights [B])."""
    pairs = make_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    scale = as_scalar(scale, "scale")
    all_text, all_labels = pairs.texts(axis_name)
    all_image = gather_batch(pairs.image, axis_name)
    is_positive = pairs.labels.ids[:, None] == all_labels.ids[None, :]
    to_text, to_image = scale * (pairs.image @ all_text.T), scale * (pairs.text @ all_image.T)
    if weights is not None:
        present = (all_labels.weights > 0)[None, :]
        is_positive &= present
        to_text, to_image = (jnp.where(present, x, NO_LOGIT) for x in (to_text, to_image))
    return pairs, to_text, to_image, is_positive, all_labels.weights


def _hits(to_text, to_image, is_positive):
    """float32[b] by direction: 1 where a positive is above every negative."""

    def hit(logits):
        positive = jnp.max(jnp.where(is_positive, logits, NO_LOGIT), axis=1)
        negative = jnp.max(jnp.where(is_positive, NO_LOGIT, logits), axis=1)
        return (positive > negative).astype(jnp.float32)

    hits = {"image_to_text_accuracy": hit(to_text), "text_to_image_accuracy": hit(to_image)}
    return lax.stop_gradient(hits)
