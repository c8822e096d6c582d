"""Whether a classifier is as often right as it says: expected calibration error."""

from typing import NamedTuple

import numpy as np

BINS = 15


class Reliability(NamedTuple):
    """What lies in each of b equal-width bins of confidence, (0, 1/b] to ((b-1)/b, 1].

    Attributes:
      count: int64[b], predictions.
      confidence, accuracy: float64[b], their means; NaN in a bin without predictions.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(confidence, right, bins=BINS):
    """Sorts predictions by their confidence.

    Args:
      confidence: float[n] in [0, 1], the probability of the class that was chosen; 0 counts to the
        first bin.
      right: bool[n], whether it was the right one.
      bins: how many.

    Raises:
      ValueError: there is no prediction, or a confidence is no probability.
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if confidence.ndim != 1 or confidence.shape != right.shape or not len(right):
        raise ValueError(
            f"confidence has shape {list(confidence.shape)} and right {list(right.shape)}; "
            "expected [n] of both, n > 0."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError(
            f"confidence holds {confidence.min()} to {confidence.max()}; expected 0 to 1."
        )
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.searchsorted(inner, confidence, side="left")  # an edge belongs to the bin below
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=x, minlength=bins) for x in (confidence, right)]
    means = [np.where(count, total / np.maximum(count, 1), np.nan) for total in sums]
    return Reliability(count, *means)


def expected_calibration_error(confidence, right, bins=BINS):
    """Mean over predictions of |accuracy - confidence| of their bin (arXiv:1706.04599, eq. 3).

    Args, Raises: as `reliability`.

    >>> expected_calibration_error([0.9, 0.9], [True, False])  # right half of the time
    0.4
    """
    found = reliability(confidence, right, bins)
    gap = np.nan_to_num(np.abs(found.accuracy - found.confidence))
    return float((found.count * gap).sum() / found.count.sum())
