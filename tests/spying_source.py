"""A source whose samples are bad where its process has loaded what a worker should not.

It stands alone: a worker imports the module of its source, and test files import Grain.
"""

import os
import sys

from emoji_data import ListSource


class Spy(ListSource):
    """The problem of every sample names the heavy modules that are loaded."""

    def __getitems__(self, indices):
        heavy = {"jax", "jaxlib", "grain", "tensorflow", "torch"} & set(sys.modules)
        if os.environ["JAX_PLATFORMS"] != "cpu":
            heavy.add("an accelerator")
        problem = ",".join(sorted(heavy))
        return [s._replace(problem=problem) for s in super().__getitems__(indices)]


def spying_caption(sample, rng, *, program):
    """A random caption; an error in a process other than `program` that loaded too much."""
    heavy = {"jax", "jaxlib", "grain", "tensorflow", "torch"} & set(sys.modules)
    if heavy and os.getpid() != program:
        raise RuntimeError(f"The worker has loaded {sorted(heavy)}.")
    return sample.captions[rng.integers(len(sample.captions))]
