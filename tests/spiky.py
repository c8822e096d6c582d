"""A loss with spikes where a test wants them: 30 more for a batch whose rows weigh 2, not 1."""

import numpy as np

from vlrep_jax.collectives import global_mean
from vlrep_jax.losses import softmax

HEIGHT = 30.0
# Its threshold is far above what a run of a few steps does by itself, and far below the spikes.
SPIKES = {"loss.name": "spiky", "spikes.window": 8, "spikes.threshold": 20.0}


def spiky(image, text, scale, bias, *, axis_name=None, pair_ids=None, weights=None, chunk=None):
    """`softmax`, whose value equal weights do not change, and the spikes."""
    options = {"axis_name": axis_name, "pair_ids": pair_ids, "weights": weights, "chunk": chunk}
    value, metrics = softmax(image, text, scale, bias, **options)
    return value + HEIGHT * (global_mean(weights.mean(), axis_name) - 1), metrics


def weighed(next_batch, is_wrong):
    """`Batches.__next__` that gives the rows of batch n the weight 2 where is_wrong(n)."""

    def of(batches):
        number, batch = batches.state()["next_batch"], next_batch(batches)
        weight = 2 if is_wrong(number) else 1
        return batch | {"weights": np.full(len(batch["text"]), weight, np.float32)}

    return of
