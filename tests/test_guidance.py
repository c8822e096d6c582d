"""Guidance: losses have the gradients of their values, generators give pictures, descent is a
function of its key, and an edit changes what it may and no more."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emoji_data import noise
from tiny_models import DRAWS
from tiny_pretrained import CLIP, HALVES, SIGLIP, pretrained

from vlrep_jax import guidance
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.tokenizers import ClipTokenizer
from vlrep_jax.guidance import GENERATORS, Guide, Views
from vlrep_jax.guidance.pictures import levels
from vlrep_jax.guidance.pixels import clamped, normalized, squared
from vlrep_jax.guidance.targets import _own_loss, directional_cosine, total_variation

TEXTS = ["a red heart", "a blue circle"]
FEW = Views(count=2)


def words(texts, length):
    """Token ids of a vocabulary of 90: letters."""
    rows = [[ord(c) % 80 + 1 for c in text[-length:].rjust(length)] for text in texts]
    return np.array(rows, np.int32)


@cache
def model(name):
    return {
        "clip": lambda: pretrained(CLIP, ClipTokenizer()),
        "siglip": lambda: pretrained(SIGLIP, words),
        "draws": lambda: pretrained({"name": "text_to_image", **DRAWS}, words20),
    }[name]()


def words20(texts, length):
    return words(texts, length) % 20


def generator(name, height=32, width=32, **options):
    if name == "learned":
        return GENERATORS[name](model("draws"))
    return GENERATORS[name](height, width, **options)


class Linear:
    """A dual encoder in float64: the tanh of a linear map of the pixels."""

    preprocess = Preprocess(6, "squash", **HALVES)

    def __init__(self, bias):
        rng = np.random.default_rng(0)
        self.params = {"map": jnp.asarray(rng.normal(size=(108, 5)) / 10)}
        self.text, self.bias = rng.normal(size=(3, 5)), bias
        self.model = SimpleNamespace(apply=self.apply)

    def encode_text(self, texts):
        return (self.text / np.linalg.norm(self.text, axis=1, keepdims=True))[: len(texts)]

    def apply(self, variables, *inputs, method):
        if method == "scale_and_bias":
            return 7.0, self.bias
        rows = jnp.tanh(inputs[0].reshape(len(inputs[0]), -1) @ variables["params"]["map"])
        return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("bias", [None, -3.0])
@pytest.mark.parametrize("kind", ["toward", "along"])
def test_gradients_are_those_of_finite_differences(kind, bias):
    with jax.enable_x64(True):
        guides, rng = Guide([Linear(bias)], FEW), np.random.default_rng(1)
        images = jnp.asarray(rng.uniform(0.2, 0.8, (1, 9, 7, 3)))
        if kind == "toward":
            target = guides.toward(["own"], ["other", "another"])
        else:
            target = guides.along(rng.uniform(0.2, 0.8, (1, 9, 7, 3)), "from", "to")
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), target.arrays)

        @jax.jit
        def value(images):
            return target.loss(arrays, images, jax.random.key(0))[0].sum()

        way, small = jnp.asarray(rng.normal(size=images.shape)), 1e-6
        slope = (value(images + small * way) - value(images - small * way)) / (2 * small)
        found = (jax.jit(jax.grad(value))(images) * way).sum()
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(found, slope, rtol=1e-6)  # h^2, and rounding by h


def test_a_models_own_loss_by_hand():
    cosine = jnp.array([[0.5, 0.1, -0.2]])
    logits = 10 * np.array([0.5, 0.1, -0.2])
    powers = np.exp(logits)
    expected = -np.log(powers[0] / powers.sum())
    # The difference of two float32 near 5.
    np.testing.assert_allclose(_own_loss(cosine, 10.0, None), [expected], atol=1e-6)
    # SigLIP's bias: each pair alone.
    sigmoid = 1 / (1 + np.exp(-(logits - 4) * [1, -1, -1]))
    np.testing.assert_allclose(_own_loss(cosine, 10.0, -4.0), [-np.log(sigmoid).sum()], rtol=1e-6)


def test_directional_cosine_and_total_variation_by_hand():
    step = jnp.array([3.0, 0.0])
    changes = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [-4.0, 0.0]])
    # The length of (4, 0) beside a step of 3 is 5.
    np.testing.assert_allclose(directional_cosine(changes, step[None]), [0, 0.8, 0, -0.8])
    assert np.isfinite(jax.grad(lambda c: directional_cosine(c, step))(jnp.zeros(2))).all()
    image = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(1.0)
    np.testing.assert_allclose(total_variation(image), [0.5 + 0.5])
    # One pixel high: no neighbours below.
    np.testing.assert_allclose(total_variation(image[:, :1]), [1.0])
    assert np.isfinite(jax.grad(lambda x: total_variation(x).sum())(image[:, :1, :1])).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "squash"},
        {"mode": "crop"},
        {"mode": "crop", "short_side": 40, "center": "floor"},
        {"mode": "pad", "fill": 200},
    ],
    ids=["squash", "crop", "short_side", "pad"],
)
def test_models_see_what_preprocessing_makes(options, interpolation):
    preprocess = Preprocess(32, interpolation=interpolation, **options)
    for height, width in ((50, 71), (90, 64), (32, 32)):
        picture = noise(height, width)
        seen = squared(jnp.asarray(picture[None] / np.float32(255)), preprocess)[0]
        expected = preprocess(picture)
        # Pillow rounds to levels after each of its two passes, and clips what overshoots.
        apart = np.abs(np.clip(seen, 0, 1) * 255 - expected)
        assert apart.max() < 8 and apart.mean() < 0.6, (apart.max(), apart.mean())
        np.testing.assert_allclose(
            normalized(jnp.float32(expected[None] / 255), preprocess)[0],
            preprocess.normalize(expected),
            atol=1e-5,
        )


def test_a_clamped_pixel_comes_back_but_goes_no_further():
    x, gradient = jnp.array([-0.5, 0.5, 1.5, 1.0]), jnp.array([1.0, 1.0, 1.0, -1.0])
    for sign, expected in ((1, [0, 1, 1, -1]), (-1, [-1, -1, 0, 1])):
        slopes = jax.grad(lambda x, sign=sign: (sign * gradient * clamped(x)).sum())(x)
        np.testing.assert_array_equal(slopes, expected)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_gives_a_picture_a_text(name):
    made = generator(name, 13, 20, noise=0.5) if name != "learned" else generator(name)
    latent = made.init(jax.random.key(0), TEXTS)
    assert all(len(leaf) == 2 for leaf in jax.tree.leaves(latent))
    images = guidance.decoded(made, latent)
    side = (8, 8) if name == "learned" else (13, 20)
    assert (images.shape, images.dtype) == ((2, *side, 3), np.float32)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 1e-3
    np.testing.assert_array_equal(images, guidance.decoded(made, latent))
    other = guidance.decoded(made, made.init(jax.random.key(1), TEXTS))
    assert np.abs(other - images).max() > 1e-3


@pytest.mark.parametrize("name", ["laplacian", "fourier"])
def test_a_direct_generator_reaches_any_picture_and_begins_at_its_background(name):
    picture = np.float32(noise(12, 9) / 255)
    still = generator(name, 12, 9, background=picture, noise=0.0)
    latent = still.init(jax.random.key(0), ["any"])
    np.testing.assert_array_equal(guidance.decoded(still, latent)[0], picture)
    # Every pixel's every channel has its own way to move.
    jacobian = jax.jacobian(lambda latent: still.decode(still.arrays, latent)[0])(latent)
    rows = np.concatenate(
        [np.asarray(leaf).reshape(picture.size, -1) for leaf in jax.tree.leaves(jacobian)], axis=1
    )
    assert np.linalg.matrix_rank(rows) == picture.size


def test_a_model_without_a_generator_is_none():
    with pytest.raises(ValueError, match="this is a DualEncoder, which draws nothing"):
        GENERATORS["learned"](model("clip"))


@pytest.mark.parametrize(
    ("guiding", "name"), [("clip", "laplacian"), ("siglip", "fourier"), ("draws", "learned")]
)
def test_descent_nears_its_texts_and_is_a_function_of_the_key(guiding, name):
    guides, made = Guide([model(guiding)], FEW), generator(name)
    texts = ["heart", "circle"]
    latent = made.init(jax.random.key(0), texts)
    target = guides.toward(texts, ["something else"])
    seen = []
    run = lambda seed, on_step=None: guidance.guide(  # noqa: E731
        made, latent, target, key=jax.random.key(seed), steps=12, on_step=on_step
    )
    first, same, other = run(0, lambda *step: seen.append(step)), run(0), run(1)
    assert [step for step, _, _ in seen] == list(range(12))
    np.testing.assert_allclose(seen[0][1], guidance.decoded(made, latent), atol=1e-6)
    assert first.metrics["loss"].shape == (12, 2)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.abs(first.images - other.images).max() > 1e-4
    losses = first.metrics["loss"].mean(axis=1)
    assert losses[-3:].mean() < losses[:3].mean()


def test_several_models_guide_as_the_mean_of_their_losses():
    images, key = jnp.asarray(np.float32(noise(32, 32) / 255))[None], jax.random.key(3)

    def loss(models):
        target = Guide(models, FEW).toward(["heart"], smooth=0.0)
        return float(jax.jit(target.loss)(target.arrays, images, key)[0][0])

    clip, siglip = model("clip"), model("siglip")
    # The key of a model is that of its place.
    both = loss([clip, siglip])
    second = 2 * both - loss([clip])
    assert second == pytest.approx(2 * loss([siglip, siglip]) - loss([siglip]), rel=1e-4)


@pytest.mark.parametrize("shape", [(40, 30), (150, 100)])
def test_strength_0_gives_the_original_and_a_mask_keeps_what_is_outside(shape):
    guides, original = Guide([model("clip")], guidance.EDIT_VIEWS), noise(*shape)
    mask = np.zeros(shape, np.float32)
    mask[10:30, 5:20] = 1
    words = {"source": "a dog", "target": "a wolf", "key": jax.random.key(0), "steps": 4}
    none = guidance.edit(guides, original, strength=0.0, **words)
    np.testing.assert_array_equal(none.image, original)
    part = guidance.edit(guides, original, mask=mask, **words).image
    np.testing.assert_array_equal(part[mask == 0], original[mask == 0])
    assert (part[mask == 1] != original[mask == 1]).mean() > 0.1
    whole = guidance.edit(guides, original, **words).image
    assert (whole[mask == 0] != original[mask == 0]).mean() > 0.1


def test_closeness_bounds_how_far_an_edit_goes():
    guides, original = Guide([model("clip")], guidance.EDIT_VIEWS), noise(32, 32)
    words = {"source": "a dog", "target": "a wolf", "key": jax.random.key(0), "steps": 12}
    distances = [
        guidance.edit(guides, original, closeness=closeness, **words).guided.metrics["distance"][-1]
        for closeness in (0.0, 1000.0)
    ]
    assert distances[1] < 0.5 * distances[0]


def test_mistakes_are_told():
    guides = Guide([model("clip")], FEW)
    made = generator("laplacian")
    with pytest.raises(ValueError, match="A text is empty"):
        guides.toward(["a dog", " "])
    original = np.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match="'a dog' and 'a dog' are the same to the model"):
        guides.along(original, "a dog", "a dog")
    with pytest.raises(ValueError, match="strength=-1 must be a number from 0"):
        guides.along(original, "a dog", "a wolf", strength=-1)
    latent = made.init(jax.random.key(0), TEXTS)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        guidance.guide(made, latent, guides.toward(TEXTS), key=jax.random.key(0), steps=0)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 3\), the picture \(8, 8\)"):
        guidance.edit(
            guides, levels(original[0]), "a", "b", key=jax.random.key(0), mask=np.ones((3, 3))
        )
