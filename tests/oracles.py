"""The losses again, slowly: NumPy in float64, one pair at a time, gradients derived by hand.

Every oracle is `oracle(image, text, scale, bias, pair_ids, weights) -> (value, gradients, metrics)`
on the global batch; gradients has the leaves image, text, scale and bias. Absent pairs are left
out first and get a gradient of 0, so nothing here is masked.
"""

import numpy as np


def softmax(image, text, scale, bias, pair_ids=None, weights=None):
    return _softmax(image, text, pair_ids, weights, scale, share=1 / 2)


def vild(image, text, scale, bias, pair_ids=None, weights=None):
    return _softmax(image, text, pair_ids, weights, scale, share=1 / 2)


def clip_article(image, text, scale, bias, pair_ids=None, weights=None):
    contrastive, a, metrics = _softmax(image, text, pair_ids, weights, scale, share=1 / 2)
    cross_entropy, b, _ = _softmax(image, text, pair_ids, weights, scale, share=1)
    metrics |= {"contrastive": contrastive, "cross_entropy": cross_entropy}
    return contrastive + cross_entropy, {leaf: a[leaf] + b[leaf] for leaf in a}, metrics


def sigmoid(image, text, scale, bias, pair_ids=None, weights=None):
    image, text, ids, weights, present = _present(image, text, pair_ids, weights)
    n = len(ids)
    similarity = image @ text.T
    value, by_logit = 0.0, np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            z = 1 if ids[i] == ids[j] else -1
            term = (weights[i] + weights[j]) / 2 / weights.sum()
            x = z * (scale * similarity[i, j] + bias)
            value += term * np.logaddexp(0, -x)  # -log sigmoid(x)
            by_logit[i, j] = -term * z * np.exp(-np.logaddexp(0, x))  # -term * z * sigmoid(-x)
    gradients = _to_leaves(by_logit, image, text, scale, present)
    return value, gradients | {"bias": by_logit.sum()}, _accuracies(similarity, ids, weights)


ORACLES = {
    "softmax": softmax,
    "softmax_ring": softmax,
    "softmax_matrix": softmax,
    "sigmoid": sigmoid,
    "sigmoid_ring": sigmoid,
    "sigmoid_matrix": sigmoid,
    "vild": vild,
    "clip_article": clip_article,
}


def _softmax(image, text, pair_ids, weights, scale, share):
    """`share` times the sum of both directions."""
    image, text, ids, weights, present = _present(image, text, pair_ids, weights)
    n = len(ids)
    similarity = image @ text.T
    value, by_logit = 0.0, np.zeros((n, n))
    for i in range(n):
        positive = [ids[j] == ids[i] for j in range(n)]
        target = np.array(positive) / sum(positive)
        weight = share * weights[i] / weights.sum()
        for logits, gradient in (
            (scale * similarity[i, :], by_logit[i, :]),  # image i over the texts
            (scale * similarity[:, i], by_logit[:, i]),  # text i over the images
        ):
            log_sum = logits.max() + np.log(np.exp(logits - logits.max()).sum())
            value += weight * (log_sum - target @ logits)
            gradient += weight * (np.exp(logits - log_sum) - target)
    gradients = _to_leaves(by_logit, image, text, scale, present)
    return value, gradients | {"bias": 0.0}, _accuracies(similarity, ids, weights)


def _present(image, text, pair_ids, weights):
    """Float64 copies of the rows whose weight is not 0, and which rows those are."""
    n = len(image)
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    ids = np.arange(n) if pair_ids is None else np.asarray(pair_ids)
    present = weights > 0
    image, text = (np.asarray(x, np.float64)[present] for x in (image, text))
    return image, text, ids[present], weights[present], present


def _to_leaves(by_logit, image, text, scale, present):
    """The chain rule through logit_ij = scale * <image_i, text_j>."""
    image_gradient = np.zeros((len(present), image.shape[1]))
    text_gradient = np.zeros_like(image_gradient)
    image_gradient[present] = scale * by_logit @ text
    text_gradient[present] = scale * by_logit.T @ image
    scale_gradient = (by_logit * (image @ text.T)).sum()
    return {"image": image_gradient, "text": text_gradient, "scale": scale_gradient}


def _accuracies(similarity, ids, weights):
    """A hit is a positive above every negative."""
    positive = ids[:, None] == ids[None, :]
    best = np.where(positive, similarity, -np.inf)
    rival = np.where(positive, -np.inf, similarity)
    to_text = best.max(axis=1) > rival.max(axis=1)
    to_image = best.max(axis=0) > rival.max(axis=0)
    return {
        "image_to_text_accuracy": weights @ to_text / weights.sum(),
        "text_to_image_accuracy": weights @ to_image / weights.sum(),
    }
