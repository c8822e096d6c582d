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

  chunk: columns of the similarity matrix computed at a time, any positive integer; None leaves the
    choice to the loss. It changes memory and speed only. The `_matrix` forms have none.

Returns:
  value: float32[], the loss of the **global** batch, equal on every shard.
  metrics: float32[] each, of the global batch, equal on every shard, without gradient:
    `image_to_text_accuracy` and `text_to_image_accuracy`, the (weighted) share of rows that have a
    positive more similar than every negative (a tie is a miss, so a collapsed model has 0), and
    what the loss adds.

Gradients: outside `shard_map`, `jax.grad` is the gradient of the value. Inside a mapped axis,
average the gradients of replicated parameters over it (`collectives.global_mean`). First
derivatives in reverse mode only, but for the `_matrix` forms: the others' are written by hand.

Forms of one loss, equal in value, gradient and metrics:
  softmax, sigmoid: texts are gathered once, one product serves both directions, and a b x B matrix
    never exists. Memory for B texts of d features: 4 B d bytes. The fast form on many devices. If
    `axis_name` is a tuple, texts are gathered along its first axis and images along the others:
    on r x c shards that is B / c texts and B / r images instead of B texts.
  softmax_ring, sigmoid_ring: texts travel from shard to shard. Memory for b rows, whatever B is;
    slower where b is small.
  softmax_matrix, sigmoid_matrix: as the definition reads, with whole matrices; the reference.

Precision: everything is float32, but matrix products run at JAX's default precision: float32 on
CPU, TF32 on most GPUs, one bfloat16 pass with float32 sums on TPU. There a logit errs by up to
2^-8 of the scale; `jax.default_matmul_precision("float32")` buys more by slower products.
Logits of unique positives are float32 sums everywhere.

Beside them stand losses of what a model makes of one pair at a time: CoCa's of captions in
`captioning`, image-text matching in `matching`, and that of answers to questions in `answering`.

Raises:
  ValueError: shapes or dtypes that do not fit, a chunk that is no size, or a bias missing where
    the loss needs one.
"""

from vlrep_jax.losses.answering import answer_costs, answering
from vlrep_jax.losses.captioning import captioning, token_costs
from vlrep_jax.losses.matching import draw_negatives, matching
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
    "answer_costs",
    "answering",
    "captioning",
    "clip_article",
    "draw_negatives",
    "matching",
    "sigmoid",
    "sigmoid_matrix",
    "sigmoid_ring",
    "softmax",
    "softmax_matrix",
    "softmax_ring",
    "token_costs",
    "vild",
]
