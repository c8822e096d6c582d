"""Layers of which one position is read: the last is computed there alone, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import IMAGES, TOKENS, create

from vlrep_jax.models.transformer import Transformer, position_of
from vlrep_jax.plan import flops

WIDTH, ROWS, POSITIONS = 16, 3, 5
AT = {"first": 0, "last": -1, "drawn": jnp.array([4, 0, 2])}
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)[:, None, None]
X = np.random.default_rng(0).standard_normal((ROWS, POSITIONS, WIDTH), np.float32)


def layers(**options):
    return Transformer(**{"depth": 3, "heads": 2} | options)


@pytest.mark.parametrize("at", AT.values(), ids=AT)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"mask": MASK},
        {"causal": True, "mask": MASK, "depth": 1},
        {"remat": "full", "causal": True},
        {"remat": "lite", "unroll": 2},
    ],
    ids=str,
)
def test_value_and_gradients_are_those_of_every_position(options, at):
    call = {name: options[name] for name in ("causal", "mask") if name in options}
    module = layers(**{name: options[name] for name in options if name not in call})
    params = module.init(jax.random.key(0), X)["params"]
    weights = np.random.default_rng(1).standard_normal((ROWS, 1, WIDTH), np.float32)

    def value(read, params, x):
        return jnp.sum(weights * jnp.sin(read(params, x)))

    def alone(params, x):
        return module.apply({"params": params}, x, at=at, **call)

    def whole(params, x):
        return position_of(module.apply({"params": params}, x, **call), at)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda p, x, read=read: value(read, p, x), argnums=(0, 1)))(
            params, X
        )
        for read in (alone, whole)
    )
    # Rounding: products of other shapes add up in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected
    )


def test_the_same_parameters_are_made_whatever_is_read():
    module = layers()
    whole, alone = (module.init(jax.random.key(0), X, at=at) for at in (None, 0))
    jax.tree.map(np.testing.assert_array_equal, whole, alone)


def test_dropout_draws_other_masks_in_each_layer_and_with_each_key():
    module = layers(dropout=0.5)
    params = module.init(jax.random.key(0), X)

    def run(seed, train=True):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(params, X, train=train, at=0, rngs=rngs)

    np.testing.assert_array_equal(run(0), run(0))
    assert (run(0) != run(1)).any()
    assert (run(0) != run(0, train=False)).any()


def test_what_nobody_reads_is_not_computed():
    model = create("dual_encoder")
    params = model.init(jax.random.key(0), IMAGES[:1], TOKENS[:1])
    run = lambda x: model.apply(params, x, method="encode_text")  # noqa: E731
    executed = flops.of_jaxpr(jax.make_jaxpr(run)(TOKENS[:1]).jaxpr)
    assert executed < 0.85 * flops.forward(model, IMAGES.shape[1:], TOKENS.shape[1])["text"]
