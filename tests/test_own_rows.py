"""Towers as an island: each device embeds its own rows, gradients cross the devices once."""

from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_chunks import KEY, assert_equal, normalize, pairs, plain
from tiny_models import create as tiny
from tiny_models import params_of

from vlrep_jax.losses import LOSSES
from vlrep_jax.objectives import contrastive, microbatched
from vlrep_jax.parallel import batch_sharding, make_mesh, on_own_rows, per_shard, shardings
from vlrep_jax.plan import hlo


@cache
def compiled(name, fsdp, microbatch=0, chunks=1):
    mesh = make_mesh(-1, fsdp)
    params, batch = params_of(name), pairs()
    layout = shardings(params, mesh, [(".*", "fsdp")])
    objective = contrastive(
        tiny(name),
        per_shard(LOSSES["softmax"], mesh, batched=2),
        normalize,
        chunks=chunks,
        microbatch={"image": microbatch, "text": microbatch // 2},
        place=partial(on_own_rows, mesh=mesh, layout=layout),
    )
    gradient = jax.jit(
        jax.value_and_grad(partial(objective, key=jax.random.key(KEY)), has_aux=True),
        in_shardings=(layout, batch_sharding(mesh)),
        out_shardings=(None, layout),
    )
    return gradient.lower(params, batch).compile()


@pytest.mark.parametrize("fsdp", [1, 2, 8])
@pytest.mark.parametrize(("microbatch", "chunks"), [(0, 1), (2, 1), (1, 2)])
def test_value_metrics_and_every_gradient_are_those_of_one_device(fsdp, microbatch, chunks):
    run = compiled("dual_encoder", fsdp, microbatch, chunks)
    where = run.input_shardings[0]
    found = run(*jax.device_put((params_of("dual_encoder"), pairs()), where))
    assert_equal(found, plain("dual_encoder"))


@pytest.mark.parametrize("name", ["shared_encoder", "vild"])
def test_other_models_too(name):
    run = compiled(name, 2, 2)
    found = run(*jax.device_put((params_of(name), pairs()), run.input_shardings[0]))
    assert_equal(found, plain(name))


@pytest.mark.parametrize("microbatch", [0, 1])
def test_parameters_are_gathered_and_gradients_scattered_once(microbatch):
    params = params_of("dual_encoder")
    found = hlo.collectives(hlo.parse(compiled("dual_encoder", 8, microbatch).as_text()))
    split = sum(
        leaf.nbytes
        for leaf, where in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(shardings(params, make_mesh(1, 8), [(".*", "fsdp")])),
            strict=True,
        )
        if not where.is_fully_replicated
    )
    sent = Counter()
    for collective in found:
        sent[collective.kind] += collective.times * collective.bytes
    loss = 2 * 32 * 6 * 4 + 8 * 32 * 4  # both sides' embeddings [32, 6], and vectors of 32
    assert split <= sent["all-gather"] <= split + loss
    assert split <= sent["reduce-scatter"] <= split + loss
    assert sent["all-reduce"] <= sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - split + loss


def test_every_device_draws_its_own_dropout():
    mesh = make_mesh()
    noise = lambda params, batch, key: (jax.random.uniform(key, batch.shape), {})  # noqa: E731
    run = jax.jit(on_own_rows(noise, mesh, {}))
    assert np.unique(run({}, jnp.zeros((16, 3)), jax.random.key(0))[0]).size == 48


@pytest.mark.parametrize(
    ("rows", "size", "turns"), [(12, 0, 1), (12, 12, 1), (12, 100, 1), (12, 5, 3), (12, 1, 12)]
)
def test_a_microbatch_is_the_largest_divisor_that_fits(rows, size, turns):
    seen = []

    def encode(batch, key):
        seen.append(batch.shape)
        return 2 * batch

    batch = jnp.arange(float(rows))[:, None]
    found = microbatched(encode, size)(batch, jax.random.key(0))
    np.testing.assert_array_equal(found, 2 * batch)
    assert set(seen) == {(rows // turns, 1)}
