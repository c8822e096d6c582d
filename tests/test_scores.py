"""Scores by hand: a softmax over the candidates without a bias, a sigmoid a pair with one."""

import numpy as np
import pytest

from vlrep_jax.scores import scores

EYE = np.eye(2, dtype=np.float32)


def test_without_a_bias_candidates_share_one():
    # Logits ln 3 and 0: 3 / (3 + 1) and 1 / (3 + 1).
    made = scores(EYE, EYE, np.log(3))
    np.testing.assert_allclose(made, [[0.75, 0.25], [0.25, 0.75]], rtol=1e-6)
    assert made.dtype == np.float32
    assert scores(EYE, EYE[:1], 100.0)[1] == 1  # the only candidate, however wrong


def test_with_a_bias_each_pair_stands_alone():
    # Logits ln 3 + 0 and 0 + 0: 3 / 4 and 1 / 2.
    np.testing.assert_allclose(scores(EYE, EYE, np.log(3), 0.0), [[0.75, 0.5], [0.5, 0.75]])
    one, both = scores(EYE, EYE[:1], 10.0, -10.0), scores(EYE, EYE, 10.0, -10.0)
    np.testing.assert_array_equal(one[:, 0], both[:, 0])  # other candidates change nothing
    np.testing.assert_allclose(both[0], [0.5, 1 / (1 + np.exp(10))], rtol=1e-6)


def test_large_logits_neither_overflow_nor_warn():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(scores(EYE, EYE, 1e4), EYE)
        np.testing.assert_array_equal(scores(EYE, EYE, 2e4, -1e4), EYE)


def test_model_s_own_scale_and_bias_are_taken_as_they_come():
    assert scores(EYE, EYE, np.ones((1,)), np.zeros((1,))).shape == (2, 2)


@pytest.mark.parametrize("text", [np.ones((2, 3)), np.ones(2), np.ones((0, 2))])
def test_shapes_that_do_not_fit_are_told(text):
    with pytest.raises(ValueError, match=r"image has shape \[2, 2\] and text"):
        scores(EYE, text, 1.0)
