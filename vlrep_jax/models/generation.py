"""Captions from a CoCa, token by token."""

from functools import partial

import jax
import jax.numpy as jnp


def generate(
    model,
    params,
    images,
    key=None,
    *,
    start_id: int = 49_406,
    end_id: int = 49_407,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
):
    """Writes a caption for every image.

    Shapes are fixed, so that it can be jitted with all but arrays bound. The image is embedded
    once; each token costs a pass over the text's whole length, of which nothing is kept: a caption
    is short. It ends when every caption has.

    Args:
      model: a `CoCa`. params: its parameters.
      images: float32[b, image_size, image_size, 3], already normalised.
      key: of the draws; needed where the temperature is above 0.
      start_id, end_id: the tokens that begin and end a text; the defaults are CLIP's.
      temperature: 0 takes the likeliest token each time. Above 0 tokens are drawn from the softmax
        of logits / temperature.
      top_k: draws only among so many likeliest tokens.
      top_p: draws only among the likeliest tokens that together reach this probability
        (arXiv:1904.09751); after `top_k`, at that temperature.

    Returns:
      int32[b, context_length]: start, caption, end, padding. A caption without an end fills it.

    Raises:
      ValueError: options out of range, a temperature without a key, options of draws without a
        temperature.
    """
    _check(key, temperature, top_k, top_p)
    length, pad_id = model.text.context_length, model.text.pad_id
    apply = partial(model.apply, {"params": params})
    _, image_tokens = apply(images, method="image_tokens")
    tokens = jnp.full((len(images), length), pad_id, jnp.int32).at[:, 0].set(start_id)

    def choose(logits, at):
        if temperature == 0:
            return logits.argmax(axis=-1)
        likely = _likeliest(logits / temperature, top_k, top_p)
        return jax.random.categorical(jax.random.fold_in(key, at), likely)

    def unfinished(carry):
        at, _, done = carry
        return (at < length - 1) & ~done.all()

    def step(carry):
        at, tokens, done = carry
        chosen = choose(apply(image_tokens, tokens, at, method="next_logits"), at)
        chosen = jnp.where(done, pad_id, chosen.astype(jnp.int32))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], at + 1, axis=1)
        return at + 1, tokens, done | (chosen == end_id)

    start = (jnp.int32(0), tokens, jnp.zeros(len(images), bool))
    return jax.lax.while_loop(unfinished, step, start)[1]


def _likeliest(logits, top_k, top_p):
    """The logits [b, v] with -inf where a token is not among the likeliest."""
    ordered = -jnp.sort(-logits, axis=-1)
    if top_k is not None:
        least = ordered[:, min(top_k, logits.shape[-1]) - 1, None]
        logits = jnp.where(logits < least, -jnp.inf, logits)
        ordered = jnp.where(ordered < least, -jnp.inf, ordered)
    if top_p is not None:
        shares = jax.nn.softmax(ordered, axis=-1)
        # A token stays where those before it do not reach the share: the likeliest always does.
        kept = jnp.cumsum(shares, axis=-1) - shares < top_p
        least = jnp.where(kept, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _check(key, temperature, top_k, top_p):
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must not be negative; 0 draws nothing.")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("top_k and top_p choose among draws: set temperature=1.0, or leave both.")
    if temperature > 0 and key is None:
        raise ValueError(f"temperature={temperature} draws tokens: give a key, jax.random.key(0).")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1.")
