"""Matching: its pairs are drawn as the similarities say, and its value and gradient, per leaf, are
those of a float64 oracle however the batch is split.
"""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wirings
from test_losses import BATCH, PAIR_IDS, WEIGHTS, embeddings

from vlrep_jax.losses import draw_negatives, matching

KEY = 7
SCALE = 5.0
ONES, OWN = np.ones(BATCH, np.float32), np.arange(BATCH, dtype=np.int32)
# Everything is a pair of its own but for one other: most of its draws have a single candidate.
FEW = np.where(np.arange(BATCH) < 15, 0, 1).astype(np.int32)
OPTIONS = {
    "plain": (OWN, ONES),
    "ids": (PAIR_IDS, ONES),
    "weights": (OWN, WEIGHTS),
    "both": (PAIR_IDS, WEIGHTS),
    "few": (FEW, WEIGHTS),
    "no_negative": (np.zeros(BATCH, np.int32), ONES),
}
MATRIX = np.float32(np.random.default_rng(3).normal(size=(8, 8)))


def combined(image, text, scale, matrix, *, axis_name=None, pair_ids=None, weights=None):
    """Draws, a judge that is a bilinear form of the tokens, and the loss."""
    options = {"axis_name": axis_name, "weights": weights}
    other_text, other_image, is_drawn = draw_negatives(
        image, text, scale, jax.random.key(KEY), pair_ids=pair_ids, **options
    )
    # Tokens are any tree.
    image, text, other_image, other_text = (
        side["rows"] for side in (image[1], text[1], other_image, other_text)
    )
    pairs = ((image, text), (image, other_text), (other_image, text))
    logits = [jnp.einsum("bi,ij,bj->b", one, matrix, other) for one, other in pairs]
    return matching(jnp.stack(logits, axis=1), is_drawn, **options)


def objective(loss, params, batch):
    image, text = batch["row"] @ params["image"], batch["row"] @ params["text"]
    return loss(
        (image, {"rows": image}),
        (text, {"rows": text}),
        params["scale"],
        params["matrix"],
        pair_ids=batch["pair_ids"],
        weights=batch["weights"],
    )


@cache
def gradient_fn(wiring, shards):
    return wirings.WIRINGS[wiring](objective, combined, shards)


def params_of():
    image, text = embeddings()
    return {"image": image, "text": text, "scale": np.float32(SCALE), "matrix": MATRIX}


def drawn_by_hand(ids, weights):
    """[(row, candidate)] of texts for images, and of images for texts."""
    image, text = (x.astype(np.float64) for x in embeddings())
    found = []
    for side, similarity in enumerate((image @ text.T, text @ image.T)):
        pairs, key = [], jax.random.fold_in(jax.random.key(KEY), side)
        for i in range(BATCH):
            allowed = [j for j in range(BATCH) if ids[i] != ids[j] and weights[i] * weights[j] > 0]
            noise = np.float64(jax.random.gumbel(jax.random.fold_in(key, i), (BATCH,)))
            if allowed:
                scores = {j: SCALE * similarity[i, j] + noise[j] for j in allowed}
                pairs.append((i, max(scores, key=scores.get)))
        found.append(pairs)
    return found


@cache
def oracle(name):
    """(value, gradients, share of right judgements), one judgement after the other."""
    ids, weights = OPTIONS[name]
    image, text = (x.astype(np.float64) for x in embeddings())
    matrix = MATRIX.astype(np.float64)
    texts_drawn, images_drawn = drawn_by_hand(ids, weights)
    judged = [(i, i, i, 1) for i in range(BATCH)]
    judged += [(i, i, j, -1) for i, j in texts_drawn] + [(i, j, i, -1) for i, j in images_drawn]
    total = sum(np.float64(weights[i]) for i, *_ in judged)
    value = hits = 0.0
    gradients = {name: np.zeros(np.shape(x)) for name, x in params_of().items()}
    for row, i, j, sign in judged:
        weight = np.float64(weights[row]) / total
        margin = sign * (image[i] @ matrix @ text[j])
        value += weight * np.logaddexp(0, -margin)
        hits += weight * (margin > 0)
        by_logit = -weight * sign / (1 + np.exp(margin))
        gradients["image"][i] += by_logit * matrix @ text[j]
        gradients["text"][j] += by_logit * image[i] @ matrix
        gradients["matrix"] += by_logit * np.outer(image[i], text[j])
    return value, gradients, hits


CASES = [("whole", 1), *product(wirings.MAPPED, (1, 2, 4, 8))]


@pytest.mark.parametrize(("wiring", "shards"), CASES)
def test_value_and_gradient_are_the_oracles_however_rows_are_split(wiring, shards):
    for name, (ids, weights) in OPTIONS.items():
        batch = {"row": np.eye(BATCH, dtype=np.float32), "pair_ids": ids, "weights": weights}
        (value, metrics), gradients = gradient_fn(wiring, shards)(params_of(), batch)
        want, want_gradients, hits = oracle(name)
        np.testing.assert_allclose(value, want, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(metrics["matching"], want, rtol=1e-6)
        np.testing.assert_allclose(metrics["matching_accuracy"], hits, rtol=1e-6)
        for leaf, wanted in want_gradients.items():  # that of the scale is 0
            atol = 5e-6 * np.abs(wanted).max()
            np.testing.assert_allclose(
                gradients[leaf], wanted, rtol=0, atol=atol, err_msg=f"{name} {leaf}"
            )


@pytest.mark.parametrize("name", OPTIONS)
def test_no_pair_and_no_absent_row_is_ever_drawn(name):
    ids, weights = OPTIONS[name]
    image, text = embeddings()

    @jax.jit
    def draw(key):
        sides = ((image, OWN), (text, OWN))
        return draw_negatives(*sides, SCALE, key, pair_ids=ids, weights=weights)

    seen = set()
    for seed in range(20):
        texts, images, is_drawn = jax.device_get(draw(jax.random.key(seed)))
        for side, candidates in enumerate((texts, images)):
            for i in np.flatnonzero(is_drawn[:, side]):
                assert ids[i] != ids[candidates[i]] and weights[i] > 0 < weights[candidates[i]]
                seen.add((side, i, candidates[i]))
            expected = [
                weights[i] > 0 and any(ids[i] != ids[j] and weights[j] > 0 for j in range(BATCH))
                for i in range(BATCH)
            ]
            np.testing.assert_array_equal(is_drawn[:, side], expected)
    assert len(seen) > 40 or name in ("few", "no_negative")


def test_draws_follow_the_softmax_of_the_similarities():
    image, text = embeddings(rows=4)
    draw = jax.jit(
        lambda keys: jax.vmap(
            lambda k: draw_negatives((image, 0 * OWN[:4]), (text, OWN[:4]), 3.0, k)
        )(keys)
    )
    texts, _, _ = draw(jax.random.split(jax.random.key(0), 4000))
    for i in range(4):
        odds = np.where(np.arange(4) == i, 0, np.exp(3 * (image[i] @ text.T)))
        shares = np.bincount(np.asarray(texts[:, i]), minlength=4) / 4000
        # Three standard deviations of a share of 4000 draws are at most 0.024.
        np.testing.assert_allclose(shares, odds / odds.sum(), atol=0.024)


@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_what_is_drawn_for_some_rows_is_what_is_drawn_for_them_among_all(every, shards):
    image, text = embeddings()

    def draw(batch, every):
        sides = ((batch[0], batch[2]), (batch[1], batch[2]))
        options = {"axis_name": "data", "pair_ids": batch[3], "weights": batch[4]}
        return draw_negatives(*sides, SCALE, jax.random.key(KEY), every=every, **options)

    batch = jax.tree.map(
        lambda x: x.reshape(shards, -1, *x.shape[1:]), (image, text, OWN, PAIR_IDS, WEIGHTS)
    )
    whole, some = (
        jax.jit(jax.vmap(partial(draw, every=n), axis_name="data"))(batch) for n in (1, every)
    )
    assert some[2].shape == (shards, BATCH // shards // every, 2)
    for all_rows, rows in zip(whole, some, strict=True):
        np.testing.assert_array_equal(all_rows[:, ::every], rows)


def test_equal_logits_cost_the_log_of_two_and_nothing_is_right():
    value, metrics = matching(jnp.zeros((5, 3)), jnp.ones((5, 2), bool))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert metrics["matching_accuracy"] == 0


def test_a_row_of_weight_0_may_hold_anything_and_no_row_costs_nothing():
    logits = jnp.array([[jnp.nan] * 3, [1.0, -1.0, 2.0]])
    is_drawn = jnp.ones((2, 2), bool)

    def total(logits, weights):
        return matching(logits, is_drawn, weights=weights)[0]

    value, gradient = jax.value_and_grad(total)(logits, jnp.array([0.0, 1.0]))
    softplus = np.logaddexp(0, [-1, -1, 2])
    np.testing.assert_allclose(value, softplus.mean(), rtol=1e-6)
    assert not gradient[0].any() and np.isfinite(gradient).all()
    assert total(logits, jnp.zeros(2)) == 0


def test_judgements_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits \(4, 2\) and is_drawn \(4, 2\) must be \[b, 3\]"):
        matching(jnp.zeros((4, 2)), jnp.ones((4, 2), bool))
