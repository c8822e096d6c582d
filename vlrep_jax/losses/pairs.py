"""What every loss needs of a shard's pairs: checks, labels, positives, means over the batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vlrep_jax.collectives import first_row, gather_batch, global_sum, vary_like

# Stands for -inf where a logit does not count: exp() of it is 0, and nothing else makes no NaN.
NO_LOGIT = -1e30


class Labels(NamedTuple):
    """Which rows are positives of which columns, and which are there at all."""

    ids: jax.Array  # int32[n]; equal ids are positives
    weights: jax.Array | None  # float32[n]; None: 1 each


class Pairs(NamedTuple):
    """A shard's b pairs; embeddings of absent pairs are 0."""

    image: jax.Array  # float32[b, d]
    text: jax.Array  # float32[b, d]
    labels: Labels  # of b
    unique: bool  # every row has one positive, the other half of its pair

    def texts(self, axis_name) -> tuple[jax.Array, Labels]:
        """The texts float32[c, d] of all shards along an axis, and their labels."""
        return self._gathered(self.text, axis_name)

    def images(self, scale, axis_name) -> tuple[jax.Array, Labels]:
        """scale * the images float32[r, d] of all shards along an axis, and their labels."""
        return self._gathered(self.scaled(scale), axis_name)

    def scaled(self, scale) -> jax.Array:
        """scale * the images, float32[b, d]."""
        return as_scalar(scale, "scale") * self.image

    def _gathered(self, rows, axis_name):
        gather = lambda x: gather_batch(x, axis_name)  # noqa: E731
        return gather(rows), jax.tree.map(gather, self.labels)


def make_pairs(image, text, *, axis_name, pair_ids, weights) -> Pairs:
    """Checks a loss's arguments (see `vlrep_jax.losses`)."""
    _check_rows(image, text, pair_ids, weights)
    rows = image.shape[0]
    ids = first_row(rows, axis_name) + jnp.arange(rows) if pair_ids is None else pair_ids
    # The cast comes first so that gradients of gathered bfloat16 rows are summed in float32.
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    if weights is not None:
        weights = lax.stop_gradient(weights).astype(jnp.float32)
        # Absent rows may hold anything, NaN included.
        present = (weights > 0)[:, None]
        image, text = jnp.where(present, image, 0), jnp.where(present, text, 0)
    labels = vary_like(Labels(jnp.asarray(ids), weights), image)
    return Pairs(image, vary_like(text, image), labels, unique=pair_ids is None)


def logits_by_kind(rows, columns, of_rows: Labels, of_columns: Labels):
    """Logits [r, c] of negatives and of positives, each NO_LOGIT where the entry is not one."""
    logits = lax.dot_general(
        rows, columns, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    is_positive = of_rows.ids[:, None] == of_columns.ids[None, :]
    negative = jnp.where(is_positive, NO_LOGIT, logits)
    positive = jnp.where(is_positive, logits, NO_LOGIT)
    if of_rows.weights is not None:
        present = (of_rows.weights > 0)[:, None] & (of_columns.weights > 0)[None, :]
        negative = jnp.where(present, negative, NO_LOGIT)
        positive = jnp.where(present, positive, NO_LOGIT)
    return negative, positive


def is_logit(x):
    """Where an entry made by `logits_by_kind` is a logit."""
    return x > NO_LOGIT / 2


def as_scalar(x, name):
    """float32[] from a scalar of any kind."""
    if jnp.shape(x) != ():
        raise ValueError(
            f"{name} must be a scalar, not of shape {jnp.shape(x)}; index or reshape it."
        )
    return jnp.asarray(x, jnp.float32)


def weighted_mean(rows, weights, axis_name):
    """The mean over the global batch of every float32[b] leaf of `rows`; without any weight, 0."""
    if weights is not None:
        rows = jax.tree.map(lambda x: weights * x, rows)
    return per_weight(rows, weights, axis_name)


def per_weight(rows, weights, axis_name):
    """Sums every float32[b] leaf of `rows` over the global batch and divides by the sum of weights.

    Without any weight the sums, which are then 0, come back as they are.
    """
    if weights is None:
        weights = jnp.ones_like(jax.tree.leaves(rows)[0])
    sums, total = global_sum(jax.tree.map(jnp.sum, (rows, weights)), axis_name)
    total = jnp.where(total > 0, total, 1)
    return jax.tree.map(lambda x: x / total, sums)


def _check_rows(image, text, pair_ids, weights):
    """Raises ValueError on arguments whose shapes or dtypes do not fit."""
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image {image.shape} and text {text.shape} must have one shape [batch, features]: "
            "row i of each is a pair."
        )
    for name, x in (("pair_ids", pair_ids), ("weights", weights)):
        if x is not None and x.shape != image.shape[:1]:
            raise ValueError(
                f"{name} {x.shape} must be {image.shape[:1]}: one for each of the "
                f"{image.shape[0]} pairs of this shard."
            )
    if pair_ids is not None and not jnp.issubdtype(pair_ids.dtype, jnp.integer):
        raise ValueError(
            f"pair_ids must be integers, not {pair_ids.dtype}: rounding could merge two pairs."
        )
