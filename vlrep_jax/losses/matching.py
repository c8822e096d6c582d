"""Image-text matching (ALBEF, arXiv:2107.07651): are an image and a text, read together, a pair?

It is no entry of LOSSES: what judges a pair is a part of the model that has to run between drawing
the pairs and the loss. `draw_negatives` gives every pair two that only look like one, `matching` is
the cross-entropy of the judgements. Both are over the global batch.

The negatives of an image are drawn as its similarities' softmax says, q(text | image). The logit
that tells pairs from such negatives best is log p(text | image) - log q(text | image), up to a
constant of the image: what the two together tell beyond their similarity. So `scale * similarity +
logit` ranks texts by p, and an untrained logit leaves the order of the similarities.
"""

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import fetch_rows, first_row, gather_batch, global_sum
from vlrep_jax.losses.pairs import as_scalar, is_logit, logits_by_kind, make_pairs

# Entries of the largest tile of similarities and noise that a draw looks at, 16 MiB in float32.
_TILE_ENTRIES = 2**22


def draw_negatives(
    image, text, scale, key, *, every=1, axis_name=None, pair_ids=None, weights=None
):
    """Draws for every image a text, and for every text an image, from all that are no pair of it.

    With the probability of the softmax of scale * similarity over the global batch; never a row of
    equal `pair_ids`, never one of weight 0. Nothing of it has a gradient but the tokens.

    Args:
      image: (embeddings [b, d] as in `vlrep_jax.losses`, tokens: a tree of arrays [b, ...]).
      text: the same of texts; row i of each is a pair.
      scale: float32[], as in `vlrep_jax.losses`.
      key: of the draw; a row's depends on it and on the row's place in the global batch alone.
      every: draws for the rows 0, every, 2 * every, ... alone; divides b.
      axis_name, pair_ids, weights: as in `vlrep_jax.losses`.

    Returns:
      (tokens of the text drawn for each image, tokens of the image drawn for each text, is_drawn
      bool[b / every, 2]). Where the batch holds no negative the tokens are any, and `is_drawn` is
      False.
    """
    (image, image_tokens), (text, text_tokens) = image, text
    image, text = lax.stop_gradient((image, text))
    pairs = make_pairs(image, text, axis_name=axis_name, pair_ids=pair_ids, weights=weights)
    scale = lax.stop_gradient(as_scalar(scale, "scale"))
    texts, labels = pairs.texts(axis_name)
    images = gather_batch(pairs.image, axis_name)
    places = first_row(len(pairs.image), axis_name) + jnp.arange(len(pairs.image))
    sides = (pairs.image, texts), (pairs.text, images)
    draws = []
    for side, (rows, candidates) in enumerate(sides):
        asking = jax.tree.map(lambda x: x[::every], (scale * rows, places, pairs.labels))
        draws.append(_draw(jax.random.fold_in(key, side), asking, candidates, labels))
    (text_of_image, has_text), (image_of_text, has_image) = draws
    return (
        fetch_rows(text_tokens, text_of_image, axis_name),
        fetch_rows(image_tokens, image_of_text, axis_name),
        jnp.stack([has_text, has_image], axis=1),
    )


def _draw(key, asking, candidates, of_candidates):
    """(index int32[n] of one candidate for each of n rows, whether it has any).

    `asking` are the rows, their places in the global batch, and their labels.
    """
    count = len(candidates)

    def draw(item):
        row, place, labels = item
        negative, _ = logits_by_kind(
            row[None], candidates, jax.tree.map(lambda x: x[None], labels), of_candidates
        )
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = jax.random.gumbel(jax.random.fold_in(key, place), (count,))
        chosen = jnp.argmax(negative[0] + noise).astype(jnp.int32)
        return chosen, is_logit(negative[0].max())

    return lax.map(draw, asking, batch_size=max(_TILE_ENTRIES // count, 1))


def matching(logits, is_drawn, *, axis_name=None, weights=None):
    """The mean cross-entropy of all judgements of the global batch: three a row, one is a pair.

    Args:
      logits: [b, 3]: that row i's pair is one, its image with the text drawn for it, its text with
        the image drawn for it.
      is_drawn: bool[b, 2] of `draw_negatives`; what was not drawn is not judged.
      axis_name, weights: as in `vlrep_jax.losses`; a row of weight 0 is not there at all.

    Returns:
      The mean, float32[], equal on every shard, 0 where there is no row; and as metrics, without
      gradient, `matching`, the same, and `matching_accuracy`, the share of right judgements (a
      logit of 0 is none).

    Raises:
      ValueError: shapes that do not fit.

    Example: for logits that are all 0 the value is ln 2.
    """
    if logits.ndim != 2 or logits.shape[1] != 3 or is_drawn.shape != (len(logits), 2):
        raise ValueError(
            f"logits {logits.shape} and is_drawn {is_drawn.shape} must be [b, 3] and [b, 2]: the "
            "judgements of a pair and of the two drawn for it."
        )
    # How far each judgement is on its right side.
    margins = logits.astype(jnp.float32) * jnp.array([[1.0, -1.0, -1.0]])
    judged = jnp.concatenate([jnp.ones_like(is_drawn[:, :1]), is_drawn], axis=1)
    counts = judged.astype(jnp.float32)
    if weights is not None:
        weights = lax.stop_gradient(weights).astype(jnp.float32)[:, None]
        judged &= weights > 0
        counts *= weights
    # Chosen before they are weighed: absent rows may hold anything, NaN included.
    margins = jnp.where(judged, margins, 0)
    costs, hits = (jnp.sum(counts * x) for x in (jax.nn.softplus(-margins), margins > 0))
    costs, hits, number = global_sum((costs, hits, counts.sum()), axis_name)
    number = jnp.where(number > 0, number, 1)
    value = costs / number
    metrics = {"matching": value, "matching_accuracy": hits / number}
    return value, lax.stop_gradient(metrics)
