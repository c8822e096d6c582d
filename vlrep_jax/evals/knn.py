"""k-nearest-neighbour classification by embeddings."""

import numpy as np

from vlrep_jax.evals.retrieval import top_k

TEMPERATURE = 0.07  # DINO's


def knn(train, train_labels, image, *, k, n_classes, temperature=TEMPERATURE, chunk=1024):
    """The classes of each image, by weighted votes as in DINO (arXiv:2104.14294, section 4.1).

    Each of an image's k nearest training images votes for its own class with exp(cosine /
    temperature). Classes of equal votes keep their order.

    Args:
      train: float32[m, d], L2-normalised.
      train_labels: int[m] from 0 to n_classes - 1.
      image: float32[n, d], L2-normalised.
      k: neighbours; all m where there are fewer.
      chunk: as in `retrieval.retrieval`.

    Returns:
      int32[n, 5], the five best classes, best first; all of them where there are fewer.

    Raises:
      ValueError: as `retrieval.top_k`, or labels do not fit.
    """
    train_labels = np.asarray(train_labels, np.int64)
    if train_labels.shape != (len(train),):
        raise ValueError(
            f"train_labels has shape {list(train_labels.shape)} for {len(train)} training images."
        )
    if train_labels.min() < 0 or train_labels.max() >= n_classes:
        raise ValueError(
            f"train_labels holds {train_labels.min()} to {train_labels.max()}; there are "
            f"{n_classes} classes."
        )
    neighbours, similarity = top_k(image, train, k, chunk)
    # Votes relative to the nearest: exp(1 / temperature) overflows at small temperatures.
    vote = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(neighbours), n_classes))
    np.add.at(votes, (np.arange(len(votes))[:, None], train_labels[neighbours]), vote)
    return np.argsort(-votes, axis=1, kind="stable")[:, :5].astype(np.int32)
