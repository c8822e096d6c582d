"""Captions from a CoCa: the likeliest tokens given those before, draws only among the likely."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CAPTIONS, IMAGES, TOKENS, create, drawn, params_of

from vlrep_jax import models
from vlrep_jax.models.generation import _likeliest

START, END = 18, 19
OPTIONS = {"start_id": START, "end_id": END}


@cache
def generate(**options):
    return jax.jit(partial(models.generate, create("coca"), **OPTIONS, **options))


PICTURES = np.float32(np.random.default_rng(1).normal(size=(24, 8, 8, 3)))


@cache
def looking():
    """Parameters whose captions hang on the picture, and some of which end: plain norms, no bias,
    large kernels."""

    def plainer(path, leaf):
        name = jax.tree_util.keystr(path)
        if "bias" in name:
            return np.zeros_like(leaf)
        return np.ones_like(leaf) if "'scale'" in name else 3 * leaf

    return jax.tree.map_with_path(plainer, drawn(create("coca"), IMAGES, TOKENS, seed=3))


def test_captions_are_the_teacher_forced_likeliest_tokens_step_by_step():
    found = np.asarray(generate()(looking(), PICTURES))
    assert found.shape == (24, 6) and (found[:, 0] == START).all()
    teach = jax.jit(partial(create("coca").apply, method="caption_logits"))
    likeliest = teach({"params": looking()}, PICTURES, found).argmax(axis=-1)
    ended = np.zeros(24, bool)
    for at in range(5):
        expected = np.where(ended, 0, likeliest[:, at])
        np.testing.assert_array_equal(found[:, at + 1], expected)
        ended |= expected == END
    assert 0 < ended.sum() < 24
    assert len({tuple(row) for row in found}) > 1, "captions that do not look at their picture"


def test_logits_of_one_position_are_those_of_the_whole_text():
    model, params = create("coca"), params_of("coca")
    apply = partial(model.apply, {"params": params})
    _, image_tokens = apply(IMAGES, method="image_tokens")
    whole = apply(IMAGES, TOKENS, method="caption_logits")
    for at in (0, 3):
        found = apply(image_tokens, TOKENS, jnp.int32(at), method="next_logits")
        np.testing.assert_allclose(found, whole[:, at], rtol=1e-4, atol=1e-5)


def test_a_caption_ends_with_padding_behind_its_end():
    """A decoder that always says END."""
    params = params_of("coca")
    head = {"kernel": np.zeros((8, 20), np.float32)}
    head["kernel"][:, END] = 1
    ones = {"scale": np.zeros(8, np.float32), "bias": np.ones(8, np.float32)}
    params = {**params, "decoder": {**params["decoder"], "head": head, "ln_final": ones}}
    found = generate()(params, IMAGES)
    np.testing.assert_array_equal(found, [[START, END, 0, 0, 0, 0]] * 3)


def test_a_logit_sees_only_the_text_before_it_and_the_whole_picture():
    model, params = create("coca"), params_of("coca")
    logits = jax.jit(partial(model.apply, method="caption_logits"))
    tokens = np.array([[3, 4, 5, 6, 7, 8]] * 3, np.int32)
    found, other = logits({"params": params}, IMAGES, tokens), tokens.copy()
    other[:, 3] = 9
    changed = np.abs(logits({"params": params}, IMAGES, other) - found).max(axis=(0, 2))
    assert (changed > 1e-6).tolist() == [False, False, False, True, True]
    moved = logits({"params": params}, IMAGES[::-1], tokens)
    assert (np.abs(moved - found)[[0, 2]].max(axis=2) > 1e-6).all()


def test_draws_follow_their_key_and_a_top_k_of_one_draws_nothing():
    key = jax.random.key(0)
    drawn_once = generate(temperature=3.0)(params_of("coca"), IMAGES, key)
    np.testing.assert_array_equal(
        drawn_once, generate(temperature=3.0)(params_of("coca"), IMAGES, key)
    )
    others = [
        generate(temperature=3.0)(params_of("coca"), IMAGES, jax.random.key(i)) for i in (1, 2)
    ]
    assert any((drawn_once != other).any() for other in others)
    greedy = generate()(params_of("coca"), IMAGES)
    np.testing.assert_array_equal(
        generate(temperature=3.0, top_k=1)(params_of("coca"), IMAGES, key), greedy
    )
    found = generate(temperature=3.0, top_p=1e-6)(params_of("coca"), IMAGES, key)
    np.testing.assert_array_equal(found, greedy)


def test_the_likeliest_by_hand():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
    kept = lambda *args: np.isfinite(_likeliest(logits, *args))[0].tolist()  # noqa: E731
    assert kept(None, None) == [True] * 4
    assert kept(2, None) == [False, True, False, True]
    assert kept(9, None) == [True] * 4
    assert kept(None, 0.5) == [False, True, False, False]
    assert kept(None, 0.6) == [False, True, False, True]
    assert kept(None, 0.8) == [False, True, True, True]
    # Of the two kept the first has 2/3: the share is of what top_k leaves.
    assert kept(2, 0.6) == [False, True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"temperature": 1.0}, "draws tokens: give a key"),
        ({"top_k": 3}, "choose among draws: set temperature=1.0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 must be at least 1"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
    ],
)
def test_options_that_draw_nothing_or_out_of_range_are_refused(options, message):
    key = None if options == {"temperature": 1.0} else jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        models.generate(create("coca"), params_of("coca"), IMAGES, key, **OPTIONS, **options)


def test_a_decoder_of_another_width_than_the_text_is_refused():
    wider = models.create("coca", **CAPTIONS | {"decoder": CAPTIONS["decoder"] | {"width": 16}})
    with pytest.raises(ValueError, match="decoder has width=16 and the text tower 8"):
        jax.eval_shape(wider.init, jax.random.key(0), IMAGES, TOKENS)
