"""Cached gradients: embedding a batch in chunks changes its memory and nothing else."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wirings
from tiny_models import PAIR, drawn, params_of
from tiny_models import create as tiny

from vlrep_jax import models
from vlrep_jax.losses import LOSSES
from vlrep_jax.objectives import chunked, contrastive, freeze, normalizer
from vlrep_jax.parallel import batch_sharding, make_mesh, per_shard, replicated, shardings

ROWS = 32
KEY = 7
normalize = normalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def pairs(image_size=8, context_length=6, rows=ROWS):
    """A batch in which two rows are one pair and two are absent."""
    rng = np.random.default_rng(0)
    ids = np.arange(rows, dtype=np.int32)
    ids[-1] = ids[0]
    weights = np.float32(rng.uniform(0.5, 2, rows))
    weights[[3, -2]] = 0
    return {
        "image": rng.integers(0, 256, (rows, image_size, image_size, 3), dtype=np.uint8),
        "text": rng.integers(0, 20, (rows, context_length), dtype=np.int32),
        "pair_ids": ids,
        "weights": weights,
    }


def objective(model, chunks, loss, params, batch):
    return contrastive(model, loss, normalize, chunks=chunks)(params, batch, jax.random.key(KEY))


def on_one_device(objective):
    """(params, batch) -> ((value, metrics), gradients); `whole` without its costly compilation."""
    return jax.jit(jax.value_and_grad(partial(objective, LOSSES["softmax"]), has_aux=True))


@cache
def plain(name):
    """((value, metrics), gradients) of the batch at once on one device."""
    gradient = on_one_device(partial(objective, tiny(name), 1))
    return jax.device_get(gradient(params_of(name), pairs()))


def assert_equal(found, expected):
    """Equal but for the order of float32 sums over 32 rows."""
    (value, metrics), gradients = jax.device_get(found)
    (expected_value, expected_metrics), expected_gradients = expected
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert metrics.keys() == expected_metrics.keys()
    for key, wanted in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], wanted, rtol=1e-6, err_msg=key)
    paths = jax.tree.leaves_with_path(expected_gradients)
    for (path, wanted), leaf in zip(paths, jax.tree.leaves(gradients), strict=True):
        name = jax.tree_util.keystr(path)
        # Entries are sums of terms of the size of the leaf's largest, some of which cancel; all of
        # those of a bias of keys do.
        np.testing.assert_allclose(
            leaf, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max() + 1e-8, err_msg=name
        )


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("dual_encoder", 2),
        ("dual_encoder", 8),
        ("dual_encoder", 32),
        ("shared_encoder", 4),
        ("vild", 4),
    ],
)
def test_value_metrics_and_every_gradient_are_those_of_the_batch_at_once(name, chunks):
    gradient = on_one_device(partial(objective, tiny(name), chunks))
    assert_equal(gradient(params_of(name), pairs()), plain(name))


@pytest.mark.parametrize("wiring", ["island", "fsdp", "pmap"])
@pytest.mark.parametrize("chunks", [2, 4])
def test_on_eight_devices_they_are_the_same_too(wiring, chunks):
    params = params_of("dual_encoder")
    if wiring == "fsdp":
        params = jax.device_put(params, shardings(params, make_mesh(4, 2), [(".*", "fsdp")]))
    wire = wirings.pmap if wiring == "pmap" else wirings.island
    gradient = wire(partial(objective, tiny("dual_encoder"), chunks), LOSSES["softmax"], 8)
    assert_equal(gradient(params, pairs()), plain("dual_encoder"))


def test_the_gradients_differ_from_those_of_the_chunks_own_losses():
    """What gradient accumulation would give: each chunk meets its own negatives alone."""
    params, batch = params_of("dual_encoder"), pairs()
    gradient = on_one_device(partial(objective, tiny("dual_encoder"), 1))
    parts = [gradient(params, {k: v[i::2] for k, v in batch.items()}) for i in range(2)]
    accumulated = jax.tree.map(lambda *leaves: sum(leaves) / 2, *parts)
    with pytest.raises(AssertionError):
        assert_equal(accumulated, plain("dual_encoder"))


# Randomness.


NOISY = {
    "image": PAIR["image"] | {"dropout": 0.3, "patch_keep": 0.5, "depth": 1},
    "text": PAIR["text"] | {"dropout": 0.3, "depth": 1},
}


def loop(model, chunks, loss, params, batch, own_keys=True):
    """The chunked objective without scan or checkpoint: chunk i is every n-th row from i on."""
    rows = [None] * ROWS
    for i in range(chunks):
        key = jax.random.fold_in(jax.random.key(KEY), i if own_keys else 0)
        part = slice(i, None, chunks)
        inputs = {"image": normalize(batch["image"][part]), "text": batch["text"][part]}
        both = (
            model.apply(
                {"params": params},
                inputs[side],
                train=True,
                rngs={"dropout": side_key},
                method=f"encode_{side}",
            )
            for side, side_key in zip(inputs, jax.random.split(key), strict=True)
        )
        rows[part] = zip(*both, strict=True)
    image, text = map(jnp.stack, zip(*rows, strict=True))
    scale, bias = model.apply({"params": params}, method="scale_and_bias")
    value, metrics = loss(
        image, text, scale, bias, pair_ids=batch["pair_ids"], weights=batch["weights"]
    )
    return value, {"loss": value, "logit_scale": scale, **metrics}


def test_the_backward_pass_draws_each_chunks_dropout_again_as_it_was():
    model, batch = models.create("dual_encoder", **NOISY), pairs()
    params = drawn(model, np.zeros((1, 8, 8, 3), np.float32), batch["text"][:1])
    found = on_one_device(partial(objective, model, 2))(params, batch)
    expected = on_one_device(partial(loop, model, 2))(params, batch)
    assert_equal(found, jax.device_get(expected))
    same_key = jax.jit(partial(loop, model, 2, LOSSES["softmax"], own_keys=False))
    assert abs(same_key(params, batch)[0] - expected[0][0]) > 1e-3


def test_a_frozen_tower_stays_without_gradient():
    def frozen(loss, params, batch):
        chunks = contrastive(tiny("dual_encoder"), loss, normalize, chunks=4)
        return freeze(chunks, ["image/.*"])(params, batch, jax.random.key(KEY))

    _, gradients = on_one_device(frozen)(params_of("dual_encoder"), pairs())
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["image"]))
    wanted = plain("dual_encoder")[1]["text"]
    for leaf, other in zip(
        jax.tree.leaves(gradients["text"]), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * np.abs(other).max() + 1e-8)


# The wrapper alone.


def test_rows_keep_their_order():
    def encode(batch, key):
        return {"double": 2 * batch["x"], "none": None}

    batch = {"x": jnp.arange(12.0)[:, None]}
    found = chunked(encode, 4)(batch, jax.random.key(0))
    np.testing.assert_array_equal(found["double"], 2 * batch["x"])
    assert found["none"] is None
    assert chunked(encode, 1) is encode
    with pytest.raises(ValueError, match="12 rows cannot be split into 5 equal chunks"):
        chunked(encode, 5)(batch, jax.random.key(0))


# What the compiler makes of it, on a model whose activations are most of its memory.

WIDE = {"width": 32, "depth": 3, "heads": 2}


@cache
def compiled(chunks, fsdp):
    towers = {**PAIR, "image": PAIR["image"] | {"image_size": 16}}
    model = models.create("dual_encoder", **towers, towers=WIDE)
    mesh = make_mesh(-1, fsdp)
    batch = jax.eval_shape(partial(pairs, 16, 6, 512))
    example = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 6), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example)["params"]
    loss = per_shard(LOSSES["softmax"], mesh, batched=2)
    gradient = jax.jit(
        jax.value_and_grad(partial(objective, model, chunks, loss), has_aux=True),
        in_shardings=(shardings(shapes, mesh, [(".*", "fsdp")]), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    return gradient.lower(shapes, batch).compile()


@pytest.mark.parametrize("fsdp", [1, 2])
def test_temporary_memory_falls_with_the_chunks(fsdp):
    whole, some, many = (
        compiled(chunks, fsdp).memory_analysis().temp_size_in_bytes for chunks in (1, 4, 16)
    )
    # The embeddings and the loss's matrix, which no chunk makes smaller, are the rest.
    assert whole > 2.5 * some and some > 1.5 * many, (whole, some, many)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_no_device_is_sent_the_images_of_another(fsdp):
    text = compiled(4, fsdp).as_text()
    collective = r"= (.*) (?:all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?\("
    moved = re.findall(collective, text)
    assert moved  # the embeddings at least
    assert not [what for what in moved if "u8[" in what or re.search(r"16,16,3\]", what)]
