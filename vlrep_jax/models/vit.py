"""The vision transformer (arXiv:2010.11929) with the variations of CLIP and SigLIP."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal, zeros

from vlrep_jax.models.transformer import Attention, AttentionPool, Tower, projection


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each mapped linearly: [b, s, s, 3] -> [b, (s / patch_size)^2, w]."""

    patch_size: int
    width: int
    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        p = self.patch_size
        # Pixels that fill no patch are dropped, as a strided convolution drops them.
        images = images[:, : images.shape[1] // p * p, : images.shape[2] // p * p]
        b, h, w, c = images.shape
        kernel = self.param("kernel", normal((p * p * c) ** -0.5), (p, p, c, self.width))
        # A reshape and one product: the strided convolution it equals is slower on CPUs.
        patches = images.astype(self.dtype).reshape(b, h // p, p, w // p, p, c)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x = patches @ kernel.reshape(-1, self.width).astype(self.dtype)
        if self.bias:
            x = x + self.param("bias", zeros, (self.width,)).astype(self.dtype)[None, None]
        return x


class ConvStem(nn.Module):
    """Stride-2 convolutions in place of patches (arXiv:2106.14881): what small data learns from.

    [b, s, s, 3] -> [b, (s / patch_size)^2, w]; each halves the sides; the widths double up to w.
    """

    patch_size: int
    width: int
    ln_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        halvings = self.patch_size.bit_length() - 1
        if self.patch_size != 1 << halvings or self.width % (1 << halvings - 1):
            raise ValueError(
                f"stem='conv' needs a patch_size that is a power of two, not {self.patch_size}, "
                f"and a width={self.width} that can be halved {halvings - 1} times."
            )
        x = images.astype(self.dtype)
        for i in range(halvings):
            width = self.width >> (halvings - 1 - i)
            x = nn.Conv(width, (3, 3), strides=2, dtype=self.dtype, name=f"conv_{i}")(x)
            if i < halvings - 1:
                # Layer norm where the paper has batch norm: no state, the same in evaluation.
                x = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name=f"ln_{i}")(x)
                x = jax.nn.relu(x)
        return x.reshape(x.shape[0], -1, self.width)


def keep_random(key, x, share):
    """A random subset of each row's tokens, in their order: [b, n, w] -> [b, round(share n), w]."""
    count = max(round(share * x.shape[1]), 1)
    order = jnp.argsort(jax.random.uniform(key, x.shape[:2]), axis=1)
    kept = jnp.sort(order[:, :count], axis=1)
    return jnp.take_along_axis(x, kept[:, :, None], axis=1)


class QueryPool(nn.Module):
    """Learned queries look at all tokens (CoCa's pooler): [b, n, w] -> [b, queries, features]."""

    queries: int
    features: int
    heads: int
    ln_eps: float
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x):
        norm = {"epsilon": self.ln_eps, "dtype": self.dtype}
        query = self.param("query", normal(1.0), (self.queries, self.features))
        query = nn.LayerNorm(**norm, name="ln_q")(query.astype(self.dtype))
        query = jnp.broadcast_to(query[None], (x.shape[0], *query.shape))
        x = nn.LayerNorm(**norm, name="ln_k")(x)
        std = self.features**-0.5
        return Attention(self.heads, (std, std), self.dtype, self.attention, name="attn")(query, x)


class ViT(Tower):
    """Vision transformer: images float32[b, image_size, image_size, 3] -> features [b, embed_dim].

    Attributes:
      image_size, patch_size: pixels; the first must be a multiple of the second.
      width, depth, heads and so on: see `Tower`.
      embed_dim: width of the output, by a linear map without bias; None is the pooled width.
      pool: 'cls' (a class token, CLIP), 'map' (attention pooling, SigLIP), 'mean', 'patches' (a
        class token that takes part and is left out of the mean, CLIPA) or 'queries' (learned
        queries attend over all tokens; the first is the image's, the others a decoder's, CoCa).
      queries, pool_heads: of pool='queries', whose width is embed_dim.
      pre_norm: a layer norm before the first layer (CLIP).
      stem: 'patch', a linear map of each patch, or 'conv', see `ConvStem`.
      patch_bias: a bias in the patch embedding (SigLIP).
      drop_edge: whether image_size may be no multiple of patch_size; pixels at the right and bottom
        that fill no patch are then never seen (So400m/14 at 384).
      patch_keep: share of the patches, drawn anew for each image, that training looks at (FLIP,
        arXiv:2212.00794); evaluation sees all. 1.0 drops none.

    With `with_tokens=True` the call returns (features, tokens [b, n, w]): the output of the layers
    at the patches or, of pool='queries', that of the queries - 1 others.

    Raises:
      ValueError: images of another shape, an unknown pool or stem.
    """

    image_size: int = 224
    patch_size: int = 16
    embed_dim: int | None = None
    pool: str = "cls"
    pre_norm: bool = True
    stem: str = "patch"
    patch_bias: bool = False
    patch_keep: float = 1.0
    drop_edge: bool = False
    queries: int = 256
    pool_heads: int = 8

    @nn.compact
    def __call__(self, images, *, train=False, with_tokens=False):
        self._check(images)
        if self.stem == "conv":
            stem = ConvStem(self.patch_size, self.width, self.ln_eps, self.dtype, name="stem")
        else:
            stem = PatchEmbedding(
                self.patch_size, self.width, self.patch_bias, self.dtype, name="patch_embedding"
            )
        x = stem(images)
        std = self.width**-0.5
        class_tokens = int(self.pool in ("cls", "patches", "queries"))
        positions = self.param(
            "positional_embedding", normal(std), (class_tokens + x.shape[1], self.width)
        ).astype(self.dtype)[None]
        x = x + positions[:, class_tokens:]
        if train and self.patch_keep < 1:
            x = keep_random(self.make_rng("dropout"), x, self.patch_keep)
        if class_tokens:
            token = self.param("class_embedding", normal(std), (self.width,)).astype(self.dtype)
            token = token[None, None] + positions[:, :1]
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        norm = {"epsilon": self.ln_eps, "dtype": self.dtype}
        if self.pre_norm:
            x = nn.LayerNorm(**norm, name="ln_pre")(x)
        # Of the last layer a class token is all that is read, unless its patches are too; other
        # pools read every position.
        reads_one = self.pool == "cls" and not with_tokens
        x = self.layers()(x, train=train, at=0 if reads_one else None)
        tokens = x[:, class_tokens:]
        if self.pool == "queries":
            x = QueryPool(
                self.queries,
                self.embed_dim or self.width,
                self.pool_heads,
                self.ln_eps,
                self.dtype,
                self.attention,
                name="pool",
            )(x)
        # The norm of a row is its own, so it matters only to a mean whether it comes before.
        if self.pool == "patches":
            x = x[:, 1:].mean(axis=1, keepdims=True)
        elif self.pool == "cls":
            x = x[:, :1]
        x = nn.LayerNorm(**norm, name="ln_post")(x)
        if self.pool == "queries":
            tokens = x[:, 1:]
        if self.pool == "mean":
            x = x.mean(axis=1)
        elif self.pool == "map":
            head = AttentionPool(
                self.heads, self.mlp_dim, self.activation, self.ln_eps, self.dtype, name="pool"
            )
            x = head(x)
        else:
            x = x[:, 0]
        if self.embed_dim is not None:
            x = projection(self.embed_dim, dtype=self.dtype, width=x.shape[-1])(x)
        return (x, tokens) if with_tokens else x

    def _check(self, images):
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}; known: {', '.join(POOLS)}.")
        if self.stem not in ("patch", "conv"):
            raise ValueError(f"stem={self.stem!r}; known: conv, patch.")
        if not 0 < self.patch_keep <= 1:
            raise ValueError(f"patch_keep={self.patch_keep} must be above 0 and at most 1.")
        size, patch = self.image_size, self.patch_size
        if min(size, patch) < 1 or size < patch or (size % patch and not self.drop_edge):
            raise ValueError(
                f"image_size={size} must be a multiple of patch_size={patch}, or drop_edge=True."
            )
        expected = (self.image_size, self.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"Images have shape {images.shape}; this tower expects (batch, "
                f"{', '.join(map(str, expected))}). Resize them, or set image_size."
            )


POOLS = ("cls", "map", "mean", "patches", "queries")
