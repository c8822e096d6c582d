"""Each collective means the same with one axis, with two, and without any."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import vlrep_jax
from vlrep_jax.collectives import first_row, gather_batch, global_mean, global_sum

X = np.arange(16, dtype=np.float32).reshape(8, 2)


def every_collective(x, axis_name):
    """Two rows a shard in; what each collective gives that shard out."""
    tree = {"sum": jnp.sum(x), "rows": x}
    return {
        "gathered": gather_batch(x, axis_name),
        "mean": global_mean(tree, axis_name),
        "sum": global_sum(tree, axis_name),
        "first_row": jnp.asarray(first_row(x.shape[0], axis_name)),
    }


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


def test_without_an_axis_the_batch_is_whole():
    got = every_collective(X, None)
    np.testing.assert_array_equal(got["gathered"], X)
    assert got["sum"]["sum"] == got["mean"]["sum"] == 120
    assert got["first_row"] == 0


def test_no_other_file_asks_whether_there_is_an_axis():
    root = Path(vlrep_jax.__file__).parent
    asks = re.compile(r"axis_name (is|==|!=)|(if|not|and|or) axis_name\b")
    files = {
        p.relative_to(root).as_posix() for p in root.rglob("*.py") if asks.search(p.read_text())
    }
    assert files == {"collectives.py"}
