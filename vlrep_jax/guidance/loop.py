"""`guide`: gradient descent on a generator's latent, so that what it decodes to meets a target."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from vlrep_jax.guidance.generators import Generator
from vlrep_jax.guidance.targets import Target


class Guided(NamedTuple):
    """latent: where descent ended. images: float32[n, h, w, 3] in [0, 1] that it decodes to.
    metrics: name -> float32[steps, n], before each step."""

    latent: Any
    images: np.ndarray
    metrics: dict[str, np.ndarray]


def guide(
    generator: Generator,
    latent,
    target: Target,
    *,
    key: jax.Array,
    steps: int = 200,
    on_step: Callable | None = None,
) -> Guided:
    """Descends from a latent by Adam, with a learning rate that falls to 0 as a cosine.

    >>> guides = Guide([weights.load("runs/quickstart")])
    >>> generator = GENERATORS["laplacian"](48, 48)
    >>> texts = ["a red heart"] * 4
    >>> latent = generator.init(jax.random.key(0), texts)
    >>> target = guides.toward(texts)
    >>> guide(generator, latent, target, key=jax.random.key(1)).images

    Args:
      generator: an entry of GENERATORS made, or your own.
      latent: as `generator.init` gives it, or any other that it decodes.
      target: of a `Guide`, or your own; pictures do not depend on each other.
      key: of the views; the result is a function of the arguments.
      steps: of descent.
      on_step: (step, images, metrics) of what each step began with; arrays are on the device.

    Raises:
      ValueError: steps below 1.
      FloatingPointError: the loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    state, history = (latent, _adam(generator.rate, steps).init(latent)), []
    options = {"decode": generator.decode, "loss": target.loss, "rate": generator.rate}
    arrays = (generator.arrays, target.arrays)
    for step in range(steps):
        state, images, metrics = _step(state, arrays, key, step, steps=steps, **options)
        history.append(metrics)
        if on_step is not None:
            on_step(step, images, metrics)
    images = decoded(generator, state[0])
    metrics = {name: np.stack([m[name] for m in jax.device_get(history)]) for name in metrics}
    if not np.isfinite(metrics["loss"]).all():
        raise FloatingPointError("The loss is not finite; is the model, or the rate too high?")
    return Guided(state[0], images, metrics)


def _adam(rate, steps):
    return optax.adam(optax.cosine_decay_schedule(rate, steps), b1=0.9, b2=0.99)


@partial(jax.jit, static_argnames=("decode", "loss", "rate", "steps"))
def _step(state, arrays, key, step, *, decode, loss, rate, steps):
    """One step of descent: new state, and the pictures and metrics before it."""
    latent, opt_state = state

    def value(latent):
        images = decode(arrays[0], latent)
        losses, metrics = loss(arrays[1], images, jax.random.fold_in(key, step))
        # A sum, so that a picture's path does not depend on how many there are beside it.
        return losses.sum(), (images, {"loss": losses, **metrics})

    grads, (images, metrics) = jax.grad(value, has_aux=True)(latent)
    updates, opt_state = _adam(rate, steps).update(grads, opt_state, latent)
    return (optax.apply_updates(latent, updates), opt_state), images, metrics


def decoded(generator: Generator, latent) -> np.ndarray:
    """float32[n, h, w, 3] in [0, 1]."""
    return np.asarray(_decode(generator.decode, generator.arrays, latent))


_decode = jax.jit(lambda decode, arrays, latent: decode(arrays, latent), static_argnums=0)
