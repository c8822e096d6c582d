"""Optimizer steps worked by hand, schedules at known points, and what the path rules select."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlrep_jax.optim import (
    OPTIMIZERS,
    clamp,
    cosine,
    ema_update,
    linear,
    make_optimizer,
)
from vlrep_jax.rules import match_rules, path_of

DECAYED = {
    "image/class_embedding",
    "image/embedding/kernel",
    "image/positional_embedding",
    "image/projection/kernel",
    "image/transformer/layers/attention/query/kernel",
    "image/transformer/layers/mlp/fc1/kernel",
    "text/positional_embedding",
    "text/projection/kernel",
    "text/token_embedding/embedding",
}
NOT_DECAYED = {
    "image/embedding/bias",
    "image/ln_pre/bias",
    "image/ln_pre/scale",
    "image/transformer/layers/attention/query/bias",
    "image/transformer/layers/ln_1/scale",
    "image/transformer/layers/mlp/fc1/bias",
    "logit_bias",
    "logit_scale",
}


def tower_params():
    """A dual encoder's paths; what is under `layers` is stacked, so a bias there has rank 2."""
    tree = {}
    for path in sorted(DECAYED | NOT_DECAYED):
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        shape = () if path.startswith("logit") else (2, 3) if "layers" in path else (3,)
        node[name] = jnp.full(shape, 2.0)
    return tree


def flat(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def one_step(tx, params, grads, state=None):
    updates, state = tx.update(grads, tx.init(params) if state is None else state, params)
    return optax.apply_updates(params, updates), state


# Steps.

W, G = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])


def first_step(name, weight_decay=0.1, **keywords):
    """The first step from W along G at learning rate 0.1."""
    params = {"kernel": W}
    tx = make_optimizer(name, schedule=0.1, params=params, weight_decay=weight_decay, **keywords)
    return one_step(tx, params, {"kernel": G})[0]["kernel"]


# Everywhere the first step is w - 0.1 * (direction + 0.1 * w); rtol is float32 rounding.
BY_HAND = {
    "adamw": W - 0.1 * (jnp.sign(G) + 0.1 * W),  # m / sqrt(v) of a first gradient is its sign
    "lion": W - 0.1 * (jnp.sign(G) + 0.1 * W),
    "muon": W - 0.1 * (jnp.sign(G) + 0.1 * W),  # Adam's, for what is not a matrix
    "sgd": W - 0.1 * (G + 0.1 * W),
    # The direction u = sign(g) + 0.1 w = (1.1, 0.8) is rescaled to the weights' norm sqrt(5).
    "lamb": W - 0.1 * jnp.array([1.1, 0.8]) * math.sqrt(5 / (1.1**2 + 0.8**2)),
    # Not factored: sign(g), times the weights' root mean square sqrt(5 / 2).
    "adafactor": W - 0.1 * (jnp.sign(G) * math.sqrt(2.5) + 0.1 * W),
}


def test_every_optimizer_has_its_step_by_hand():
    assert set(BY_HAND) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_step(name):
    np.testing.assert_allclose(first_step(name), BY_HAND[name], rtol=1e-5)  # eps is in the steps


def test_muon_steps_along_the_orthogonal_factor_of_each_matrix():
    rng = np.random.default_rng(0)
    shapes = {
        "attn": {"query": {"kernel": (2, 6, 2, 3)}, "out": {"kernel": (2, 2, 3, 6)}},
        "mlp": {"fc1": {"kernel": (2, 6, 12)}},
        "patch_embedding": {"kernel": (2, 2, 3, 6)},
        "token_embedding": {"embedding": (5, 6)},
    }
    grads = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    params = jax.tree.map(jnp.zeros_like, grads)
    tx = make_optimizer("muon", schedule=1.0, params=params, adam_rate=0.5)
    after = flat(one_step(tx, params, grads)[0])
    matrix = {
        "attn/query/kernel": (6, 6),
        "attn/out/kernel": (6, 6),
        "mlp/fc1/kernel": (6, 12),
    }
    for path, step in after.items():
        gradient = flat(grads)[path]
        if path in matrix:
            for layer in range(2):
                u, _, v = np.linalg.svd(gradient[layer].reshape(matrix[path]), full_matrices=False)
                aim = 0.2 * math.sqrt(max(matrix[path])) * (u @ v)
                found = -np.asarray(step[layer]).reshape(matrix[path])
                # Newton-Schulz leaves singular values between about 0.7 and 1.2.
                cosine = (aim * found).sum() / np.linalg.norm(aim) / np.linalg.norm(found)
                assert cosine > 0.95
                np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(aim), rtol=0.3)
        else:
            np.testing.assert_allclose(step, -0.5 * np.sign(gradient), rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_scaled_by_the_learning_rate_alone(name):
    params = {"kernel": W, "bias": W}
    grads = {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)}
    schedule = linear(0.5, total_steps=10)
    tx = make_optimizer(name, schedule=schedule, params=params, weight_decay=0.1)
    after, _ = one_step(tx, params, grads)
    np.testing.assert_array_equal(after["bias"], W)
    if name == "lamb":  # its trust ratio rescales the decay, here all of the step, to |w|
        np.testing.assert_allclose(after["kernel"], W * (1 - 0.5), rtol=1e-6)
    else:
        np.testing.assert_allclose(after["kernel"], W * (1 - 0.5 * 0.1), rtol=1e-6)


def test_two_adamw_steps_by_hand():
    params = {"kernel": jnp.array([1.0])}
    tx = make_optimizer(
        "adamw", schedule=0.1, params=params, weight_decay=0.2, b1=0.8, b2=0.5, eps=1e-8
    )
    params, state = one_step(tx, params, {"kernel": jnp.array([2.0])})
    np.testing.assert_allclose(params["kernel"], 1 - 0.1 * (1 + 0.2), rtol=1e-6)  # 0.88
    params, _ = one_step(tx, params, {"kernel": jnp.array([-1.0])}, state)
    m = (0.8 * 0.4 + 0.2 * -1) / (1 - 0.8**2)
    v = (0.5 * 2 + 0.5 * 1) / (1 - 0.5**2)
    want = 0.88 - 0.1 * (m / math.sqrt(v) + 0.2 * 0.88)
    np.testing.assert_allclose(params["kernel"], want, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb", "sgd"])
def test_ten_steps_equal_optax(name):
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.float32(rng.normal(size=(4, 3))), "bias": jnp.ones(3)}
    mask = {"kernel": True, "bias": False}
    schedule = cosine(0.1, total_steps=10, warmup_steps=3)
    keywords = {"sgd": dict(momentum=0.9)}.get(name, dict(b1=0.9, b2=0.95))
    if name == "sgd":  # optax's has no decay of its own
        decay = optax.add_decayed_weights(0.1, mask)
        theirs = optax.chain(optax.trace(0.9), decay, optax.scale_by_learning_rate(schedule))
    else:
        theirs = getattr(optax, name)(schedule, weight_decay=0.1, mask=mask, **keywords)
    ours = make_optimizer(name, schedule=schedule, params=params, weight_decay=0.1, **keywords)
    a, b, a_state, b_state = params, params, ours.init(params), theirs.init(params)
    for _ in range(10):
        grads = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)
        a, a_state = one_step(ours, a, grads, a_state)
        b, b_state = one_step(theirs, b, grads, b_state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_momentum_dtype_is_kept():
    params = {"kernel": jnp.ones((2, 2))}
    for name, keywords in {
        "adamw": {},
        "lion": {},
        "lamb": {},
        "sgd": dict(momentum=0.9),
        "adafactor": dict(momentum=0.9),
    }.items():
        tx = make_optimizer(name, schedule=0.1, params=params, mu_dtype="bfloat16", **keywords)
        dtypes = [x.dtype for x in jax.tree.leaves(tx.init(params))]
        assert dtypes.count(jnp.bfloat16) == 1, name


def test_clipping_is_by_the_norm_of_all_gradients():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    tx = make_optimizer("sgd", schedule=1.0, params=params, clip_norm=1.0)
    after, _ = one_step(tx, params, grads)
    np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.6, -0.8], rtol=1e-6)
    tx = make_optimizer("sgd", schedule=1.0, params=params, clip_norm=10.0)
    assert one_step(tx, params, grads)[0] == {"a": -3, "b": -4}


# Path rules.


def after_decay_alone(**options):
    """The tree, all 2.0 before, after one step of zero gradients at learning rate 1."""
    params = tower_params()
    tx = make_optimizer("sgd", schedule=1.0, params=params, weight_decay=0.25, **options)
    return flat(one_step(tx, params, jax.tree.map(jnp.zeros_like, params))[0])


def test_all_but_gains_and_biases_decay():
    for path, value in after_decay_alone().items():
        np.testing.assert_array_equal(value, 1.5 if path in DECAYED else 2.0, err_msg=path)


def test_first_decay_rule_that_applies_wins():
    after = after_decay_alone(
        decay=[("fc1/kernel", 2), ("image/.*kernel", False), ("logit_scale", True), (".*", 0.5)]
    )
    assert (after["image/transformer/layers/mlp/fc1/kernel"] == 1).all()
    assert (after["image/projection/kernel"] == 2).all()
    assert after["logit_scale"] == 1.5
    assert (after["text/projection/kernel"] == 1.75).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_tower_does_not_change_and_costs_no_memory(name):
    params = tower_params()
    tx = make_optimizer(
        name,
        schedule=0.1,
        params=jax.eval_shape(lambda: params),  # shapes are enough
        weight_decay=0.1,
        freeze=[("image/.*", True)],
        clip_norm=1.0,
    )
    state = tx.init(params)
    assert not any("image/" in path for path in flat(state))
    # A huge gradient of the frozen tower must not shrink the others by way of the norm.
    grads = {
        k: jax.tree.map(lambda x, k=k: x * 0 + (1e6 if k == "image" else 1e-3), v)
        for k, v in params.items()
    }
    after, _ = jax.jit(tx.update)(grads, state, params)
    for path, update in flat(after).items():
        assert (update == 0).all() == path.startswith("image/"), path
    unfrozen = {k: v for k, v in params.items() if k != "image"}
    alone = make_optimizer(name, schedule=0.1, params=unfrozen, weight_decay=0.1, clip_norm=1.0)
    want = alone.update({k: grads[k] for k in unfrozen}, alone.init(unfrozen), unfrozen)[0]
    for path, update in flat(want).items():
        np.testing.assert_allclose(flat(after)[path], update, rtol=1e-6)


def test_moments_end_in_their_parameters_path():
    params = tower_params()
    for freeze in ((), [("text/.*", True)]):
        state = make_optimizer("adamw", schedule=0.1, params=params, freeze=freeze).init(params)
        image = match_rules([("image/.*", True)], state, False)
        assert sum(jax.tree.leaves(image)) == 2 * len(jax.tree.leaves(params["image"]))


# After the update.


def test_clamped_logit_scale_stops_at_one_hundred():
    rules = [("logit_scale", (0.0, math.log(100)))]
    params = {"logit_scale": jnp.float32(9), "image": {"kernel": jnp.full(2, 9.0)}}
    after = clamp(params, rules)
    np.testing.assert_allclose(jnp.exp(after["logit_scale"]), 100, rtol=1e-6)
    np.testing.assert_array_equal(after["image"]["kernel"], 9)
    assert clamp({"logit_scale": jnp.float32(-1)}, rules)["logit_scale"] == 0
    assert clamp(params, [("logit_scale", (None, 3))])["logit_scale"] == 3
    assert clamp(params, [("logit_scale", (10, None))])["logit_scale"] == 10


def test_ema_moves_by_what_decay_leaves():
    ema = {"a": jnp.array([1.0]), "b": jnp.array([0.0], jnp.bfloat16)}
    after = ema_update(ema, {"a": jnp.array([3.0]), "b": jnp.array([1.0])}, 0.75)
    assert after["a"] == 1.5  # 0.75 * 1 + 0.25 * 3
    assert after["b"] == 0.25
    assert after["b"].dtype == jnp.bfloat16


# Bad input.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(name="adamW"), ValueError, "Unknown optimizer 'adamW': did you mean 'adamw'"),
        (
            dict(weight_decy=0.1),
            ValueError,
            "optimizer 'adamw' has no option 'weight_decy': did you mean 'weight_decay'",
        ),
        (dict(freeze=[("text/tokn_embedding.*", True)]), ValueError, "nearest are: text/token_em"),
        (dict(freeze=[(".*", True)]), ValueError, "leaves no parameter to train"),
        (dict(clip_norm=0), ValueError, "clip_norm=0 must be positive"),
    ],
)
def test_bad_options_say_what_to_do(options, error, message):
    options = dict(name="adamw", schedule=0.1, params=tower_params()) | options
    with pytest.raises(error, match=message):
        make_optimizer(**options)
