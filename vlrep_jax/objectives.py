"""A model and a loss as one function of the parameters, which a train step differentiates."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vlrep_jax.rules import match_rules

Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def normalizer(mean: Sequence[float], std: Sequence[float]) -> Callable:
    """Pixels to what a tower takes: uint8[..., 3] -> float32[..., 3], (x / 255 - mean) / std.

    It runs on the device: bytes are a quarter of what float32 pixels cost to send. Images that are
    float32 already count as normalised and pass.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

    def normalize(images):
        if images.dtype != jnp.uint8:
            return images
        shape = (1,) * (images.ndim - 1) + (3,)
        return (images.astype(jnp.float32) / 255 - mean.reshape(shape)) / std.reshape(shape)

    return normalize


def contrastive(model, loss: Callable, normalize: Callable = lambda images: images) -> Objective:
    """The contrastive objective of a two-sided model.

    Args:
      model: `model.apply` gives `Embeddings`.
      loss: an entry of LOSSES with its axis bound, or as an island made by `per_shard`.
      normalize: applied to `batch['image']` first.

    Returns:
      objective(params, batch, key) -> (value, metrics). The batch holds `image`, `text` and, where
      there are any, `pair_ids` and `weights`, which the loss is given by name.
    """

    def objective(params, batch, key):
        embeddings = model.apply(
            {"params": params},
            normalize(batch["image"]),
            batch["text"],
            train=True,
            rngs={"dropout": key},
        )
        named = {name: batch[name] for name in ("pair_ids", "weights") if name in batch}
        value, metrics = loss(*embeddings, **named)
        return value, {"loss": value, "logit_scale": embeddings.scale, **metrics}

    return objective


def freeze(objective: Objective, rules: Sequence[str]) -> Objective:
    """The objective with no gradient to the parameters whose path matches one of the patterns.

    The backward pass of a frozen tower is then never computed; the optimizer has to leave the same
    parameters alone (`make_optimizer(freeze=...)`).
    """
    if not rules:
        return objective

    def frozen(params, batch, key):
        stopped = match_rules([(rule, True) for rule in rules], params, False)
        params = jax.tree.map(
            lambda leaf, stop: jax.lax.stop_gradient(leaf) if stop else leaf, params, stopped
        )
        return objective(params, batch, key)

    return frozen
