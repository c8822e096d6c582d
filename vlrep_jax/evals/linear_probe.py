"""Logistic regression on frozen embeddings, its strength of regularisation found as CLIP's was."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

MAX_ITERATIONS = 1000
# 96 steps of an eighth of a decade. scikit-learn's C is 1 over the strength, so the range is the
# same read either way.
GRID = 10.0 ** (np.arange(97) / 8 - 6)
_SMALL = 2**28  # multiplications of one step of L-BFGS
_FIRST_STEP = 16  # two decades: seven values from 1e-6 to 1e6


class Probe(NamedTuple):
    """A linear classifier.

    Attributes:
      weights, bias: float64[c, d] and float64[c] of the c classes that it was trained on.
      classes: int64[c], ascending.
      iterations: that L-BFGS took.
    """

    weights: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    iterations: int

    def logits(self, image):
        """float64[n, c] of float[n, d]."""
        return np.asarray(image, np.float64) @ self.weights.T + self.bias

    def predict(self, image):
        """The five best classes of each image, best first: int32[n, 5]; all of fewer."""
        order = np.argsort(-self.logits(image), axis=1, kind="stable")[:, :5]
        return self.classes[order].astype(np.int32)


class Found(NamedTuple):
    """A `Probe`, the C it was fitted with, and the accuracy on the validation images of each C."""

    probe: Probe
    c: float
    tried: dict[float, float]


def fit(image, labels, c, *, max_iterations=MAX_ITERATIONS):
    """Multinomial logistic regression by scikit-learn's L-BFGS, in float64.

    Minimises |weights|^2 / 2 + C * (sum over images of the cross-entropy). What has not converged
    after max_iterations is taken as it is, as in the paper; `Probe.iterations` shows it.

    Args:
      image: float[n, d].
      labels: int[n].
      c: inverse strength of regularisation.

    Raises:
      ValueError: fewer than two classes, or shapes do not fit.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    image, labels = np.asarray(image, np.float64), np.asarray(labels, np.int64)
    if image.ndim != 2 or labels.shape != (len(image),):
        raise ValueError(
            f"image has shape {list(image.shape)} and labels {list(labels.shape)}; expected [n, d] "
            "and [n]."
        )
    if len(np.unique(labels)) < 2:
        raise ValueError("a linear probe needs training images of two classes at least.")
    # Of small products BLAS's threads mostly wait for each other: where other processes want the
    # cores too, a fit of 2,880 x 128 to 9 classes took 18 s with two threads and 1.3 s with one.
    small = image.size * len(np.unique(labels)) < _SMALL
    with warnings.catch_warnings(), threadpool_limits(1) if small else nullcontext():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=c, max_iter=max_iterations).fit(image, labels)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn holds the logit of the second alone
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weights, bias, model.classes_, int(model.n_iter_.max()))


def search(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The value of GRID with the best score, from coarse to fine (arXiv:2103.00020, appendix A.3).

    Seven values two decades apart are scored first, then those half a step to either side of the
    best, until the step is an eighth of a decade. The smaller of equally good values is taken.

    Returns:
      It, and {value: score} of all that were scored.
    """
    known = {i: score(float(GRID[i])) for i in range(0, len(GRID), _FIRST_STEP)}
    step = _FIRST_STEP
    while step > 1:
        best, step = _best(known), step // 2
        for i in (best - step, best + step):
            if 0 <= i < len(GRID) and i not in known:
                known[i] = score(float(GRID[i]))
    return float(GRID[_best(known)]), {float(GRID[i]): known[i] for i in sorted(known)}


def linear_probe(train, train_labels, val, val_labels, *, refit=True):
    """A probe whose C is the best of a sweep on validation images.

    Args:
      train, val: float32[n, d] and float32[m, d].
      train_labels, val_labels: int[n] and int[m].
      refit: train the final probe on both, as CLIP does; else on `train` alone.

    Raises:
      ValueError: no image to validate on, or as `fit`.
    """
    val_labels = np.asarray(val_labels)
    if not len(val_labels):
        raise ValueError("a linear probe needs an image at least to validate on.")

    def score(c):
        return float((fit(train, train_labels, c).predict(val)[:, 0] == val_labels).mean())

    c, tried = search(score)
    if refit:
        train = np.concatenate([train, val])
        train_labels = np.concatenate([train_labels, val_labels])
    return Found(fit(train, train_labels, c), c, tried)


def hold_out(labels, share, seed=0):
    """Which images to hold out for validation: bool[n], about a share of each class.

    A class of two images or more gives at least one and keeps at least one; one of one keeps it.
    """
    labels, held = np.asarray(labels), np.zeros(len(labels), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        held[own[: min(max(round(share * len(own)), 1), len(own) - 1)]] = True
    return held


def draw_shots(labels, shots, seed):
    """The numbers of `shots` images of each class, drawn at random: int64[c * shots].

    A class with fewer gives all that it has.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == one))[:shots] for one in np.unique(labels)]
    return np.concatenate(drawn)


def few_shot(train, train_labels, val, val_labels, shots, seed):
    """A probe trained on `shots` images a class, its C found on min(shots, 4) others a class.

    The protocol of CoOp (arXiv:2109.01134) for CLIP's few-shot probes: as many validation images as
    a user with so few examples might have, and no training on them.

    Args:
      train, train_labels, val, val_labels: as of `linear_probe`, to draw from.
      seed: of the draw.
    """
    own = draw_shots(train_labels, shots, seed)
    checked = draw_shots(val_labels, min(shots, 4), seed)
    return linear_probe(
        train[own], train_labels[own], val[checked], val_labels[checked], refit=False
    )


def _best(known):
    return max(sorted(known), key=known.get)
