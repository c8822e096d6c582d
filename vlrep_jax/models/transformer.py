"""The pre-norm transformer that every tower is made of, and its pooling head.

Layers are scanned: their parameters are stacked along a leading depth axis whether the loop is kept
(`unroll=1`, quick to compile) or unrolled, so that a checkpoint does not depend on that choice.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal, zeros
from jax.ad_checkpoint import checkpoint_name

from vlrep_jax.build import find
from vlrep_jax.models.attention import ATTENTIONS


def quick_gelu(x):
    """x * sigmoid(1.702 x), the activation of OpenAI's released weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x):
    """x * Phi(x), by erf as PyTorch computes it: less work than `jax.nn.gelu`'s erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}

# What the backward pass finds kept of a layer; the rest it computes again. Names are given to
# values with `checkpoint_name` below. By memory: full < lite < dots < none.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,  # everything is kept: no rematerialisation
    "full": jax.checkpoint_policies.nothing_saveable,  # only the layer's input
    "lite": jax.checkpoint_policies.save_only_these_names(
        "query", "key", "value", "attention", "residual", "hidden"
    ),
    # Every product with a weight, but not attention's own.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def l2_normalize(x):
    """x / |x| along the last dimension, in float32; zero where x is zero, with finite gradients."""
    x = x.astype(jnp.float32)
    # The other usual forms (x / norm, x / (norm + eps)) have a NaN gradient at x = 0.
    squared_norm = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-12))


class Mlp(nn.Module):
    """Two dense layers with an activation between them: [..., w] -> [..., w]."""

    hidden: int
    activation: str
    init_std: tuple[float, float]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        act = find(ACTIVATIONS, self.activation, "activation")
        width = x.shape[-1]
        std1, std2 = self.init_std
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=normal(std1), name="fc1")(x)
        x = checkpoint_name(x, "hidden")
        return nn.Dense(width, dtype=self.dtype, kernel_init=normal(std2), name="fc2")(act(x))


class Attention(nn.Module):
    """Multi-head attention of queries [b, n, w] over keys [b, m, v]; logits and softmax in float32.

    `form` is a name in ATTENTIONS, `features` the width of the output, w if None. `mask`
    bool[b, 1, 1, m] is true where a key may be seen; `causal` hides later positions.
    """

    heads: int
    init_std: tuple[float, float]
    dtype: jnp.dtype = jnp.float32
    form: str = "xla"
    features: int | None = None

    @nn.compact
    def __call__(self, queries, keys, *, mask=None, causal=False):
        width = queries.shape[-1]
        if width % self.heads:
            raise ValueError(f"width={width} must be a multiple of heads={self.heads}.")
        std_in, std_out = self.init_std
        project = partial(
            nn.DenseGeneral,
            features=(self.heads, width // self.heads),
            dtype=self.dtype,
            kernel_init=normal(std_in),
        )
        mixed = find(ATTENTIONS, self.form, "attention")(
            checkpoint_name(project(name="query")(queries), "query"),
            checkpoint_name(project(name="key")(keys), "key"),
            checkpoint_name(project(name="value")(keys), "value"),
            mask,
            causal,
        )
        mixed = checkpoint_name(mixed, "attention")
        out = nn.DenseGeneral(
            self.features or width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=normal(std_out),
            name="out",
        )
        return out(mixed)


def position_of(x, at):
    """The one position of every row of x [b, n, w] that `at` names: [b, 1, w].

    at: a position for all rows, -1 for the last, or int[b].
    """
    if isinstance(at, int):
        return jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1)
    return jnp.take_along_axis(x, at[:, None, None], axis=1)


class Block(nn.Module):
    """One pre-norm layer: attention, then MLP, each added to its input.

    [b, n, w] -> [b, n, w], or [b, 1, w] of the positions `at` alone, see `position_of`.
    """

    heads: int
    mlp_dim: int
    depth: int  # of the whole stack: residual branches start smaller in deeper stacks
    activation: str
    ln_eps: float
    dropout: float
    dtype: jnp.dtype
    attention: str = "xla"

    @nn.compact
    def __call__(self, x, mask, causal, train, at=None):
        width = x.shape[-1]
        # CLIP's initialisation (its public code): the sum over 2 * depth branches keeps its scale.
        std_in, std_out = width**-0.5, (2 * self.depth * width) ** -0.5
        norm = partial(nn.LayerNorm, epsilon=self.ln_eps, dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = queries = norm(name="ln_1")(x)
        form = self.attention
        if at is not None:
            # One row of the matrix of all pairs, for which no platform needs a kernel.
            form, mask, causal = "xla", _seen_from(at, x.shape[1], mask, causal), False
            x, queries = position_of(x, at), position_of(y, at)
        attention = Attention(self.heads, (std_in, std_out), self.dtype, form, name="attn")
        x = checkpoint_name(x + drop(attention(queries, y, mask=mask, causal=causal)), "residual")
        mlp = Mlp(
            self.mlp_dim, self.activation, ((2 * width) ** -0.5, std_out), self.dtype, name="mlp"
        )
        x = x + drop(mlp(norm(name="ln_2")(x)))
        return x, None


def _seen_from(at, positions, mask, causal):
    """The mask bool[b or 1, 1, 1, n] of the one query at `at`, None if it sees every key."""
    if not causal:
        return mask
    at = jnp.asarray(at % positions if isinstance(at, int) else at).reshape(-1, 1, 1, 1)
    seen = jnp.arange(positions)[None, None, None] <= at
    return seen if mask is None else seen & mask


class Transformer(nn.Module):
    """A stack of pre-norm layers: [b, n, w] -> [b, n, w], without a final norm.

    Whoever reads a single position of each row says so by `at`, as `position_of` takes it, and
    gets [b, 1, w]: the last layer is then computed there alone.

    Attributes:
      depth, heads: number of layers, and of attention heads in each.
      mlp_dim: hidden width of the MLPs; None is four times the width.
      activation: a name in ACTIVATIONS.
      ln_eps: epsilon of the layer norms (CLIP 1e-5, SigLIP 1e-6).
      dropout: rate on both residual branches, active where `train` is true.
      attention: a name in ATTENTIONS, the form in which it is computed.
      remat: a name in REMAT_POLICIES, what is kept of each layer for the backward pass.
      unroll: layers per iteration of the loop; depth unrolls it whole.
      dtype: of the computation; parameters are float32.
    """

    depth: int
    heads: int
    mlp_dim: int | None = None
    activation: str = "gelu"
    ln_eps: float = 1e-5
    dropout: float = 0.0
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, mask=None, causal=False, train=False, at=None):
        policy = find(REMAT_POLICIES, self.remat, "remat")
        x = x.astype(self.dtype)
        options = {
            "heads": self.heads,
            "mlp_dim": self.mlp_dim or 4 * x.shape[-1],
            "depth": self.depth,
            "activation": self.activation,
            "ln_eps": self.ln_eps,
            "dropout": self.dropout,
            "attention": self.attention,
            "dtype": self.dtype,
        }
        if at is not None and not self.is_initializing():
            return self._read_at(Block(**options, parent=None), policy, x, mask, causal, train, at)
        block = Block
        if policy is not None:
            # Inside a scan the loop already keeps XLA from merging the two computations.
            block = nn.remat(Block, prevent_cse=False, static_argnums=(3, 4), policy=policy)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=self.unroll,
        )(**options, name="layers")
        x = layers(x, mask, causal, train)[0]
        return x if at is None else position_of(x, at)

    def _read_at(self, block, policy, x, mask, causal, train, at):
        """As `__call__` with `at`: all layers but the last in the loop, then that."""
        params = self.variables["params"]["layers"]
        dropped = train and self.dropout > 0
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if dropped else None

        def layer(x, params_and_key, at=None):
            params, key = params_and_key
            rngs = {"dropout": key} if dropped else {}
            return block.apply({"params": params}, x, mask, causal, train, at, rngs=rngs)

        looped = layer
        if policy is not None:
            looped = jax.checkpoint(layer, prevent_cse=False, policy=policy)
        layers = (params, keys)
        x, _ = jax.lax.scan(
            looped, x, jax.tree.map(lambda leaf: leaf[:-1], layers), unroll=self.unroll
        )
        # Little is kept of the last layer, whatever the policy: keys and values.
        return layer(x, jax.tree.map(lambda leaf: leaf[-1], layers), at)[0]


class Tower(nn.Module):
    """What all towers have: a width, and `Transformer`'s attributes for the layers they make.

    Attributes:
      width: of the tokens.
      the others: see `Transformer`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int | None = None
    activation: str = "gelu"
    ln_eps: float = 1e-5
    dropout: float = 0.0
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    def layers(self, name: str | None = "transformer"):
        """The stack of layers; `name` is None in a module's `setup`, which names it itself."""
        return Transformer(
            depth=self.depth,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            ln_eps=self.ln_eps,
            dropout=self.dropout,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            name=name,
        )


class AttentionPool(nn.Module):
    """MAP head (arXiv:2106.04560): a learned query attends over all tokens. [b, n, w] -> [b, w]."""

    heads: int
    mlp_dim: int | None
    activation: str
    ln_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        std, hidden = width**-0.5, self.mlp_dim or 4 * width
        probe = self.param("probe", normal(std), (1, 1, width))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, width))
        y = Attention(self.heads, (std, std), self.dtype, name="attn")(probe, x)
        z = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln")(y)
        mlp = Mlp(hidden, self.activation, ((2 * width) ** -0.5, std), self.dtype, name="mlp")
        return (y + mlp(z))[:, 0]


def projection(embed_dim, *, bias=False, dtype=jnp.float32, width, name="projection"):
    """The last linear map of a tower, from its width to the shared embedding space."""
    return nn.Dense(
        embed_dim,
        use_bias=bias,
        dtype=dtype,
        kernel_init=normal(width**-0.5),
        bias_init=zeros,
        name=name,
    )
