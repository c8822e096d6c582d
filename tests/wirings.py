"""The ways to run one loss over n shards, each as gradient(params, batch) of the global batch.

An objective is `objective(loss, params, batch) -> (value, metrics)`. `params` are replicated, and
every leaf of `batch` is split by rows. Mapped wirings differentiate inside, and average the
gradients as a train step does; `whole` and `island` differentiate outside.
"""

from functools import partial

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vlrep_jax.collectives import global_mean
from vlrep_jax.parallel import BATCH_AXES, per_shard

# Split, the programs are compiled quickly (see conftest.py); `whole` as a user's would be.
optimized_jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True},
)


def whole(objective, loss, shards):
    """No axis at all; the only number of shards is 1."""
    assert shards == 1
    return optimized_jit(jax.value_and_grad(partial(objective, loss), has_aux=True))


def island(objective, loss, shards):
    """The loss inside a jit on a mesh of two batch axes."""
    shape = (shards // 2, 2) if shards > 1 else (1, 1)
    loss = per_shard(loss, mesh(shape, BATCH_AXES), batched=2)
    return jax.jit(jax.value_and_grad(partial(objective, loss), has_aux=True))


def vmap(objective, loss, shards):
    step = jax.jit(jax.vmap(_step(objective, loss), in_axes=(None, 0), axis_name="data"))
    return lambda params, batch: _same_on_all(step(params, _split(batch, shards)))


def pmap(objective, loss, shards):
    step = jax.pmap(_step(objective, loss), in_axes=(None, 0), axis_name="data")
    return lambda params, batch: _same_on_all(step(params, _split(batch, shards)))


def shard_map(objective, loss, shards):
    """Checked: that the result is equal on every shard is proven at trace time."""
    over = mesh((shards,), ("data",))
    step = _step(objective, loss)
    return jax.jit(jax.shard_map(step, mesh=over, in_specs=(P(), P("data")), out_specs=P()))


def shard_map_unchecked(objective, loss, shards):
    def stacked(params, batch):
        return jax.tree.map(lambda x: x[None], _step(objective, loss)(params, batch))

    over = mesh((shards,), ("data",))
    specs = dict(in_specs=(P(), P("data")), out_specs=P("data"))
    step = jax.jit(jax.shard_map(stacked, mesh=over, check_vma=False, **specs))
    return lambda params, batch: _same_on_all(step(params, batch))


MAPPED = {f.__name__: f for f in (vmap, pmap, shard_map, shard_map_unchecked, island)}
WIRINGS = {"whole": whole, **MAPPED}


def _step(objective, loss):
    loss = partial(loss, axis_name="data")

    def step(params, batch):
        gradient = jax.value_and_grad(partial(objective, loss), has_aux=True)
        value_and_metrics, gradients = gradient(params, batch)
        return value_and_metrics, global_mean(gradients, "data")

    return step


def mesh(shape, names):
    devices = jax.devices()[: np.prod(shape)]
    return jax.make_mesh(shape, names, (AxisType.Auto,) * len(shape), devices=devices)


def _split(batch, shards):
    """[B, ...] -> [shards, b, ...]."""
    return jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), batch)


def _same_on_all(stacked):
    """One shard's result, after checking that every shard has the same bits."""
    stacked = jax.tree.map(np.asarray, stacked)
    for leaf in jax.tree.leaves(stacked):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    return jax.tree.map(lambda x: x[0], stacked)
