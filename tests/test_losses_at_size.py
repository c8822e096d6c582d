"""Tiles, rings and their hand-written gradients: chunks of any size, odd shapes, extreme logits.

Tolerances as in test_losses.py. One program serves many inputs: seeds, scales and special batches
are data, and compiling is what these tests cost.
"""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import wirings
from jax.extend.core import jaxprs_in_params

from vlrep_jax.losses import LOSSES
from vlrep_jax.parallel import BATCH_AXES, per_shard

TILED = [name for name in LOSSES if "matrix" not in name]
FORMS = ["softmax", "softmax_ring", "sigmoid", "sigmoid_ring"]  # the others are made of these
ROWS, FEATURES = 18, 37
BIAS = -5.0
VALUE_RTOL, GRADIENT_RTOL = 1e-6, 5e-6
# One group in one shard of three and across two, two pairs absent, weights that are not 1.
PAIR_IDS = np.array([0, 1, 1, 3, 4, 5, 6, 7, 1, 9, 10, 10, 12, 13, 14, 15, 16, 9], np.int32)
WEIGHTS = np.array([1, 2, 1, 1, 0, 1, 0.5, 1, 1, 1, 3, 1, 1, 0, 1, 1, 1, 1], np.float32)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def random_batch(seed):
    """Unit rows, texts not so near their images that at scale 100 nothing is left to lose."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(ROWS, FEATURES))
    return unit(image), unit(image + 4 * rng.normal(size=image.shape))


def batch_with_far_columns():
    """Images in a cone; texts 3 and 7 opposite of it, 5 at a right angle: cosines of -1 and 0."""
    rng = np.random.default_rng(5)
    direction = np.eye(FEATURES)[0]
    image = unit(direction + 0.1 * rng.normal(size=(ROWS, FEATURES)))
    text = unit(image + 0.1 * rng.normal(size=image.shape))
    text[[3, 7]] = -direction
    text[5] = np.eye(FEATURES)[1]
    return image, text


def objective(loss, params, batch):
    """Embeddings are rows of replicated tables."""
    optional = {name: batch[name] for name in ("pair_ids", "weights") if name in batch}
    image, text = (batch["row"] @ params[side] for side in ("image", "text"))
    return loss(image, text, params["scale"], params["bias"], **optional)


@cache
def gradient_fn(name, wiring, shards, chunk):
    return wirings.WIRINGS[wiring](objective, partial(LOSSES[name], chunk=chunk), shards)


def run(name, split, embeddings, scale, **labels):
    """((value, metrics), gradients); split: wiring, shards, chunk."""
    image, text = embeddings
    scalars = dict(scale=np.float32(scale), bias=np.float32(BIAS))
    batch = {"row": np.eye(len(image), dtype=image.dtype), **labels}  # one-hot: exact
    return gradient_fn(name, *split)(dict(image=image, text=text, **scalars), batch)


def check(name, split, embeddings, scale, gradient_rtol=GRADIENT_RTOL, rtol=VALUE_RTOL, **labels):
    found = run(name, split, embeddings, scale, **labels)
    compare(name, found, embeddings, scale, labels, gradient_rtol, rtol)


def compare(name, found, embeddings, scale, labels, gradient_rtol=GRADIENT_RTOL, rtol=VALUE_RTOL):
    (value, metrics), gradients = found
    want_value, want_gradients, want_metrics = oracles.ORACLES[name](
        *embeddings, np.float32(scale), BIAS, labels.get("pair_ids"), labels.get("weights")
    )
    np.testing.assert_allclose(value, want_value, rtol=rtol)
    for key in ("image_to_text_accuracy", "text_to_image_accuracy"):
        np.testing.assert_allclose(metrics[key], want_metrics[key], rtol=VALUE_RTOL, err_msg=key)
    for leaf, want in want_gradients.items():
        got, atol = np.asarray(gradients[leaf], np.float32), gradient_rtol * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=leaf)


# (wiring, shards, chunk). 4 divides neither 18 columns nor the 6 of a shard, 3 divides both.
SPLITS = [("whole", 1, 4), ("vmap", 3, 3), ("shard_map", 3, 4)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_any_chunk_gives_the_oracles_value_and_gradient(name, split):
    for seed, scale in product((1, 2), (1.0, 14.3, 100.0)):
        check(name, split, random_batch(seed), scale)
        check(name, split, random_batch(seed), scale, pair_ids=PAIR_IDS, weights=WEIGHTS)


@pytest.mark.parametrize("labels", [dict(pair_ids=PAIR_IDS), dict(weights=WEIGHTS)], ids=list)
@pytest.mark.parametrize("name", FORMS)
def test_ids_and_weights_are_right_without_each_other(name, labels):
    """A path of its own each: what nobody asks for is not computed."""
    for scale in (14.3, 100.0):
        check(name, ("shard_map", 3, 4), random_batch(1), scale, **labels)


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("name", FORMS)
def test_on_any_grid_of_shards_every_image_meets_every_text_once(name, shape):
    island = per_shard(partial(LOSSES[name], chunk=4), wirings.mesh(shape, BATCH_AXES), batched=2)
    gradient = jax.jit(jax.value_and_grad(partial(objective, island), has_aux=True))
    image, text = random_batch(1)
    for scale in (14.3, 100.0):
        scalars = dict(scale=np.float32(scale), bias=np.float32(BIAS))
        rows = {"row": np.eye(ROWS, dtype=np.float32)}
        labels = dict(pair_ids=PAIR_IDS, weights=WEIGHTS)
        found = gradient(dict(image=image, text=text, **scalars), rows | labels)
        compare(name, found, (image, text), scale, labels)


@pytest.mark.parametrize("name", ["vild", "clip_article"])
def test_the_losses_made_of_softmax_take_chunks(name):
    check(name, ("vmap", 3, 4), random_batch(1), 14.3, pair_ids=PAIR_IDS, weights=WEIGHTS)


@pytest.mark.parametrize("split", SPLITS[::2], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_columns_far_from_every_row_do_not_underflow(name, split):
    # At scale 100 their logits are 100 to 200 below the largest: exp() of the difference is 0.
    # Only a maximum of their own keeps their sums; what weighs most is then their gradient.
    # Logits of 100 lose 100 eps / 2 each, and here most of the loss is differences of such.
    tolerance = 2e-5
    check(name, split, batch_with_far_columns(), 100.0, gradient_rtol=tolerance)
    labels = dict(pair_ids=PAIR_IDS, weights=WEIGHTS)
    check(name, split, batch_with_far_columns(), 100.0, gradient_rtol=tolerance, **labels)


@pytest.mark.parametrize("split", SPLITS[::2], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_near_convergence_the_error_stays_relative(name, split):
    """Unique positives are compared with the negatives' sum, which keeps what 1 - p would lose."""
    z = np.eye(FEATURES, dtype=np.float32)[:ROWS]
    for scale in (14.3, 20.0):  # softmax is 1e-5 and 4e-8; the exponent loses scale * eps
        check(name, split, (z, z), scale, gradient_rtol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_a_chunk_of_more_columns_than_there_are_is_all(name):
    z = random_batch(1)
    want = LOSSES[name](*z, 14.3, BIAS)
    assert LOSSES[name](*z, 14.3, BIAS, chunk=100) == want == LOSSES[name](*z, 14.3, BIAS, chunk=18)


@pytest.mark.parametrize("split", SPLITS[::2], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_embeddings_of_zeros_are_finite_in_tiles(name, split):
    image, text = random_batch(3)
    image[4], text[9] = 0, 0
    check(name, split, (image, text), 100.0)
    check(name, split, (0 * image, 0 * text), 100.0)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_of_gathered_bfloat16_rows_are_summed_in_float32(name):
    embeddings = [jnp.asarray(x, jnp.bfloat16) for x in random_batch(4)]
    check(name, ("shard_map", 3, 4), embeddings, 100.0, gradient_rtol=1e-2)


@pytest.mark.parametrize("name", FORMS)
def test_the_automatic_chunk_gives_what_the_matrix_gives(name):
    rng = np.random.default_rng(0)
    image = unit(rng.normal(size=(600, 16)))  # two chunks of 256 columns, and 88
    text = unit(image + rng.normal(size=image.shape))
    reference = name.removesuffix("_ring") + "_matrix"

    def gradient(name):
        def value(image, text, scale, bias):
            return LOSSES[name](image, text, scale, bias)

        f = jax.value_and_grad(value, (0, 1, 2, 3), has_aux=True)
        return jax.jit(f)(image, text, np.float32(30), np.float32(BIAS))

    (value, metrics), gradients = gradient(name)
    (want_value, want_metrics), want_gradients = gradient(reference)
    np.testing.assert_allclose(value, want_value, rtol=VALUE_RTOL)
    assert metrics == want_metrics
    for got, want in zip(gradients, want_gradients, strict=True):
        # Both are rounded here, and the matrix form has no float64.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", LOSSES)
def test_a_collapsed_model_hits_nothing(name):
    z = np.eye(FEATURES, dtype=np.float32)[np.zeros(ROWS, int)]  # every logit a tie, exactly
    _, metrics = LOSSES[name](z, z, 14.3, BIAS)
    assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 0


@pytest.mark.parametrize("chunk", [0, -4, 2.5, True, "8"])
@pytest.mark.parametrize("name", TILED)
def test_a_chunk_that_is_no_size_is_named(name, chunk):
    z = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=f"chunk={chunk!r} must be a positive integer") as error:
        LOSSES[name](z, z, 1.0, 0.0, chunk=chunk)
    assert "\n" not in str(error.value)


# What is alive: sizes of all arrays in the program of one shard, at any depth.


def float_sizes(jaxpr, inside=False):
    """Entries of every float array made in a `shard_map`."""
    for equation in jaxpr.eqns:
        below = inside or equation.primitive.name == "shard_map"
        if inside:
            yield from (v.aval.size for v in equation.outvars if v.aval.dtype.kind == "f")
        for inner in jaxprs_in_params(equation.params):
            yield from float_sizes(inner, below)


def largest_float(name, rows, features, **labels):
    loss = per_shard(LOSSES[name], wirings.mesh((4, 2), BATCH_AXES), batched=2)

    def value(image, text, scale, bias):
        return loss(image, text, scale, bias, **labels)[0]

    z = np.zeros((rows, features), np.float32)
    gradient = jax.grad(value, (0, 1, 2, 3))
    return max(float_sizes(jax.make_jaxpr(gradient)(z, z, np.float32(1), np.float32(0)).jaxpr))


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_no_shard_holds_its_matrix_and_a_ring_not_even_the_texts(name, with_labels):
    rows, features = 1024, 64
    matrix, texts = rows * rows // 8, rows * features
    assert rows * rows // 64 < texts < matrix  # a tile of a ring's step; what is gathered
    labels = {}
    if with_labels:
        labels = dict(pair_ids=np.arange(rows), weights=np.ones(rows, np.float32))
    largest = largest_float(name, rows, features, **labels)
    if "matrix" in name:
        assert largest >= matrix
    else:
        assert largest < (texts if "ring" in name else matrix)
