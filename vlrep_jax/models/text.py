"""The text transformer of CLIP (causal, pooled at end of text) and of SigLIP (bidirectional)."""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal

from vlrep_jax.models.transformer import Tower, projection


class TextTransformer(Tower):
    """Text transformer: token ids int32[b, context_length] -> features [b, embed_dim].

    Attributes:
      vocab_size, context_length: number of token ids, and of positions.
      width, depth, heads and so on: see `Tower`.
      embed_dim: width of the output, by a linear map; None is the pooled width, unmapped.
      projection_bias: a bias in that map (SigLIP).
      causal: each position sees only earlier ones (CLIP).
      pool: 'eot', the end-of-text token, which has the largest id (CLIP), or 'last', the last
        position (SigLIP). Padding carries no mask: behind a causal 'eot' it is never seen, and
        SigLIP was trained with it in view.

    Raises:
      ValueError: ids that are not int[b, context_length], an unknown pool.
    """

    vocab_size: int = 49_408
    context_length: int = 77
    width: int = 512
    heads: int = 8
    embed_dim: int | None = None
    projection_bias: bool = False
    causal: bool = True
    pool: str = "eot"

    @nn.compact
    def __call__(self, tokens, *, train=False):
        if self.pool not in ("eot", "last"):
            raise ValueError(f"pool={self.pool!r}; known: eot, last.")
        check_tokens(tokens, self.context_length)
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=self.dtype,
            embedding_init=normal(0.02),
            name="token_embedding",
        )
        positions = self.param(
            "positional_embedding", normal(0.01), (self.context_length, self.width)
        )
        x = embed(tokens) + positions.astype(self.dtype)[None]
        x = self.layers()(x, causal=self.causal, train=train)
        if self.pool == "eot":
            x = jnp.take_along_axis(x, tokens.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        else:
            x = x[:, -1]
        x = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln_final")(x)
        if self.embed_dim is not None:
            x = projection(
                self.embed_dim, bias=self.projection_bias, dtype=self.dtype, width=self.width
            )(x)
        return x


def check_tokens(tokens, context_length):
    """Raises ValueError where token ids are not int[b, context_length]."""
    if tokens.ndim != 2 or tokens.shape[1] != context_length:
        raise ValueError(
            f"Token ids have shape {tokens.shape}; this tower expects (batch, {context_length}). "
            "Tokenize with that context_length, or set it in the model."
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"Token ids have dtype {tokens.dtype}; integers are expected.")
