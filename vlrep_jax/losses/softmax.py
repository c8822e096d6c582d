"""Softmax losses over the global batch: CLIP's symmetric InfoNCE, and the article's sum."""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import global_max, global_rows, grid_axes, own_rows, sum_to_owner
from vlrep_jax.losses.chunks import chunk_size
from vlrep_jax.losses.maxima import accuracies, of_own
from vlrep_jax.losses.pairs import make_pairs, weighted_mean
from vlrep_jax.losses.softmax_tiles import LogSums, log_sums


def softmax(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None):
    """Symmetric InfoNCE: the mean of the image-to-text and text-to-image cross-entropies.

    CLIP's loss (arXiv:2103.00020, figure 3). With `pair_ids` the target of a row is uniform over
    its positives (UniCL, arXiv:2204.03610). `bias` is ignored: it cancels.
    Arguments, result and errors as in `vlrep_jax.losses`.

    Example: for B pairs at scale 0 the value is ln B.
    """
    del bias
    value, metrics = cross_entropy(
        image, text, scale, axis_name=axis_name, pair_ids=pair_ids, weights=weights, chunk=chunk
    )
    return value / 2, metrics


def softmax_ring(
    image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None
):
    """`softmax`, in memory that does not grow with the number of shards: texts travel in a ring.

    Arguments, result and errors as in `vlrep_jax.losses`.
    """
    del bias
    pairs = make_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    rows = pairs.scaled(scale)
    size = min(chunk_size(chunk, len(rows), global_rows(len(rows), axis_name)), len(rows))
    labels = pairs.labels
    sums, maxima = log_sums(rows, pairs.text, labels, labels, pairs.unique, size, axis_name)
    value, metrics = _of_global_batch(pairs, rows, sums, maxima, axis_name)
    return value / 2, metrics


def clip_article(
    image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None
):
    """Contrastive loss + cross-entropy "that predicts the probability of a pair".

    The reading of CLIP in which both terms come from the same similarity matrix: the contrastive
    one averages the two directions and the cross-entropy sums them, so the value is 3x `softmax`.
    Arguments, result and errors as in `vlrep_jax.losses`; the metrics add the two terms,
    `contrastive` and `cross_entropy`.
    """
    del bias
    value, metrics = cross_entropy(
        image, text, scale, axis_name=axis_name, pair_ids=pair_ids, weights=weights, chunk=chunk
    )
    terms = {"contrastive": value / 2, "cross_entropy": value}
    return sum(terms.values()), metrics | lax.stop_gradient(terms)


def cross_entropy(image, text, scale, *, axis_name, pair_ids, weights, chunk):
    """Returns (the sum of the two directions' global cross-entropies, metrics)."""
    pairs = make_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    along_columns, along_rows = grid_axes(axis_name)
    images, of_images = pairs.images(scale, along_rows)
    texts, of_texts = pairs.texts(along_columns)
    size = chunk_size(chunk, len(images), len(texts))
    sums, maxima = log_sums(images, texts, of_images, of_texts, pairs.unique, size, None)
    rows = len(image)
    own = [
        (_of_own(*of, rows, axis), of_own(of[1], rows, axis))
        for *of, axis in zip(sums, maxima, (along_rows, along_columns), strict=True)
    ]
    return _of_global_batch(pairs, pairs.scaled(scale), *zip(*own, strict=True), axis_name)


def _of_own(sums: LogSums, maxima, rows, axis_name):
    """From each shard's share in the sums of all rows along an axis to the sums of its own."""

    def log_sum(share, maximum):
        # Over real maxima: exp(share - scale) would underflow where no row is near the column.
        maximum = global_max(maximum, axis_name)
        total = sum_to_owner(jnp.exp(share - maximum), axis_name)
        return own_rows(maximum, rows, axis_name) + jnp.log(total)

    negative = log_sum(sums.negative, maxima.negative)
    if sums.positive is None:
        return LogSums(negative, None, None, None)
    positive = log_sum(sums.positive, maxima.positive)
    total, number = (sum_to_owner(x, axis_name) for x in (sums.positive_total, sums.positives))
    return LogSums(negative, positive, total, number)


def _of_global_batch(pairs, rows, sums, maxima, axis_name):
    """(sum of both directions' cross-entropies, metrics) from what is known of b rows, columns."""
    row_sums, column_sums = sums
    if pairs.unique:
        # Float32 whatever the product's precision, and exact to the last bit near convergence.
        logit = jnp.sum(rows * pairs.text, axis=1)
        costs = sum(jax.nn.softplus(one.negative - logit) for one in sums)
    else:
        # Rows and columns of one id have one number of positives; absent ones have none.
        number = jnp.maximum(row_sums.positives, 1)
        costs = sum(
            jax.nn.softplus(one.negative - one.positive)
            + one.positive
            - one.positive_total / number
            for one in (row_sums, column_sums)
        )
    hits = lax.stop_gradient(accuracies(*maxima))
    return weighted_mean((costs, hits), pairs.labels.weights, axis_name)
