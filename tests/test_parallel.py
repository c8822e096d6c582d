"""One train step under every wiring: the same losses and parameters, laid out as the rules say."""

import json
import os
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_recipe import Squares
from two_processes import FSDP, STEPS, host_batch, pmap_run, small_config

from vlrep_jax import metrics, models, optim
from vlrep_jax.build import plain
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.experiment import make_experiment
from vlrep_jax.losses import LOSSES
from vlrep_jax.objectives import contrastive, normalizer
from vlrep_jax.parallel import (
    BATCH_AXES,
    jit_step,
    make_mesh,
    per_shard,
    pmap_state_sharding,
    put_batch,
    put_pmap_batch,
    replicated,
    shardings,
)
from vlrep_jax.train import init_state, make_train_step

WIRINGS = {
    "data_parallel": {},
    "fsdp": FSDP,
    "pmap": {"parallel.wiring": "pmap"},
}
LOSS_OPTIONS = {"softmax": {}, "sigmoid": {"model.bias_init": -10.0}}


def config_of(loss, **changed):
    return small_config(**{"loss.name": loss} | LOSS_OPTIONS[loss] | changed)


def run(loss, step, state, put):
    """(losses, last state)."""
    losses = []
    for number in range(STEPS):
        batch = host_batch(number)
        if loss == "sigmoid":  # by position alone
            del batch["pair_ids"]
        state, values = step(state, put(batch))
        losses.append(float(values["loss"]))
    return losses, state


@cache
def experiment_of(loss, wiring):
    return make_experiment(config_of(loss, **WIRINGS[wiring]))


@cache
def with_experiment(loss, wiring):
    experiment = experiment_of(loss, wiring)
    return run(loss, experiment.step, laid_out(loss, experiment.abstract_state), experiment.put)


def laid_out(loss, like):
    """The initial state, without compiling `experiment.init` for every layout."""
    return jax.device_put(initial(loss), jax.tree.map(lambda leaf: leaf.sharding, like))


@cache
def initial(loss):
    return jax.device_get(jax.jit(pieces(loss)[-1])())


def pieces(loss):
    """(model, normalize, optimizer, init) of the same run, from the library's functions."""
    config = config_of(loss)
    model = models.create(**plain(config.model))
    example = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8), np.int32)
    init_params = lambda key: model.init(key, *example)["params"]  # noqa: E731
    params = jax.eval_shape(init_params, jax.random.key(0))
    schedule = optim.cosine(3e-3, config.steps, warmup_steps=2)
    tx = optim.make_optimizer("adamw", schedule=schedule, params=params, weight_decay=0.1, eps=1e-3)
    normalize = normalizer(config.image.mean, config.image.std)
    return model, normalize, tx, partial(init_state, init_params, tx, config.seed, ema=False)


@cache
def on_one_device(loss):
    model, normalize, tx, _ = pieces(loss)
    step = make_train_step(contrastive(model, LOSSES[loss], normalize), tx)
    return run(loss, jax.jit(step), initial(loss), lambda batch: batch)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("loss", LOSS_OPTIONS)
def test_five_steps_are_the_same_on_one_device_and_on_eight(loss, wiring):
    losses, state = with_experiment(loss, wiring)
    expected, last = on_one_device(loss)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert int(state.step) == STEPS
    leaves = zip(jax.tree.leaves_with_path(state.params), jax.tree.leaves(last.params), strict=True)
    for (path, found), wanted in leaves:
        name = jax.tree_util.keystr(path)
        # Rounding of gradients up to 1, divided by Adam's eps of 1e-3, in five steps of up to 3e-3.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6, err_msg=name)


def test_the_losses_differ_so_that_equal_ones_mean_something():
    for loss in LOSS_OPTIONS:
        losses, _ = on_one_device(loss)
        assert len({round(value, 4) for value in losses}) == STEPS


def test_the_librarys_functions_wire_by_hand_what_an_experiment_does():
    """As a user's own program would; here only the image tower is split."""
    model, normalize, tx, init = pieces("softmax")
    mesh = make_mesh(2, 4)
    island = per_shard(LOSSES["softmax"], mesh, batched=2)
    layout = shardings(jax.eval_shape(init), mesh, [("image/.*", "fsdp")])
    step = make_train_step(contrastive(model, island, normalize), tx)
    state = jax.device_put(initial("softmax"), layout)
    found, _ = run("softmax", jit_step(step, mesh, layout), state, partial(put_batch, mesh=mesh))
    np.testing.assert_allclose(found, on_one_device("softmax")[0], rtol=1e-6)


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    here = Path(__file__).parent
    paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)}
    script = str(here / "two_processes.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, str(process), str(port), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in running:
            process.kill()
    expected, _ = on_one_device("softmax")
    for process in range(2):
        losses = json.loads((tmp_path / f"losses-{process}.json").read_text())
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
    monkeypatch.setitem(SOURCES, "squares", Squares)
    pmap_run(tmp_path / "alone")
    together, alone = (metrics.read(tmp_path / name) for name in ("run", "alone"))
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        # A recall of 16 pictures moves by whole pictures, so by nothing at all.
        for name in one.keys() & {"train/loss", "own/image_to_text_recall@5"}:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, err_msg=name)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


# Layout.


def test_fsdp_splits_parameters_and_both_moments():
    _, state = with_experiment("softmax", "fsdp")
    for tree in (state.params, *moments(state.opt_state)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = jax.tree_util.keystr(path)
            shards = {shard.data.shape for shard in leaf.addressable_shards}
            assert len(shards) == 1 and len(leaf.addressable_shards) == 8, name
            whole, part = leaf.size, np.prod(shards.pop())
            # Every leaf but the logit scale has an even dimension.
            assert part == (whole if leaf.ndim == 0 else whole // 2), name
            assert leaf.is_fully_replicated == (leaf.ndim == 0), name


def test_a_run_begins_laid_out_with_the_values_of_one_device():
    experiment = experiment_of("softmax", "fsdp")
    state, expected = experiment.init(), initial("softmax")
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    leaves = zip(
        jax.tree.leaves(state),
        jax.tree.leaves(experiment.abstract_state),
        jax.tree.leaves(expected),
        strict=True,
    )
    for found, like, value in leaves:
        assert found.sharding == like.sharding
        np.testing.assert_array_equal(found, value)


def test_data_parallel_and_pmap_keep_the_whole_state_everywhere():
    for wiring in ("data_parallel", "pmap"):
        _, state = with_experiment("softmax", wiring)
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
        assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(state))


def moments(opt_state):
    """Trees in an optimizer's state that look like the parameters."""
    found = [part for part in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(part)]
    assert len(found) == 1
    return found[0].mu, found[0].nu


def is_adam(part):
    return hasattr(part, "mu") and hasattr(part, "nu")


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_step_is_compiled_once(wiring):
    """A state that leaves a step laid out otherwise than it came costs a second compilation."""
    begin = experiment_of("softmax", wiring).abstract_state
    _, end = with_experiment("softmax", wiring)
    for (path, first), last in zip(
        jax.tree.leaves_with_path(begin), jax.tree.leaves(end), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (first.shape, first.dtype) == (last.shape, last.dtype), name
        assert first.sharding == last.sharding, name


def test_rules_place_by_path_and_the_first_match_wins():
    mesh = make_mesh(4, 2)
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    tree = {
        "image": {"kernel": like(3, 4, 6), "odd": like(3, 5), "bias": like(8)},
        "text": {"kernel": like(4, 4)},
        "mu": {"text": {"kernel": like(4, 4)}},
    }
    rules = [("bias", "replicate"), ("image/.*", "fsdp"), ("text/kernel", "fsdp")]
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings(tree, mesh, rules))
    assert specs == {
        "image": {
            "kernel": P(None, None, "fsdp"),  # the largest dimension
            "odd": P(),  # 2 divides neither
            "bias": P(),  # the first rule
        },
        "text": {"kernel": P("fsdp")},
        "mu": {"text": {"kernel": P("fsdp")}},  # a moment's path ends in its parameter's
    }
    assert all(s.spec == P() for s in jax.tree.leaves(shardings(tree, make_mesh(8, 1), rules)))
    assert all(s.spec == P() for s in jax.tree.leaves(shardings(tree, mesh, [])))
    with pytest.raises(ValueError, match="Unknown sharding 'fdsp'; known: fsdp, replicate"):
        shardings(tree, mesh, [("image/.*", "fdsp")])
    with pytest.raises(ValueError, match=r"'txet/\.\*' matches no parameter"):
        shardings(tree, mesh, [("txet/.*", "fsdp")])


def test_a_batch_is_split_over_all_devices_in_order():
    batch = {"index": np.arange(16, dtype=np.int32)}
    put = put_batch(batch, make_mesh(4, 2))["index"]
    parts = {shard.device.id: shard.data.tolist() for shard in put.addressable_shards}
    assert parts == {i: [2 * i, 2 * i + 1] for i in range(8)}
    np.testing.assert_array_equal(put_pmap_batch(batch)["index"], batch["index"].reshape(8, 2))


# Meshes and islands.


@pytest.mark.parametrize(
    ("sizes", "shape"), [((-1, 1), (8, 1)), ((4, -1), (4, 2)), ((2, 4), (2, 4)), ((-1, 8), (1, 8))]
)
def test_a_mesh_takes_all_devices(sizes, shape):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape[name] for name in BATCH_AXES) == shape
    assert pmap_state_sharding().device_set == replicated(mesh).device_set


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (4, 1), (-1, -1), (0, 8), (-8, -1), (16, -1)])
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes):
    data, fsdp = sizes
    message = f"parallel.data={data}, parallel.fsdp={fsdp} do not fit 8 devices.*must be 8"
    with pytest.raises(ValueError, match=message):
        make_mesh(data, fsdp)


@pytest.mark.parametrize(("rows", "nearest"), [(12, "8|16"), (15, "16"), (3, "8"), (0, "8")])
def test_a_batch_that_does_not_divide_names_the_nearest_that_does(rows, nearest):
    batch = {"text": np.zeros((rows, 4), np.int32)}
    message = f"batch_size={rows} must be a multiple of 8 devices; the nearest is ({nearest})"
    for put in (partial(put_batch, mesh=make_mesh()), put_pmap_batch):
        with pytest.raises(ValueError, match=message):
            put(batch)


def test_an_island_splits_what_is_batched_and_drops_what_is_none():
    def total(rows, factor, *, axis_name, weights=None, ids=None):
        assert axis_name == BATCH_AXES and rows.shape == (2,) and ids is None
        local = jnp.sum(rows * (1 if weights is None else weights)) * factor
        return jax.lax.psum(local, axis_name)

    island = per_shard(total, make_mesh(4, 2), batched=1)
    rows, factor = jnp.arange(16.0), jnp.float32(2)
    assert jax.jit(island)(rows, factor) == 240
    assert jax.jit(partial(island, weights=None, ids=None))(rows, factor) == 240
    assert jax.jit(island)(rows, factor, weights=jnp.ones(16).at[0].set(5)) == 240
    assert jax.jit(island)(rows, factor, weights=jnp.zeros(16).at[15].set(1)) == 30
    # A positional None (a model without a bias) passes too.
    bias = per_shard(
        lambda x, b, *, axis_name: jax.lax.psum(x.sum(), axis_name), make_mesh(), batched=1
    )
    assert jax.jit(lambda x: bias(x, None))(rows) == 120
