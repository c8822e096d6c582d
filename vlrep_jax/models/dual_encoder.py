"""Two towers and a logit scale: CLIP and SigLIP as published, and ViLD in the article's reading.

A model maps images float32[b, h, w, 3], already normalised, and token ids int32[b, l] to
`Embeddings`; `encode_image`, `encode_text` and `scale_and_bias` give its parts alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vlrep_jax.models.transformer import l2_normalize


class Embeddings(NamedTuple):
    """What a loss takes: logits are scale * <image, text> + bias.

    image, text: L2-normalised float32[b, d]. scale: float32[], the inverse temperature.
    bias: float32[], or None in a model without one.
    """

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    bias: jax.Array | None


def learned_scale(module, init):
    """The scale exp(logit_scale): learned as a logarithm, so that it stays positive."""
    return jnp.exp(module.param("logit_scale", nn.initializers.constant(np.log(init)), ()))


class DualEncoder(nn.Module):
    """Any image tower and any text tower with a learned scale (arXiv:2103.00020).

    Attributes:
      image, text: modules called as tower(inputs, train=bool) -> features [b, d].
      scale_init: start of the learned scale; CLIP 1 / 0.07, SigLIP 10.
      bias_init: start of the learned bias; None for no bias, SigLIP -10.
    """

    image: nn.Module
    text: nn.Module
    scale_init: float = 1 / 0.07
    bias_init: float | None = None

    def setup(self):
        self.scale = learned_scale(self, self.scale_init)
        self.bias = None
        if self.bias_init is not None:
            self.bias = self.param("logit_bias", nn.initializers.constant(self.bias_init), ())

    def encode_image(self, images, *, train=False):
        """Images float32[b, h, w, 3] -> L2-normalised float32[b, d]."""
        return l2_normalize(self.image(images, train=train))

    def encode_text(self, tokens, *, train=False):
        """Token ids int32[b, l] -> L2-normalised float32[b, d]."""
        return l2_normalize(self.text(tokens, train=train))

    def scale_and_bias(self):
        """(float32[], float32[] or None), as in `Embeddings`."""
        return self.scale, self.bias

    def __call__(self, images, tokens, *, train=False):
        return Embeddings(
            self.encode_image(images, train=train),
            self.encode_text(tokens, train=train),
            *self.scale_and_bias(),
        )


class ViLD(nn.Module):
    """The article's ViLD: a dual tower over pluggable encoders with a fixed temperature.

    The published ViLD (arXiv:2104.13921) is a detector; this is the other reading. The scale is a
    constant, not a parameter.

    Attributes:
      image, text: modules called as tower(inputs, train=bool) -> features [b, d].
      temperature: logits are cosine similarities divided by it.
    """

    image: nn.Module
    text: nn.Module
    temperature: float = 0.07

    def encode_image(self, images, *, train=False):
        """Images float32[b, h, w, 3] -> L2-normalised float32[b, d]."""
        return l2_normalize(self.image(images, train=train))

    def encode_text(self, tokens, *, train=False):
        """Token ids int32[b, l] -> L2-normalised float32[b, d]."""
        return l2_normalize(self.text(tokens, train=train))

    def scale_and_bias(self):
        """(float32[], None), as in `Embeddings`."""
        return jnp.float32(1 / self.temperature), None

    def __call__(self, images, tokens, *, train=False):
        return Embeddings(
            self.encode_image(images, train=train),
            self.encode_text(tokens, train=train),
            *self.scale_and_bias(),
        )
