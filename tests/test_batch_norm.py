"""Batch norm over the global batch: one value, gradient and statistic however rows are split."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wirings

from vlrep_jax.collectives import global_sum
from vlrep_jax.models.batch_norm import RUNNING, BatchNorm

BATCH, SIDE, CHANNELS = 16, 2, 3
SHAPE = (BATCH, SIDE, SIDE, CHANNELS)


def drawn():
    rng = np.random.default_rng(0)
    # Shards differ in their means, and a mean far above the deviation shows what cancels.
    x = rng.normal(size=SHAPE) + np.arange(BATCH)[:, None, None, None] + 100
    by = rng.normal(size=SHAPE)
    state = {
        "scale": rng.normal(size=CHANNELS),
        "bias": rng.normal(size=CHANNELS),
        "running_mean": rng.normal(size=CHANNELS),
        "running_var": rng.uniform(1, 2, size=CHANNELS),
    }
    return np.float32(x), np.float32(by), jax.tree.map(np.float32, state)


def normalized(x, by, params, *, axis_name):
    """The sum over the global batch of <result, by>, and the new running statistics."""
    module = BatchNorm(sum_shards=partial(global_sum, axis_name=axis_name))
    out, updated = module.apply({"params": params}, x, train=True, mutable=[RUNNING])
    return global_sum((out * by).sum(), axis_name), updated[RUNNING]


def loss(x, by, params, *, axis_name=None):
    return normalized(x, by, params, axis_name=axis_name)


def objective(loss, params, batch):
    """Pixels are rows of a replicated table, so that their gradient is of a parameter."""
    x = (batch["row"] @ params["x"].reshape(BATCH, -1)).reshape(-1, *SHAPE[1:])
    return loss(x, batch["by"], params["norm"])


@cache
def gradient_fn(wiring, shards):
    return wirings.WIRINGS[wiring](objective, loss, shards)


def oracle():
    """(value, gradients, running statistics) in float64."""
    x, by, state = jax.tree.map(np.float64, drawn())
    axes, count = (0, 1, 2), BATCH * SIDE * SIDE
    mean, var = x.mean(axes), x.var(axes)
    unit = (x - mean) / np.sqrt(var + 1e-5)
    value = ((unit * state["scale"] + state["bias"]) * by).sum()
    to_unit = by * state["scale"]
    to_x = to_unit - to_unit.mean(axes) - unit * (to_unit * unit).mean(axes)
    norm = {"scale": (by * unit).sum(axes), "bias": by.sum(axes)}
    norm |= {"running_mean": np.zeros(CHANNELS), "running_var": np.zeros(CHANNELS)}
    running = {
        "running_mean": 0.9 * state["running_mean"] + 0.1 * mean,
        "running_var": 0.9 * state["running_var"] + 0.1 * var * count / (count - 1),
    }
    return value, {"x": to_x / np.sqrt(var + 1e-5), "norm": norm}, running


CASES = [("whole", 1)] + [(name, n) for name in wirings.MAPPED for n in (2, 4, 8)]


@pytest.mark.parametrize(("wiring", "shards"), CASES)
def test_value_gradient_and_statistics_are_those_of_the_whole_batch(wiring, shards):
    x, by, state = drawn()
    batch = {"row": np.eye(BATCH, dtype=np.float32), "by": by}
    (value, running), gradients = gradient_fn(wiring, shards)({"x": x, "norm": state}, batch)
    expected, expected_gradients, expected_running = oracle()
    # Pixels near 100 carry 4e-6 of rounding, which division by a deviation of 5 leaves below 1e-6
    # of each of 192 terms.
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4)
    pairs = zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=1)
    for (path, leaf), wanted in pairs:
        atol = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=atol, err_msg=str(path))
    for name, wanted in expected_running.items():
        np.testing.assert_allclose(running[name], wanted, rtol=1e-6, err_msg=name)


def test_two_values_by_hand():
    """1 and 3: mean 2, variance 1, of which the unbiased one is 2."""
    x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    variables = {"params": BatchNorm().init(jax.random.key(0), x)["params"]}
    out, updated = BatchNorm(eps=0.0).apply(variables, x, train=True, mutable=[RUNNING])
    np.testing.assert_allclose(out.ravel(), [-1, 1], rtol=1e-6)
    np.testing.assert_allclose(updated[RUNNING]["running_mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(updated[RUNNING]["running_var"], [0.9 + 0.1 * 2], rtol=1e-6)
    # Evaluation: the running mean of 0 and variance of 1.
    np.testing.assert_allclose(BatchNorm(eps=0.0).apply(variables, x).ravel(), [1, 3], rtol=1e-6)


def test_frozen_training_is_evaluation_and_remembers_nothing():
    x, _, state = drawn()
    out, updated = BatchNorm("frozen").apply({"params": state}, x, train=True, mutable=[RUNNING])
    assert RUNNING not in updated
    np.testing.assert_array_equal(out, BatchNorm().apply({"params": state}, x))


def test_running_statistics_have_no_gradient_where_they_normalise():
    x, by, state = drawn()
    total = lambda state: (BatchNorm("frozen").apply({"params": state}, x) * by).sum()  # noqa: E731
    gradients = jax.grad(total)(state)
    assert gradients["scale"].all() and gradients["bias"].all()
    assert not gradients["running_mean"].any() and not gradients["running_var"].any()


def test_a_single_value_has_a_finite_variance_to_remember():
    x, _, state = drawn()
    module = BatchNorm()
    _, updated = module.apply({"params": state}, x[:1, :1, :1], train=True, mutable=[RUNNING])
    assert np.isfinite(updated[RUNNING]["running_var"]).all()


def test_bfloat16_pixels_are_normalised_in_float32():
    x, _, state = drawn()
    rough = jnp.asarray(x, jnp.bfloat16)
    apply = partial(BatchNorm.apply, variables={"params": state}, train=True, mutable=[RUNNING])
    exact, _ = apply(BatchNorm(), x=np.float32(rough))
    found, _ = apply(BatchNorm(dtype=jnp.bfloat16), x=rough)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
