"""The ResNet of CLIP (arXiv:2103.00020, section 2.4): three convolutions as its stem, averages in
place of strides, and attention in place of the last average."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal, variance_scaling, zeros

from vlrep_jax.models.batch_norm import BatchNorm, alone
from vlrep_jax.models.transformer import Attention

EXPANSION = 4  # a bottleneck's output is so many times as wide as its inside
FEATURES = 8 * EXPANSION  # the last stage's width over the stem's
SHRINKING = 32  # pixels of the image to a pixel of the last stage

# Bias-free; begins as PyTorch's convolutions do, as the published models' did.
_conv = partial(nn.Conv, use_bias=False, kernel_init=variance_scaling(1 / 3, "fan_in", "uniform"))


class Stem(nn.Module):
    """[b, s, s, 3] -> [b, s / 4, s / 4, width]."""

    width: int
    norm: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        half = self.width // 2
        for i, (width, stride) in enumerate([(half, 2), (half, 1), (self.width, 1)], start=1):
            # The padding of a stride of 2 is written out: 'SAME' would put it all at the far edge.
            conv = _conv(width, (3, 3), stride, padding=1, dtype=self.dtype, name=f"conv_{i}")
            x = jax.nn.relu(self.norm(name=f"bn_{i}")(conv(x), train=train))
        return _halved(x)


class Bottleneck(nn.Module):
    """[b, s, s, c] -> [b, s / stride, s / stride, 4 width]; the average stands for the stride."""

    width: int
    stride: int
    norm: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        conv, out = partial(_conv, dtype=self.dtype), EXPANSION * self.width
        y = conv(self.width, (1, 1), name="conv_1")(x)
        y = jax.nn.relu(self.norm(name="bn_1")(y, train=train))
        y = conv(self.width, (3, 3), padding=1, name="conv_2")(y)
        y = jax.nn.relu(self.norm(name="bn_2")(y, train=train))
        y = _halved(y) if self.stride == 2 else y
        y = conv(out, (1, 1), name="conv_3")(y)
        # From a scale of 0 the block begins as its shortcut.
        y = self.norm(scale_init=zeros, name="bn_3")(y, train=train)
        if self.stride == 2 or x.shape[-1] != out:
            x = _halved(x) if self.stride == 2 else x
            x = conv(out, (1, 1), name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train=train)
        return jax.nn.relu(x + y)


class Stage(nn.Module):
    """Bottlenecks of one width, the first of which may halve the sides."""

    block: Callable
    blocks: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        for i in range(1, self.blocks + 1):
            x = self.block(stride=self.stride if i == 1 else 1, name=f"block_{i}")(x, train)
        return x


class SpatialPool(Attention):
    """Attention of the mean of all pixels over itself and them: [b, s, s, w] -> [b, features]."""

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = x.reshape(x.shape[0], -1, width)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        positions = self.param("positional_embedding", normal(width**-0.5), x.shape[1:])
        x = x + positions.astype(self.dtype)[None]
        return super().__call__(x[:, :1], x)[:, 0]


class ResNet(nn.Module):
    """CLIP's ResNet: images float32[b, image_size, image_size, 3] -> features [b, embed_dim].

    Attributes:
      image_size: pixels, a multiple of 32.
      width: channels after the stem, even; the stages give 4, 8, 16 and 32 times as many.
      depth: number of bottlenecks in each of the four stages.
      heads: of the attention that pools.
      embed_dim: width of the output; None is 32 times the width.
      batch_norm: 'batch' or 'frozen', see `batch_norm.BATCH_NORMS`.
      sum_shards: see `BatchNorm`; set by whoever splits the batch (`models.synchronized`).
      attention: a name in ATTENTIONS, the form in which the pool is computed.
      remat: 'full' keeps only the input of each bottleneck for the backward pass, 'none' all.
      dtype: of the computation; parameters are float32, and batch norm computes in float32.

    Raises:
      ValueError: images of another shape, sizes that do not fit, an unknown batch_norm or remat.
    """

    image_size: int = 224
    width: int = 64
    depth: Sequence[int] = (3, 4, 6, 3)
    heads: int = 32
    embed_dim: int | None = None
    batch_norm: str = "batch"
    sum_shards: Callable = alone
    attention: str = "xla"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train=False):
        self._check(images)
        norm = partial(BatchNorm, self.batch_norm, self.sum_shards, dtype=self.dtype)
        block = Bottleneck
        if self.remat == "full":
            # A block computed again remembers the same running statistics again.
            block = nn.remat(Bottleneck, static_argnums=(2,))
        x = Stem(self.width, norm, self.dtype, name="stem")(images.astype(self.dtype), train)
        for i, blocks in enumerate(self.depth):
            made = partial(block, self.width << i, norm=norm, dtype=self.dtype)
            # The stem has halved the sides for the first stage already.
            x = Stage(made, blocks, 1 if i == 0 else 2, name=f"stage_{i + 1}")(x, train)
        std = x.shape[-1] ** -0.5
        pool = SpatialPool(
            self.heads, (std, std), self.dtype, self.attention, self.embed_dim, name="pool"
        )
        return pool(x)

    def _check(self, images):
        if len(self.depth) != 4 or min(self.depth) < 1:
            raise ValueError(f"depth={self.depth} must be the bottlenecks of four stages.")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width={self.width} must be even and positive.")
        if self.image_size < SHRINKING or self.image_size % SHRINKING:
            raise ValueError(f"image_size={self.image_size} must be a multiple of {SHRINKING}.")
        if self.remat not in ("none", "full"):
            raise ValueError(f"remat={self.remat!r}; a ResNet knows: full, none.")
        expected = (self.image_size, self.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"Images have shape {images.shape}; this tower expects (batch, "
                f"{', '.join(map(str, expected))}). Resize them, or set image_size."
            )


def _halved(x):
    """The average of every 2 x 2 pixels."""
    return nn.avg_pool(x, (2, 2), (2, 2))
