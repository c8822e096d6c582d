"""SigLIP's pairwise sigmoid loss over the global batch."""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import global_rows, grid_axes, sum_to_owner, vary_like
from vlrep_jax.losses.chunks import chunk_size
from vlrep_jax.losses.maxima import accuracies, of_own
from vlrep_jax.losses.pairs import as_scalar, make_pairs, per_weight, weighted_mean
from vlrep_jax.losses.sigmoid_tiles import cost_sums


def sigmoid(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None):
    """Pairwise sigmoid loss: -sum_ij log_sigmoid(z_ij * logit_ij) / B.

    SigLIP's loss (arXiv:2303.15343, algorithm 1):
    logit = scale * <image, text> + bias, z = 1 for positives and -1 otherwise; the sum over all
    B x B pairs is divided by B, not B^2. With `weights` term (i, j) weighs (w_i + w_j) / 2 if both
    are present, else 0, and the sum is divided by the sum of weights.
    Arguments, result and errors as in `vlrep_jax.losses`; `bias` is required.
    """
    pairs = make_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    rows, bias = _rows_and_bias(pairs, scale, bias)
    along_columns, along_rows = grid_axes(axis_name)
    images, of_images = pairs.images(scale, along_rows)
    texts, of_texts = pairs.texts(along_columns)
    size = chunk_size(chunk, len(images), len(texts))
    costs, (of_rows, of_columns) = cost_sums(
        images, texts, bias, of_images, of_texts, pairs.unique, size, None
    )
    costs = sum_to_owner(costs, along_rows)
    maxima = of_own(of_rows, len(rows), along_rows), of_own(of_columns, len(rows), along_columns)
    return _of_global_batch(pairs, rows, bias, costs, maxima, axis_name)


def sigmoid_ring(
    image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None
):
    """`sigmoid`, in memory that does not grow with the number of shards: texts travel in a ring.

    Arguments, result and errors as in `vlrep_jax.losses`; `bias` is required.
    """
    pairs = make_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    rows, bias = _rows_and_bias(pairs, scale, bias)
    size = min(chunk_size(chunk, len(rows), global_rows(len(rows), axis_name)), len(rows))
    labels = pairs.labels
    costs, maxima = cost_sums(rows, pairs.text, bias, labels, labels, pairs.unique, size, axis_name)
    return _of_global_batch(pairs, rows, bias, costs, maxima, axis_name)


def _rows_and_bias(pairs, scale, bias):
    if bias is None:
        raise ValueError(
            "A sigmoid loss needs a bias, got None: create the model with a logit bias."
        )
    rows = pairs.scaled(scale)
    return rows, vary_like(as_scalar(bias, "bias"), rows)


def _of_global_batch(pairs, rows, bias, costs, maxima, axis_name):
    """(value, metrics) from what is known of this shard's b rows and columns."""
    weights = pairs.labels.weights
    if pairs.unique:
        # Float32 whatever the product's precision.
        costs_of_positives = jax.nn.softplus(-(jnp.sum(rows * pairs.text, axis=1) + bias))
        costs += costs_of_positives if weights is None else weights * costs_of_positives
    hits = lax.stop_gradient(accuracies(*maxima))
    return per_weight(costs, weights, axis_name), weighted_mean(hits, weights, axis_name)
