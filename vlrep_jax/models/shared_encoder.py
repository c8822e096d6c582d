"""The article's CLIP: one transformer encodes image patches and text tokens alike."""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal

from vlrep_jax.models.dual_encoder import Embeddings, learned_scale
from vlrep_jax.models.text import check_tokens
from vlrep_jax.models.transformer import Tower, l2_normalize, projection
from vlrep_jax.models.vit import PatchEmbedding


class SharedEncoder(Tower):
    """One bidirectional transformer over patches or tokens, told apart by a modality embedding.

    Only the first layer (patches, tokens, their positions) is a modality's own. Features are the
    mean over positions, padding (token id 0) left out and never attended to; the layers, the final
    norm and the projection are shared.

    Attributes:
      image_size, patch_size: pixels. vocab_size, context_length: of the text.
      width, depth, heads and so on: see `Tower`.
      embed_dim: width of the embeddings.
      scale_init: start of the learned scale.
    """

    image_size: int = 224
    patch_size: int = 16
    vocab_size: int = 49_408
    context_length: int = 77
    embed_dim: int = 512
    scale_init: float = 1 / 0.07

    def setup(self):
        if min(self.image_size, self.patch_size) < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}."
            )
        patches = (self.image_size // self.patch_size) ** 2
        self.patch_embedding = PatchEmbedding(self.patch_size, self.width, False, self.dtype)
        self.token_embedding = nn.Embed(
            self.vocab_size, self.width, dtype=self.dtype, embedding_init=normal(0.02)
        )
        position = normal(0.01)
        self.image_positions = self.param("image_positions", position, (patches, self.width))
        self.text_positions = self.param(
            "text_positions", position, (self.context_length, self.width)
        )
        self.modality_embedding = self.param("modality_embedding", position, (2, self.width))
        self.transformer = self.layers(name=None)
        self.ln_final = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype)
        self.projection = projection(self.embed_dim, dtype=self.dtype, width=self.width, name=None)
        self.scale = learned_scale(self, self.scale_init)

    def _encode(self, x, modality, present, train):
        """Features of the tokens x [b, n, w] whose mask `present` is bool[b, n]."""
        x = x + self.modality_embedding[modality].astype(self.dtype)[None, None]
        x = self.transformer(x, mask=present[:, None, None], train=train)
        x = self.ln_final(x).astype(jnp.float32)
        weights = present.astype(jnp.float32)[..., None]
        mean = (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
        return l2_normalize(self.projection(mean))

    def encode_image(self, images, *, train=False):
        """Images float32[b, h, w, 3] -> L2-normalised float32[b, d]."""
        expected = (self.image_size, self.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"Images have shape {images.shape}; (batch, *{expected}) is expected.")
        x = self.patch_embedding(images) + self.image_positions.astype(self.dtype)[None]
        return self._encode(x, 0, jnp.ones(x.shape[:2], bool), train)

    def encode_text(self, tokens, *, train=False):
        """Token ids int32[b, l] -> L2-normalised float32[b, d]."""
        check_tokens(tokens, self.context_length)
        x = self.token_embedding(tokens) + self.text_positions.astype(self.dtype)[None]
        # Padding is the tail of zeros: in some vocabularies 0 is a token too. The first position
        # counts as one, so that a row is never all padding (softmax of nothing).
        present = jnp.cumsum((jnp.asarray(tokens) != 0)[:, ::-1], axis=1)[:, ::-1] > 0
        present = present | (jnp.arange(self.context_length) == 0)[None]
        return self._encode(x, 1, present, train)

    def scale_and_bias(self):
        """(float32[], None), as in `Embeddings`."""
        return self.scale, None

    def __call__(self, images, tokens, *, train=False):
        return Embeddings(
            self.encode_image(images, train=train),
            self.encode_text(tokens, train=train),
            *self.scale_and_bias(),
        )
