"""Batch normalisation whose running statistics are parameters, and whose batch is the global one.

The statistics stand in the `params` tree beside what they normalise, so that evaluation,
checkpoints, moving averages, sharding and weight files know one collection. Nothing differentiates
them; a train step writes their new values, which training leaves in the collection `RUNNING`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import ones, zeros

RUNNING = "running"
# 'batch': training normalises with the batch's statistics and moves the running ones towards them.
# 'frozen': training does as evaluation does, and leaves the running ones alone.
BATCH_NORMS = ("batch", "frozen")


def alone(total):
    """The sum over the shards of a batch that has only one."""
    return total


class BatchNorm(nn.Module):
    """Normalises each channel of [b, h, w, c], in float32; the result has the module's dtype.

    Attributes:
      kind: of BATCH_NORMS.
      sum_shards: the sum over all shards of the batch, such as `collectives.global_sum` with its
        axis bound. Only training with kind='batch' calls it.
      momentum: share of the new statistics in the running ones (PyTorch's meaning of the word).
      scale_init: 0 lets a residual branch begin as nothing.
      eps, dtype: added to the variance; of the result.
    """

    kind: str = "batch"
    sum_shards: Callable = alone
    momentum: float = 0.1
    eps: float = 1e-5
    scale_init: Callable = ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        if self.kind not in BATCH_NORMS:
            raise ValueError(f"batch_norm={self.kind!r}; known: {', '.join(BATCH_NORMS)}.")
        shape = (x.shape[-1],)
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", zeros, shape)
        mean = jax.lax.stop_gradient(self.param("running_mean", zeros, shape))
        var = jax.lax.stop_gradient(self.param("running_var", ones, shape))
        x = x.astype(jnp.float32)
        if train and self.kind == "batch":
            running, (mean, var, count) = (mean, var), self._of_batch(x)
            # PyTorch normalises with the biased variance and remembers the unbiased one.
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            self._remember("running_mean", running[0], mean)
            self._remember("running_var", running[1], unbiased)
        factor = scale * jax.lax.rsqrt(var + self.eps)
        out = (x - mean[None, None, None]) * factor[None, None, None] + bias[None, None, None]
        return out.astype(self.dtype)

    def _of_batch(self, x):
        """(mean, biased variance, number of values) of each channel over the global batch."""
        shards = self.sum_shards(jnp.float32(1))
        mean = self.sum_shards(x.mean(axis=(0, 1, 2))) / shards
        # A second pass: the mean of squares less the square of the mean cancels in float32.
        squares = jnp.square(x - mean[None, None, None])
        var = self.sum_shards(squares.mean(axis=(0, 1, 2))) / shards
        return mean, var, shards * (x.size // x.shape[-1])

    def _remember(self, name, old, new):
        """Leaves the new running value where the caller collects them, if it does."""
        if self.is_mutable_collection(RUNNING):
            new = jax.lax.stop_gradient(new)
            self.put_variable(RUNNING, name, (1 - self.momentum) * old + self.momentum * new)
