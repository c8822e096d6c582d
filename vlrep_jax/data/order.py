"""In which order training sees a source's samples: endless, and a function of the seed alone."""

import grain
import numpy as np


def order(source, seed):
    """The endless global order of a source's samples.

    Args:
        source: an entry of SOURCES; one that has a method `order(seed)` is asked for its own.
        seed: int.

    Returns:
        grain.MapDataset of sample numbers, whose element p is found without those before it.
    """
    own = getattr(source, "order", None)
    return uniform(len(source), seed) if own is None else own(seed)


def uniform(size, seed):
    """Every number below `size` once an epoch, in an order of the epoch's own."""
    return grain.MapDataset.range(size).shuffle(seed=grain_seed(seed)).repeat()


def grain_seed(seed):
    """32 bits of any seed: what Grain takes."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
