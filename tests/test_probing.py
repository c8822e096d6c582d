"""Calibration, k-NN and linear probes: by hand, by brute force, and by what defines them."""

import numpy as np
import pytest

from vlrep_jax.evals.calibration import expected_calibration_error, reliability
from vlrep_jax.evals.knn import knn
from vlrep_jax.evals.linear_probe import (
    GRID,
    draw_shots,
    few_shot,
    fit,
    hold_out,
    linear_probe,
    search,
)
from vlrep_jax.evals.zero_shot import accuracy, class_embeddings, confidence


def unit(rng, n, d):
    x = rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clusters(rng, n, classes=3, d=8, spread=0.6):
    labels = rng.integers(0, classes, n)
    x = np.eye(d)[labels] + spread * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def test_ece_hand_worked():
    """Two bins: (0.2, 0.4) right once of 2, off by 0.2; (0.9, 0.7, 1.0) all right, off by 2/15."""
    sure, right = [0.2, 0.4, 0.9, 0.7, 1.0], [True, False, True, True, True]
    expected = 2 / 5 * 0.2 + 3 / 5 * (1 - 2.6 / 3)
    assert expected_calibration_error(sure, right, bins=2) == pytest.approx(expected, rel=1e-12)


def test_ece_is_zero_where_the_share_that_is_right_is_what_was_said():
    sure = np.repeat([0.25, 0.75], 4)
    assert expected_calibration_error(sure, [1, 0, 0, 0, 1, 1, 1, 0]) == 0
    assert expected_calibration_error(sure, [0, 0, 0, 0, 1, 1, 1, 1]) == 0.25


def test_an_edge_belongs_to_the_bin_below():
    found = reliability([0.0, 0.2, 0.21, 0.4, 1.0], [True] * 5, bins=5)
    assert found.count.tolist() == [2, 2, 0, 0, 1]
    np.testing.assert_allclose(found.confidence, [0.1, 0.305, np.nan, np.nan, 1.0])
    assert reliability([0.5], [True]).count.size == 15


@pytest.mark.parametrize(("sure", "right"), [([], []), ([0.5], [1, 0]), ([1.1], [1])])
def test_ece_refuses_what_are_no_probabilities(sure, right):
    with pytest.raises(ValueError, match="expected"):
        expected_calibration_error(sure, right)


def test_confidence_is_the_largest_probability():
    image, text = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2]
    likely = np.exp(5) / (np.exp(5) + 1)
    found = confidence(image, text, 5.0, chunk=2)
    np.testing.assert_allclose(found, [likely, likely, 0.5], rtol=1e-6)  # float32


def test_several_names_of_a_class_count_as_prompts():
    table = {"a cat": [3, 0], "a kitty": [0, 1], "a dog": [0, -2]}
    encode = lambda texts: np.array([table[text] for text in texts])  # noqa: E731
    got = class_embeddings(encode, [("cat", "kitty"), "dog"], ["a {}"])
    np.testing.assert_allclose(got, [[0.5**0.5, 0.5**0.5], [0, -1]], rtol=1e-6)
    with pytest.raises(ValueError, match="no name"):
        class_embeddings(encode, ["dog", ()], ["a {}"])


def test_mean_per_class_weighs_rare_classes_as_common_ones():
    """90 of class 0 all right, 10 of class 1 all wrong."""
    labels, predictions = np.repeat([0, 1], [90, 10]), np.zeros((100, 2), int)
    assert accuracy(predictions, labels, 2) == {"top1": 0.9, "mean_per_class": 0.5}


def test_knn_is_the_weighted_vote_of_brute_force():
    rng = np.random.default_rng(0)
    train, image = unit(rng, 40, 5), unit(rng, 30, 5)
    labels, k, classes = rng.integers(0, 7, 40), 6, 7
    got = knn(train, labels, image, k=k, n_classes=classes)
    cosine = image.astype(np.float64) @ train.astype(np.float64).T
    for row, found in zip(cosine, got, strict=True):
        votes = np.zeros(classes)
        for i in np.argsort(-row)[:k]:
            votes[labels[i]] += np.exp(row[i] / 0.07)
        assert found[0] == votes.argmax()
        voted = min(5, np.count_nonzero(votes))
        assert found[:voted].tolist() == np.argsort(-votes)[:voted].tolist()
    assert got.shape == (30, 5)
    # Not what the plain majority says, somewhere.
    plain = [np.bincount(labels[np.argsort(-row)[:k]], minlength=7).argmax() for row in cosine]
    assert (got[:, 0] != plain).any()


def test_knn_with_more_neighbours_than_pictures_and_few_classes():
    train = np.eye(3, dtype=np.float32)
    got = knn(train, [0, 1, 1], train, k=20, n_classes=2, temperature=1e-3)
    assert got.tolist() == [[0, 1], [1, 0], [1, 0]]
    with pytest.raises(ValueError, match="2 classes"):
        knn(train, [0, 1, 2], train, k=1, n_classes=2)


def loss_gradient(probe, image, labels, c):
    """Of |weights|^2 / 2 + c * cross-entropy, over the weights and the bias."""
    logits = probe.logits(image)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    error = powers / powers.sum(1, keepdims=True) - np.eye(len(probe.classes))[labels]
    return probe.weights + c * error.T @ image.astype(np.float64), c * error.sum(0)


@pytest.mark.parametrize("c", [0.1, 3.0])
def test_a_fit_is_where_the_gradient_vanishes(c):
    image, labels = clusters(np.random.default_rng(1), 120)
    probe = fit(image, labels, c)
    start = type(probe)(np.zeros_like(probe.weights), np.zeros(3), probe.classes, 0)
    for found, began in zip(
        loss_gradient(probe, image, labels, c), loss_gradient(start, image, labels, c), strict=True
    ):
        # L-BFGS stops at 1e-4 of the mean over images.
        assert np.abs(found).max() < 2e-4 * c * len(image)
        assert np.abs(began).max() > 10 * np.abs(found).max()


def test_two_classes_are_scikit_learns_own_probabilities():
    from sklearn.linear_model import LogisticRegression

    image, labels = clusters(np.random.default_rng(2), 60, classes=2)
    probe = fit(image, labels + 4, 2.0)  # classes 4 and 5
    model = LogisticRegression(C=2.0, max_iter=1000).fit(image.astype(np.float64), labels)
    powers = np.exp(probe.logits(image))
    found = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(found, model.predict_proba(image.astype(np.float64)), rtol=1e-6)
    assert set(probe.predict(image)[:, 0]) == {4, 5} and probe.predict(image).shape == (60, 2)


def test_a_probe_needs_two_classes():
    with pytest.raises(ValueError, match="two classes"):
        fit(np.eye(3), [1, 1, 1], 1.0)


def test_the_sweep_is_96_steps_and_finds_a_peak_in_15():
    assert len(GRID) == 97 and GRID[0] == 1e-6 and GRID[-1] == pytest.approx(1e6)
    for peak in (0, 3, 37, 41, 96):
        best, tried = search(lambda c, peak=peak: -abs(np.log10(c) - (peak / 8 - 6)))
        assert best == GRID[peak] and len(tried) <= 15
    assert search(lambda c: 1.0)[0] == GRID[0]


def test_a_probe_takes_the_best_of_validation_and_refits_on_both():
    rng = np.random.default_rng(3)
    (train, train_labels), (val, val_labels) = clusters(rng, 60), clusters(rng, 40)
    found = linear_probe(train, train_labels, val, val_labels)
    assert found.tried[found.c] == max(found.tried.values())
    both = np.concatenate([train, val]), np.concatenate([train_labels, val_labels])
    again = fit(*both, found.c)
    np.testing.assert_array_equal(found.probe.weights, again.weights)
    own = linear_probe(train, train_labels, val, val_labels, refit=False)
    np.testing.assert_array_equal(own.probe.weights, fit(train, train_labels, found.c).weights)


def test_held_out_pictures_are_a_share_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held = hold_out(labels, 0.2)
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 2, 1, 0]
    np.testing.assert_array_equal(held, hold_out(labels, 0.2))


def test_shots_are_so_many_of_each_class_and_another_draw_for_another_seed():
    labels = np.repeat([0, 1, 2], [9, 9, 3])
    drawn = draw_shots(labels, 4, seed=0)
    assert np.bincount(labels[drawn]).tolist() == [4, 4, 3] and len(set(drawn)) == 11
    assert set(drawn) != set(draw_shots(labels, 4, seed=1))


def test_more_shots_are_better_than_one():
    rng = np.random.default_rng(4)
    train, val, test = (clusters(rng, n, spread=0.4) for n in (150, 60, 200))
    top1 = []
    for shots in (1, 16):
        runs = [few_shot(*train, *val, shots, seed).probe.predict(test[0]) for seed in range(3)]
        top1.append(np.mean([accuracy(one, test[1], 3)["top1"] for one in runs]))
    assert top1[1] > top1[0] + 0.02 and top1[1] > 0.8
