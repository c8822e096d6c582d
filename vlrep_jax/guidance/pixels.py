"""Pictures as a model is shown them, differentiably: what `data.preprocess` does on the host."""

import jax
import jax.numpy as jnp

from vlrep_jax.data.preprocess import Preprocess

_METHODS = {
    "nearest": "nearest",
    "bilinear": "linear",
    "bicubic": "cubic",
    "lanczos": "lanczos3",
}


def squared(images: jax.Array, preprocess: Preprocess, size: int | None = None) -> jax.Array:
    """The square of each picture that a model is shown, before it is normalised.

    Beside `Preprocess` nothing is rounded to a level, and what a bicubic kernel overshoots stays.

    Args:
      images: float[n, h, w, 3] in [0, 1].
      preprocess: of the model.
      size: pixels of a side; by default the model's.

    Returns:
      float[n, size, size, 3].
    """
    size = preprocess.size if size is None else size
    _, height, width, _ = images.shape
    if preprocess.mode == "squash":
        return _resized(images, size, size, preprocess)
    if preprocess.mode == "pad":
        ratio = max(height, width) / size
        inner = [max(round(side / ratio), 1) for side in (height, width)]
        top, left = ((size - side) // 2 for side in inner)
        around = [(0, 0), (top, size - inner[0] - top), (left, size - inner[1] - left), (0, 0)]
        level = preprocess.fill / 255
        return jnp.pad(_resized(images, *inner, preprocess), around, constant_values=level)
    target = size * max(preprocess.short_side, preprocess.size) / preprocess.size
    short = min(height, width)
    height, width = (int(target * side / short) for side in (height, width))
    half = round if preprocess.center == "round" else int
    top, left = (half((side - size) / 2) for side in (height, width))
    return _resized(images, height, width, preprocess)[:, top : top + size, left : left + size]


def _resized(images, height, width, preprocess):
    shape = (len(images), height, width, 3)
    return jax.image.resize(images, shape, _METHODS[preprocess.interpolation], antialias=True)


def normalized(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Pixels in [0, 1] as the tower takes them."""
    mean, std = (jnp.asarray(x, images.dtype) for x in (preprocess.mean, preprocess.std))
    return (images - mean.reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3)


@jax.custom_vjp
def clamped(x: jax.Array) -> jax.Array:
    """x clipped to [0, 1], with the gradient of values outside that would come back in.

    A plain clip has no gradient there, so a pixel that was once driven out would never return.
    """
    return jnp.clip(x, 0, 1)


def _clamped_forward(x):
    return jnp.clip(x, 0, 1), x


def _clamped_backward(x, gradient):
    # Descent moves against the gradient.
    leaves = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
    return (jnp.where(leaves, 0, gradient),)


clamped.defvjp(_clamped_forward, _clamped_backward)
