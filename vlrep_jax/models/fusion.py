"""Cross-attention of a text over an image on top of two towers (ALBEF, arXiv:2107.07651).

The towers compare every image with every text by a product; the fusion layers read one image and
one text together, token by token, and judge the pair or answer the text, a question.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal

from vlrep_jax.models.coca import CoCa, CrossTower
from vlrep_jax.models.transformer import l2_normalize


class TextTokens(NamedTuple):
    """A text as fusion layers read it: tokens [b, l, w], and which are no padding, bool[b, l]."""

    tokens: jax.Array
    seen: jax.Array


class Fused(NamedTuple):
    """`Embeddings`, and the logits float32[b, 1] of a pair or float32[b, n] of n answers."""

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    bias: jax.Array | None
    logits: jax.Array


class CrossEncoder(CrossTower):
    """Tokens of a text and [b, n, w] of an image -> features [b, width], the mean over the text.

    Attributes: see `CrossTower`.
    """

    kind = "fusion"
    depth: int = 6

    @nn.compact
    def __call__(self, text: TextTokens, image, *, train=False):
        mask = text.seen[:, None, None]
        x = self.cross_layers(text.tokens, image, mask=mask, train=train)
        x = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln_final")(x)
        # A text without any token has the mean 0.
        seen = text.seen[:, :, None].astype(x.dtype)
        return (x * seen).sum(axis=1) / jnp.maximum(seen.sum(axis=1), 1)


class FusionEncoder(CoCa):
    """A dual encoder, and layers that read an image and a text together.

    Attributes:
      image: a ViT. text: a TextTransformer. scale_init, bias_init: as in `DualEncoder`.
      fusion: called as fusion(`TextTokens`, image tokens [b, n, w], train=bool) -> [b, width].
      answers: what the head tells apart, texts; empty for a head that judges pairs.
      decoder: of captions, as in `CoCa`, for a text tower that is causal; None for no captions.
      pad_id: token ids that the fusion layers do not look at.

    Raises:
      ValueError: from `setup`, where an answer stands twice.
    """

    fusion: nn.Module = None
    answers: Sequence[str] = ()
    pad_id: int = 0

    def __post_init__(self):
        self.answers = tuple(self.answers)  # a list of a config could not be hashed
        super().__post_init__()

    def setup(self):
        super().setup()
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("model.answers holds one of them twice.")
        self.head = nn.Dense(len(self.answers) or 1, kernel_init=normal(0.02))

    def text_tokens(self, tokens, *, train=False):
        """(features float32[b, d], L2-normalised, `TextTokens`) of ids int32[b, l]."""
        features, text = self.text(tokens, train=train, with_tokens=True)
        return l2_normalize(features), TextTokens(text, tokens != self.pad_id)

    def fuse(self, image, text: TextTokens, *, train=False):
        """Logits float32[b, 1] that images and texts are pairs, or float32[b, n] of the answers.

        A pair's logit is what the two together tell beyond their similarity, see `losses.matching`.
        """
        return self.head(self.fusion(text, image, train=train).astype(jnp.float32))

    def answer(self, images, tokens, *, train=False):
        """Logits float32[b, n] of the answers to questions, ids int32[b, l], about images."""
        _, image = self.image_tokens(images, train=train)
        _, text = self.text_tokens(tokens, train=train)
        return self.fuse(image, text, train=train)

    def __call__(self, images, tokens, *, train=False):
        image, image_tokens = self.image_tokens(images, train=train)
        text, text_tokens = self.text_tokens(tokens, train=train)
        if self.decoder is not None:  # its parameters, where the model is initialised
            self.decoder(text_tokens.tokens[:, :-1], image_tokens, train=train)
        logits = self.fuse(image_tokens, text_tokens, train=train)
        return Fused(image, text, *self.scale_and_bias(), logits)
