"""Spikes of the loss: how far a loss stands above the ones before it, unmoved by earlier spikes.

Pure functions of a window of losses that the train state holds, so that the compiled step decides:
all devices and processes alike, without a wait, and the same again when a run is continued.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

POLICIES = ("off", "warn", "skip", "rollback")
_MAD_OF_NORMAL = 0.6745  # median absolute deviation of a normal distribution of deviation 1
_LEAST_SCALE = 1e-3  # of the median: where losses hardly differ, rounding is no spike


def empty(size: int) -> jax.Array:
    """float32[size], a window before the first loss: NaN where there is none yet."""
    return jnp.full(size, jnp.nan, jnp.float32)


def robust_z(loss: jax.Array, window: jax.Array) -> jax.Array:
    """float32[]: how many deviations a loss lies above a window's median; NaN until it is full.

    The deviation is that of a normal distribution with the window's median absolute deviation,
    which takes half of the window to be moved far (Iglewicz and Hoaglin, 1993), and at least a
    thousandth of the median.
    """
    median = jnp.median(window)
    scale = jnp.median(jnp.abs(window - median)) / _MAD_OF_NORMAL
    return (loss - median) / jnp.maximum(scale, _LEAST_SCALE * jnp.abs(median))


def appended(window: jax.Array, loss: jax.Array) -> jax.Array:
    """The window with a loss behind the newest, and without its oldest."""
    return jnp.concatenate([window[1:], loss.astype(jnp.float32)[None]])


def saved(window: jax.Array) -> list[float]:
    """The losses of a window, the oldest first, as JSON has them."""
    values = np.asarray(jax.device_get(window))
    return [float(value) for value in values[np.isfinite(values)]]


def restored(losses: Sequence[float], like: jax.ShapeDtypeStruct) -> jax.Array:
    """A window of the newest of some losses, laid out as `like` says."""
    window = np.full(like.shape, np.nan, like.dtype)
    newest = np.asarray(losses[-window.size :], like.dtype)
    window[window.size - newest.size :] = newest
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: window[index])
