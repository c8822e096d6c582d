"""Position embeddings that change their size keep what they say of a place."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlrep_jax.models.positions import fit_text_positions, resize_image_positions


def grid(of, side):
    """float32[side * side, 2] of a function of (y, x) in [0, 1]; centres of the patches."""
    centres = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return np.stack([of(y, x), of(x, y)], -1).reshape(-1, 2).astype(np.float32)


@pytest.mark.parametrize("side", [1, 2, 5, 9])
@pytest.mark.parametrize("class_tokens", [0, 1])
def test_a_constant_stays_constant_and_the_class_token_as_it_is(side, class_tokens):
    first = np.full((class_tokens, 2), 7, np.float32)
    trained = np.concatenate([first, np.full((16, 2), 0.25, np.float32)])
    found = resize_image_positions(trained, side * side + class_tokens)
    assert found.shape == (side * side + class_tokens, 2)
    np.testing.assert_array_equal(found[:class_tokens], first)
    np.testing.assert_allclose(found[class_tokens:], 0.25, rtol=1e-6)


@pytest.mark.parametrize("rows", [9, 10])
def test_the_same_size_changes_no_bit(rows):
    trained = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_image_positions(trained, rows), trained)


def test_a_ramp_stays_the_same_ramp_at_the_same_places_of_the_picture():
    ramp = lambda y, x: 3 * y - x  # noqa: E731
    found = np.asarray(resize_image_positions(grid(ramp, 8), 256)).reshape(16, 16, 2)
    expected = grid(ramp, 16).reshape(16, 16, 2)
    # At the border there is nothing to continue the ramp from.
    np.testing.assert_allclose(found[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-6)


@pytest.mark.parametrize("side", [4, 7, 12, 24])
def test_values_are_those_of_another_bicubic(side):
    trained = np.random.default_rng(0).normal(size=(49, 3)).astype(np.float32)
    found = np.asarray(resize_image_positions(trained, side * side)).reshape(side, side, 3)
    for i in range(3):
        plane = Image.fromarray(trained[:, i].reshape(7, 7))
        expected = plane.resize((side, side), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(found[..., i], expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 5), (6, 9), (9, 6)])
def test_what_is_no_grid_is_refused(old, new):
    with pytest.raises(ValueError, match=f"{old} image positions cannot become {new}"):
        resize_image_positions(np.zeros((old, 2), np.float32), new)


TRAINED = jnp.arange(1.0, 5.0)[:, None]  # 1, 2, 3, 4
FRESH = -jnp.arange(1.0, 7.0)[:, None]  # -1 .. -6


@pytest.mark.parametrize(
    ("length", "last_is_read", "expected"),
    [
        (6, False, [1, 2, 3, 4, -5, -6]),
        (4, False, [1, 2, 3, 4]),
        (3, False, [1, 2, 3]),
        (6, True, [1, 2, 3, -4, -5, 4]),
        (4, True, [1, 2, 3, 4]),
        (3, True, [1, 2, 4]),
    ],
)
def test_a_texts_places_stay_and_new_ones_are_fresh(length, last_is_read, expected):
    found = fit_text_positions(TRAINED, FRESH[:length], last_is_read=last_is_read)
    np.testing.assert_array_equal(found[:, 0], expected)
