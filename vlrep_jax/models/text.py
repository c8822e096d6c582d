"""The text transformer of CLIP (causal, pooled at end of text) and of SigLIP (bidirectional)."""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal

from vlrep_jax.models.transformer import Tower, position_of, projection


class TextTransformer(Tower):
    """Text transformer: token ids int32[b, context_length] -> features [b, embed_dim].

    Attributes:
      vocab_size, context_length: number of token ids, and of positions.
      width, depth, heads and so on: see `Tower`.
      embed_dim: width of the output, by a linear map; None is the pooled width, unmapped.
      projection_bias: a bias in that map (SigLIP).
      causal: each position sees only earlier ones (CLIP).
      pool: 'eot', the end-of-text token, which has the largest id (CLIP); 'eos', the first token
        of id `eos_id`, or the first of all where there is none (Hugging Face's CLIP); 'last', the
        last position (SigLIP); 'cls', a learned token behind all others (CoCa). Padding carries no
        mask but before 'cls': behind a causal 'eot' it is never seen, and SigLIP was trained with
        it in view.
      eos_id, pad_id: of pool='eos', and of pool='cls'.

    With `with_tokens=True` the call returns (features, tokens [b, l, w]), the output of the layers
    at the text's own positions.

    Raises:
      ValueError: ids that are not int[b, context_length], or an unknown pool.
    """

    vocab_size: int = 49_408
    context_length: int = 77
    width: int = 512
    heads: int = 8
    embed_dim: int | None = None
    projection_bias: bool = False
    causal: bool = True
    pool: str = "eot"
    eos_id: int = 49_407
    pad_id: int = 0

    @nn.compact
    def __call__(self, tokens, *, train=False, with_tokens=False):
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}; known: {', '.join(POOLS)}.")
        check_tokens(tokens, self.context_length)
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=self.dtype,
            embedding_init=normal(0.02),
            name="token_embedding",
        )
        added = int(self.pool == "cls")
        positions = self.param(
            "positional_embedding", normal(0.01), (self.context_length + added, self.width)
        )
        x, mask = embed(tokens), None
        if added:
            token = self.param("class_embedding", normal(0.01), (self.width,)).astype(self.dtype)
            token = jnp.broadcast_to(token[None, None], (x.shape[0], 1, self.width))
            x, mask = jnp.concatenate([x, token], axis=1), _class_mask(tokens, self.pad_id)
        x = x + positions.astype(self.dtype)[None]
        at = -1
        if self.pool in ("eot", "eos"):
            is_end = tokens if self.pool == "eot" else tokens == self.eos_id
            at = is_end.argmax(axis=1)
        x = layers = self.layers()(
            x, mask=mask, causal=self.causal, train=train, at=None if with_tokens else at
        )
        x = position_of(x, at)[:, 0] if with_tokens else x[:, 0]
        x = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln_final")(x)
        if self.embed_dim is not None:
            x = projection(
                self.embed_dim, bias=self.projection_bias, dtype=self.dtype, width=self.width
            )(x)
        return (x, layers[:, : tokens.shape[1]]) if with_tokens else x


POOLS = ("eot", "eos", "last", "cls")


def _class_mask(tokens, pad_id):
    """Which of the text's positions and the class token behind them may be seen, bool[b, 1, 1, n].

    One place late: the first padding token is seen, and the class token sees itself only behind a
    text without padding. So open_clip trained the published weights.
    """
    first = jnp.ones_like(tokens[:, :1], bool)
    return jnp.concatenate([first, tokens != pad_id], axis=1)[:, None, None]


def check_tokens(tokens, context_length):
    """Raises ValueError where token ids are not int[b, context_length]."""
    if tokens.ndim != 2 or tokens.shape[1] != context_length:
        raise ValueError(
            f"Token ids have shape {tokens.shape}; this tower expects (batch, {context_length}). "
            "Tokenize with that context_length, or set it in the model."
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"Token ids have dtype {tokens.dtype}; integers are expected.")
