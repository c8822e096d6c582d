"""Each collective means the same with one axis, with two, and without any."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wirings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import vlrep_jax
from vlrep_jax import collectives
from vlrep_jax.collectives import (
    first_row,
    gather_batch,
    gather_parts,
    global_max,
    global_mean,
    global_rows,
    global_sum,
    own_rows,
    round_trip,
    sum_to_owner,
    vary_like,
)

X = np.arange(16, dtype=np.float32).reshape(8, 2)


def every_collective(x, axis_name):
    """Two rows a shard in; what each collective gives that shard out."""
    tree = {"sum": jnp.sum(x), "rows": x}
    return {
        "gathered": gather_batch(x, axis_name),
        "mean": global_mean(tree, axis_name),
        "sum": global_sum(tree, axis_name),
        "first_row": jnp.asarray(first_row(x.shape[0], axis_name)),
        "max": global_max(x, axis_name),
        "global_rows": jnp.asarray(global_rows(x.shape[0], axis_name)),
        "own": own_rows(gather_batch(x, axis_name), x.shape[0], axis_name),
        "summed": sum_to_owner((1 + jnp.sum(x)) * gather_batch(x, axis_name), axis_name),
        "ring": round_trip(meet, vary_like(jnp.zeros(2), x), (x, jnp.zeros_like(x)), axis_name),
    }


def meet(seen, travelling):
    """Each shard adds up the rows that pass, and leaves its mark on each of them."""
    rows, marks = travelling
    return seen + rows[0] + rows[1], (rows, marks + 1 + rows)


def on_mesh(shape, names):
    mesh = jax.make_mesh(shape, names, (AxisType.Auto,) * len(shape), devices=jax.devices()[:4])
    axis_name = names if len(names) > 1 else names[0]

    def stacked(x):
        return jax.tree.map(lambda y: y[None], every_collective(x, axis_name))

    run = jax.shard_map(stacked, mesh=mesh, in_specs=P(names), out_specs=P(names))
    return lambda: jax.jit(run)(X)


MAPPED = {
    "vmap": lambda: jax.vmap(lambda x: every_collective(x, "data"), axis_name="data")(
        X.reshape(4, 2, 2)
    ),
    "pmap": lambda: jax.pmap(lambda x: every_collective(x, "data"), axis_name="data")(
        X.reshape(4, 2, 2)
    ),
    "shard_map": on_mesh((4,), ("data",)),
    "shard_map over two axes": on_mesh((2, 2), ("data", "fsdp")),
}


@pytest.mark.parametrize("wiring", MAPPED)
def test_four_shards_of_two_rows(wiring):
    got = MAPPED[wiring]()
    for shard in range(4):
        # Shards in order; the first of two axes is the slow one, as when the batch is laid out.
        np.testing.assert_array_equal(got["gathered"][shard], X)
        assert got["first_row"][shard] == 2 * shard
        assert got["sum"]["sum"][shard] == 120  # 0 + 1 + ... + 15
        assert got["mean"]["sum"][shard] == 30
        # Rows 0, 2, 4, 6 add up, and rows 1, 3, 5, 7.
        np.testing.assert_array_equal(got["sum"]["rows"][shard], [[24, 28], [32, 36]])
        np.testing.assert_array_equal(got["mean"]["rows"][shard], [[6, 7], [8, 9]])
        np.testing.assert_array_equal(got["max"][shard], [[12, 13], [14, 15]])
        assert got["global_rows"][shard] == 8
        own = X[2 * shard : 2 * shard + 2]
        np.testing.assert_array_equal(got["own"][shard], own)
        np.testing.assert_array_equal(got["summed"][shard], 124 * own)  # 4 + (0 + ... + 15)
        seen, (rows, marks) = jax.tree.map(lambda x, shard=shard: x[shard], got["ring"])
        np.testing.assert_array_equal(seen, [56, 64])  # every row passed by: 0 + 2 + ... + 14
        np.testing.assert_array_equal(rows, own)  # and all came home
        np.testing.assert_array_equal(marks, 4 * (1 + own))  # from each of the four shards


@pytest.mark.parametrize("large", [2**24, 1])
def test_the_gradient_of_a_gathered_row_is_summed_over_the_shards(large, monkeypatch):
    """At once, or in pieces of 8 rows: the sum of a large matrix takes memory of its own."""
    monkeypatch.setattr(collectives, "_LARGE_BYTES", large)
    monkeypatch.setattr(collectives, "_PIECE_BYTES", 1)
    monkeypatch.setattr(collectives, "_GROUP", 2)  # which vmap could not form
    x = np.arange(128, dtype=np.float32).reshape(4, 16, 2)
    factors = np.random.default_rng(0).normal(size=(4, 64, 2)).astype(np.float32)

    def gradient(x, factor):
        return jax.grad(lambda x: jnp.sum(factor * gather_batch(x, "data")))(x)

    def program(x, factor):
        return jax.vmap(gradient, axis_name="data")(x, factor)

    got = jax.jit(program)(x, factors)
    np.testing.assert_allclose(got, factors.sum(0).reshape(4, 16, 2), rtol=1e-6)
    in_pieces = "scan" in str(jax.make_jaxpr(program)(x, factors))
    assert in_pieces == (large == 1)


@pytest.mark.parametrize("group", [2, 3, 4, 16])
@pytest.mark.parametrize("shape", [(8,), (4, 2), (2, 4), (6,), (3, 2)])
@pytest.mark.parametrize("dim", [0, 1])
def test_sums_in_groups_leave_each_shard_its_part(group, shape, dim, monkeypatch):
    monkeypatch.setattr(collectives, "_GROUP", group)
    names = ("data", "fsdp")[: len(shape)]
    shards = int(np.prod(shape))
    over = wirings.mesh(shape, names)
    x = np.random.default_rng(0).normal(size=(48, 24)).astype(np.float32)
    factor = np.arange(1.0, 1 + shards, dtype=np.float32)
    split = P(*(None,) * dim, names)

    def gradient(x, factor):
        gathered = lambda x: factor[0] * jnp.sin(gather_parts(x, names, dim)).sum()  # noqa: E731
        return jax.grad(gathered)(x)

    run = jax.shard_map(gradient, mesh=over, in_specs=(split, P(names)), out_specs=split)
    # 1 + 2 + ... of the shards' factors, in float32 sums.
    np.testing.assert_allclose(jax.jit(run)(x, factor), factor.sum() * np.cos(x), rtol=1e-5)


def test_without_an_axis_the_batch_is_whole():
    got = every_collective(X, None)
    np.testing.assert_array_equal(got["gathered"], X)
    assert got["sum"]["sum"] == got["mean"]["sum"] == 120
    assert got["first_row"] == 0
    assert got["global_rows"] == 8
    for name in ("max", "own"):
        np.testing.assert_array_equal(got[name], X)
    np.testing.assert_array_equal(got["summed"], 121 * X)
    np.testing.assert_array_equal(got["ring"][0], X[0] + X[1])  # a ring of one: one step


def test_no_other_file_asks_whether_there_is_an_axis():
    root = Path(vlrep_jax.__file__).parent
    asks = re.compile(r"axis_name (is|==|!=)|(if|not|and|or) axis_name\b")
    files = {
        p.relative_to(root).as_posix() for p in root.rglob("*.py") if asks.search(p.read_text())
    }
    assert files == {"collectives.py"}
