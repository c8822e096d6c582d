"""Fusion layers: what they read of a pair, how they are trained over devices, what is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_coca_training import WIRINGS, batch
from tiny_models import FUSED, IMAGES, TOKENS, create, drawn, params_of
from two_processes import small_config

from vlrep_jax import models
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.experiment import make_experiment
from vlrep_jax.losses import (
    answer_costs,
    answering,
    captioning,
    draw_negatives,
    matching,
    softmax,
    token_costs,
)
from vlrep_jax.objectives import answered, contrastive, fused

ANSWERS = ("yes", "no", "two")


@cache
def fuse():
    """compiled (params, image tokens, TextTokens) -> logits."""
    return jax.jit(lambda p, *x: create("fusion_encoder").apply({"params": p}, *x, method="fuse"))


def tokens_of(images, tokens):
    model, params = create("fusion_encoder"), {"params": params_of("fusion_encoder")}
    image = model.apply(params, images, method="image_tokens")[1]
    return image, model.apply(params, tokens, method="text_tokens")[1]


def test_a_judgement_reads_both_sides_and_no_padding():
    params = params_of("fusion_encoder")
    image, text = tokens_of(IMAGES, TOKENS)
    found = fuse()(params, image, text)
    assert (found.shape, found.dtype) == ((3, 1), jnp.float32)
    for place in range(4):
        other = image.at[:, place, 0].add(1.0)
        assert (np.abs(fuse()(params, other, text) - found) > 1e-5).all(), place
    for place in range(6):
        changed = fuse()(params, image, text._replace(tokens=text.tokens.at[:, place, 0].add(1.0)))
        seen = TOKENS[:, place] != 0
        np.testing.assert_array_equal(np.abs(changed - found)[:, 0] > 1e-6, seen)


def test_an_answer_is_the_judgement_of_a_head_that_tells_answers_apart():
    model = models.create("fusion_encoder", **FUSED, answers=list(ANSWERS))
    params = drawn(model, IMAGES, TOKENS)
    image, text = tokens_of(IMAGES, TOKENS)
    found = model.apply({"params": params}, IMAGES, TOKENS, method="answer")
    assert found.shape == (3, 3)
    towers = {**params, **{side: params_of("fusion_encoder")[side] for side in ("image", "text")}}
    found = model.apply({"params": towers}, IMAGES, TOKENS, method="answer")
    apart = model.apply({"params": towers}, image, text, method="fuse")
    np.testing.assert_allclose(found, apart, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="holds one of them twice"):
        twice = models.create("fusion_encoder", **FUSED, answers=("yes", "yes"))
        twice.init(jax.random.key(0), IMAGES, TOKENS)


def test_a_fusion_of_another_width_is_refused():
    other = FUSED | {"fusion": FUSED["fusion"] | {"width": 16}}
    with pytest.raises(ValueError, match="fusion has width=16 and the text tower 8"):
        models.create("fusion_encoder", **other).init(jax.random.key(0), IMAGES, TOKENS)


def test_what_a_picture_tells_of_a_text_is_the_sum_over_its_tokens():
    model = models.create("fusion_encoder", **FUSED, captions=True)
    params = {"params": drawn(model, IMAGES, TOKENS)}
    image, text = (
        model.apply(params, x, method=f"{side}_tokens")[1]
        for side, x in (("image", IMAGES), ("text", TOKENS))
    )
    found = model.apply(params, image, text, method="judge")
    np.testing.assert_allclose(found[:, :1], model.apply(params, image, text, method="fuse"))
    words = np.float64(model.apply(params, IMAGES, TOKENS).words)
    log_p = words - np.log(np.exp(words).sum(axis=-1, keepdims=True))
    for row, ids in enumerate(TOKENS):
        told = sum(log_p[row, place, ids[place + 1]] for place in range(5) if ids[place + 1])
        np.testing.assert_allclose(found[row, 1], told, rtol=1e-5)


# Training.


def config_of(model=FUSED, weight=1.0, **changed):
    made = small_config().unlock()
    made.model = {"name": "fusion_encoder", **model}
    made.matching_weight = weight
    for path, value in changed.items():
        made.update_from_flattened_dict({path: value})
    return made.lock()


@cache
def sharp_params():
    """A draw is the nearest, whatever noise each shard adds: it is nearer by 30 as a logit."""
    params = drawn(create("fusion_encoder"), IMAGES, TOKENS, seed=29)
    return params | {"logit_scale": np.float32(np.log(2e3))}


@cache
def on_one_device(every=1):
    draw = partial(draw_negatives, every=every)
    objective = fused(create("fusion_encoder"), softmax, draw, matching, weight=3.0, every=every)
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return jax.device_get(gradient(sharp_params(), batch(), jax.random.key(0)))


def norm_of(gradients):
    return np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(gradients)))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_step_has_the_losses_and_the_gradient_of_one_device(wiring):
    experiment = make_experiment(config_of(weight=3.0, matching_every=2, **WIRINGS[wiring]))
    like = experiment.abstract_state
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    state = jax.device_put(
        zeros._replace(params=sharp_params()), jax.tree.map(lambda leaf: leaf.sharding, like)
    )
    _, metrics = experiment.step(state, experiment.put(batch()))
    (value, expected), gradients = on_one_device(every=2)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name in ("contrastive", "matching", "matching_accuracy"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(metrics["gradient_norm"], norm_of(gradients), rtol=1e-4)


@pytest.mark.parametrize("options", [{"chunks": 4}, {"microbatch": {"image": 4}}])
def test_parts_of_the_batch_give_value_and_gradient_of_the_whole(options):
    model = create("fusion_encoder")
    objective = fused(model, softmax, draw_negatives, matching, weight=3.0, **options)
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, _), found = gradient(sharp_params(), batch(), jax.random.key(0))
    (expected, _), wanted = on_one_device()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(norm_of(found), norm_of(wanted), rtol=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_terms_and_all_layers_learn():
    (value, metrics), gradients = on_one_device()
    np.testing.assert_allclose(value, metrics["contrastive"] + 3 * metrics["matching"], rtol=1e-6)
    plain = contrastive(create("dual_encoder"), softmax)
    towers = {name: sharp_params()[name] for name in ("image", "text", "logit_scale")}
    contrast, _ = jax.jit(plain)(towers, batch(), jax.random.key(0))
    np.testing.assert_allclose(metrics["contrastive"], contrast, rtol=1e-5)
    still = [path for path, leaf in jax.tree.leaves_with_path(gradients) if not leaf.any()]
    # Attention does not change with a bias of its keys.
    assert all("['key']['bias']" in jax.tree_util.keystr(path) for path in still), still


def test_a_part_of_the_rows_is_judged_and_captioned_and_all_are_drawn_from():
    model = models.create("fusion_encoder", **FUSED, captions=True)
    params = sharp_params() | drawn(model, IMAGES, TOKENS, seed=29)
    params["logit_scale"] = sharp_params()["logit_scale"]
    rows = batch() | {"weights": np.float32(np.arange(16) % 5 != 4)}

    def run(every, weights):
        draw = partial(draw_negatives, every=every)
        options = {"captioning": captioning, "captioning_weight": 2.0, "every": every}
        objective = jax.jit(fused(model, softmax, draw, matching, **options))
        return objective(params, rows | {"weights": weights}, jax.random.key(0))[1]

    found, whole = run(4, rows["weights"]), run(1, rows["weights"])
    np.testing.assert_allclose(found["contrastive"], whole["contrastive"], rtol=1e-6)

    # By hand, of the rows 0, 8 and 12, for 4 has the weight 0: what is nearest among all that are.
    def method(name, *x):
        return model.apply({"params": params}, *x, method=name)

    (image, images), (text, texts) = (
        method(f"{side}_tokens", rows[side]) for side in ("image", "text")
    )
    similarity = np.array(image @ text.T)
    similarity[np.arange(16), np.arange(16)] = -9
    similarity[rows["weights"] == 0], similarity[:, rows["weights"] == 0] = -9, -9
    costs, told, own = [], [], np.array([0, 8, 12])
    pairs = (own, own), (own, similarity[own].argmax(1)), (similarity[:, own].argmax(0), own)
    for sign, (i, j) in zip((1, -1, -1), pairs, strict=True):
        text = jax.tree.map(lambda x, j=j: x[j], texts)
        costs.append(np.logaddexp(0, -sign * np.float64(method("fuse", images[i], text)[:, 0])))
    np.testing.assert_allclose(found["matching"], np.mean(costs), rtol=1e-5)
    words = method("write", images[own], jax.tree.map(lambda x: x[own], texts))
    told, _ = captioning(*token_costs(words, rows["text"][own, 1:]))
    np.testing.assert_allclose(found["captioning"], told, rtol=1e-5)


def test_captions_are_learnt_beside_by_the_same_layers():
    model = models.create("fusion_encoder", **FUSED, captions=True)
    params = drawn(model, IMAGES, TOKENS)
    options = {"captioning": captioning, "captioning_weight": 2.0}
    objective = jax.jit(fused(model, softmax, draw_negatives, matching, **options))
    value, metrics = objective(params, batch(), jax.random.key(0))
    parts = metrics["contrastive"] + metrics["matching"] + 2 * metrics["captioning"]
    np.testing.assert_allclose(value, parts, rtol=1e-6)
    logits = model.apply({"params": params}, batch()["image"], batch()["text"]).words
    # A token is predicted from the image and from those before it.
    other = batch()["text"].copy()
    other[:, 4:] = 3
    changed = model.apply({"params": params}, batch()["image"], other).words - logits
    assert not np.abs(changed[:, :4]).any() and np.abs(changed[:, 4:]).any()
    expected, _ = captioning(*token_costs(logits, batch()["text"][:, 1:]))
    np.testing.assert_allclose(metrics["captioning"], expected, rtol=1e-5)


def test_a_weight_that_does_not_fit_the_model_is_refused():
    for model, weight, message in (
        (FUSED | {"captions": True}, 1.0, r"captioning_weight=0\.0 with FusionEncoder"),
        (FUSED, 0.0, r"matching_weight=0\.0 with FusionEncoder of 0 answers"),
        (FUSED | {"answers": ANSWERS}, 1.0, r"matching_weight=1\.0 with FusionEncoder of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make_experiment(config_of(model, weight))
    with pytest.raises(ValueError, match=r"matching_weight=1\.0 with DualEncoder"):
        make_experiment(small_config(matching_weight=1.0))
    with pytest.raises(
        ValueError, match="matching_every=2 with DualEncoder: it is for models that"
    ):
        make_experiment(small_config(matching_every=2))
    tokenizer = train_bpe(["a"], 300)
    with pytest.raises(ValueError, match=r"multiple of 8 devices times matching_every=5; the n"):
        make_experiment(config_of(matching_every=5)).train_batches(tokenizer)


# Answers.


def asked(weights=None):
    rows = {name: value for name, value in batch().items() if name != "pair_ids"}
    scores = np.random.default_rng(1).integers(0, 4, (len(rows["text"]), 3)) / 3
    return (
        rows | {"answers": np.float32(scores)} | ({} if weights is None else {"weights": weights})
    )


@pytest.mark.parametrize("wiring", WIRINGS)
def test_answers_are_trained_alike_on_one_device_and_on_all(wiring):
    experiment = make_experiment(config_of(FUSED | {"answers": ANSWERS}, 0.0, **WIRINGS[wiring]))
    params = drawn(experiment.model, IMAGES, TOKENS)
    gradient = jax.jit(jax.value_and_grad(answered(experiment.model, answering), has_aux=True))
    (value, metrics), gradients = gradient(params, asked(), jax.random.key(0))
    like = experiment.abstract_state
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    state = jax.device_put(
        zeros._replace(params=params), jax.tree.map(lambda leaf: leaf.sharding, like)
    )
    _, found = experiment.step(state, experiment.put(asked()))
    np.testing.assert_allclose(found["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(found["answer_score"], metrics["answer_score"], rtol=1e-5)
    np.testing.assert_allclose(found["gradient_norm"], norm_of(gradients), rtol=1e-4)


def test_the_cost_of_answers_by_hand():
    """Cross-entropies of 0.5 at logits 0 and ln 3: ln 2, and -0.5 ln(3/4) - 0.5 ln(1/4)."""
    costs, scores = answer_costs(jnp.array([[0.0, np.log(3)]]), jnp.array([[0.5, 0.5]]))
    expected = np.log(2) - 0.5 * np.log(3 / 4) - 0.5 * np.log(1 / 4)
    np.testing.assert_allclose(costs, [expected], rtol=1e-6)
    np.testing.assert_array_equal(scores, [0.5])
    value, metrics = answering(
        jnp.array([2.0, 4.0, jnp.nan]), jnp.array([1.0, 0.0, 1.0]), weights=jnp.array([3.0, 1, 0])
    )
    assert (value, metrics["answer_score"]) == (2.5, 0.75)
    with pytest.raises(ValueError, match=r"logits \(1, 3\) and scores \(1, 2\) must both be"):
        answer_costs(jnp.zeros((1, 3)), jnp.zeros((1, 2)))
