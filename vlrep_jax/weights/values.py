"""The values of an open file, put into arrays of our tree a few rows at a time."""

import math
import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from vlrep_jax.weights.mapping import Entry, by_key
from vlrep_jax.weights.tensors import Tensors

_READ_BYTES = 16 * 2**20  # of a tensor at a time


def read_values(tensors: Tensors, entries: Iterable[Entry], leaves: Mapping) -> dict:
    """Our tree of float32, filled from one tensor of theirs after the other.

    Args:
      tensors: an open file.
      entries: of the whole model; they fit its tensors, see `mapping.compare`.
      leaves: path -> what has the shape of our parameter.

    Warns:
      UserWarning: values that are NaN or infinite.
    """
    filled = {path: _aligned(leaf.shape) for path, leaf in leaves.items()}
    grouped = by_key(entries)
    not_finite = [
        key
        for key, parts in grouped.items()
        if not _fill([entry.view(filled[entry.path]) for entry in parts], tensors[key])
    ]
    if not_finite:
        listing = ", ".join(not_finite[:10]) + (", ..." if len(not_finite) > 10 else "")
        found = f"{len(not_finite)} of {len(grouped)} tensors hold NaN or infinity"
        warnings.warn(f"{tensors.path}: {found}: {listing}.", stacklevel=4)
    tree: dict = {}
    for path in list(filled):
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = filled.pop(path)
    return tree


def _fill(views, tensor) -> bool:
    """Reads a tensor into arrays that have its rows in their order; whether all is finite."""
    finite = True
    with tensor.rows() as take:
        for view in map(np.atleast_1d, views):
            rows = max(1, _READ_BYTES // (math.prod(view.shape[1:]) * tensor.dtype.itemsize))
            for start in range(0, len(view), rows):
                part = view[start : start + rows]
                part[...] = take(len(part))
                # NaN is the least and the greatest of whatever it is in.
                finite &= bool(np.isfinite([part.min(), part.max()]).all())
    return finite


def _aligned(shape):
    """An empty float32 array that JAX can take over on CPU: it copies what is not aligned so."""
    size = 4 * int(np.prod(shape))
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)
