"""The contract of every loss: value, metrics and gradient per leaf, however the batch is split.

Tolerances are relative, in float32 (eps 1.2e-7), to the float64 oracle: 1e-6 on values, 5e-6 of a
leaf's largest entry on gradients. Logits up to 100 carry rounding errors of up to 100 eps / 2,
which go into probabilities as relative errors of that size; sums over rows average most away.
"""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import wirings

from vlrep_jax.losses import LOSSES, clip_article, softmax, vild
from vlrep_jax.parallel import BATCH_AXES, per_shard

BATCH, FEATURES = 16, 8
SCALES = (1.0, 14.3, 100.0)  # no temperature, CLIP's initial one, CLIP's limit
# Not SigLIP's -10: there the bias gradient cancels to 1/100 of its terms, and rounding would show.
BIAS = -5.0
VALUE_RTOL, GRADIENT_RTOL = 1e-6, 5e-6
# Pairs 0 and 13 are one, so are 3, 4 and 9: in one shard and across shards, at any split.
PAIR_IDS = np.array([70, 1, 2, 3, 3, 5, 6, 7, 8, 3, 10, 11, 12, 70, 14, 15], np.int32)
# One of the duplicates is padding, and so is the whole fourth of eight shards.
WEIGHTS = np.array([1, 1, 0.5, 1, 1, 3, 0, 0, 1, 0, 1, 2, 1, 1, 0.25, 1], np.float32)


def embeddings(seed=0, rows=BATCH):
    """Unit rows, texts near their images."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, FEATURES))
    text = image + rng.normal(size=image.shape)
    return [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)
    ]


def objective(loss, params, batch):
    """Embeddings are rows of replicated tables; images pass a replicated matrix, the identity."""
    image = batch["row"] @ params["image"] @ params["projection"]
    text = batch["row"] @ params["text"]
    optional = {name: batch[name] for name in ("pair_ids", "weights") if name in batch}
    return loss(image, text, params["scale"], params["bias"], **optional)


@cache
def gradient_fn(name, wiring, shards):
    return wirings.WIRINGS[wiring](objective, LOSSES[name], shards)


@cache
def expected(name, scale, with_ids, with_weights):
    image, text = embeddings()
    ids, weights = PAIR_IDS if with_ids else None, WEIGHTS if with_weights else None
    value, gradients, metrics = oracles.ORACLES[name](image, text, scale, BIAS, ids, weights)
    return value, gradients | {"projection": image.T @ gradients["image"]}, metrics


def check(name, wiring, shards, scale, with_ids, with_weights):
    image, text = embeddings()
    params = {
        "image": image,
        "text": text,
        "projection": np.eye(FEATURES, dtype=np.float32),
        "scale": np.float32(scale),
        "bias": np.float32(BIAS),
    }
    batch = {"row": np.eye(BATCH, dtype=np.float32)}  # one-hot: exact
    if with_ids or with_weights:  # one compiled program serves all three combinations
        batch["pair_ids"] = PAIR_IDS if with_ids else np.arange(BATCH, dtype=np.int32)
        batch["weights"] = WEIGHTS if with_weights else np.ones(BATCH, np.float32)
    (value, metrics), gradients = gradient_fn(name, wiring, shards)(params, batch)
    want_value, want_gradients, want_metrics = expected(
        name, np.float32(scale), with_ids, with_weights
    )
    case = f"{scale=} {with_ids=} {with_weights=}"
    np.testing.assert_allclose(value, want_value, rtol=VALUE_RTOL, err_msg=case)
    assert set(metrics) == set(want_metrics)
    for key in metrics:
        np.testing.assert_allclose(metrics[key], want_metrics[key], rtol=VALUE_RTOL, err_msg=key)
    assert set(gradients) == set(want_gradients)
    for leaf, want in want_gradients.items():
        atol = GRADIENT_RTOL * np.abs(want).max()
        np.testing.assert_allclose(
            gradients[leaf], want, rtol=0, atol=atol, err_msg=f"{leaf} {case}"
        )


PLAIN, *OPTIONS = product((False, True), (False, True))  # (with_ids, with_weights)


def test_every_loss_has_an_oracle():
    assert set(oracles.ORACLES) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_oracle_gradient_is_its_values_slope(name):
    image, text = (x.astype(np.float64) for x in embeddings(rows=6))
    ids, weights = np.array([0, 1, 2, 3, 1, 5]), np.array([1, 1, 0, 2, 1, 0.5])
    leaves = {"image": image, "text": text, "scale": np.array(3.0), "bias": np.array(-2.0)}

    def value(leaves):
        return oracles.ORACLES[name](*leaves.values(), ids, weights)[0]

    gradients = oracles.ORACLES[name](*leaves.values(), ids, weights)[1]
    for leaf, x in leaves.items():
        for index in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[index] = 1e-5
            slope = (value(leaves | {leaf: x + step}) - value(leaves | {leaf: x - step})) / 2e-5
            # Central differences err by step^2 and by eps / step.
            np.testing.assert_allclose(np.asarray(gradients[leaf])[index], slope, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_whole_batch_matches_oracle(name):
    for scale, options in product(SCALES, (PLAIN, *OPTIONS)):
        check(name, "whole", 1, scale, *options)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("wiring", wirings.MAPPED)
@pytest.mark.parametrize("name", LOSSES)
def test_split_batch_matches_oracle(name, wiring, shards):
    # The plain call is a program of its own, and compiling is what these tests cost: half of them.
    options_here = (PLAIN, *OPTIONS) if shards in (2, 8) else OPTIONS
    for scale, options in product(SCALES, options_here):
        check(name, wiring, shards, scale, *options)


# Between losses.


def test_article_clip_is_three_times_softmax():
    image, text = embeddings()
    options = dict(pair_ids=PAIR_IDS, weights=WEIGHTS)
    base, _ = softmax(image, text, 14.3, None, **options)
    value, metrics = clip_article(image, text, 14.3, None, **options)
    np.testing.assert_allclose(value, 3 * base, rtol=3e-7)  # roundings of the sums
    np.testing.assert_allclose(metrics["contrastive"], base, rtol=3e-7)
    np.testing.assert_allclose(metrics["cross_entropy"], 2 * base, rtol=3e-7)


def test_vild_averages_the_directions_or_sums_them():
    image, text = embeddings()
    base, _ = softmax(image, text, 1 / 0.07, None)
    assert vild(image, text, 1 / 0.07, None)[0] == base
    assert vild(image, text, 1 / 0.07, None, sum_directions=True)[0] == 2 * base


@pytest.mark.parametrize("name", [name for name in LOSSES if "sigmoid" not in name])
def test_bias_cancels_in_a_softmax(name):
    image, text = embeddings()
    assert LOSSES[name](image, text, 5.0, None)[0] == LOSSES[name](image, text, 5.0, -10.0)[0]


def test_an_island_takes_the_same_call():
    image, text = embeddings()
    run = per_shard(softmax, wirings.mesh((4, 2), BATCH_AXES), batched=2)
    want, _ = softmax(image, text, 14.3, None, weights=WEIGHTS)
    value, _ = jax.jit(run)(image, text, 14.3, None, pair_ids=None, weights=WEIGHTS)
    np.testing.assert_allclose(value, want, rtol=VALUE_RTOL)


# Padding and degenerate rows.


@cache
def whole_gradient(name):
    """Compiled: (params, batch) -> ((value, metrics), gradients)."""
    return wirings.whole(embedding_objective, LOSSES[name], 1)


def embedding_objective(loss, params, batch):
    return loss(**params, **batch)


def value_and_gradients(name, image, text, **batch):
    params = dict(image=image, text=text, scale=np.float32(14.3), bias=np.float32(BIAS))
    (value, metrics), gradients = whole_gradient(name)(params, batch)
    return value, metrics, gradients


@pytest.mark.parametrize("name", LOSSES)
def test_a_pair_of_weight_zero_is_not_there(name):
    image, text = embeddings()
    kept = np.arange(12)
    want = value_and_gradients(name, image[kept], text[kept])
    padded = [np.where(np.arange(BATCH)[:, None] < 12, x, np.nan) for x in (image, text)]
    weights = (np.arange(BATCH) < 12).astype(np.float32)
    got = value_and_gradients(name, *padded, weights=weights)
    for leaf in ("image", "text"):
        np.testing.assert_array_equal(got[2][leaf][12:], 0)
        got[2][leaf] = got[2][leaf][:12]
    # Sums over 12 and over 16 columns round differently, more so where an entry cancels to near 0.
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=5e-7), got, want)


@pytest.mark.parametrize("name", LOSSES)
def test_no_pair_at_all_costs_nothing(name):
    image, text = embeddings()
    got = value_and_gradients(name, image, text, weights=np.zeros(BATCH, np.float32))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), got)


@pytest.mark.parametrize("name", LOSSES)
def test_an_embedding_of_zeros_is_finite(name):
    image, text = (x * (np.arange(BATCH) != 3)[:, None].astype(np.float32) for x in embeddings())
    got = value_and_gradients(name, image, text)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_embeddings_are_computed_in_float32(name):
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in embeddings())
    value, _, gradients = value_and_gradients(name, image, text)
    want, want_gradients, _ = oracles.ORACLES[name](image, text, np.float32(14.3), BIAS)
    np.testing.assert_allclose(value, want, rtol=VALUE_RTOL)  # nothing but the input is bfloat16
    for leaf in ("scale", "bias"):
        np.testing.assert_allclose(gradients[leaf], want_gradients[leaf], rtol=GRADIENT_RTOL)
    for leaf in ("image", "text"):  # returned in bfloat16: half of its eps, 2^-7
        np.testing.assert_allclose(
            gradients[leaf].astype(np.float32), want_gradients[leaf], rtol=2**-8, atol=1e-6
        )


@pytest.mark.parametrize("name", LOSSES)
def test_near_convergence_the_error_stays_absolute(name):
    image = np.eye(FEATURES, dtype=np.float32)
    value, _, gradients = value_and_gradients(name, image, image)
    want, want_gradients, _ = oracles.ORACLES[name](image, image, np.float32(14.3), BIAS)
    # What is left is far below eps of the logits: compare with the rounding of a logit of 14.3.
    np.testing.assert_allclose(value, want, atol=2e-6)
    for leaf, want_gradient in want_gradients.items():
        np.testing.assert_allclose(gradients[leaf], want_gradient, atol=2e-5)
