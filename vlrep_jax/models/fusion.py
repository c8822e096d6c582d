"""Cross-attention of a text over an image on top of two towers (ALBEF, arXiv:2107.07651).

The towers compare every image with every text by a product; the fusion layers read one image and
one text together, token by token, and judge the pair or answer the text, a question. The same
layers write captions where each token sees only those before it (BLIP, arXiv:2201.12086).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal

from vlrep_jax.models.coca import CrossTower
from vlrep_jax.models.dual_encoder import DualEncoder
from vlrep_jax.models.transformer import l2_normalize


class TextTokens(NamedTuple):
    """A text as fusion layers read it: tokens [b, l, w] of its ids int32[b, l]."""

    tokens: jax.Array
    ids: jax.Array


class Fused(NamedTuple):
    """`Embeddings`, and what the fusion layers make of each pair.

    logits: float32[b, 1] of a pair, or float32[b, n] of n answers. words: float32[b, l - 1, v] of
    every token but the first, or None.
    """

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    bias: jax.Array | None
    logits: jax.Array
    words: jax.Array | None


class CrossEncoder(CrossTower):
    """Tokens [b, l, width] of a text and [b, n, w] of an image -> [b, l, width].

    Attributes: see `CrossTower`.
    """

    kind = "fusion"
    depth: int = 6

    @nn.compact
    def __call__(self, tokens, image, *, mask=None, causal=False, train=False):
        x = self.cross_layers(tokens, image, mask=mask, causal=causal, train=train)
        return nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln_final")(x)


class FusionEncoder(DualEncoder):
    """A dual encoder, and layers that read an image and a text together.

    Attributes:
      image: a ViT. text: a TextTransformer. scale_init, bias_init: as in `DualEncoder`.
      fusion: called as fusion(text tokens, image tokens, mask=..., causal=bool, train=bool).
      answers: what the head tells apart, texts; empty for a head that judges pairs.
      captions: whether the fusion layers learn to write captions too; the text tower is then
        causal.

    Raises:
      ValueError: from `setup`, where an answer stands twice, or captions of a text tower that sees
        what they are to predict.
    """

    fusion: nn.Module = None
    answers: Sequence[str] = ()
    captions: bool = False

    def __post_init__(self):
        self.answers = tuple(self.answers)  # a list of a config could not be hashed
        super().__post_init__()

    def setup(self):
        super().setup()
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("model.answers holds one of them twice.")
        self.gate = nn.Sequential([nn.LayerNorm(), nn.Dense(self.fusion.width)])
        self.head = nn.Dense(len(self.answers) or 1, kernel_init=normal(0.02))
        if self.captions:
            if not self.text.causal:
                raise ValueError("model.captions needs model.text.causal=True.")
            std = self.fusion.width**-0.5
            self.words = nn.Dense(self.text.vocab_size, use_bias=False, kernel_init=normal(std))

    def image_tokens(self, images, *, train=False):
        """(features float32[b, d], L2-normalised, tokens [b, n, w]) of images."""
        features, tokens = self.image(images, train=train, with_tokens=True)
        return l2_normalize(features), tokens

    def text_tokens(self, tokens, *, train=False):
        """(features float32[b, d], L2-normalised, `TextTokens`) of ids int32[b, l]."""
        features, text = self.text(tokens, train=train, with_tokens=True)
        return l2_normalize(features), TextTokens(text, tokens)

    def fuse(self, image, text: TextTokens, *, train=False):
        """Logits float32[b, 1] that images and texts are pairs, or float32[b, n] of the answers.

        A pair's logit is what the two together tell beyond their similarity, see `losses.matching`.
        """
        seen = text.ids != self.text.pad_id
        x = self.fusion(text.tokens, image, mask=seen[:, None, None], train=train)
        # A text without any token has the mean 0.
        seen = seen[:, :, None].astype(jnp.float32)
        mean = (x.astype(jnp.float32) * seen).sum(axis=1) / jnp.maximum(seen.sum(axis=1), 1)
        # Whether two things agree is a product of them, which attention, a mean of the image's
        # tokens, is slow to learn.
        gate = self.gate(image.astype(jnp.float32).mean(axis=1))
        return self.head(jnp.concatenate([mean, mean * gate], axis=-1))

    def write(self, image, text: TextTokens, *, train=False):
        """Logits float32[b, l - 1, v] of tokens 1 to l - 1 of texts, given those before it."""
        x = self.fusion(text.tokens[:, :-1], image, causal=True, train=train)
        return self.words(x.astype(jnp.float32))

    def judge(self, image, text: TextTokens):
        """What the fusion layers say of pairs, in evaluation.

        Returns:
          float32[b, 1], the logit of `fuse`; or, of a model with captions, float32[b, 2]: that and
          log p(text | image), of all tokens but the first and padding.
        """
        logits = self.fuse(image, text)
        if not self.captions:
            return logits
        log_p = jax.nn.log_softmax(self.write(image, text), axis=-1)
        following = text.ids[:, 1:]
        told = jnp.take_along_axis(log_p, following[:, :, None], axis=2)[:, :, 0]
        told = jnp.where(following != self.text.pad_id, told, 0).sum(axis=1)
        return jnp.stack([logits[:, 0], told], axis=1)

    def answer(self, images, tokens, *, train=False):
        """Logits float32[b, n] of the answers to questions, ids int32[b, l], about images."""
        _, image = self.image_tokens(images, train=train)
        _, text = self.text_tokens(tokens, train=train)
        return self.fuse(image, text, train=train)

    def __call__(self, images, tokens, *, train=False):
        image, image_tokens = self.image_tokens(images, train=train)
        text, text_tokens = self.text_tokens(tokens, train=train)
        logits = self.fuse(image_tokens, text_tokens, train=train)
        words = self.write(image_tokens, text_tokens, train=train) if self.captions else None
        return Fused(image, text, *self.scale_and_bias(), logits, words)
