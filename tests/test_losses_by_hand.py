"""Losses of a few pairs, worked out by hand, and what bad arguments are told.

Tolerance: 1e-6, a few roundings in float32.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from vlrep_jax.losses import LOSSES, sigmoid, softmax


@pytest.mark.parametrize("n", [1, 4])
def test_zero_scale_costs_log_batch(n):
    z = jnp.eye(n)
    value, _ = softmax(z, z, 0.0, None)
    np.testing.assert_allclose(value, np.log(n), rtol=1e-6)


def test_softmax_of_two_orthogonal_pairs():
    z = jnp.eye(2)
    value, metrics = softmax(z, z, 3.0, None)
    np.testing.assert_allclose(value, np.log1p(np.exp(-3)), rtol=1e-6)
    assert metrics == {"image_to_text_accuracy": 1, "text_to_image_accuracy": 1}
    value, metrics = softmax(z, z[::-1], 3.0, None)  # each text with the other's image
    np.testing.assert_allclose(value, np.log1p(np.exp(3)), rtol=1e-6)
    assert metrics == {"image_to_text_accuracy": 0, "text_to_image_accuracy": 0}


def test_sigmoid_of_orthogonal_pairs():
    n, scale, bias = 4, 10.0, -10.0
    z = jnp.eye(n)
    value, metrics = sigmoid(z, z, scale, bias)
    # A pair's logit is 10 * 1 - 10, any other's 10 * 0 - 10.
    np.testing.assert_allclose(value, np.log(2) + (n - 1) * np.log1p(np.exp(-10)), rtol=1e-6)
    assert metrics == {"image_to_text_accuracy": 1, "text_to_image_accuracy": 1}


def test_one_pair_seen_twice_is_no_negative_of_itself():
    z = jnp.eye(3)[jnp.array([0, 0, 1])]
    ids = jnp.array([7, 7, 8])
    value, metrics = softmax(z, z, 2.0, None, pair_ids=ids)
    # Rows 0, 1: two logits 2 that share the target, one 0; row 2: two logits 0 and its own 2.
    twice, once = np.log(2 * np.exp(2) + 1) - 2, np.log(2 + np.exp(2)) - 2
    np.testing.assert_allclose(value, (2 * twice + once) / 3, rtol=1e-6)
    value, _ = sigmoid(z, z, 2.0, -1.0, pair_ids=ids)
    # 5 positives at logit 2 - 1 and 4 negatives at 0 - 1 among 3 pairs.
    np.testing.assert_allclose(value, 9 * np.log1p(np.exp(-1)) / 3, rtol=1e-6)
    assert metrics == {"image_to_text_accuracy": 1, "text_to_image_accuracy": 1}


def test_weights_average_the_terms():
    z = jnp.eye(2)
    weights = jnp.array([3.0, 1.0])
    text = jnp.array([[1.0, 0], [1.0, 0]])  # text 1 belongs to image 0
    value, metrics = softmax(z, text, 1.0, None, weights=weights)
    # Both images see equal logits; text 0 is right and text 1 wrong by a logit of 1.
    right, wrong = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    np.testing.assert_allclose(value, (np.log(2) + (3 * right + wrong) / 4) / 2, rtol=1e-6)
    assert metrics["text_to_image_accuracy"] == 0.75
    value, _ = sigmoid(z, z, 1.0, 0.0, weights=weights)
    # The pairs weigh 3 and 1 at logit 1, the two others 2 each at logit 0.
    np.testing.assert_allclose(value, (4 * np.log1p(np.exp(-1)) + 4 * np.log(2)) / 4, rtol=1e-6)


# Bad input.


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text=np.zeros((3, 2), np.float32)), r"image \(4, 2\) and text \(3, 2\)"),
        (dict(image=np.zeros(4), text=np.zeros(4)), r"\[batch, features\]"),
        (dict(pair_ids=np.arange(3)), r"pair_ids \(3,\) must be \(4,\)"),
        (dict(pair_ids=np.zeros(4)), "pair_ids must be integers, not float64"),
        (dict(weights=np.ones((4, 1))), r"weights \(4, 1\) must be \(4,\)"),
        (dict(scale=np.ones(1)), r"scale must be a scalar, not of shape \(1,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, change, message):
    z = np.zeros((4, 2), np.float32)
    arguments = dict(image=z, text=z, scale=1.0, bias=0.0) | change
    with pytest.raises(ValueError, match=message):
        LOSSES[name](**arguments)


def test_sigmoid_without_a_bias_says_what_to_do():
    with pytest.raises(ValueError, match="create the model with a logit bias"):
        sigmoid(jnp.eye(2), jnp.eye(2), 10.0, None)
