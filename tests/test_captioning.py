"""The captioning loss: its oracle, its hand-worked values, and one mean however rows are split."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wirings

from vlrep_jax.losses import captioning, token_costs

ROWS, LENGTH, WIDTH, VOCABULARY = 16, 5, 4, 7
# A shard of two rows has from none to ten tokens, so a mean of shards' means would be another.
LENGTHS = np.array([5, 5, 0, 0, 1, 2, 3, 4, 5, 1, 0, 2, 1, 1, 4, 5])
WEIGHTS = np.array([1, 1, 0.5, 1, 1, 3, 0, 0, 1, 0, 1, 2, 1, 1, 0.25, 1], np.float32)


def drawn():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (ROWS, LENGTH))
    tokens[np.arange(LENGTH)[None] >= LENGTHS[:, None]] = 0
    features = np.float32(rng.normal(size=(ROWS, LENGTH, WIDTH)))
    return features, tokens.astype(np.int32), np.float32(rng.normal(size=(WIDTH, VOCABULARY)))


def oracle(weights):
    """(value, gradient of the matrix that makes logits), float64, token by token."""
    features, tokens, matrix = drawn()
    total, number, gradient = 0.0, 0.0, np.zeros(matrix.shape)
    for row, weight in enumerate(weights):
        for place in range(LENGTH):
            if tokens[row, place] == 0:
                continue
            x = np.float64(features[row, place])
            logits = x @ np.float64(matrix)
            shares = np.exp(logits) / np.exp(logits).sum()
            total -= weight * np.log(shares[tokens[row, place]])
            number += weight
            shares[tokens[row, place]] -= 1
            gradient += weight * np.outer(x, shares)
    return total / number, gradient / number


def objective(loss, params, batch):
    logits = batch["features"] @ params["matrix"]
    costs, counts = token_costs(logits, batch["tokens"])
    return loss(costs, counts, weights=batch["weights"])


@cache
def gradient_fn(wiring, shards):
    return wirings.WIRINGS[wiring](objective, captioning, shards)


CASES = [("whole", 1)] + [(name, n) for name in wirings.MAPPED for n in (2, 8)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("wiring", "shards"), CASES)
def test_value_and_gradient_are_the_oracles_however_rows_are_split(wiring, shards, weighted):
    features, tokens, matrix = drawn()
    weights = WEIGHTS if weighted else np.ones(ROWS, np.float32)
    batch = {"features": features, "tokens": tokens, "weights": weights}
    (value, metrics), gradient = gradient_fn(wiring, shards)({"matrix": matrix}, batch)
    expected, expected_gradient = oracle(weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["captioning"], expected, rtol=1e-6)
    # Float32 sums of 39 terms.
    np.testing.assert_allclose(gradient["matrix"], expected_gradient, rtol=0, atol=1e-6)


def test_equal_logits_cost_the_log_of_the_vocabulary():
    _, tokens, _ = drawn()
    costs, counts = token_costs(jnp.zeros((ROWS, LENGTH, VOCABULARY)), tokens)
    np.testing.assert_array_equal(counts, LENGTHS)
    np.testing.assert_allclose(captioning(costs, counts)[0], np.log(VOCABULARY), rtol=1e-6)


def test_padding_has_neither_cost_nor_gradient():
    _, tokens, _ = drawn()
    logits = jnp.ones((ROWS, LENGTH, VOCABULARY)).at[:, :, 3].set(20.0)
    gradient = jax.grad(lambda x: captioning(*token_costs(x, tokens))[0])(logits)
    assert (np.abs(gradient).sum(axis=-1) > 0).tolist() == (tokens != 0).tolist()
    other = token_costs(logits, tokens, pad_id=int(tokens[0, 0]))[1]
    np.testing.assert_array_equal(other, (tokens != tokens[0, 0]).sum(axis=1))


def test_no_token_at_all_costs_nothing_with_a_finite_gradient():
    tokens = jnp.zeros((2, LENGTH), jnp.int32)

    def total(logits):
        return captioning(*token_costs(logits, tokens))[0]

    value, gradient = jax.value_and_grad(total)(jnp.ones((2, LENGTH, VOCABULARY)))
    assert value == 0 and not gradient.any()


def test_a_row_of_weight_0_may_hold_anything():
    costs, counts = jnp.array([jnp.nan, 6.0]), jnp.array([3.0, 2.0])
    assert captioning(costs, counts, weights=jnp.array([0.0, 1.0]))[0] == 3


def test_logits_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match=r"logits \(2, 4, 7\) and tokens \(2, 5\)"):
        token_costs(jnp.zeros((2, 4, 7)), jnp.zeros((2, 5), jnp.int32))
