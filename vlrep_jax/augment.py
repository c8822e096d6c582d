"""Random changes of pictures that keep their meaning, differentiable and on the device, in jnp.

Guidance looks at a picture through them, so that no single pixel can please a model, and a GAN's
discriminator so that it cannot learn a small data set by heart. `data/transforms.py` has those of
training pictures, on the host.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def random_views(
    key: jax.Array,
    images: jax.Array,
    size: int,
    *,
    zoom: Sequence[float] = (0.8, 1.25),
    shift: float = 0.08,
    shear: float = 0.12,
    ground: float = 1.0,
) -> jax.Array:
    """Each picture zoomed, moved and slanted by an amount of its own, antialiased.

    Args:
      images: float[n, s, s, 3].
      size: pixels of a side of the result.
      zoom: range of the factor of size, drawn evenly in its logarithm; 1 shows all of a picture.
      shift: largest move along each axis, as a share of the side.
      shear: largest slant along each axis, in pixels a pixel; both together are a small turn.
      ground: level of what comes in from outside.

    Returns:
      float[n, size, size, 3].
    """
    keys = jax.random.split(key, 3)
    count, low, high = len(images), jnp.log(zoom[0]), jnp.log(zoom[1])
    factor = jnp.exp(jax.random.uniform(keys[0], (count,), minval=low, maxval=high))
    offset = jax.random.uniform(keys[1], (count, 2), minval=-shift, maxval=shift) * size
    slant = jax.random.uniform(keys[2], (count, 2), minval=-shear, maxval=shear)
    scale = factor * size / images.shape[1]

    def view(image, scale, offset, slant):
        # Around the ground's level what lies outside is 0, which is what the sampler takes it for.
        corner = (size - scale * images.shape[1]) / 2 + offset
        seen = jax.image.scale_and_translate(
            image - ground, (size, size, 3), (0, 1), scale[None].repeat(2), corner, "linear"
        )
        seen = _slanted(_slanted(seen, slant[0]).swapaxes(0, 1), slant[1]).swapaxes(0, 1)
        return seen + ground

    return jax.vmap(view)(images, scale, offset, slant)


def _slanted(image, slant):
    """Rows [h, w, c] moved by `slant` pixels a row about the middle, by linear interpolation."""
    height, width = image.shape[:2]
    move = slant * (jnp.arange(height) - (height - 1) / 2)
    at = jnp.arange(width)
    distance = jnp.abs(at[None, :, None] - move[:, None, None] - at[None, None, :])
    return jnp.einsum("yxj,yjc->yxc", jnp.maximum(1 - distance, 0).astype(image.dtype), image)


def random_blur(key: jax.Array, images: jax.Array, most: float) -> jax.Array:
    """Each picture blurred by a Gaussian of its own width, of 0 to `most` pixels; edges stay."""
    width = jax.random.uniform(key, (len(images),), maxval=most)
    # A Gaussian much narrower than a pixel is none.
    variance = jnp.maximum(width, 1e-2)[:, None, None] ** 2

    def kernel(side):
        at = jnp.arange(side, dtype=images.dtype)
        weights = jnp.exp(-((at[:, None] - at[None, :]) ** 2)[None] / (2 * variance))
        return weights / weights.sum(-1, keepdims=True)

    rows, columns = (kernel(side) for side in images.shape[1:3])
    return jnp.einsum("nyi,nxj,nijc->nyxc", rows, columns, images)


def random_colour(
    key: jax.Array, images: jax.Array, brightness: float, contrast: float
) -> jax.Array:
    """Brightness moved by up to +-, contrast about mid-grey scaled by up to 1 +-, each picture."""
    keys = jax.random.split(key)
    shape = (len(images), 1, 1, 1)
    moved = jax.random.uniform(keys[0], shape, minval=-brightness, maxval=brightness)
    scaled = jax.random.uniform(keys[1], shape, minval=1 - contrast, maxval=1 + contrast)
    return 0.5 + scaled * (images - 0.5) + moved


def random_cut(key: jax.Array, images: jax.Array, share: float, ground: float = 1.0) -> jax.Array:
    """A square of `share` of the side of each picture, anywhere in it, levelled to the ground."""
    height, width = images.shape[1:3]
    at = jax.random.uniform(key, (len(images), 2, 1))
    side = share * height

    def inside(length, begin):
        place = jnp.arange(length)[None]
        return (place >= begin) & (place < begin + side)

    rows = inside(height, at[:, 0] * height - side / 2)
    columns = inside(width, at[:, 1] * width - side / 2)
    cut = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(cut, jnp.asarray(ground, images.dtype), images)
