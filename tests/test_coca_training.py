"""CoCa in train steps: both losses over all devices, in chunks and turns, and what is refused."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from tiny_models import CAPTIONS, TOKENS, create, params_of
from two_processes import FSDP, small_config

from vlrep_jax import models
from vlrep_jax.build import plain
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.experiment import check_vocabulary, make_experiment
from vlrep_jax.losses import captioning, softmax
from vlrep_jax.objectives import captioned

BATCH = 16
WIRINGS = {"data_parallel": {}, "fsdp": FSDP, "pmap": {"parallel.wiring": "pmap"}}


def config_of(weight=2.0, **changed):
    made = small_config().unlock()
    made.model = {"name": "coca", **CAPTIONS}
    made.captioning_weight = weight
    for path, value in changed.items():
        made.update_from_flattened_dict({path: value})
    return made.lock()


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, (BATCH, 6)).astype(np.int32)
    # Devices have from none to ten tokens to predict.
    tokens[np.arange(6)[None] >= rng.integers(1, 7, BATCH)[:, None]] = 0
    tokens[4:6, 1:] = 0
    return {
        "image": np.float32(rng.normal(size=(BATCH, 8, 8, 3))),
        "text": tokens,
        "pair_ids": np.arange(BATCH, dtype=np.int32),
    }


@cache
def on_one_device():
    objective = captioned(create("coca"), softmax, captioning, weight=2.0)
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return jax.device_get(gradient(params_of("coca"), batch(), jax.random.key(0)))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_step_has_the_losses_and_the_gradient_of_one_device(wiring):
    experiment = make_experiment(config_of(**WIRINGS[wiring]))
    like = experiment.abstract_state
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    state = jax.device_put(
        zeros._replace(params=params_of("coca")), jax.tree.map(lambda leaf: leaf.sharding, like)
    )
    _, metrics = experiment.step(state, experiment.put(batch()))
    (value, expected), gradients = on_one_device()
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name in ("contrastive", "captioning"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    norm = np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


@pytest.mark.parametrize("options", [{"chunks": 4}, {"microbatch": {"image": 4}}])
def test_parts_of_the_batch_give_value_and_gradient_of_the_whole(options):
    objective = captioned(create("coca"), softmax, captioning, weight=2.0, **options)
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, _), found = gradient(params_of("coca"), batch(), jax.random.key(0))
    (expected, _), wanted = on_one_device()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    leaves = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, leaf), other in leaves:
        atol = 2e-5 * np.abs(other).max() + 1e-7  # sums of 16 rows in another order
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, other, rtol=0, atol=atol, err_msg=name)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    (value, metrics), gradients = on_one_device()
    expected = metrics["contrastive"] + 2 * metrics["captioning"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    out = create("coca").apply({"params": params_of("coca")}, batch()["image"], batch()["text"])
    contrastive, _ = softmax(out.image, out.text, out.scale, None)
    np.testing.assert_allclose(metrics["contrastive"], contrastive, rtol=1e-5)
    still = [path for path, leaf in jax.tree.leaves_with_path(gradients) if not leaf.any()]
    # Attention does not change with a bias of its keys.
    assert all("['key']['bias']" in jax.tree_util.keystr(path) for path in still), still


def test_a_pair_of_weight_0_is_in_neither_loss():
    objective = jax.jit(captioned(create("coca"), softmax, captioning))
    fewer = {name: value[:-1] for name, value in batch().items() if name != "pair_ids"}
    weights = np.ones(BATCH, np.float32)
    weights[-1] = 0
    whole = {name: value for name, value in batch().items() if name != "pair_ids"}
    found, _ = objective(params_of("coca"), whole | {"weights": weights}, jax.random.key(0))
    expected, _ = objective(params_of("coca"), fewer, jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_decoder_without_its_loss_is_refused():
    with pytest.raises(
        ValueError, match=r"captioning_weight=0\.0 with CoCa: a CoCa's decoder learns"
    ):
        make_experiment(config_of(weight=0.0))


def test_a_tokenizer_that_pads_or_ends_otherwise_is_refused():
    tokenizer = train_bpe(["a few words of a text"], 300)
    for changed, message in (
        ({"pool": "cls", "pad_id": 5}, "has pad_id=5, but this tokenizer's is 0"),
        ({"pool": "eos", "eos_id": 5}, "has eos_id=5, but this tokenizer's is"),
    ):
        text = CAPTIONS["text"] | {"vocab_size": 300} | changed
        model = models.create("dual_encoder", image=plain(CAPTIONS["image"]), text=text)
        with pytest.raises(ValueError, match=message):
            check_vocabulary(tokenizer, model)


def test_dropout_reaches_the_decoder():
    noisy = models.create("coca", **CAPTIONS, towers={"dropout": 0.5})
    apply = jax.jit(partial(noisy.apply, {"params": params_of("coca")}, train=True))
    images, rngs = batch()["image"][:3], [{"dropout": jax.random.key(i)} for i in (0, 1)]
    first, other = (apply(images, TOKENS, rngs=key).logits for key in rngs)
    assert (np.abs(first - other).max(axis=(1, 2)) > 1e-4).all()
