"""A GAN trains by the one loop: each side by its own loss, the towers not at all; then it draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import IMAGES, TOKENS, apply, create, params_of
from tiny_recipe import Squares, config

from vlrep_jax import guidance, weights
from vlrep_jax.adversarial import ADVERSARIAL, hinge, nonsaturating
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.experiment import make_experiment
from vlrep_jax.run import Session, train

PARTS = {
    "generator": {"name": "conv_generator", "image_size": 16, "widths": (8, 4), "noise_dim": 3},
    "discriminator": {"name": "conv_discriminator", "image_size": 16, "widths": (4, 8)},
}
LARGE = PARTS | {"generator": PARTS["generator"] | {"image_size": 32}}
BATCH = {"image": np.uint8(IMAGES * 40 + 128), "text": TOKENS}


def gan_config(clip, **changed):
    """The tiny recipe with a generator on a run of it."""
    model = config().model.to_dict()
    return config(
        **{
            "model": {**model, "name": "text_to_image", **PARTS},
            "loss": {"name": "hinge_gan", "reconstruction": 1.0},
            "init_from": str(clip),
            "init_skip": ("generator/.*", "discriminator/.*"),
            "freeze": ("image/.*", "text/.*", "logit_scale"),
            "data.transform": {"name": "squash"},
            "optimizer": {"name": "adamw", "b1": 0.0},
        }
        | changed
    )


def test_costs_by_hand():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-2.0, 0.5])
    np.testing.assert_allclose(hinge(real, fake), [[0, 0.5], [0, 1.5], [2, -0.5]])
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    expected = softplus(np.array([[-2, -0.5], [-2, 0.5], [2, -0.5]]))
    np.testing.assert_allclose(nonsaturating(real, fake), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_each_side_learns_by_its_own_loss(name):
    """The gradient of the sum is, for either side, that of its own terms alone."""
    model, params = create("text_to_image"), params_of("text_to_image")
    objective = ADVERSARIAL[name](model, reconstruction=3.0, r1=2.0)

    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, metrics), whole = run(params, BATCH, jax.random.key(0))
    terms = metrics["discriminator"] + metrics["generator"]
    terms = terms + 3 * metrics["reconstruction"] + 2 * metrics["r1"]
    np.testing.assert_allclose(value, terms, rtol=1e-6)
    for side in ("image", "text"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(whole[side]))
    own = {
        "generator": lambda m: m["generator"] + 3 * m["reconstruction"],
        "discriminator": lambda m: m["discriminator"] + 2 * m["r1"],
    }
    for side, cost in own.items():
        moved = jax.tree.map(lambda x, g: x - 1e-4 * g, params[side], whole[side])
        _, after = run({**params, side: moved}, BATCH, jax.random.key(0))[0]
        squares = sum(float((g**2).sum()) for g in jax.tree.leaves(whole[side]))
        # As far as its own gradient says: that of the other's terms would not fit.
        assert cost(after) - cost(metrics) == pytest.approx(-1e-4 * squares, rel=0.1)


def test_scores_depend_on_the_text_and_rows_are_their_own():
    model, params = create("text_to_image"), params_of("text_to_image")
    judge = partial(model.apply, method="judge")
    images = np.float32(np.clip(IMAGES / 4 + 0.5, 0, 1))
    text = np.float32(np.eye(3, 6))
    scores = apply(judge, params, images, np.stack([text, text[::-1]]))
    assert scores.shape == (2, 3) and abs(scores[0, 0] - scores[1, 0]) > 1e-4
    np.testing.assert_allclose(scores[0, 1], scores[1, 1], rtol=1e-5)
    alone = apply(judge, params, images[:1], text[:1])
    np.testing.assert_allclose(alone[0], scores[0, 0], rtol=1e-4)


def test_a_gan_trains_stops_goes_on_and_draws(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)
    clip = tmp_path / "clip"
    assert train(config(steps=3), clip)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(gan_config(clip, steps=4), whole)
    with monkeypatch.context() as patched:
        patched.setattr(Session, "should_stop", lambda self, step: step == 2)
        assert not train(gan_config(clip, steps=4), halves)
    assert train(gan_config(clip, steps=4), halves)
    trained, again, first = (weights.load(path).params for path in (whole, halves, clip))
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    for side in ("image", "text"):
        jax.tree.map(np.testing.assert_array_equal, trained[side], first[side])
    made = guidance.GENERATORS["learned"](weights.load(whole / "model"))
    texts = ["hue 3", "hue 30"]
    images = guidance.decoded(made, made.init(jax.random.key(0), texts))
    assert images.shape == (2, 16, 16, 3) and images.min() >= 0 and images.max() <= 1


def test_a_generator_without_its_towers_is_refused(tmp_path):
    for changed, message in (
        ({"init_from": ""}, "set config.init_from=PATH"),
        ({"freeze": ("image/.*",)}, r"config.freeze=\('image/.\*', 'text/.\*', ...\)"),
        (
            {"model": {**config().model, "name": "text_to_image", **LARGE}},
            "ConvGenerator has image_size=32, but .* image tower's 16",
        ),
        ({"chunks": 2}, "config.chunks=1 and config.microbatch of 0"),
        ({"loss": {"name": "softmax"}}, "Unknown loss of a generator 'softmax'"),
        ({"loss": {"name": "hinge_gan", "r": 1.0}}, "has no option 'r': did you mean 'r1'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_experiment(gan_config("clip", **changed))
