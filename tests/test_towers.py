"""Inside a tower: what it sees, the stack of layers, patches, pools and activations."""

import math
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    IMAGES,
    TOKENS,
    apply,
    compiled,
    create,
    drawn,
    embed,
    params_of,
    tower,
)

from vlrep_jax.models import MODELS
from vlrep_jax.models.transformer import ACTIVATIONS, REMAT_POLICIES, Block, Transformer
from vlrep_jax.models.vit import POOLS, PatchEmbedding

# What a text tower sees.


def test_tokens_behind_the_end_of_text_change_nothing():
    found = embed("dual_encoder").text
    other = embed("dual_encoder", tokens=np.where(TOKENS == 0, 9, TOKENS)).text
    np.testing.assert_array_equal(found, other)
    before = TOKENS.copy()
    before[:, 0] = 2
    changed = embed("dual_encoder", tokens=before).text != found
    assert changed.any(axis=1).all()


def test_a_bidirectional_tower_pooled_at_the_last_position_sees_all_tokens():
    module = tower("text_transformer", causal=False, pool="last", projection_bias=True)
    params = drawn(module, TOKENS)
    run = jax.jit(module.apply)
    found = run({"params": params}, TOKENS)
    for position in range(5):
        other = TOKENS.copy()
        other[:, position] = 2
        assert (run({"params": params}, other) != found).any(axis=1).all(), position


def test_pooling_at_an_id_takes_its_first_place():
    """Wherever larger ids stand; a text without it gives its first position."""
    end, largest = (tower("text_transformer", pool=pool, eos_id=7) for pool in ("eos", "eot"))
    params = drawn(end, TOKENS)
    tokens = np.array([[3, 7, 9, 7, 0, 0], [1, 2, 3, 4, 5, 6]], np.int32)
    found = apply(end, params, tokens)
    # The tower is causal: what a position gives is known from the text that ends there.
    cut = np.where(np.arange(6)[None] <= np.array([1, 0])[:, None], tokens, 0)
    np.testing.assert_allclose(found, apply(largest, params, cut), rtol=1e-5, atol=1e-6)


def test_a_class_token_sees_the_text_and_one_padding_token():
    module = tower("text_transformer", pool="cls")
    params = drawn(module, TOKENS)
    run = jax.jit(module.apply)
    tokens = np.array([[3, 4, 5, 0, 0, 0], [3, 4, 5, 6, 7, 8]], np.int32)
    found = run({"params": params}, tokens)
    seen = []
    for position in range(7):
        changed = {**params, "positional_embedding": params["positional_embedding"].copy()}
        changed["positional_embedding"][position, 0] += 1
        seen.append((np.abs(run({"params": changed}, tokens) - found).max(axis=1) > 1e-6).tolist())
    assert [row for row, _ in seen] == [True, True, True, True, False, False, True]
    assert all(row for _, row in seen)


def test_the_shared_encoder_never_sees_padding():
    params, run = params_of("shared_encoder"), compiled(create("shared_encoder"))
    table = params["token_embedding"]["embedding"].copy()
    table[0] = 7  # what a padding token would bring in
    other = {**params, "token_embedding": {"embedding": table}}
    found = run(params, IMAGES, TOKENS).text
    np.testing.assert_array_equal(found, run(other, IMAGES, TOKENS).text)
    longer = TOKENS.copy()
    longer[0, 3] = 5
    assert not np.allclose(run(params, IMAGES, longer).text[0], found[0])


def test_the_shared_encoder_tells_modalities_apart():
    params, run = params_of("shared_encoder"), compiled(create("shared_encoder"))
    swapped = {**params, "modality_embedding": params["modality_embedding"][::-1]}
    one, other = run(params, IMAGES, TOKENS), run(swapped, IMAGES, TOKENS)
    assert not np.allclose(one.image, other.image) and not np.allclose(one.text, other.text)


# The stack of layers.


def test_a_scanned_stack_equals_its_layers_applied_by_hand():
    stack = Transformer(depth=3, heads=2)
    block = Block(2, 32, 3, "gelu", 1e-5, 0.0, jnp.float32)
    x = y = np.float32(np.random.default_rng(1).normal(size=(2, 5, 8)))
    params = drawn(stack, x)
    run = jax.jit(lambda p, y: block.apply({"params": p}, y, None, True, False)[0])
    for i in range(3):
        y = run(jax.tree.map(lambda leaf: leaf[i], params["layers"]), y)  # noqa: B023, used at once
    found = apply(partial(stack.apply, causal=True), params, x)
    np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5)  # fused differently


def test_a_block_is_the_textbook_one():
    """In NumPy float64, from its parameters."""
    block = Block(2, 32, 1, "quick_gelu", 1e-5, 0.0, jnp.float32)
    x = np.random.default_rng(1).normal(size=(4, 8))
    run = lambda p, x: block.apply({"params": p}, x[None], None, False, False)[0][0]  # noqa: E731
    shapes = jax.eval_shape(
        lambda: block.init(jax.random.key(0), jnp.float32(x)[None], None, False, False)["params"]
    )
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape), shapes)

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    attn, mlp = params["attn"], params["mlp"]
    y = norm(x, params["ln_1"])
    q, k, v = (
        np.einsum("nw,whd->hnd", y, attn[n]["kernel"]) + attn[n]["bias"][:, None]
        for n in ("query", "key", "value")
    )
    weights = np.exp(q @ k.transpose(0, 2, 1) / 2)  # heads of 4: sqrt(4) = 2
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    z = x + np.einsum("hnd,hdw->nw", mixed, attn["out"]["kernel"]) + attn["out"]["bias"]
    hidden = norm(z, params["ln_2"]) @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"]
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    expected = z + hidden @ mlp["fc2"]["kernel"] + mlp["fc2"]["bias"]
    found = jax.jit(run)(jax.tree.map(np.float32, params), np.float32(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32 against float64


def test_memory_and_speed_options_change_neither_value_nor_gradient():
    def value_and_gradient(**changed):
        def total(params):
            out = create("dual_encoder", **changed).apply(
                {"params": params}, IMAGES, TOKENS, train=True
            )
            return (out.image * out.text).sum() * out.scale

        return jax.jit(jax.value_and_grad(total))(params_of("dual_encoder"))

    plain = value_and_gradient()
    for changed in (*({"remat": name} for name in REMAT_POLICIES), {"unroll": 2}):
        other = value_and_gradient(**changed)
        leaves = zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(other), strict=True)
        for (path, a), b in leaves:
            # Fused differently: float32 rounding, relative to the leaf's largest entry. A bias of
            # keys has no gradient but rounding: attention does not change with it.
            atol = 1e-5 * max(np.abs(a).max(), 0.01)
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_remat_policies_keep_what_they_say():
    def kept(remat):
        """Values per layer and token that the forward pass hands to the backward pass."""
        stack = Transformer(depth=3, heads=2, remat=remat)
        x = jnp.zeros((2, 5, 8))
        params = drawn(stack, x)

        def forward(params, x):
            return jax.vjp(lambda params, x: stack.apply({"params": params}, x), params, x)[1]

        leaves = jax.tree.leaves(jax.eval_shape(forward, params, x))
        return sum(leaf.size for leaf in leaves if leaf.shape[:3] == (3, 2, 5)) / (3 * 2 * 5)

    width, hidden = 8, 32
    assert kept("full") == width  # the layer's input
    # And queries, keys, values, what attention gives, the residual, and the MLP's hidden.
    assert kept("lite") == 6 * width + hidden
    # The same without what attention gives, which is no product with a weight.
    assert kept("dots") == 5 * width + hidden
    assert kept("none") > kept("lite")


@pytest.mark.parametrize("name", MODELS)
def test_dropout_acts_only_in_training_and_by_its_key(name):
    still, plain = embed(name, dropout=0.5), embed(name)
    run = compiled(create(name, dropout=0.5), train=True)
    first, same, other = (run(params_of(name), IMAGES, TOKENS, seed) for seed in (0, 0, 1))
    for side in (0, 1):
        np.testing.assert_allclose(still[side], plain[side], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(first[side], same[side])
        assert not np.allclose(first[side], other[side])
        assert not np.allclose(first[side], still[side])


def test_dropout_draws_anew_in_every_layer():
    stack, x = Transformer(depth=2, heads=2, dropout=0.5), np.ones((1, 40, 8), np.float32)
    params = jax.tree.map(np.zeros_like, drawn(stack, x))
    # Each layer adds only its last bias, doubled where it is kept: equal masks would never give 3.
    params["layers"]["mlp"]["fc2"]["bias"] += 1
    rngs = {"dropout": jax.random.key(1)}
    out = jax.jit(lambda x: stack.apply({"params": params}, x, train=True, rngs=rngs))(x)
    assert np.unique(out).tolist() == [1, 3, 5]


# The image tower.


def test_the_patch_embedding_is_a_strided_convolution():
    module = PatchEmbedding(4, 5, True, jnp.float32)
    params = drawn(module, IMAGES)
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        IMAGES, params["kernel"], (4, 4), "VALID", dimension_numbers=layout
    )
    found = apply(module, params, IMAGES) - params["bias"][None, None]
    # Another order of 48 terms.
    np.testing.assert_allclose(found, expected.reshape(3, 4, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_reads_every_patch(pool):
    module = tower("vit", pool=pool, patch_bias=True, pre_norm=False, queries=3, pool_heads=2)
    params = drawn(module, IMAGES)
    assert ("class_embedding" in params) == (pool in ("cls", "patches", "queries"))
    run = jax.jit(module.apply)
    found = run({"params": params}, IMAGES)
    for row, column in product((0, 4), (0, 4)):
        other = IMAGES.copy()
        other[:, row : row + 4, column : column + 4] += 1
        changed = np.abs(run({"params": params}, other) - found).max(axis=1)
        assert (changed > 1e-3).all(), (row, column)


def test_the_mean_of_patches_is_normalised_after_it_is_taken_and_leaves_the_class_token_out():
    """Layers that add nothing: by hand from the patch embedding."""
    module = tower("vit", pool="patches", pre_norm=False, embed_dim=None)
    params = drawn(module, IMAGES)
    layers = params["transformer"]["layers"]
    layers["attn"]["out"] = jax.tree.map(np.zeros_like, layers["attn"]["out"])
    layers["mlp"]["fc2"] = jax.tree.map(np.zeros_like, layers["mlp"]["fc2"])
    kernel = params["patch_embedding"]["kernel"].reshape(48, 8)
    patches = IMAGES.reshape(3, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(3, 4, 48) @ kernel
    mean = (patches + params["positional_embedding"][1:][None]).mean(axis=1)
    centred = mean - mean.mean(axis=1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = unit * params["ln_post"]["scale"][None] + params["ln_post"]["bias"][None]
    np.testing.assert_allclose(apply(module, params, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_pixels_that_fill_no_patch_are_never_seen():
    module = tower("vit", patch_size=3, drop_edge=True)
    params = drawn(module, IMAGES)
    assert params["positional_embedding"].shape == (1 + 2 * 2, 8)
    changed = IMAGES.copy()
    changed[:, 6:], changed[:, :, 6:] = 7, 7
    found = apply(module, params, IMAGES)
    np.testing.assert_array_equal(found, apply(module, params, changed))
    changed[:, 5, 5] = 7
    assert (apply(module, params, changed) != found).any(axis=1).all()


def test_a_tower_gives_its_tokens_beside_its_features():
    for name, inputs, changed, shape in (
        ("vit", IMAGES, {}, (3, 4, 8)),
        ("vit", IMAGES, {"pool": "mean"}, (3, 4, 8)),
        ("vit", IMAGES, {"pool": "queries", "queries": 4, "pool_heads": 2}, (3, 3, 6)),
        ("text_transformer", TOKENS, {}, (3, 6, 8)),
        ("text_transformer", TOKENS, {"pool": "cls"}, (3, 6, 8)),
    ):
        module = tower(name, **changed)
        params = drawn(module, inputs)
        features, tokens = apply(partial(module.apply, with_tokens=True), params, inputs)
        # Without tokens the last layer is computed where it is read, with products of other shapes.
        np.testing.assert_allclose(features, apply(module, params, inputs), rtol=1e-5, atol=1e-6)
        assert tokens.shape == shape
        assert len(np.unique(np.asarray(tokens).round(5), axis=1)[0]) == shape[1]


def test_activations_have_their_textbook_values():
    x = np.linspace(-3, 3, 7)
    cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    sigmoid = 1 / (1 + np.exp(-1.702 * x))
    expected = {"gelu": x * cdf, "gelu_tanh": x * tanh, "quick_gelu": x * sigmoid}
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        found = jax.jit(ACTIVATIONS[name])(np.float32(x))
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
