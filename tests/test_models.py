"""What every tower and model promises: shapes, dtypes, norms, counts, and clear lines for mistakes.

Towers and models run at a tiny size, presets abstractly at their own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden_presets import GOLDEN
from tiny_models import (
    EMBED_DIM,
    IMAGE,
    IMAGES,
    INPUTS,
    PAIR,
    SIZE,
    TINY,
    TOKENS,
    TOWERS,
    apply,
    compiled,
    create,
    embed,
    params_of,
    tower,
)

from vlrep_jax import models
from vlrep_jax.models import ENCODERS, MODELS, PREPROCESSING, PRESETS
from vlrep_jax.models.transformer import l2_normalize
from vlrep_jax.optim import parameter_count
from vlrep_jax.plan import flops

# One stack of 12 layers; patches, tokens, positions, modalities, norm, projection; the scale.
LAYER = 4 * (768 * 768 + 768) + 2 * (768 * 3072) + 3072 + 768 + 4 * 768
SHARED = 12 * LAYER + 768 * (768 + 49_408 + 196 + 77 + 2) + 2 * 768 + 768 * 512 + 1

# Every entry of the tables.


def test_every_entry_is_under_contract():
    assert TOWERS.keys() == ENCODERS.keys()
    assert TINY.keys() == MODELS.keys()
    assert GOLDEN.keys() == PRESETS.keys() == PREPROCESSING.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_published_number_of_parameters_and_flops(name):
    model = models.create(name)
    size, length = models.input_sizes(model)
    example = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *example)["params"])
    total, image, text, *gflops = GOLDEN[name]
    assert parameter_count(params) == total
    if image is not None:
        sides = parameter_count(params["image"]), parameter_count(params["text"])
        assert sides == (image, text)
    counted = flops.forward(model, (size, size, 3), length).values()
    assert [round(value / 1e9, 2) for value in counted] == gflops


def test_the_shared_encoder_counts_what_its_parts_do():
    assert GOLDEN["clip-article"][0] == SHARED


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-32", ("crop", "bicubic", "clip", 0.48145466)),
        ("RN50-quickgelu", ("crop", "bicubic", "clip", 0.48145466)),
        ("coca_ViT-L-14", ("crop", "bicubic", "clip", 0.48145466)),
        ("ViT-H-14-378-quickgelu", ("squash", "bicubic", "clip", 0.48145466)),
        ("ViT-H-14-CLIPA-336", ("squash", "bilinear", "bert", 0.485)),
        ("ViT-SO400M-14-SigLIP-384", ("squash", "bicubic", "siglip", 0.5)),
        ("ViT-gopt-16-SigLIP2-256", ("squash", "bicubic", "siglip2", 0.5)),
    ],
)
def test_a_preset_says_how_its_inputs_are_made(name, expected):
    found = models.preprocessing(name)
    keys = ("mode", "interpolation", "tokenizer")
    assert (*(found[key] for key in keys), found["mean"][0]) == expected
    with pytest.raises(ValueError, match=f"Unknown preset '{name}x': did you mean '{name}'"):
        models.preprocessing(f"{name}x")


@pytest.mark.parametrize("embed_dim", [EMBED_DIM, None])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_tower_gives_a_row_of_features_an_input(name, embed_dim):
    module = tower(name, embed_dim=embed_dim)
    out = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), INPUTS[name])[0])
    width = 32 * TOWERS["resnet"]["width"] if name == "resnet" else SIZE["width"]
    assert (out.shape, out.dtype) == ((3, embed_dim or width), jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_float32_unit_rows_whatever_the_compute_dtype(name, dtype):
    out = embed(name, dtype=dtype)
    for rows in (out.image, out.text):
        assert (rows.shape, rows.dtype) == ((3, EMBED_DIM), jnp.float32)
        # A float32 sum of six squares.
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert (out.scale.shape, out.scale.dtype) == ((), jnp.float32)
    init = lambda: create(name, dtype=dtype).init(jax.random.key(0), IMAGES, TOKENS)  # noqa: E731
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(init))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_reaches_the_layers_and_stays_near(name):
    exact, rough = embed(name), embed(name, dtype="bfloat16")
    for one, other in ((exact.image, rough.image), (exact.text, rough.text)):
        difference = np.abs(one - other).max()
        # Eight bits of mantissa are 0.4 % an operation, in a dozen operations deep.
        assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_each_side_alone_equals_the_joint_call(name):
    model, out = create(name), embed(name)
    image = apply(partial(model.apply, method="encode_image"), params_of(name), IMAGES)
    text = apply(partial(model.apply, method="encode_text"), params_of(name), TOKENS)
    np.testing.assert_allclose(image, out.image, rtol=1e-5, atol=1e-6)  # fused differently
    np.testing.assert_allclose(text, out.text, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_mix(name):
    images, tokens = IMAGES.copy(), TOKENS.copy()
    images[0], tokens[0] = 1, 1
    out, other = embed(name), embed(name, images, tokens)
    np.testing.assert_array_equal(out.image[1:], other.image[1:])
    np.testing.assert_array_equal(out.text[1:], other.text[1:])
    assert not np.allclose(out.image[0], other.image[0])
    assert not np.allclose(out.text[0], other.text[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_black_picture_and_an_empty_text_have_finite_gradients(name):
    params = params_of(name)
    if name != "shared_encoder":
        # Without the last map every feature is zero, as a dead tower's are.
        params = {**params, "text": {**params["text"], "projection": {"kernel": np.zeros((8, 6))}}}

    def total(params, images):
        out = create(name).apply({"params": params}, images, np.zeros((1, 6), np.int32))
        return out.image.sum() + out.text.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(params, np.zeros((1, 8, 8, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_normalizing_zero_gives_zero_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(lambda x: l2_normalize(x).sum())(np.zeros(4, np.float32))
    assert value == 0 and np.isfinite(gradient).all()


# Scale and bias.


def initial(model, *names):
    """Values of single parameters before training; the others are never computed."""
    init = lambda: model.init(jax.random.key(0), IMAGES, TOKENS)["params"]  # noqa: E731
    return jax.jit(lambda: [init()[name] for name in names])()


def test_clip_begins_at_a_temperature_of_007_without_a_bias():
    params, (scale,) = params_of("dual_encoder"), initial(create("dual_encoder"), "logit_scale")
    assert params.keys() == {"image", "text", "logit_scale"}
    np.testing.assert_allclose(scale, np.log(1 / 0.07), rtol=1e-6)
    out = embed("dual_encoder")
    assert out.bias is None
    np.testing.assert_allclose(out.scale, np.exp(params["logit_scale"]), rtol=1e-6)


def test_siglip_begins_at_scale_10_and_bias_minus_10():
    section = {k: v for k, v in PRESETS["ViT-B-16-SigLIP"].items() if k.endswith("_init")}
    model = models.create("dual_encoder", **PAIR, **section)
    scale, bias = initial(model, "logit_scale", "logit_bias")
    np.testing.assert_allclose([scale, bias], [np.log(10), -10], rtol=1e-6)
    params = params_of("dual_encoder") | {"logit_scale": scale, "logit_bias": bias}
    out = compiled(model)(params, IMAGES, TOKENS)
    np.testing.assert_allclose([out.scale, out.bias], [10, -10], rtol=1e-6)


def test_the_articles_vild_has_a_fixed_temperature_of_007():
    assert params_of("vild").keys() == {"image", "text"}
    np.testing.assert_allclose(embed("vild").scale, 1 / 0.07, rtol=1e-6)


def test_the_articles_clip_shares_every_layer_between_modalities():
    own = {"patch_embedding", "image_positions", "token_embedding", "text_positions"}
    shared = {"transformer", "ln_final", "projection", "modality_embedding", "logit_scale"}
    assert params_of("shared_encoder").keys() == own | shared


# Mistakes: one line each, naming what was given and what is known.


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_another_shape_or_dtype_are_refused(name):
    for value, method, message in [
        (jnp.zeros((2, 16, 16, 3)), "encode_image", r"\(2, 16, 16, 3\).*8, 8, 3"),
        (jnp.zeros((8, 8, 3)), "encode_image", r"\(8, 8, 3\)"),
        (jnp.zeros((2, 7), jnp.int32), "encode_text", r"\(2, 7\).*\(batch, 6\)"),
        (jnp.zeros((2, 6)), "encode_text", "float32; integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            create(name).apply({"params": params_of(name)}, value, method=method)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("vit", {"pool": "max"}, "pool='max'; known: cls, map, mean, patches, queries"),
        ("vit", {"patch_size": 0}, "image_size=8 must be a multiple of patch_size=0"),
        ("vit", {"patch_size": 3}, "image_size=8 must be a multiple of patch_size=3"),
        ("vit", {"heads": 3}, "width=8 must be a multiple of heads=3"),
        ("vit", {"activation": "gelo"}, "activation 'gelo': did you mean 'gelu'"),
        ("vit", {"remat": "ful"}, "remat 'ful': did you mean 'full'"),
        ("text_transformer", {"pool": "map"}, "pool='map'; known: eot, eos, last, cls"),
        ("resnet", {"image_size": 40}, "image_size=40 must be a multiple of 32"),
        ("resnet", {"depth": (1, 1, 1)}, r"depth=\(1, 1, 1\) must be .* four stages"),
        ("resnet", {"width": 5}, "width=5 must be even"),
        ("resnet", {"remat": "lite"}, "remat='lite'; a ResNet knows: full, none"),
        ("resnet", {"batch_norm": "none"}, "batch_norm='none'; known: batch, frozen"),
    ],
)
def test_an_unknown_value_of_an_option_lists_the_known_ones(name, changed, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: tower(name, **changed).init(jax.random.key(0), INPUTS[name]))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("vit-b-32", {}, "Unknown model 'vit-b-32': did you mean 'ViT-B-32'"),
        ("dual_encodr", {}, "did you mean 'dual_encoder'"),
        ("dual_encoder", {"image": {"name": "vti"}}, "image tower 'vti': did you mean 'vit'"),
        ("ViT-B-32", {"image": {"widht": 3}}, "no option 'widht': did you mean 'width'"),
        ("ViT-B-32", {"scale": 3.0}, "no option 'scale': did you mean 'scale_init'"),
        ("ViT-B-32", {"towers": {"dtype": "bf16"}}, "dtype 'bf16'.*known: bfloat16, float32"),
        ("dual_encoder", {"image": {"width": 3}}, "needs a name"),
        ("dual_encoder", {"image": PAIR["image"]}, "missing a required argument: 'text'"),
    ],
)
def test_an_unknown_name_lists_the_near_ones(name, changed, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **changed)


def test_a_tower_of_another_name_replaces_the_presets_with_its_options():
    model = models.create("ViT-B-32", text={"name": "vit", **IMAGE})
    assert (type(model.text).__name__, model.text.width) == ("ViT", 768)  # not CLIP's 512
    assert isinstance(models.create("ViT-B-32", text={"width": 64}).text, nn.Module)
    assert models.create("ViT-B-32", text={"width": 64}).text.embed_dim == 512
