"""Losses over image-text pairs, all with one contract.

    loss(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None)
        -> (value, metrics)

Args:
  image, text: L2-normalised [b, d], float32 or bfloat16 (computed in float32); row i of each is a
    pair. Under a mapped axis these are one shard's rows, and b is equal on every shard.
  scale: float32[], multiplies the cosine similarity (already exponentiated).
  bias: float32[] added to the logits, or None. Only `sigmoid` uses it; it cancels in a softmax.
  axis_name: mapped axis (or tuple of axes) that splits the batch; None if the batch is whole.
  pair_ids: int32[b]; rows of the global batch with equal id are the same pair, so each is a
    positive, never a negative, of the others. None: every row is a pair of its own.
  weights: float32[b], >= 0, without gradient. A pair of weight 0 is not there at all, neither as
    row nor as anyone's negative, whatever its rows hold; another weight scales the pair's terms.

Returns:
  value: float32[], the loss of the **global** batch, equal on every shard.
  metrics: float32[] each, of the global batch, equal on every shard, without gradient:
    `image_to_text_accuracy` and `text_to_image_accuracy`, the (weighted) share of rows whose most
    similar column is a positive, and what the loss adds.

Gradients: outside `shard_map`, `jax.grad` is the gradient of the value. Inside a mapped axis,
average the gradients of replicated parameters over it (`collectives.global_mean`).

Raises:
  ValueError: shapes or dtypes that do not fit, or a bias missing where the loss needs one.
"""

from vlrep_jax.losses.matrix import sigmoid_matrix, softmax_matrix
from vlrep_jax.losses.sigmoid import sigmoid, sigmoid_ring
from vlrep_jax.losses.softmax import clip_article, softmax, softmax_ring
from vlrep_jax.losses.vild import vild

LOSSES = {
    "softmax": softmax,
    "softmax_ring": softmax_ring,
    "softmax_matrix": softmax_matrix,
    "sigmoid": sigmoid,
    "sigmoid_ring": sigmoid_ring,
    "sigmoid_matrix": sigmoid_matrix,
    "vild": vild,
    "clip_article": clip_article,
}

__all__ = [
    "LOSSES",
    "clip_article",
    "sigmoid",
    "sigmoid_matrix",
    "sigmoid_ring",
    "softmax",
    "softmax_matrix",
    "softmax_ring",
    "vild",
]
