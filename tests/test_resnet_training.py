"""A ResNet in whole train steps: batch norm over all devices, its statistics in the state."""

from contextlib import closing
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import RESNET
from two_processes import FSDP, small_config

from vlrep_jax import models, optim
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.experiment import make_experiment
from vlrep_jax.losses import LOSSES
from vlrep_jax.objectives import contrastive, normalizer
from vlrep_jax.parallel import make_mesh, shardings
from vlrep_jax.train import init_state, make_train_step

STEPS, BATCH = 3, 16
IMAGE = {"name": "resnet", **RESNET, "embed_dim": 16}
TEXT = {"name": "text_transformer", "vocab_size": 300, "context_length": 8, "embed_dim": 16}
MODEL = {
    "name": "dual_encoder",
    "image": IMAGE,
    "text": {**TEXT, "width": 16, "depth": 1, "heads": 2},
}
WIRINGS = {"data_parallel": {}, "fsdp": FSDP, "pmap": {"parallel.wiring": "pmap"}}


def config_of(**changed):
    options = {key: changed.pop(key) for key in list(changed) if key in ("batch_norm", "remat")}
    made = small_config().unlock()
    made.model = {**MODEL, "image": {**IMAGE, **options}}
    # A decay that would show in statistics, and an average of all parameters.
    made.optimizer.weight_decay, made.ema_decay = 0.5, 0.9
    for path, value in changed.items():
        made.update_from_flattened_dict({path: value})
    return made.lock()


def host_batch(step):
    rng = np.random.default_rng(step)
    # Devices see pictures of different brightness.
    light = np.linspace(60, 255, BATCH)[:, None, None, None]
    return {
        "image": (rng.uniform(0, 1, (BATCH, 32, 32, 3)) * light).astype(np.uint8),
        "text": rng.integers(0, 300, (BATCH, 8), dtype=np.int32),
        "pair_ids": np.arange(BATCH, dtype=np.int32),
    }


def pieces(**changed):
    """(model, optimizer, state, config) of the same run, from the library's functions."""
    config = config_of(**changed)
    model = models.create(**plain(config.model))
    example = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 8), jnp.int32)
    init_params = lambda key: model.init(key, *example)["params"]  # noqa: E731
    params = jax.eval_shape(init_params, jax.random.key(0))
    schedule = optim.cosine(3e-3, config.steps, warmup_steps=2)
    tx = optim.make_optimizer("adamw", schedule=schedule, params=params, weight_decay=0.5, eps=1e-3)
    return model, tx, jax.jit(lambda: init_state(init_params, tx, 0, ema=True))(), config


@cache
def on_one_device(**changed):
    """(losses, first state, last state) without any axis."""
    model, tx, first, config = pieces(**changed)
    objective = contrastive(
        model, LOSSES["softmax"], normalizer(config.image.mean, config.image.std)
    )
    step = jax.jit(make_train_step(objective, tx, ema_decay=0.9))
    state, losses = first, []
    for number in range(STEPS):
        state, metrics = step(state, host_batch(number))
        losses.append(float(metrics["loss"]))
        assert all(value.shape == () for value in metrics.values())
    return losses, first, state


@cache
def experiment_of(wiring):
    return make_experiment(config_of(**WIRINGS[wiring]))


@cache
def begun(wiring):
    """The initial state, without compiling `experiment.init` for every layout."""
    like = experiment_of(wiring).abstract_state
    first = jax.device_get(on_one_device()[1])
    return jax.device_put(first, jax.tree.map(lambda leaf: leaf.sharding, like))


def copied(state):
    return jax.tree.map(jnp.copy, state)


def statistics(params):
    is_running = jax.tree.leaves(optim.running_statistics(params))
    leaves = jax.tree.leaves_with_path(params)
    pairs = zip(leaves, is_running, strict=True)
    return {jax.tree_util.keystr(path): leaf for (path, leaf), running in pairs if running}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_steps_are_those_of_one_device_statistics_included(wiring):
    experiment = experiment_of(wiring)
    state, losses = copied(begun(wiring)), []
    for number in range(STEPS):
        state, metrics = experiment.step(state, experiment.put(host_batch(number)))
        losses.append(float(metrics["loss"]))
    expected, _, last = on_one_device()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for tree in ("params", "ema"):
        leaves = jax.tree.leaves_with_path(getattr(state, tree))
        wanted = jax.tree.leaves(getattr(last, tree))
        for (path, found), expected_leaf in zip(leaves, wanted, strict=True):
            # Rounding of gradients, which batch norm of few values enlarges, over Adam's eps.
            name = f"{tree}{jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(found, expected_leaf, rtol=1e-4, atol=3e-5, err_msg=name)
    for leaf, like in zip(
        jax.tree.leaves(state), jax.tree.leaves(experiment.abstract_state), strict=True
    ):
        assert leaf.sharding == like.sharding


def test_statistics_move_and_are_averaged_without_decay_or_moments():
    _, first, last = on_one_device()
    before, after = statistics(first.params), statistics(last.params)
    assert len(before) == 2 * (3 + 4 * 4)
    for name, value in before.items():
        assert (np.asarray(after[name]) != value).any(), name
    moments = jax.tree.leaves_with_path(last.opt_state)
    assert not any("running" in jax.tree_util.keystr(path) for path, _ in moments)
    count = sum(leaf.size for leaf in jax.tree.leaves(last.params))
    learned = optim.parameter_count(last.params)
    assert learned == count - sum(leaf.size for leaf in before.values())
    assert experiment_of("data_parallel").summary().startswith(f"{learned:,} parameters")


def test_the_first_new_mean_is_a_tenth_of_the_batchs():
    """By hand, of the first convolution."""
    _, first, _ = on_one_device()
    model, _, _, config = pieces()
    normalize = normalizer(config.image.mean, config.image.std)
    images = normalize(jnp.asarray(host_batch(0)["image"]))
    kernel = first.params["image"]["stem"]["conv_1"]["kernel"]
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout
    )
    x = np.float64(x).reshape(-1, kernel.shape[-1])
    _, metrics = contrastive(model, LOSSES["softmax"], normalize)(
        first.params, host_batch(0), jax.random.key(0)
    )
    found = metrics[models.RUNNING]["image"]["stem"]["bn_1"]
    np.testing.assert_allclose(found["running_mean"], 0.1 * x.mean(axis=0), rtol=1e-4, atol=1e-6)
    unbiased = x.var(axis=0, ddof=1)
    np.testing.assert_allclose(found["running_var"], 0.9 + 0.1 * unbiased, rtol=1e-4)


def test_evaluation_normalises_each_picture_alone():
    model, _, _, _ = pieces()
    _, _, last = on_one_device()
    pictures = np.float32(np.random.default_rng(0).normal(size=(4, 32, 32, 3)))
    encode = jax.jit(lambda x: model.apply({"params": last.params}, x, method="encode_image"))
    other = pictures.copy()
    other[1:] = 3
    np.testing.assert_allclose(encode(pictures)[0], encode(other)[0], rtol=1e-5, atol=1e-6)


def test_frozen_batch_norm_keeps_its_statistics_while_its_gains_learn():
    _, first, last = on_one_device(batch_norm="frozen")
    before, after = statistics(first.params), statistics(last.params)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    gains = [state.params["image"]["stem"]["bn_1"]["scale"] for state in (first, last)]
    assert (gains[0] != gains[1]).all()


def test_a_run_that_stops_and_continues_changes_no_bit(tmp_path):
    experiment = experiment_of("fsdp")
    put = lambda number: experiment.put(host_batch(number))  # noqa: E731
    one, _ = experiment.step(copied(begun("fsdp")), put(0))
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, one, {}, {})
        through, _ = experiment.step(one, put(1))
    with closing(Checkpoints(tmp_path)) as checkpoints:
        restored, _ = checkpoints.restore(1, experiment.abstract_state)
    continued, _ = experiment.step(restored, put(1))
    for found, wanted in zip(jax.tree.leaves(continued), jax.tree.leaves(through), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_fsdp_splits_statistics_too():
    _, _, last = on_one_device()
    layout = shardings(last.params, make_mesh(4, 2), [(".*", "fsdp")])
    assert all("fsdp" in where.spec for where in statistics(layout).values())


@pytest.mark.parametrize("changed", [{"chunks": 2}, {"microbatch.image": 2}])
def test_parts_of_a_batch_are_refused_unless_batch_norm_is_frozen(changed):
    with pytest.raises(ValueError, match=r"Batch norm needs all images at once.*'frozen'"):
        make_experiment(config_of(**changed))
    make_experiment(config_of(**changed, batch_norm="frozen"))


def test_a_frozen_tower_must_freeze_its_statistics():
    with pytest.raises(ValueError, match=r"config\.freeze holds running statistics"):
        make_experiment(config_of(freeze=("image/.*",)))
    make_experiment(config_of(freeze=("image/.*",), batch_norm="frozen"))
    make_experiment(config_of(freeze=("text/.*",)))
