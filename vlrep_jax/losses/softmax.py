"""Softmax losses over the global batch: CLIP's symmetric InfoNCE, and the article's sum."""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.losses.pairs import (
    gather_pairs,
    hits,
    per_weight,
    scaled_similarity,
    without_absent,
)


def softmax(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None):
    """Symmetric InfoNCE: the mean of the image-to-text and text-to-image cross-entropies.

    CLIP's loss (arXiv:2103.00020, figure 3). With `pair_ids` the target of a row is uniform over
    its positives (UniCL, arXiv:2204.03610). `bias` is ignored: it cancels.
    Arguments, result and errors as in `vlrep_jax.losses`.

    Example: for B pairs at scale 0 the value is ln B.
    """
    del bias
    by_direction, metrics = cross_entropies(
        image, text, scale, axis_name=axis_name, pair_ids=pair_ids, weights=weights
    )
    return sum(by_direction) / 2, metrics


def clip_article(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None):
    """Contrastive loss + cross-entropy "that predicts the probability of a pair".

    The reading of CLIP in which both terms come from the same similarity matrix: the contrastive
    one averages the two directions and the cross-entropy sums them, so the value is 3x `softmax`.
    Arguments, result and errors as in `vlrep_jax.losses`; the metrics add the two terms,
    `contrastive` and `cross_entropy`.
    """
    del bias
    by_direction, metrics = cross_entropies(
        image, text, scale, axis_name=axis_name, pair_ids=pair_ids, weights=weights
    )
    cross_entropy = sum(by_direction)
    terms = {"contrastive": cross_entropy / 2, "cross_entropy": cross_entropy}
    return sum(terms.values()), metrics | lax.stop_gradient(terms)


def cross_entropies(image, text, scale, *, axis_name, pair_ids, weights):
    """Returns the global ((image-to-text, text-to-image) cross-entropies, metrics)."""
    pairs = gather_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    to_text = without_absent(scaled_similarity(pairs.image, pairs.all_text, scale), pairs)
    to_image = without_absent(scaled_similarity(pairs.text, pairs.all_image, scale), pairs)
    rows = {
        "losses": (_cross_entropy(to_text, pairs), _cross_entropy(to_image, pairs)),
        "metrics": {
            "image_to_text_accuracy": hits(to_text, pairs),
            "text_to_image_accuracy": hits(to_image, pairs),
        },
    }
    means = per_weight(jax.tree.map(lambda x: pairs.weights * x, rows), pairs, axis_name)
    return means["losses"], means["metrics"]


def _cross_entropy(logits, pairs):
    """float32[b]: each row against the uniform distribution over its positives."""
    log_probs = jax.nn.log_softmax(logits, axis=1)
    # An absent row may have no positive; its weight of 0 removes it.
    positives = jnp.maximum(jnp.sum(pairs.is_positive, axis=1), 1)
    return -jnp.sum(jnp.where(pairs.is_positive, log_probs, 0), axis=1) / positives
