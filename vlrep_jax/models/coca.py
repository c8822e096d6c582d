"""CoCa (arXiv:2205.01917): two towers as CLIP's, and a decoder that writes captions."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal

from vlrep_jax.build import find
from vlrep_jax.models.dual_encoder import DualEncoder
from vlrep_jax.models.transformer import REMAT_POLICIES, Attention, Block, Mlp, Tower, l2_normalize


class Captioned(NamedTuple):
    """`Embeddings`, and the logits float32[b, l - 1, v] of every token but the first."""

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    bias: jax.Array | None
    logits: jax.Array


class CrossBlock(Block):
    """A layer whose queries are a text's tokens, and whose keys an image's."""

    @nn.compact
    def __call__(self, x, context, train):
        width = x.shape[-1]
        std_in, std_out = width**-0.5, (2 * self.depth * width) ** -0.5
        norm = partial(nn.LayerNorm, epsilon=self.ln_eps, dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = Attention(
            self.heads, (std_in, std_out), self.dtype, self.attention, name="attn"
        )
        y, context = norm(name="ln_1")(x), norm(name="ln_context")(context)
        x = x + drop(attention(y, context))
        mlp = Mlp(
            self.mlp_dim, self.activation, ((2 * width) ** -0.5, std_out), self.dtype, name="mlp"
        )
        return x + drop(mlp(norm(name="ln_2")(x)))


class CrossLayer(Block):
    """A text's tokens look at each other, then at the image's."""

    @nn.compact
    def __call__(self, x, context, mask, causal, train):
        options = {
            name: getattr(self, name)
            for name in ("heads", "mlp_dim", "depth", "activation", "ln_eps", "dropout", "dtype")
        }
        options["attention"] = self.attention
        x, _ = Block(**options, name="self")(x, mask, causal, train)
        return CrossBlock(**options, name="cross")(x, context, train), None


class CrossTower(Tower):
    """What reads a text's tokens beside an image's: `Tower`'s attributes, of `CrossLayer`s.

    The width is that of the text tower; the image's tokens may have any.
    """

    width: int = 512
    heads: int = 8

    def cross_layers(self, tokens, image, *, mask=None, causal=False, train=False):
        """Tokens [b, l, width] of a text and [b, n, w] of an image -> [b, l, width]."""
        if tokens.shape[-1] != self.width:
            raise ValueError(
                f"The {self.kind} has width={self.width} and the text tower {tokens.shape[-1]}; "
                "they must be equal."
            )
        layer, policy = CrossLayer, find(REMAT_POLICIES, self.remat, "remat")
        if policy is not None:
            layer = nn.remat(layer, prevent_cse=False, static_argnums=(4, 5), policy=policy)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * 4,
            length=self.depth,
            unroll=self.unroll,
        )(
            heads=self.heads,
            mlp_dim=self.mlp_dim or 4 * self.width,
            depth=self.depth,
            activation=self.activation,
            ln_eps=self.ln_eps,
            dropout=self.dropout,
            attention=self.attention,
            dtype=self.dtype,
            name="layers",
        )
        x, _ = layers(tokens.astype(self.dtype), image.astype(self.dtype), mask, causal, train)
        return x


class CaptionDecoder(CrossTower):
    """Tokens [b, l, width] of a text and [b, n, w] of an image -> logits float32[b, l, vocab_size].

    Row i predicts the token behind position i, from the text up to it and the whole image.

    Attributes:
      vocab_size: number of token ids.
      the others: see `CrossTower`.
    """

    kind = "decoder"
    vocab_size: int = 49_408

    @nn.compact
    def __call__(self, tokens, image, *, train=False, at=None):
        """`at` is a single position, int[], whose logits [b, 1, vocab_size] alone are computed."""
        x = self.cross_layers(tokens, image, causal=True, train=train)
        if at is not None:
            x = jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1)
        x = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln_final")(x)
        head = nn.Dense(
            self.vocab_size,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=normal(self.width**-0.5),
            # Sums that leave the product in bfloat16 would decide between likely words.
            dot_general=partial(jax.lax.dot_general, preferred_element_type=jnp.float32),
            name="head",
        )
        return head(x)


class CoCa(DualEncoder):
    """A dual encoder whose towers' tokens a decoder turns into the caption.

    Attributes:
      image: a ViT, of the paper with pool='queries'. text: a causal TextTransformer, of the paper
        with pool='cls'.
      scale_init, bias_init: as in `DualEncoder`.
      decoder: called as decoder(text tokens, image tokens, train=bool) -> logits.
    """

    decoder: nn.Module = None

    def image_tokens(self, images, *, train=False):
        """(features float32[b, d], L2-normalised, tokens [b, n, w]) of images."""
        features, tokens = self.image(images, train=train, with_tokens=True)
        return l2_normalize(features), tokens

    def next_logits(self, image_tokens, tokens, at):
        """Logits float32[b, v] of the token behind position `at`, int[], of ids int32[b, l]."""
        _, text = self.text(tokens, with_tokens=True)
        return self.decoder(text, image_tokens, at=at)[:, 0]

    def caption_logits(self, images, tokens, *, train=False):
        """Logits float32[b, l - 1, v] of tokens 1 to l - 1 of each text, given those before it."""
        return self(images, tokens, train=train).logits

    def __call__(self, images, tokens, *, train=False):
        image, image_tokens = self.image_tokens(images, train=train)
        text, text_tokens = self.text(tokens, train=train, with_tokens=True)
        logits = self.decoder(text_tokens[:, :-1], image_tokens, train=train)
        return Captioned(image, l2_normalize(text), *self.scale_and_bias(), logits)
