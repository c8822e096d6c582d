"""A dual encoder with a generator of pictures from its text embeddings, and what judges those.

The towers are a trained model's and stay as they are; generator and discriminator train against
each other (`adversarial.py`). Pictures here are float32[b, s, s, 3] in [0, 1], not normalised.
"""

import jax.numpy as jnp
from flax import linen as nn

from vlrep_jax.models.dual_encoder import DualEncoder
from vlrep_jax.models.transformer import l2_normalize

_SLOPE = 0.2  # of leaky ReLUs, as in DCGAN (arXiv:1511.06434)


class ConvGenerator(nn.Module):
    """Noise [b, noise_dim] and text embeddings [b, d] -> pictures float32[b, s, s, 3] in [0, 1].

    A map of image_size / 2^(number of widths) pixels a side is doubled behind each width. Noise and
    text scale and shift each layer, as in BigGAN (arXiv:1809.11096).

    Attributes:
      image_size: a multiple of 2^(number of widths).
      widths: channels from the smallest map on.
      noise_dim: of the noise.
      style_dim: of the mixture of noise and text.
    """

    image_size: int = 48
    widths: tuple[int, ...] = (256, 128, 64, 32)
    noise_dim: int = 32
    style_dim: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, noise, text):
        side, rest = divmod(self.image_size, 1 << len(self.widths))
        if rest or not side:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {1 << len(self.widths)}: each "
                f"of {len(self.widths)} widths doubles it."
            )
        dense = lambda features, name: nn.Dense(features, dtype=self.dtype, name=name)  # noqa: E731
        # Of unit length a text's entries are small beside those of noise.
        inputs = jnp.concatenate([noise, text * text.shape[-1] ** 0.5], axis=-1)
        style = nn.leaky_relu(dense(self.style_dim, "style_0")(inputs), _SLOPE)
        style = nn.leaky_relu(dense(self.style_dim, "style_1")(style), _SLOPE)
        x = dense(side * side * self.widths[0], "first")(style)
        x = x.reshape(-1, side, side, self.widths[0])
        for i, width in enumerate(self.widths):
            x = x + self._conv(f"conv_{i}", width)(self._styled(x, style, f"style_of_{i}"))
            if i + 1 < len(self.widths):
                # Before it is doubled, where a convolution costs a quarter.
                x = self._conv(f"narrow_{i}", self.widths[i + 1])(nn.leaky_relu(x, _SLOPE))
                x = _doubled(x)
        x = nn.leaky_relu(nn.LayerNorm(dtype=self.dtype, name="ln")(x), _SLOPE)
        x = self._conv("to_pixels", 3)(_doubled(x))
        return nn.sigmoid(x.astype(jnp.float32))

    def _conv(self, name, width):
        return nn.Conv(width, (3, 3), dtype=self.dtype, name=name)

    def _styled(self, x, style, name):
        """A normalised map, scaled and shifted by the style, behind its nonlinearity."""
        norm = nn.LayerNorm(dtype=self.dtype, use_bias=False, use_scale=False)
        scale_shift = nn.Dense(2 * x.shape[-1], dtype=self.dtype, name=name)(style)
        scale, shift = jnp.split(scale_shift[:, None, None], 2, axis=-1)
        return nn.leaky_relu(norm(x) * (1 + scale) + shift, _SLOPE)


def _doubled(x):
    """Each pixel of a map four times; channels rearranged into pixels would leave a grid."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ConvDiscriminator(nn.Module):
    """How real pictures look, and how well they fit texts: [b, s, s, 3], [..., b, d] -> [..., b].

    A projection discriminator (arXiv:1802.05637): a score of the picture alone plus a product of
    its features with the text. No layer normalises over the batch, so that rows stay independent.

    Attributes:
      image_size, widths: the mirror of `ConvGenerator`'s, from the largest map on.
    """

    image_size: int = 48
    widths: tuple[int, ...] = (32, 64, 128, 256)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, text):
        b, side = len(images), self.image_size // 2
        x = (2 * images - 1).astype(self.dtype).reshape(b, side, 2, side, 2, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, side, side, 12)
        conv = lambda name, width: nn.Conv(width, (3, 3), dtype=self.dtype, name=name)  # noqa: E731
        for i, width in enumerate(self.widths):
            x = nn.leaky_relu(conv(f"conv_{i}", width)(x), _SLOPE)
            if i + 1 < len(self.widths):
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x + conv("last", self.widths[-1])(x)
        x = nn.leaky_relu(x, _SLOPE).reshape(b, -1)
        x = nn.leaky_relu(nn.Dense(self.widths[-1], dtype=self.dtype, name="features")(x), _SLOPE)
        x = x.astype(jnp.float32)
        alone = nn.Dense(1, name="alone")(x)[:, 0]
        query = l2_normalize(nn.Dense(text.shape[-1], name="query")(x))
        fit = self.param("fit", nn.initializers.constant(5.0), ())
        # A row alone, or one for each of several texts.
        alone = jnp.broadcast_to(alone, text.shape[:-1])
        return alone + fit * jnp.einsum("bd,...bd->...b", query, text)


class TextToImage(DualEncoder):
    """A dual encoder that also draws what its text embeddings say.

    Attributes:
      image, text, scale_init, bias_init: as in `DualEncoder`.
      generator, discriminator: modules called as generator(noise, text embeddings) and
        discriminator(pictures, text embeddings).

    Raises:
      ValueError: from `init`, where their pictures are of another size than the image tower's.
    """

    generator: nn.Module = None
    discriminator: nn.Module = None

    def draw(self, noise, text):
        """Noise float32[b, n], L2-normalised texts [b, d] -> float32[b, s, s, 3] in [0, 1]."""
        return self.generator(noise, text)

    def judge(self, images, text):
        """Scores [..., b] of pictures in [0, 1] for texts [..., b, d]; real and fitting is high."""
        return self.discriminator(images, text)

    def __call__(self, images, tokens, *, train=False):
        out = super().__call__(images, tokens, train=train)
        if self.is_initializing():
            for part in (self.generator, self.discriminator):
                if part.image_size != self.image.image_size:
                    raise ValueError(
                        f"{type(part).__name__} has image_size={part.image_size}, but pictures are "
                        f"made at the image tower's {self.image.image_size}: set it to the same."
                    )
            noise = jnp.zeros((len(tokens), self.generator.noise_dim))
            self.judge(self.draw(noise, out.text), out.text)
        return out
